"""The smallest prior of any cameras, with random weights: for laws that hold whatever a network has
learnt."""

from __future__ import annotations

import torch
from small_prior import CHANNELS, CONFIG

from d2.nn.camera_unet import CameraUNetConfig
from d2.priors.camera_prior import CameraPrior, CameraPriorConfig

UNET = CameraUNetConfig(
    in_channels=CHANNELS + 7,
    out_channels=CHANNELS,
    model_channels=32,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_resolutions=(1,),
    num_head_channels=16,
    context_dim=6,
    transformer_depth=(1,),
    joint=("output_ds1",),
)


def small_camera_prior(seed: int = 0, *, levels: str = "table") -> CameraPrior:
    """No weight is zero, so that every branch matters."""
    generator = torch.Generator().manual_seed(seed)
    prior = CameraPrior(CameraPriorConfig(UNET, CONFIG.tower, levels))  # type: ignore[arg-type]
    for p in prior.parameters():
        scale = p[0].numel() ** -0.5 if p.ndim > 1 else 0.3
        p.data = torch.randn(p.shape, generator=generator) * scale
    return prior.eval().requires_grad_(False)

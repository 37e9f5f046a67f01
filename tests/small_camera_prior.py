"""The smallest prior of any cameras, with random weights: for laws that hold whatever a network has
learnt."""

from __future__ import annotations

from small_prior import CHANNELS, CONFIG, randomize

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
    prior = CameraPrior(CameraPriorConfig(UNET, CONFIG.tower, levels))  # type: ignore[arg-type]
    randomize(prior, seed)
    return prior.eval().requires_grad_(False)

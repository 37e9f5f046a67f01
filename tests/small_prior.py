"""The smallest prior of the published class, with random weights: for laws that hold whatever a
network has learnt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2.nn.clip import ImageTowerConfig
from d2.nn.video_unet import VideoUNetConfig
from d2.priors.prior import Condition, Prior, PriorConfig

CHANNELS, SIZE = 2, 4  # of the latents
CONFIG = PriorConfig(
    unet=VideoUNetConfig(
        in_channels=2 * CHANNELS,
        out_channels=CHANNELS,
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(1,),
        num_head_channels=16,
        context_dim=6,
        adm_in_channels=8,
    ),
    tower=ImageTowerConfig(
        layers=1, width=8, head_width=8, patch_size=4, image_size=8, mlp_ratio=1.0, embed_dim=6
    ),
    encoder=None,
    scalars=(("cond_aug", 8),),
)


def small_prior(seed: int = 0) -> Prior:
    """No weight is zero, so that every branch matters."""
    prior = Prior(CONFIG)
    randomize(prior, seed)
    return prior.eval().requires_grad_(False)


def randomize(network: nn.Module, seed: int) -> None:
    """Give every parameter random values, in their order."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        scale = p[0].numel() ** -0.5 if p.ndim > 1 else 0.3
        p.data = torch.randn(p.shape, generator=generator) * scale


def random_condition(sequences: int, length: int, seed: int = 0) -> Condition:
    """Another condition for every element."""

    def random(*shape: int) -> Tensor:
        return torch.randn(sequences, length, *shape, generator=generator)

    generator = torch.Generator().manual_seed(seed)
    return Condition(random(1, 6), random(CHANNELS, SIZE, SIZE), random(8))

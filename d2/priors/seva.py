"""Stable Virtual Camera, a published multi-view prior of any cameras (Zhou et al. 2025): sizes, checkpoints."""

from __future__ import annotations

from d2.nn.camera_unet import CameraUNetConfig
from d2.priors.camera_prior import CameraPriorConfig
from d2.priors.svd import VIT_H_14

UNET = CameraUNetConfig(
    in_channels=11,
    out_channels=4,
    model_channels=320,
    channel_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    attention_resolutions=(4, 2, 1),
    num_head_channels=64,
    context_dim=1024,
    transformer_depth=(1, 1, 1, 1),
    joint=("middle_ds8", "output_ds4", "output_ds2"),
)

SEVA = CameraPriorConfig(unet=UNET, tower=VIT_H_14, levels="table")

NUM_CELLS = 21  # of a forward, as the network was trained

"""Stable Virtual Camera, a published multi-view prior of any cameras (Zhou et al. 2025): sizes,
checkpoints."""

from __future__ import annotations

from dataclasses import replace

from d2.nn.camera_unet import CameraUNetConfig
from d2.priors.camera_prior import CameraPriorConfig
from d2.priors.first_stage import FirstStageConfig
from d2.priors.published import Published
from d2.priors.svd import CONDITIONING_ENCODER, SCALE_FACTOR, VIT_H_14

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

# SVD's file holds the autoencoder of Stable Diffusion 2.1 whole, as that of its conditions. SVD's
# first stage has the same encoder, so both priors share its latents; it differs in the decoder,
# which is temporal. This is the other one.
FIRST_STAGE = FirstStageConfig(replace(CONDITIONING_ENCODER, has_encoder=False))

PUBLISHED_SEVA = Published(
    name="seva",
    kind="multiview",
    prior=SEVA,
    first_stage=FIRST_STAGE,
    scale_factor=SCALE_FACTOR,
    embedder=None,
    length=21,
    any_length=True,
    cond_aug=0.0,
    repository="stabilityai/stable-virtual-camera",
    file_there="modelv1.1.safetensors",
    bytes=5_055_872_016,
    licence="Stability AI Non-Commercial License; accept it at the repository",
)

PUBLISHED_SEVA_1_0 = replace(PUBLISHED_SEVA, name="seva_1_0", file_there="model.safetensors")

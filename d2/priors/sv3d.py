"""SV3D, the published multi-view prior (Voleti et al. 2024): SVD's networks but for the vector, and
checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from d2.priors.first_stage import FirstStageConfig
from d2.priors.published import Published
from d2.priors.svd import CONDITIONING_ENCODER, LICENCE, SCALE_FACTOR, SVD_XT, UNET

# a decoder of single images
FIRST_STAGE = replace(CONDITIONING_ENCODER, quant_conv=False, has_encoder=False)

SV3D_P = replace(
    SVD_XT,
    unet=replace(UNET, adm_in_channels=1280),
    scalars=(("cond_aug", 256), ("polars_rad", 512), ("azimuths_rad", 512)),
)

SV3D_U = replace(SVD_XT, unet=replace(UNET, adm_in_channels=256), scalars=(("cond_aug", 256),))

# sense of rotation, +1 as ours; unverified until real weights are at hand
AZIMUTH_SIGN: Literal[1, -1] = 1

PUBLISHED_SV3D_P = Published(
    name="sv3d_p",
    kind="multiview",
    prior=SV3D_P,
    first_stage=FirstStageConfig(FIRST_STAGE),
    scale_factor=SCALE_FACTOR,
    embedder=1,
    length=21,
    cond_aug=1e-5,
    repository="stabilityai/sv3d",
    bytes=9_368_890_196,
    licence=LICENCE,
)

PUBLISHED_SV3D_U = replace(PUBLISHED_SV3D_P, name="sv3d_u", prior=SV3D_U, bytes=9_363_647_316)

"""SV3D, the published multi-view prior: sizes of its networks, SVD's but for the vector (Voleti et al. 2024)."""

from __future__ import annotations

from dataclasses import replace

from d2.priors.svd import CONDITIONING_ENCODER, SVD_XT, UNET

FIRST_STAGE = replace(CONDITIONING_ENCODER, quant_conv=False, has_encoder=False)  # a decoder of single images

SV3D_P = replace(
    SVD_XT,
    unet=replace(UNET, adm_in_channels=1280),
    scalars=(("cond_aug", 256), ("polars_rad", 512), ("azimuths_rad", 512)),
)

SV3D_U = replace(SVD_XT, unet=replace(UNET, adm_in_channels=256), scalars=(("cond_aug", 256),))

"""Stable Video Diffusion, the published video prior (Blattmann et al. 2023): sizes of its networks,
its checkpoints."""

from __future__ import annotations

from dataclasses import replace

from d2.nn.autoencoder import AutoencoderConfig
from d2.nn.clip import ImageTowerConfig
from d2.nn.video_unet import VideoUNetConfig
from d2.priors.first_stage import FirstStageConfig
from d2.priors.prior import PriorConfig
from d2.priors.published import Published

SCALE_FACTOR = 0.18215  # latents = SCALE_FACTOR * z (Rombach et al. 2022)

UNET = VideoUNetConfig(
    in_channels=8,
    out_channels=4,
    model_channels=320,
    channel_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    attention_resolutions=(4, 2, 1),
    num_head_channels=64,
    context_dim=1024,
    adm_in_channels=768,
)

VIT_H_14 = ImageTowerConfig(
    layers=32,
    width=1280,
    head_width=80,
    patch_size=14,
    image_size=224,
    mlp_ratio=4.0,
    embed_dim=1024,
)

CONDITIONING_ENCODER = AutoencoderConfig(
    in_channels=3,
    out_channels=3,
    ch=128,
    ch_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    z_channels=4,
    temporal_decoder=False,
    quant_conv=True,
)

FIRST_STAGE = replace(CONDITIONING_ENCODER, temporal_decoder=True, quant_conv=False)

SVD_XT = PriorConfig(
    unet=UNET,
    tower=VIT_H_14,
    encoder=CONDITIONING_ENCODER,
    scalars=(("fps_id", 256), ("motion_bucket_id", 256), ("cond_aug", 256)),
)

LICENCE = "Stability AI Community License; accept it at the repository"

PUBLISHED_SVD_XT = Published(
    name="svd_xt",
    kind="video",
    prior=SVD_XT,
    first_stage=FirstStageConfig(FIRST_STAGE),
    scale_factor=SCALE_FACTOR,
    embedder=3,
    length=25,
    cond_aug=0.02,
    fps_id=24,  # this and the next as Diffusion² runs it (Yang et al. 2025)
    motion_bucket_id=127,
    repository="stabilityai/stable-video-diffusion-img2vid-xt",
    bytes=9_559_279_140,
    licence=LICENCE,
)

PUBLISHED_SVD = replace(
    PUBLISHED_SVD_XT,
    name="svd",  # the networks of svd_xt: no header tells the two apart
    length=14,
    repository="stabilityai/stable-video-diffusion-img2vid",
)

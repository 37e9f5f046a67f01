"""Reads the official configuration of an engine: classes and options of the published code into our
dataclasses."""

from __future__ import annotations

from typing import Any

from d2.nn.autoencoder import AutoencoderConfig
from d2.nn.clip import ImageTowerConfig
from d2.nn.video_unet import VideoUNetConfig
from d2.priors.prior import PriorConfig


def unet_config(engine: dict[str, Any]) -> VideoUNetConfig:
    p = engine["config"]["params"]["network_config"]["params"]
    assert p["use_linear_in_transformer"] and p["extra_ff_mix_layer"] and p["use_spatial_context"]
    assert p["merge_strategy"] == "learned_with_images" and p["num_classes"] == "sequential"
    depth = p.get("transformer_depth", 1)
    return VideoUNetConfig(
        in_channels=p["in_channels"],
        out_channels=p["out_channels"],
        model_channels=p["model_channels"],
        channel_mult=tuple(p["channel_mult"]),
        num_res_blocks=p["num_res_blocks"],
        attention_resolutions=tuple(p["attention_resolutions"]),
        num_head_channels=p["num_head_channels"],
        context_dim=p["context_dim"],
        adm_in_channels=p["adm_in_channels"],
        transformer_depth=depth if isinstance(depth, int) else tuple(depth),
        video_kernel_size=kernel_size(p["video_kernel_size"]),
    )


def first_stage_config(first_stage: dict[str, Any]) -> AutoencoderConfig:
    """Of an AutoencodingEngine, whose encoder may be an Identity."""
    encoder, decoder = (first_stage["params"][f"{half}_config"] for half in ("encoder", "decoder"))
    temporal = decoder["target"].endswith("VideoDecoder")
    kernel = kernel_size(decoder["params"]["video_kernel_size"]) if temporal else (3, 1, 1)
    return autoencoder_config(
        decoder["params"],
        temporal_decoder=temporal,
        quant_conv=False,
        video_kernel_size=kernel,
        has_encoder=not encoder["target"].endswith("Identity"),
    )


def conditioning_encoder_config(engine: dict[str, Any]) -> AutoencoderConfig:
    """Of the conditioner's AutoencoderKLModeOnly."""
    _, embedder = find_embedder(engine, "VideoPredictionEmbedderWithEncoder")
    encoder = embedder["params"]["encoder_config"]
    assert encoder["target"].endswith("AutoencoderKLModeOnly")
    return autoencoder_config(
        encoder["params"]["ddconfig"], temporal_decoder=False, quant_conv=True
    )


def tower_config(open_clip: dict[str, Any]) -> ImageTowerConfig:
    vision = open_clip["vision_cfg"]
    return ImageTowerConfig(
        layers=vision["layers"],
        width=vision["width"],
        head_width=vision["head_width"],
        patch_size=vision["patch_size"],
        image_size=vision["image_size"],
        mlp_ratio=vision["mlp_ratio"],
        embed_dim=open_clip["embed_dim"],
    )


def prior_config(engine: dict[str, Any]) -> PriorConfig:
    scalars = [e for e in embedders(engine) if e["target"].endswith("ConcatTimestepEmbedderND")]
    return PriorConfig(
        unet=unet_config(engine),
        tower=tower_config(engine["open_clip_config"]),
        encoder=conditioning_encoder_config(engine),
        scalars=tuple((e["input_key"], e["params"]["outdim"]) for e in scalars),
    )


def embedders(engine: dict[str, Any]) -> list[dict[str, Any]]:
    return engine["config"]["params"]["conditioner_config"]["params"]["emb_models"]


def find_embedder(engine: dict[str, Any], target: str) -> tuple[int, dict[str, Any]]:
    """Position and configuration of the one embedder of this class."""
    ((index, embedder),) = [
        (i, e) for i, e in enumerate(embedders(engine)) if e["target"].endswith(target)
    ]
    return index, embedder


def autoencoder_config(p: dict[str, Any], **facts: Any) -> AutoencoderConfig:
    assert p["double_z"] and not p["attn_resolutions"]
    return AutoencoderConfig(
        in_channels=p["in_channels"],
        out_channels=p["out_ch"],
        ch=p["ch"],
        ch_mult=tuple(p["ch_mult"]),
        num_res_blocks=p["num_res_blocks"],
        z_channels=p["z_channels"],
        **facts,
    )


def kernel_size(value: int | list[int]) -> tuple[int, int, int]:
    return (value, value, value) if isinstance(value, int) else (value[0], value[1], value[2])

"""A video encoder with random weights and few channels, from a file as the shipped one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F

from d2.metrics.features import FeatureNetwork, load_video_encoder
from d2.nn.video_encoder import VideoEncoder, VideoEncoderConfig
from d2.priors import tiny

CONFIG = VideoEncoderConfig(size=16, stem=(8, 8), widths=(16,), dim=12, groups=4)


def save_small_encoder(path: Path) -> VideoEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = VideoEncoder(CONFIG)
    tiny.save_weights(path, "video_encoder", net, {"config": dataclasses.asdict(CONFIG)})
    return net


def small_encoder(folder: Path) -> FeatureNetwork:
    save_small_encoder(folder / "encoder.safetensors")
    return load_video_encoder(folder / "encoder.safetensors")


def random_matrix(seed: int, num_views: int, num_frames: int, size: int = 16) -> torch.Tensor:
    """Smooth random pictures v f 3 size size that change along both axes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_views * num_frames, 3, 6, 6, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bilinear").unflatten(
        0, (num_views, num_frames)
    )

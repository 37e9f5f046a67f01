"""The CLIP image tower that tells SVD and SV3D what the reference shows (Radford et al. 2021;
open_clip's weights)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import VisionTransformer
from torch import Tensor


@dataclass(frozen=True)
class ImageTowerConfig:
    """Size of the tower; names are open_clip's."""

    layers: int
    width: int
    head_width: int
    patch_size: int
    image_size: int
    mlp_ratio: float
    embed_dim: int


class ImageTower(VisionTransformer):
    """open_clip's vision transformer behind the published preprocessing.

    Parameter names are those after `conditioner.embedders.0.open_clip.model.visual.` in the
    published checkpoints.
    """

    def __init__(self, config: ImageTowerConfig):
        super().__init__(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.width,
            layers=config.layers,
            heads=config.width // config.head_width,
            mlp_ratio=config.mlp_ratio,
            output_dim=config.embed_dim,
        )
        self.config = config

    def forward(
        self,
        x: Tensor,  # n 3 h w in [-1, 1], any size
    ) -> Tensor:  # n embed_dim
        """Embedding of images: the class token, normed and projected, not of unit length."""
        embedding = super().forward(self.preprocess(x))
        assert isinstance(embedding, Tensor)  # open_clip returns tokens too where it is asked to
        return embedding

    def preprocess(
        self,
        images: Tensor,  # n 3 h w in [-1, 1]
    ) -> Tensor:  # n 3 image_size image_size
        """Resize, then CLIP's mean and standard deviation."""
        pixels = (resize(images, self.config.image_size) + 1) / 2
        mean, std = (
            pixels.new_tensor(rgb)[:, None, None]
            for rgb in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        )
        return (pixels - mean) / std


def resize(
    images: Tensor,  # n c h w
    size: int,
) -> Tensor:  # n c size size
    """Bicubic on aligned corners, after a Gaussian blur where an axis shrinks; as kornia does it,
    on whom sgm relies.

    By axis: sigma = (shrinkage - 1) / 2 and a window of 4 sigma, odd and at least 3, mirrored at
    the border.
    """
    shrinkage = [side / size for side in images.shape[-2:]]
    if shrinkage == [1, 1]:
        return images
    for axis, factor in zip((-2, -1), shrinkage, strict=True):
        if factor > 1:
            images = blur(images, (factor - 1) / 2, axis)
    return F.interpolate(images, size=(size, size), mode="bicubic", align_corners=True)


def blur(
    images: Tensor,  # n c h w
    sigma: float,  # pixels
    axis: int,  # -2 down, -1 across
) -> Tensor:
    radius = int(max(4 * sigma, 3)) // 2
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).unsqueeze(-1 if axis == -2 else 0)
    channels = images.shape[1]
    pad = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
    padded = F.pad(images, pad, mode="reflect")
    return F.conv2d(padded, kernel.expand(channels, 1, *kernel.shape), groups=channels)

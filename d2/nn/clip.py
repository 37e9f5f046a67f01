"""The CLIP image tower that tells SVD and SV3D what the reference shows (Radford et al. 2021;
open_clip's weights)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pixels that CLIP was trained on
STD = (0.26862954, 0.26130258, 0.27577711)


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


class ImageTower(nn.Module):
    """CLIP's vision transformer behind the published preprocessing.

    It is open_clip's, whose import alone takes two seconds. Parameter names are those after
    `conditioner.embedders.0.open_clip.model.visual.` in the published checkpoints.
    """

    def __init__(self, config: ImageTowerConfig):
        super().__init__()
        self.config = config
        width, scale = config.width, config.width**-0.5
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, config.embed_dim))

    def forward(
        self,
        x: Tensor,  # n 3 h w in [-1, 1], any size
    ) -> Tensor:  # n embed_dim
        """Embedding of images: the class token, normed and projected, not of unit length."""
        patches = self.conv1(self.preprocess(x)).flatten(2).transpose(1, 2)  # n tokens width
        first = self.class_embedding.expand(len(x), 1, -1)
        tokens = self.ln_pre(torch.cat((first, patches), dim=1) + self.positional_embedding)
        for block in self.transformer["resblocks"].children():
            tokens = block(tokens)
        return self.ln_post(tokens)[:, 0] @ self.proj

    def preprocess(
        self,
        images: Tensor,  # n 3 h w in [-1, 1]
    ) -> Tensor:  # n 3 image_size image_size
        """Resize, then CLIP's mean and standard deviation."""
        pixels = (resize(images, self.config.image_size) + 1) / 2
        mean, std = (pixels.new_tensor(rgb)[:, None, None] for rgb in (MEAN, STD))
        return (pixels - mean) / std


class Block(nn.Module):
    """Self-attention and a feed-forward, each after its norm and added to what came in."""

    def __init__(self, config: ImageTowerConfig):
        super().__init__()
        width, inner = config.width, int(config.width * config.mlp_ratio)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // config.head_width, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, inner), gelu=nn.GELU(), c_proj=nn.Linear(inner, width)
            )
        )

    def forward(self, x: Tensor) -> Tensor:  # n tokens width
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


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

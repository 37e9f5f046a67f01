"""A small video encoder for world4d: Fréchet distances that mean something there, where no
published weights are.

Axes: b videos, t frames of any number from 2 on, c h w. A picture is first encoded by itself, so
that a matrix whose cells are traversed in several orders pays for each cell once; then the sequence
is, by convolutions in space and time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class VideoEncoderConfig:
    """Sizes of the encoder."""

    size: int = 64  # pixels, both ways
    stem: tuple[int, int] = (32, 64)  # channels at a half and a quarter of the size
    # channels of the stages in space and time, each halving the size
    widths: tuple[int, ...] = (96, 160)
    dim: int = 96  # of the embedding
    groups: int = 8  # of every group norm


class VideoEncoder(nn.Module):
    """Videos to embeddings; what comes first and what comes next matters to it, a sequence's length
    does not."""

    def __init__(self, config: VideoEncoderConfig | None = None):
        super().__init__()
        self.config = config = config or VideoEncoderConfig()
        half, quarter = config.stem
        self.stem = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1),
            nn.GroupNorm(config.groups, half),
            nn.SiLU(),
            nn.Conv2d(half, quarter, 3, stride=2, padding=1),
            nn.GroupNorm(config.groups, quarter),
            nn.SiLU(),
            nn.Conv2d(quarter, quarter, 3, padding=1),
        )
        widths = (quarter, *config.widths)
        self.stages = nn.ModuleList(
            Stage(before, width, config.groups)
            for before, width in zip(widths, widths[1:], strict=False)
        )
        self.norm = nn.GroupNorm(config.groups, widths[-1])
        self.head = nn.Linear(widths[-1], config.dim)

    def forward(
        self,
        videos: Tensor,  # b t 3 size size in [0, 1]
    ) -> Tensor:  # b dim
        return self.embed(videos)

    def embed(
        self,
        videos: Tensor,  # b t 3 size size in [0, 1]
    ) -> Tensor:  # b dim
        """One vector a video."""
        maps = self.encode_images(rearrange(videos, "b t c h w -> (b t) c h w"))
        return self.embed_maps(rearrange(maps, "(b t) c h w -> b t c h w", b=len(videos)))

    def encode_images(
        self,
        images: Tensor,  # n 3 size size in [0, 1]
    ) -> Tensor:  # n c size/4 size/4
        """What is kept of a picture by itself."""
        return self.stem(2 * images - 1)

    def embed_maps(
        self,
        maps: Tensor,  # b t c size/4 size/4
    ) -> Tensor:  # b dim
        """One vector a sequence of encoded pictures: the mean of its frames'."""
        return self.embed_frames(maps).mean(dim=1)

    def embed_frames(
        self,
        maps: Tensor,  # b t c size/4 size/4
    ) -> Tensor:  # b t dim
        """One vector a frame, which has seen four frames either way."""
        x = rearrange(maps, "b t c h w -> b c t h w")
        for stage in self.stages:
            x = stage(x)
        return self.head(rearrange(F.silu(self.norm(x)).mean(dim=(3, 4)), "b c t -> b t c"))


class Stage(nn.Module):
    """Half the size, then a residual block; each a convolution in space and one in time (Tran et
    al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.down = SpaceTime(in_channels, out_channels, stride=2, groups=groups)
        self.block = SpaceTime(out_channels, out_channels, stride=1, groups=groups)

    def forward(
        self,
        x: Tensor,  # b c t h w
    ) -> Tensor:
        x = self.down(x)
        return x + self.block(x)


class SpaceTime(nn.Module):
    """Norm, SiLU, 3×3 in space; norm, SiLU, 3 in time, the first and the last frame standing still
    beyond the ends."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, groups: int):
        super().__init__()
        self.norm_space = nn.GroupNorm(groups, in_channels)
        self.space = nn.Conv3d(in_channels, out_channels, (1, 3, 3), (1, stride, stride), (0, 1, 1))
        self.norm_time = nn.GroupNorm(groups, out_channels)
        self.time = nn.Conv3d(
            out_channels, out_channels, (3, 1, 1), padding=(1, 0, 0), padding_mode="replicate"
        )

    def forward(
        self,
        x: Tensor,  # b c t h w
    ) -> Tensor:
        x = self.space(F.silu(self.norm_space(x)))
        return self.time(F.silu(self.norm_time(x)))

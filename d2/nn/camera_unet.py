"""A UNet over the cells of any cameras: spatial attention, joint attention over all cells, rays in
every block.

The network of Stable Virtual Camera (Zhou et al. 2025, arXiv 2503.14489), under the parameter names
of its published checkpoint. Nothing in it knows the order of the cells but which one is first.

Axes: b sequences, t cells of a sequence, c channels, h w, s = h w, n context tokens, d their width,
e embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from d2.nn.embedding import sinusoidal
from d2.nn.unet import GROUPS, UNet, mlp, zeroed
from d2.nn.video_unet import ResBlock, SpatialBlock, TemporalBlock


@dataclass(frozen=True)
class CameraUNetConfig:
    """What configurations vary; names are the published ones but for `joint`, which is theirs as
    unflatten_names."""

    in_channels: int  # latents, one channel of mask, rays
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]  # width of a level in units of model_channels
    num_res_blocks: int  # of a level on the way down; one more on the way up
    attention_resolutions: tuple[int, ...]  # downsampling factors at which transformers stand
    num_head_channels: int
    context_dim: int
    transformer_depth: tuple[int, ...]  # blocks of a transformer, of every level
    # transformers whose spatial attention sees all cells: input_dsN, middle_dsN, output_dsN
    joint: tuple[str, ...]
    dense_in_channels: int = 6  # those of the rays
    groups: int = GROUPS  # of every GroupNorm, so every width is a multiple of it


class Given(NamedTuple):
    """What a layer may look at besides x."""

    embedding: Tensor  # (b t) e, of the noise level, after its SiLU
    context: Tensor  # (b t) n d
    rays: Tensor  # (b t) c h w, of the latents' size
    num_cells: int


class CameraUNet(UNet):
    """Predicts the noise of cells that are told their cameras' rays and which of them are known."""

    def __init__(self, config: CameraUNetConfig):
        super().__init__()
        self.config = config
        width, emb = config.model_channels, 4 * config.model_channels
        self.time_embed = mlp(width, emb, emb)

        def stage(channels: int, out_channels: int, level: int, way: str) -> list[nn.Module]:
            layers: list[nn.Module] = [RayResBlock(channels, emb, out_channels, config)]
            if 2**level in config.attention_resolutions:
                joint = f"{way}_ds{2**level}" in config.joint
                layers.append(
                    CellTransformer(
                        out_channels, config, config.transformer_depth[level], joint=joint
                    )
                )
            return layers

        def middle(channels: int) -> list[nn.Module]:
            joint = f"middle_ds{2 ** (len(config.channel_mult) - 1)}" in config.joint
            return [
                RayResBlock(channels, emb, channels, config),
                CellTransformer(channels, config, config.transformer_depth[-1], joint=joint),
                RayResBlock(channels, emb, channels, config),
            ]

        self.build(config, stage, middle)

    def forward(
        self,
        x: Tensor,  # (b t) c h w; h and w multiples of 2^(levels - 1)
        c_noise: Tensor,  # (b t), what the network is told of the noise level
        context: Tensor,  # (b t) n d
        rays: Tensor,  # (b t) c h w
        *,
        num_cells: int,  # t
    ) -> Tensor:  # (b t) c_out h w
        embedding = self.time_embed(sinusoidal(c_noise, self.config.model_channels).to(x.dtype))
        given = Given(F.silu(embedding), context, rays, num_cells)
        return self.through(x, given)


class RayResBlock(ResBlock):
    """A residual block over images whose first convolution sees features scaled and shifted by the
    rays."""

    def __init__(
        self, channels: int, emb_channels: int, out_channels: int, config: CameraUNetConfig
    ):
        super().__init__(channels, emb_channels, out_channels, None, config.groups)
        self.dense_emb_layers = nn.Sequential(nn.Conv2d(config.dense_in_channels, 2 * channels, 1))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  like every layer of the UNet
        self,
        x: Tensor,  # (b t) c h w
        given: Given,
    ) -> Tensor:
        norm, silu, conv = self.in_layers
        rays = F.interpolate(given.rays, x.shape[-2:], mode="bilinear", align_corners=True)
        scale, shift = self.dense_emb_layers(rays).chunk(2, dim=1)
        h = (
            conv(silu(norm(x)) * (1 + scale) + shift)
            + self.emb_layers(given.embedding)[..., None, None]
        )
        return self.skip_connection(x) + self.out_layers(h)


class CellTransformer(nn.Module):
    """Attention over pixels, of a cell or of all cells jointly, and over the cells of a pixel, by
    turns; + x."""

    def __init__(self, channels: int, config: CameraUNetConfig, depth: int, *, joint: bool):
        super().__init__()
        assert channels % config.num_head_channels == 0
        self.joint = joint
        args = (channels, config.num_head_channels, config.context_dim)
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(PixelBlock(*args) for _ in range(depth))
        self.time_mix_blocks = nn.ModuleList(MixingBlock(*args) for _ in range(depth))
        self.proj_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, given: Given) -> Tensor:  # (b t) c h w
        t, height = given.num_cells, x.shape[2]
        # what the first cell of a sequence is told stands for all where cells meet
        first = given.context[::t]
        tokens = self.proj_in(rearrange(self.norm(x), "(b t) c h w -> b t (h w) c", t=t))
        for pixels, mixing in zip(self.transformer_blocks, self.time_mix_blocks, strict=True):
            if self.joint:
                tokens = pixels(tokens.flatten(1, 2), first).view_as(tokens)
            else:
                tokens = pixels(tokens.flatten(0, 1), given.context).view_as(tokens)
            tokens = tokens + mixing(tokens, first)
        return x + rearrange(self.proj_out(tokens), "b t (h w) c -> (b t) c h w", h=height)


class PixelBlock(SpatialBlock):
    """Self-attention over a sequence of pixels, cross-attention to its context, feed-forward; + x
    each."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,  # b s c
        context: Tensor,  # b n d
    ) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class MixingBlock(TemporalBlock):
    """Every pixel for itself, over the cells: what is to be added to x. The last feed-forward has
    no residual."""

    def forward(
        self,
        x: Tensor,  # b t s c
        context: Tensor,  # b n d
    ) -> Tensor:
        x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1.over_frames(self.norm1(x))
        x = x + self.attn2(self.norm2(x).flatten(1, 2), context).view_as(x)
        return self.ff(self.norm3(x))

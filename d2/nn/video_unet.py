"""The spatio-temporal UNet of SVD and SV3D (Blattmann et al. 2023, Voleti et al. 2024).

A 2D UNet in which every residual block and every transformer is followed by its twin along time; a
learned factor mixes the two. Parameter names are those of the published checkpoints after the
prefix `model.diffusion_model.`.

Axes: b clips, t frames of a clip, c channels, h w, s = h w, n context tokens, d their width, e
embedding. Activations stay in channels_last memory (b t h w c), where going from images to clips to
tokens moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from d2.nn.embedding import sinusoidal
from d2.nn.linear import Linear, gated_gelu
from d2.nn.unet import GROUPS, UNet, mlp, zeroed


@dataclass(frozen=True)
class VideoUNetConfig:
    """What the published configurations vary; names are theirs."""

    in_channels: int  # those of x and of the concatenated condition together
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]  # width of a level in units of model_channels
    num_res_blocks: int  # of a level on the way down; one more on the way up
    attention_resolutions: tuple[int, ...]  # downsampling factors at which transformers stand
    num_head_channels: int
    context_dim: int
    adm_in_channels: int  # width of the vector condition
    # blocks of a transformer, of one or of every level
    transformer_depth: int | tuple[int, ...] = 1
    video_kernel_size: tuple[int, int, int] = (3, 1, 1)
    groups: int = GROUPS  # of every GroupNorm, so every width is a multiple of it

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer depth of every level."""
        depth = self.transformer_depth
        return (depth,) * len(self.channel_mult) if isinstance(depth, int) else depth


class Blend(NamedTuple):
    """Time-synchronised attention: what a clip's frames attend to is mixed with the same frames of
    its neighbours."""

    weight: float  # of the clip itself; the clips before and after share the rest
    clips: int  # of a group, in their order; clips of different groups do not meet

    def mix(
        self,
        x: Tensor,  # (g b t) s c, g groups of b clips
        num_frames: int,
    ) -> Tensor:  # like x; beyond both ends of a group lie zeros
        groups = rearrange(x, "(g b t) s c -> g b t s c", b=self.clips, t=num_frames)
        side = (1 - self.weight) / 2
        mixed = self.weight * groups
        mixed[:, 1:] += side * groups[:, :-1]
        mixed[:, :-1] += side * groups[:, 1:]
        return mixed.flatten(0, 2)


class Given(NamedTuple):
    """What a layer may look at besides x."""

    embedding: Tensor  # (b t) e, of noise level and vector condition
    context: Tensor  # (b t) n d
    num_frames: int
    image_only: Tensor  # (b t) bool, frames whose temporal branch is switched off
    temporal: bool  # False: it is switched off for every frame, so it need not be run
    blend: Blend | None = None


class VideoUNet(UNet):
    """Predicts from noisy frames, noise level and condition what `precondition` asks for."""

    def __init__(self, config: VideoUNetConfig):
        super().__init__()
        self.config = config
        width, emb = config.model_channels, 4 * config.model_channels
        self.time_embed = mlp(width, emb, emb)
        self.label_emb = nn.Sequential(mlp(config.adm_in_channels, emb, emb))

        def stage(channels: int, out_channels: int, level: int, way: str) -> list[nn.Module]:
            layers: list[nn.Module] = [VideoResBlock(channels, emb, out_channels, config)]
            if 2**level in config.attention_resolutions:
                layers.append(VideoTransformer(out_channels, config, depth=config.depths[level]))
            return layers

        def middle(channels: int) -> list[nn.Module]:
            return [
                VideoResBlock(channels, emb, channels, config),
                VideoTransformer(channels, config, depth=config.depths[-1]),
                VideoResBlock(channels, emb, channels, config),
            ]

        self.build(config, stage, middle)

    def forward(
        self,
        x: Tensor,  # (b t) c h w; h and w multiples of 2^(levels - 1)
        c_noise: Tensor,  # (b t)
        context: Tensor,  # (b t) n d
        vector: Tensor,  # (b t) adm
        *,
        num_frames: int,
        image_only: Tensor,  # b t, 1 where the temporal branch is switched off
        blend: Blend | None = None,  # over groups of clips, for the spatial self-attention
    ) -> Tensor:  # (b t) c_out h w
        embedding = self.time_embed(sinusoidal(c_noise, self.config.model_channels).to(x.dtype))
        embedding = embedding + self.label_emb(vector)
        image_only = image_only.reshape(-1).bool()
        # what lies on no device, or is being captured, has no values to look at
        unknown = image_only.is_meta or (x.is_cuda and torch.cuda.is_current_stream_capturing())
        temporal = unknown or not bool(image_only.all())
        given = Given(F.silu(embedding), context, num_frames, image_only, temporal, blend)
        return self.through(x, given)


# ---------------------------------------------------------------------------------- residual blocks


class ResBlock(nn.Module):
    """norm, SiLU, convolution, + embedding, norm, SiLU, convolution, + skip; over images or, as
    time_stack, clips."""

    def __init__(
        self,
        channels: int,
        emb_channels: int | None,  # None: a block that is told nothing
        out_channels: int,
        video_kernel_size: tuple[int, int, int] | None,  # None: a block over images
        groups: int = GROUPS,
    ):
        super().__init__()

        def conv(channels: int) -> nn.Conv2d | nn.Conv3d:
            if video_kernel_size is None:
                return nn.Conv2d(channels, out_channels, 3, padding=1)
            return TemporalConv(channels, out_channels, video_kernel_size)

        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(inplace=True), conv(channels)
        )
        if emb_channels is not None:
            self.emb_layers = nn.Sequential(nn.Identity(), Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels),
            nn.SiLU(inplace=True),
            nn.Identity(),  # the place of a dropout that is zero in every published configuration
            zeroed(conv(out_channels)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(
        self,
        x: Tensor,  # (b t) c h w, or b c t h w
        embedding: Tensor | None = None,  # (b t) e, after its SiLU
    ) -> Tensor:  # like x
        h = self.in_layers(x)
        if embedding is not None:
            shift = self.emb_layers(embedding)
            if x.ndim == 5:
                shift = rearrange(shift, "(b t) c -> b c t", t=x.shape[2])
            h = h.add_(shift[..., None, None])
        return self.out_layers(h).add_(self.skip_connection(x))


class VideoResBlock(ResBlock):
    """A residual block over images, then one over time, mixed."""

    def __init__(
        self, channels: int, emb_channels: int, out_channels: int, config: VideoUNetConfig
    ):
        super().__init__(channels, emb_channels, out_channels, None, config.groups)
        self.time_stack = ResBlock(
            out_channels, emb_channels, out_channels, config.video_kernel_size, config.groups
        )
        self.time_mixer = Mixer()

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  like every layer of the UNet
        self,
        x: Tensor,  # (b t) c h w
        given: Given,
    ) -> Tensor:
        x = super().forward(x, given.embedding)
        if not given.temporal:
            return x
        clips = rearrange(x, "(b t) c h w -> b c t h w", t=given.num_frames)
        clips = self.time_stack(clips, given.embedding)
        return self.time_mixer(x, rearrange(clips, "b c t h w -> (b t) c h w"), given.image_only)


class Mixer(nn.Module):
    """Mixes a block's result with that of its temporal twin; the learned factor is the SPATIAL
    share."""

    def __init__(self):
        super().__init__()
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        spatial: Tensor,  # (b t) ...
        temporal: Tensor,  # (b t) ...
        image_only: Tensor,  # (b t) bool
    ) -> Tensor:
        share = torch.where(image_only, 1.0, self.mix_factor.sigmoid())
        return torch.lerp(
            temporal, spatial, share.to(spatial.dtype).view(-1, *[1] * (spatial.ndim - 1))
        )


class TemporalConv(nn.Conv3d):
    """A convolution over clips. One of a single pixel runs as a 2D one over frames and pixels,
    thrice as fast."""

    def __init__(self, channels: int, out_channels: int, kernel_size: tuple[int, int, int]):
        frames, down, across = kernel_size
        super().__init__(
            channels, out_channels, kernel_size, padding=(frames // 2, down // 2, across // 2)
        )

    def forward(self, input: Tensor) -> Tensor:  # b c t h w
        if self.kernel_size[1:] != (1, 1):
            return super().forward(input)
        pad = (self.kernel_size[0] // 2, 0)
        out = F.conv2d(input.flatten(3), self.weight.flatten(3), self.bias, padding=pad)
        return out.unflatten(3, input.shape[3:])


# ------------------------------------------------------------------------------------- transformers


class VideoTransformer(nn.Module):
    """Attention over the pixels of a frame and over the frames of a pixel, alternating and mixed; +
    x."""

    def __init__(self, channels: int, config: VideoUNetConfig, depth: int):
        super().__init__()
        assert channels % config.num_head_channels == 0
        self.channels = channels
        args = (channels, config.num_head_channels, config.context_dim)
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(SpatialBlock(*args) for _ in range(depth))
        self.time_stack = nn.ModuleList(TemporalBlock(*args) for _ in range(depth))
        self.time_pos_embed = mlp(channels, 4 * channels, channels)
        self.time_mixer = Mixer()
        self.proj_out = zeroed(Linear(channels, channels))

    def forward(self, x: Tensor, given: Given) -> Tensor:  # (b t) c h w
        tokens = self.proj_in(rearrange(self.norm(x), "bt c h w -> bt (h w) c"))
        frames = torch.arange(given.num_frames, device=x.device, dtype=x.dtype)
        position = self.time_pos_embed(sinusoidal(frames, self.channels))[:, None]  # t 1 c
        for spatial_block, temporal_block in zip(
            self.transformer_blocks, self.time_stack, strict=True
        ):
            tokens = spatial_block(tokens, given)
            if given.temporal:
                clips = tokens.unflatten(0, (-1, given.num_frames)) + position  # b t s c
                clips = temporal_block(clips, given.context[:: given.num_frames])
                tokens = self.time_mixer(tokens, clips.flatten(0, 1), given.image_only)
        skip = rearrange(x, "bt c h w -> bt (h w) c")
        return rearrange(self.proj_out(tokens, skip), "bt (h w) c -> bt c h w", h=x.shape[2])


class SpatialBlock(nn.Module):
    """Every frame for itself: self-attention over pixels, cross-attention to the frame's own
    context, feed-forward."""

    def __init__(self, channels: int, head_channels: int, context_dim: int):
        super().__init__()
        self.attn1 = Attention(channels, channels, head_channels)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context_dim, head_channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self,
        x: Tensor,  # (b t) s c
        given: Given,
    ) -> Tensor:
        y = self.norm1(x)
        around = y if given.blend is None else given.blend.mix(y, given.num_frames)
        x = self.attn1(y, around, plus=x)
        x = self.attn2.of_norm(self.norm2, x, given.context)
        return self.ff(self.norm3(x), plus=x)


class TemporalBlock(nn.Module):
    """Every pixel for itself: feed-forward, attention over frames, cross-attention to the first
    frame's context."""

    def __init__(self, channels: int, head_channels: int, context_dim: int):
        super().__init__()
        self.norm_in = nn.LayerNorm(channels)
        self.ff_in = FeedForward(channels)
        self.attn1 = Attention(channels, channels, head_channels)
        self.ff = FeedForward(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, context_dim, head_channels)
        self.norm1, self.norm3 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(
        self,
        x: Tensor,  # b t s c
        context: Tensor,  # b n d
    ) -> Tensor:
        x = self.ff_in(self.norm_in(x), plus=x)
        x = self.attn1.over_frames(self.norm1(x), plus=x)
        x = self.attn2.of_norm(self.norm2, x.flatten(1, 2), context).view_as(x)
        return self.ff(self.norm3(x), plus=x)


class Attention(nn.Module):
    """Multi-head attention of the queries x to keys and values made of the context; plus a tensor
    like x."""

    def __init__(self, channels: int, context_dim: int, head_channels: int):
        super().__init__()
        self.head_channels = head_channels
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context_dim, channels, bias=False)
        self.to_v = Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(Linear(channels, channels))

    def forward(
        self,
        x: Tensor,  # b s c
        context: Tensor,  # b n d
        plus: Tensor | None = None,  # b s c
    ) -> Tensor:  # b s c
        if context.shape[1] == 1:  # the softmax over a single key is one, whatever the query
            token = self.to_out(self.to_v(context))
            return token.expand_as(x) if plus is None else plus + token
        q, k, v = (self.heads(p) for p in (self.to_q(x), self.to_k(context), self.to_v(context)))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out[0](attended, plus)

    def of_norm(
        self,
        norm: nn.Module,
        x: Tensor,  # b s c
        context: Tensor,  # b n d
    ) -> Tensor:  # b s c
        """x plus what its norm attends to; the norm is spared where a single token leaves nothing
        to ask."""
        return self(x if context.shape[1] == 1 else norm(x), context, plus=x)

    def over_frames(
        self,
        x: Tensor,  # b t s c
        plus: Tensor | None = None,  # b t s c
    ) -> Tensor:  # b t s c
        """Self-attention along t of every pixel. Pixels stand beside the heads, where no axis has
        to be moved."""
        # b (s heads) t c
        q, k, v = (self.heads(p.flatten(2)) for p in (self.to_q(x), self.to_k(x), self.to_v(x)))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return self.to_out[0](attended, plus)

    def heads(self, tokens: Tensor) -> Tensor:  # b n (heads c) -> b heads n c
        return tokens.unflatten(2, (-1, self.head_channels)).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, gated GELU, linear, four times as wide inside; plus a tensor like x."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(
            GatedGELU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels)
        )

    def forward(
        self,
        x: Tensor,  # ... c
        plus: Tensor | None = None,  # ... c
    ) -> Tensor:  # ... c
        gated, _, out = self.net
        return out(gated(x), plus)


class GatedGELU(nn.Module):
    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return gated_gelu(x, self.proj.weight, self.proj.bias)

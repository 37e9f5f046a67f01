"""The KL autoencoder of SVD and SV3D (Rombach et al. 2022; temporal decoder: Blattmann et al.
2023).

Images to latents frame by frame, and back either frame by frame or, with the temporal decoder, a
clip at a time. Parameter names are those of the published checkpoints: `encoder.*`, `decoder.*`,
and in the conditioning encoder `quant_conv.*`, `post_quant_conv.*`. Latents are raw: the scale
factor is the prior's.

Axes: b clips, t frames of a clip, m images = (b t), c channels, h w, z latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from d2.nn.unet import GROUPS
from d2.nn.video_unet import ResBlock, TemporalConv

EPS = 1e-6  # of the spatial norms; those of the temporal blocks have torch's default


@dataclass(frozen=True)
class AutoencoderConfig:
    """What the published configurations vary; names are theirs."""

    in_channels: int
    out_channels: int
    ch: int
    # width of a level in units of ch; each level but the last halves h and w
    ch_mult: tuple[int, ...]
    num_res_blocks: int  # of an encoder level; one more in the decoder
    z_channels: int
    temporal_decoder: bool
    quant_conv: bool  # 1x1 convolutions between the networks and the latents
    video_kernel_size: tuple[int, int, int] = (3, 1, 1)
    has_encoder: bool = True  # SV3D's first stage has none
    groups: int = GROUPS  # of the spatial norms

    @property
    def widths(self) -> list[int]:
        """Channels of every level."""
        return [self.ch * mult for mult in self.ch_mult]

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent pixel."""
        return 2 ** (len(self.ch_mult) - 1)


class Autoencoder(nn.Module):
    """The first stage: images to the moments of latents, and back."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        z = config.z_channels
        if config.has_encoder:
            self.encoder = Encoder(config)
            self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if config.quant_conv else nn.Identity()
        self.decoder = Decoder(config)
        self.post_quant_conv = nn.Conv2d(z, z, 1) if config.quant_conv else nn.Identity()

    def moments(
        self,
        images: Tensor,  # m c h w in [-1, 1]; h and w multiples of the factor
    ) -> tuple[Tensor, Tensor]:  # m z h/factor w/factor, twice
        """Mean and log-variance of the posterior; the mean is its mode. The log-variance is not
        clamped."""
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return mean, logvar

    def decode(
        self,
        latents: Tensor,  # (b t) z h w
        num_frames: int,  # t: the frames that a temporal decoder lets see each other
    ) -> Tensor:  # (b t) c h*factor w*factor, about [-1, 1]
        """Images of latents that are free of the scale factor."""
        return self.decoder(self.post_quant_conv(latents), num_frames)


class ModeEncoder(nn.Module):
    """The encoder alone, as conditions need it: an image to the mode of its latents."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)

    def forward(self, images: Tensor) -> Tensor:  # m c h w in [-1, 1] -> m z h/factor w/factor
        return self.quant_conv(self.encoder(images)).chunk(2, dim=1)[0]


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(before, width, config, downsample=level < len(widths) - 1)
            for level, (before, width) in enumerate(zip([config.ch, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1], None, config.groups)
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:  # m c h w -> m 2z h w
        x = self.conv_in(images.contiguous(memory_format=torch.channels_last))
        for level in self.down:
            x = level(x)
        x = self.mid(x, num_frames=1)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """The image decoder, or with `temporal_decoder` the one whose every block has a twin along
    time."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths = config.widths
        kernel = config.video_kernel_size if config.temporal_decoder else None
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], kernel, config.groups)
        self.up = nn.ModuleList(  # listed from the finest level, run from the coarsest
            UpLevel(before, width, config, kernel, upsample=level > 0)
            for level, (before, width) in enumerate(
                zip([*widths[1:], widths[-1]], widths, strict=True)
            )
        )
        self.norm_out = nn.GroupNorm(config.groups, widths[0], eps=EPS)
        if kernel is None:
            self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        else:
            self.conv_out = TemporalOutput(widths[0], config.out_channels, kernel)

    def forward(self, latents: Tensor, num_frames: int) -> Tensor:  # (b t) z h w -> (b t) c h w
        x = self.conv_in(latents.contiguous(memory_format=torch.channels_last))
        x = self.mid(x, num_frames)
        for level in reversed(self.up):
            x = level(x, num_frames)
        x = F.silu(self.norm_out(x))
        return (
            self.conv_out(x, num_frames)
            if isinstance(self.conv_out, TemporalOutput)
            else self.conv_out(x)
        )


class DownLevel(nn.Module):
    def __init__(self, channels: int, width: int, config: AutoencoderConfig, *, downsample: bool):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(width if i else channels, width, None, config.groups)
            for i in range(config.num_res_blocks)
        )
        self.downsample = Downsample(width) if downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x, num_frames=1)
        return self.downsample(x)


class UpLevel(nn.Module):
    def __init__(
        self,
        channels: int,
        width: int,
        config: AutoencoderConfig,
        kernel: tuple[int, int, int] | None,
        *,
        upsample: bool,
    ):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(width if i else channels, width, kernel, config.groups)
            for i in range(config.num_res_blocks + 1)
        )
        self.upsample = Upsample(width) if upsample else nn.Identity()

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        for block in self.block:
            x = block(x, num_frames)
        return self.upsample(x)


class Middle(nn.Module):
    def __init__(self, channels: int, kernel: tuple[int, int, int] | None, groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, kernel, groups)
        self.attn_1 = PixelAttention(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, kernel, groups)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, num_frames)), num_frames)


class ResnetBlock(nn.Module):
    """A residual block over images; in a temporal decoder (kernel given) mixed with one over time.

    Here the learned factor is the TEMPORAL share, in the UNet the spatial one.
    """

    def __init__(
        self, channels: int, out_channels: int, kernel: tuple[int, int, int] | None, groups: int
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=EPS)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)
        self.time_stack = None
        if kernel is not None:
            self.time_stack = ResBlock(out_channels, None, out_channels, kernel)
            self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:  # (b t) c h w
        h = self.conv1(F.silu(self.norm1(x)))
        x = self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))
        if self.time_stack is None:
            return x
        clips = self.time_stack(rearrange(x, "(b t) c h w -> b c t h w", t=num_frames))
        return torch.lerp(
            x, rearrange(clips, "b c t h w -> (b t) c h w"), self.mix_factor.sigmoid().to(x.dtype)
        )


class PixelAttention(nn.Module):
    """Self-attention over the pixels of an image, one head."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:  # m c h w
        y = self.norm(x)
        q, k, v = (rearrange(p(y), "m c h w -> m 1 (h w) c") for p in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(out, "m 1 (h w) c -> m c h w", h=x.shape[2]))


class TemporalOutput(nn.Conv2d):
    """The last convolution of a temporal decoder: over pixels, then over frames."""

    def __init__(self, channels: int, out_channels: int, kernel: tuple[int, int, int]):
        super().__init__(channels, out_channels, 3, padding=1)
        self.time_mix_conv = TemporalConv(out_channels, out_channels, kernel)

    # pyright: ignore[reportIncompatibleMethodOverride]  it must know where a clip ends
    def forward(
        self,
        input: Tensor,  # (b t) c h w
        num_frames: int,
    ) -> Tensor:
        clips = rearrange(super().forward(input), "(b t) c h w -> b c t h w", t=num_frames)
        return rearrange(self.time_mix_conv(clips), "b c t h w -> (b t) c h w")


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # the published padding: right and below only


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))

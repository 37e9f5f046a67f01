"""The latent space: an autoencoder together with the numbers that bring its latents to unit scale.

Axes: n images, c h w. Images are in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2.nn.autoencoder import Autoencoder, AutoencoderConfig


@dataclass(frozen=True)
class FirstStageConfig:
    """An autoencoder on images whose pixels are first folded into channels `unshuffle` × `unshuffle` at a time."""

    autoencoder: AutoencoderConfig
    unshuffle: int = 1

    @property
    def channels(self) -> int:
        return self.autoencoder.z_channels

    @property
    def factor(self) -> int:
        """Image size over latent size."""
        return self.unshuffle * 2 ** (len(self.autoencoder.ch_mult) - 1)


class FirstStage(nn.Module):
    """Images to latents and back; latents = (z - shift) * scale, one number a channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: FirstStageConfig, *, scale: float = 1.0):
        super().__init__()
        self.config = config
        self.autoencoder = Autoencoder(config.autoencoder)
        self.register_buffer("scale", torch.full((config.channels,), scale))
        self.register_buffer("shift", torch.zeros(config.channels))

    def moments(
        self,
        images: Tensor,  # n 3 H W
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior of z, before scaling: n c h w each."""
        dtype = next(self.autoencoder.parameters()).dtype
        return self.autoencoder.moments(F.pixel_unshuffle(images.to(dtype), self.config.unshuffle))

    def encode(
        self,
        images: Tensor,  # n 3 H W
        noise: Tensor | None = None,  # n c h w, None for the mode
    ) -> Tensor:
        """Latents n c h w, of about unit variance."""
        mean, logvar = self.moments(images)
        return self.scaled(mean if noise is None else mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise)

    def scaled(
        self,
        z: Tensor,  # n c h w, as the autoencoder has it
    ) -> Tensor:
        """Latents of z: n c h w."""
        return ((z - self.shift[:, None, None]) * self.scale[:, None, None]).to(z.dtype)

    def decode(
        self,
        latents: Tensor,  # n c h w
        num_frames: int = 1,
    ) -> Tensor:
        """Images n 3 H W; a temporal decoder sees `num_frames` consecutive latents as one clip."""
        dtype = next(self.autoencoder.parameters()).dtype
        z = (latents / self.scale[:, None, None] + self.shift[:, None, None]).to(dtype)
        return F.pixel_shuffle(self.autoencoder.decode(z, num_frames), self.config.unshuffle)

    def forward(
        self,
        images: Tensor,  # n 3 H W
    ) -> Tensor:
        """The mode of the posterior, scaled: what a condition is made of."""
        return self.encode(images)

"""The latent space: an autoencoder together with the numbers that bring its latents to unit scale.

Axes: n images, c h w. Images are in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor, nn

from d2.nn.autoencoder import Autoencoder, AutoencoderConfig


@dataclass(frozen=True)
class FirstStageConfig:
    """An autoencoder between two foldings of space into channels: of its pixels, and of its
    latents."""

    autoencoder: AutoencoderConfig
    unshuffle: int = 1  # pixels along one side of what the autoencoder sees as one
    # its latents along one side of a cell; where it is more than 1, a matrix mixes their channels
    fold: int = 1

    @property
    def channels(self) -> int:
        """Channels of the latents that priors see."""
        return self.autoencoder.z_channels * self.fold**2

    @property
    def factor(self) -> int:
        """Image size over latent size."""
        return self.unshuffle * self.autoencoder.factor * self.fold


class FirstStage(nn.Module):
    """Images to latents and back; latents = basis (z - shift) * scale, z the autoencoder's own,
    folded."""

    scale: Tensor  # c
    shift: Tensor  # c
    basis: Tensor | None  # c c, absent where latents are not folded

    def __init__(self, config: FirstStageConfig, *, scale: float = 1.0):
        super().__init__()
        self.config = config
        self.autoencoder = Autoencoder(config.autoencoder)
        self.register_buffer("scale", torch.full((config.channels,), scale))
        self.register_buffer("shift", torch.zeros(config.channels))
        self.register_buffer("basis", torch.eye(config.channels) if config.fold > 1 else None)

    def moments(
        self,
        images: Tensor,  # n 3 H W
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior of z: n c h w each."""
        dtype = next(self.autoencoder.parameters()).dtype
        mean, logvar = self.autoencoder.moments(
            F.pixel_unshuffle(images.to(dtype), self.config.unshuffle)
        )
        return F.pixel_unshuffle(mean, self.config.fold), F.pixel_unshuffle(
            logvar, self.config.fold
        )

    def encode(
        self,
        images: Tensor,  # n 3 H W
        noise: Tensor | None = None,  # n c h w, None for the mode
    ) -> Tensor:
        """Latents n c h w, of about unit variance."""
        mean, logvar = self.moments(images)
        return self.scaled(
            mean if noise is None else mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise
        )

    def scaled(
        self,
        z: Tensor,  # n c h w, as the autoencoder has it
    ) -> Tensor:
        """Latents of z: n c h w."""
        centred = z - self.shift[:, None, None]
        if self.basis is not None:
            centred = einsum(self.basis, centred, "new old, n old h w -> n new h w")
        return (centred * self.scale[:, None, None]).to(z.dtype)

    def decode(
        self,
        latents: Tensor,  # n c h w
        num_frames: int = 1,
    ) -> Tensor:
        """Images n 3 H W; a temporal decoder sees `num_frames` consecutive latents as one clip."""
        centred = latents / self.scale[:, None, None]
        if self.basis is not None:
            centred = einsum(
                torch.linalg.inv(self.basis), centred, "old new, n new h w -> n old h w"
            )
        return self.decode_z(centred + self.shift[:, None, None], num_frames)

    def decode_z(
        self,
        z: Tensor,  # n c h w, as the autoencoder has it
        num_frames: int = 1,
    ) -> Tensor:
        """Images n 3 H W of latents before basis, shift and scale."""
        dtype = next(self.autoencoder.parameters()).dtype
        unfolded = F.pixel_shuffle(z.to(dtype), self.config.fold)
        return F.pixel_shuffle(self.autoencoder.decode(unfolded, num_frames), self.config.unshuffle)

    def forward(
        self,
        images: Tensor,  # n 3 H W
    ) -> Tensor:
        """The mode of the posterior, scaled: what a condition is made of."""
        return self.encode(images)

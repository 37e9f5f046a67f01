"""A diffusion prior over sequences: its conditions and its denoiser. SVD, SV3D and the tiny priors are configurations.

Axes: b sequences, t along a sequence, c h w. Images are in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from d2.nn.autoencoder import AutoencoderConfig, ModeEncoder
from d2.nn.clip import ImageTower, ImageTowerConfig
from d2.nn.embedding import sinusoidal
from d2.nn.video_unet import VideoUNet, VideoUNetConfig
from d2.priors.precondition import precondition
from d2.sampling import Denoise, Prediction


class Condition(NamedTuple):
    """What a sequence is told besides its noisy latents."""

    crossattn: Tensor  # b t 1 d, embedding of the reference picture
    concat: Tensor  # b t c h w, latents of the reference picture
    vector: Tensor  # b t adm, sinusoidal embeddings of the scalar conditions

    def drop(self) -> Condition:
        """The unconditional twin: no picture, same scalars, as both published models do."""
        return Condition(torch.zeros_like(self.crossattn), torch.zeros_like(self.concat), self.vector)

    def select(self, sequences: Tensor) -> Condition:
        """The conditions of some of the sequences; `sequences` holds indices."""
        return Condition(self.crossattn[sequences], self.concat[sequences], self.vector[sequences])


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of a prior; `encoder` is None where the pictures of conditions go through the first stage itself."""

    unet: VideoUNetConfig
    tower: ImageTowerConfig
    encoder: AutoencoderConfig | None
    scalars: tuple[tuple[str, int], ...]  # name and embedding width, in the order of the vector


class Prior(nn.Module):
    """A frozen network that denoises sequences told a reference picture and a few scalars."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        self.unet = VideoUNet(config.unet)
        self.tower = ImageTower(config.tower)
        self.encoder = None if config.encoder is None else ModeEncoder(config.encoder)

    def condition(
        self,
        images: Tensor,  # b 3 H W, the reference picture of each sequence
        noise: Tensor,  # b 3 H W, unit; scaled by cond_aug and added before the picture is encoded
        scalars: dict[str, Tensor],  # name -> b t
        num_frames: int,
        encoder: nn.Module | None = None,
    ) -> tuple[Condition, Condition]:
        """Conditional and unconditional halves; `encoder` serves priors that have none of their own.

        The tower sees the clean picture, the encoder the noised one (SVD, Blattmann et al. 2023, app. D).
        """
        encoder = self.encoder if encoder is None else encoder
        assert encoder is not None
        aug = scalars["cond_aug"][:, 0].to(images)
        concat = encoder(images + aug[:, None, None, None] * noise)
        cond = Condition(
            repeat(self.tower(images), "b d -> b t 1 d", t=num_frames),
            repeat(concat, "b c h w -> b t c h w", t=num_frames),
            self.embed_scalars(scalars).to(images.dtype),
        )
        return cond, cond.drop()

    def embed_scalars(
        self,
        scalars: dict[str, Tensor],  # name -> b t
    ) -> Tensor:
        """The vector condition: b t adm, float32 or wider."""
        return torch.cat([sinusoidal(scalars[name], dim) for name, dim in self.config.scalars], dim=-1)

    def forward(
        self,
        x: Tensor,  # b t c h w
        sigma: Tensor,  # b t
        condition: Condition,
        image_only: Tensor | None = None,  # b t, 1 where an element is denoised as a single image
    ) -> Tensor:
        """E[x0 | x, sigma, condition]: b t c h w."""
        b, t = x.shape[:2]
        s = precondition(rearrange(sigma.to(x), "b t -> b t 1 1 1"))
        net = self.unet(
            rearrange(torch.cat([s.c_in * x, condition.concat], dim=2), "b t c h w -> (b t) c h w"),
            rearrange(s.c_noise, "b t 1 1 1 -> (b t)"),
            rearrange(condition.crossattn, "b t n d -> (b t) n d"),
            rearrange(condition.vector, "b t d -> (b t) d"),
            num_frames=t,
            image_only=x.new_zeros(b, t) if image_only is None else image_only,
        )
        return s.c_skip * x + s.c_out * rearrange(net, "(b t) c h w -> b t c h w", t=t)


def denoiser(
    prior: Prior,
    condition: Condition,  # of all sequences of a cut
    uncond: Condition | None = None,  # None: the dropped twin
    *,
    image_only: bool = False,
) -> Denoise:
    """The prior bound to the conditions of a term's sequences; both halves go through the network in one call.

    With `image_only` the temporal branch is off, and every element is denoised as a single image (the unary term).
    """
    conditions = (condition.drop() if uncond is None else uncond, condition)

    def denoise(x: Tensor, sigma: float, sequences: Tensor, halves: tuple[bool, bool]) -> Prediction:
        asked = [c.select(sequences) for c, wanted in zip(conditions, halves, strict=True) if wanted]
        both = Condition(*(torch.cat(parts) for parts in zip(*asked, strict=True)))
        levels = torch.full((len(both.vector), x.shape[1]), sigma, dtype=x.dtype, device=x.device)
        flags = torch.full_like(levels, float(image_only))
        out = iter(prior(x.repeat(len(asked), 1, 1, 1, 1), levels, both, flags).chunk(len(asked)))
        return Prediction(*(next(out) if wanted else None for wanted in halves))

    return denoise

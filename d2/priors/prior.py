"""A diffusion prior over sequences: its conditions and its denoiser. SVD, SV3D and the tiny priors
are configurations.

Axes: b sequences, t along a sequence, c h w. Images are in [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from d2.errors import InputError
from d2.nn.autoencoder import AutoencoderConfig, ModeEncoder
from d2.nn.clip import ImageTower, ImageTowerConfig
from d2.nn.embedding import sinusoidal
from d2.nn.video_unet import Blend, VideoUNet, VideoUNetConfig
from d2.priors.first_stage import FirstStage
from d2.priors.precondition import precondition
from d2.sampling import Denoise, Prediction


class Condition(NamedTuple):
    """What a sequence is told besides its noisy latents."""

    crossattn: Tensor  # b t 1 d, embedding of the reference picture
    concat: Tensor  # b t c h w, latents of the reference picture
    vector: Tensor  # b t adm, sinusoidal embeddings of the scalar conditions

    def drop(self) -> Condition:
        """The unconditional twin: no picture, same scalars, as both published models do."""
        return Condition(
            torch.zeros_like(self.crossattn), torch.zeros_like(self.concat), self.vector
        )

    def select(self, sequences: Tensor) -> Condition:
        """The conditions of some of the sequences; `sequences` holds indices."""
        return Condition(self.crossattn[sequences], self.concat[sequences], self.vector[sequences])


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of a prior; `encoder` is None where the pictures of conditions go through the first
    stage itself."""

    unet: VideoUNetConfig
    tower: ImageTowerConfig
    encoder: AutoencoderConfig | None
    scalars: tuple[tuple[str, int], ...]  # name and embedding width, in the order of the vector

    @property
    def cameras(self) -> Literal["none", "ring"]:
        """Which cameras it can be told: azimuths and elevations alone, or none."""
        return "ring" if "azimuths_rad" in dict(self.scalars) else "none"


class Prior(nn.Module):
    """A frozen network that denoises sequences told a reference picture and a few scalars.

    `decoder` is what its own sequences are decoded by where that is not the first stage of the run,
    as SV3D's orbits.
    """

    decoder: FirstStage | None
    sigma_range = (0.0, math.inf)  # levels at which it says something

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        self.unet = VideoUNet(config.unet)
        self.tower = ImageTower(config.tower)
        self.encoder = None if config.encoder is None else ModeEncoder(config.encoder)
        self.decoder = None

    def condition(
        self,
        images: Tensor,  # b 3 H W, the reference picture of each sequence
        noise: Tensor,  # b 3 H W, unit; scaled by cond_aug and added before the picture is encoded
        scalars: dict[str, Tensor],  # name -> b t
        num_frames: int,
        encoder: nn.Module | None = None,
    ) -> tuple[Condition, Condition]:
        """Conditional and unconditional halves; `encoder` serves priors that have none of their
        own.

        The tower sees the clean picture, the encoder the noised one (SVD, Blattmann et al. 2023,
        app. D).
        """
        encoder = self.encoder if encoder is None else encoder
        assert encoder is not None
        aug = scalars["cond_aug"][:, 0].to(images)
        noised = images + aug[:, None, None, None] * noise
        cond = Condition(
            repeat(self.tower(images.to(dtype_of(self.tower))), "b d -> b t 1 d", t=num_frames).to(
                images
            ),
            repeat(encoder(noised.to(dtype_of(encoder))), "b c h w -> b t c h w", t=num_frames).to(
                images
            ),
            self.embed_scalars(scalars).to(images),
        )
        return cond, cond.drop()

    def embed_scalars(
        self,
        scalars: dict[str, Tensor],  # name -> b t
    ) -> Tensor:
        """The vector condition: b t adm, float32 or wider."""
        return torch.cat(
            [sinusoidal(scalars[name], dim) for name, dim in self.config.scalars], dim=-1
        )

    def forward(
        self,
        x: Tensor,  # b t c h w
        sigma: Tensor,  # b t
        condition: Condition,
        image_only: Tensor | None = None,  # b t, 1 where an element is denoised as a single image
        blend: Blend | None = None,
    ) -> Tensor:
        """E[x0 | x, sigma, condition]: b t c h w, in x's precision whatever the network's is."""
        b, t = x.shape[:2]
        s, dtype = precondition(rearrange(sigma.to(x), "b t -> b t 1 1 1")), dtype_of(self.unet)
        net = self.unet(
            rearrange(
                torch.cat([s.c_in * x, condition.concat], dim=2), "b t c h w -> (b t) c h w"
            ).to(dtype),
            rearrange(s.c_noise, "b t 1 1 1 -> (b t)"),
            rearrange(condition.crossattn, "b t n d -> (b t) n d").to(dtype),
            rearrange(condition.vector, "b t d -> (b t) d").to(dtype),
            num_frames=t,
            image_only=x.new_zeros(b, t) if image_only is None else image_only,
            blend=blend,
        )
        return s.c_skip * x + s.c_out * rearrange(net.to(x.dtype), "(b t) c h w -> b t c h w", t=t)


def dtype_of(network: nn.Module) -> torch.dtype:
    """Of its weights; float32 where it has none."""
    return next((weight.dtype for weight in network.parameters()), torch.float32)


def denoiser(
    prior: Prior,
    condition: Condition,  # of all sequences of a cut
    uncond: Condition | None = None,  # None: the dropped twin
    *,
    image_only: bool = False,
    blend_weight: float | None = None,
) -> Denoise:
    """The prior bound to the conditions of a term's sequences; both halves go through the network
    in one call.

    With `image_only` the temporal branch is off, and every element is denoised as a single image
    (the unary term). With `blend_weight` w a sequence's pixels attend to w of itself and (1 - w) /
    2 of the sequence before and after it, so that all must come in one call, in their order: a
    ValueError else.
    """
    conditions = (condition.drop() if uncond is None else uncond, condition)
    every = torch.arange(len(condition.vector))
    blend = None if blend_weight is None else Blend(blend_weight, len(every))
    if blend_weight is not None and not 0 <= blend_weight <= 1:
        raise InputError(
            f"multiview.conv_blend={blend_weight}: give a share from 0 to 1, or null for none"
        )

    def denoise(
        x: Tensor, sigma: float, sequences: Tensor, halves: tuple[bool, bool]
    ) -> Prediction:
        if blend is not None and not torch.equal(sequences.cpu(), every):
            raise InputError(
                f"multiview.conv_blend={blend_weight}: columns see their neighbours, so all"
                f" {len(every)} go through one call, not {len(sequences)}; evaluate the term whole"
                " or set multiview.conv_blend=null"
            )
        asked = [
            c.select(sequences) for c, wanted in zip(conditions, halves, strict=True) if wanted
        ]
        both = Condition(*(torch.cat(parts) for parts in zip(*asked, strict=True)))
        levels = torch.full((len(both.vector), x.shape[1]), sigma, dtype=x.dtype, device=x.device)
        flags = torch.full_like(levels, float(image_only))
        out = iter(
            prior(x.repeat(len(asked), 1, 1, 1, 1), levels, both, flags, blend).chunk(len(asked))
        )
        return Prediction(*(next(out) if wanted else None for wanted in halves))

    return denoise

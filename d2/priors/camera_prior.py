"""A prior over the cells of any cameras, some of which are known: Stable Virtual Camera, and the
tiny tier's.

Axes: b sequences, t cells of a sequence, c h w of the latents. Images are in [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from d2.nn.camera_unet import CameraUNet, CameraUNetConfig
from d2.nn.clip import ImageTower, ImageTowerConfig
from d2.priors.discrete_levels import precondition_snapped, table
from d2.priors.first_stage import FirstStage
from d2.priors.precondition import Scaling, precondition
from d2.priors.prior import dtype_of
from d2.priors.rays import CAMERA_SCALE, normalised
from d2.sampling import Denoise, Prediction

CLEAN = 0.002  # level of a known cell, where cells may have levels of their own


class CameraCondition(NamedTuple):
    """What the cells of a sequence are told besides their noisy latents."""

    crossattn: Tensor  # b t 1 d, embedding of the known pictures, their mean
    known: Tensor  # b t c h w, clean latents of known cells
    mask: Tensor  # b t 1 h w, 1 in known cells, 0 in the others
    rays: Tensor  # b t 6 h w

    def drop(self) -> CameraCondition:
        """The unconditional twin: no cell is known, the cameras still are."""
        crossattn, known, mask = (torch.zeros_like(part) for part in self[:3])
        return CameraCondition(crossattn, known, mask, self.rays)

    def first(self, count: int) -> CameraCondition:
        """The conditions of the first cells of every sequence."""
        return CameraCondition(*(part[:, :count] for part in self))

    def select(self, sequences: Tensor) -> CameraCondition:
        """The conditions of some of the sequences; `sequences` holds indices."""
        return CameraCondition(*(part[sequences] for part in self))


@dataclass(frozen=True)
class CameraPriorConfig:
    """Sizes of a camera prior, and how its network is told the level and what it predicts."""

    unet: CameraUNetConfig
    tower: ImageTowerConfig
    # table: the published one, noise predicted, and the published units of cameras; any:
    # ln(sigma)/4, v predicted, and this house's units
    levels: Literal["table", "any"]
    cameras = "any"  # which it can be told


class CameraPrior(nn.Module):
    """A frozen network that denoises cells told their cameras and the pictures of some of them.

    `tower` is None until it is given one where its own file holds none; `decoder` is what its own
    sequences are decoded by, where that is not the first stage of the run.
    """

    tower: ImageTower | None
    encoder = None  # pictures of known cells go through the first stage of the run
    decoder: FirstStage | None

    def __init__(self, config: CameraPriorConfig, *, with_tower: bool = True):
        super().__init__()
        self.config = config
        self.unet = CameraUNet(config.unet)
        self.tower = ImageTower(config.tower) if with_tower else None
        self.decoder = None

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The levels between which what it says means something."""
        if self.config.levels == "any":
            return 0.0, math.inf
        return float(table()[0]), float(table()[-1])

    def placed(
        self,
        scene: Tensor,  # v 4 4, every camera of the scene
        poses: Tensor,  # t 4 4, those of the forward
        camera_scale: float = CAMERA_SCALE,
    ) -> Tensor:
        """Poses in the units that rays are told in: t 4 4, float64.

        The published network's are relative to the cameras, so that a path of a hand's breadth and
        a ring look alike but for the pictures; the tiny one is told this house's own, in which the
        scene has a size (`d2.matrix.RADIUS`).
        """
        if self.config.levels == "any":
            return poses.double()
        return normalised(scene, poses, camera_scale)

    def embed(
        self,
        images: Tensor,  # b k 3 H W, the known pictures of each sequence
    ) -> Tensor:
        """What a sequence is told of its known pictures by the image tower, their mean: b d; zeros
        of none."""
        b, k = images.shape[:2]
        assert self.tower is not None, "a prior without an image tower"
        if k == 0:
            return images.new_zeros(b, self.config.tower.embed_dim)
        embedded = self.tower(images.flatten(0, 1).to(dtype_of(self.tower)))
        return embedded.unflatten(0, (b, k)).mean(dim=1).to(images)

    def forward(
        self,
        x: Tensor,  # b t c h w
        sigma: Tensor,  # b t
        condition: CameraCondition,
    ) -> Tensor:
        """E[x0 | x, sigma, condition]: b t c h w, in x's precision whatever the network's is.

        Where any level may be told, a known cell is told that it is clean: its latents are seen at
        full strength at every level, and it is denoised to itself. The published network sees them
        as faint as the noisy ones.
        """
        t, dtype = x.shape[1], dtype_of(self.unet)
        if self.config.levels == "any":
            known = condition.mask[:, :, 0, 0, 0] > 0
            sigma = torch.where(known, CLEAN, sigma.to(known.device))
        scaling = precondition_snapped if self.config.levels == "table" else precondition
        s = Scaling(
            *(part.to(x) for part in scaling(rearrange(sigma.double(), "b t -> b t 1 1 1")))
        )
        x = x * (1 - condition.mask) + condition.known * condition.mask
        told = torch.cat([s.c_in * x, condition.mask, condition.rays], dim=2)
        net = self.unet(
            rearrange(told, "b t c h w -> (b t) c h w").to(dtype),
            rearrange(s.c_noise, "b t 1 1 1 -> (b t)"),
            rearrange(condition.crossattn, "b t n d -> (b t) n d").to(dtype),
            rearrange(condition.rays, "b t c h w -> (b t) c h w").to(dtype),
            num_cells=t,
        )
        return s.c_skip * x + s.c_out * rearrange(net.to(x.dtype), "(b t) c h w -> b t c h w", t=t)


def camera_denoiser(
    prior: CameraPrior,
    condition: CameraCondition,  # of all sequences of a cut
    uncond: CameraCondition | None = None,  # None: the dropped twin
) -> Denoise:
    """The prior bound to the conditions of a term's sequences; halves of as many cells go through
    the network in one call.

    A half may have more cells than the sequences: known ones, which are told and not asked for.
    """
    conditions = (condition.drop() if uncond is None else uncond, condition)

    def said(x: Tensor, sigma: float, told: CameraCondition) -> Tensor:
        t = x.shape[1]
        cells = torch.cat([x, told.known[:, t:].to(x)], dim=1)
        levels = torch.full(cells.shape[:2], sigma, dtype=torch.float64)
        return prior(cells, levels, told)[:, :t]

    def denoise(
        x: Tensor, sigma: float, sequences: Tensor, halves: tuple[bool, bool]
    ) -> Prediction:
        asked = [
            c.select(sequences) for c, wanted in zip(conditions, halves, strict=True) if wanted
        ]
        if len({c.rays.shape[1] for c in asked}) == 1:
            both = CameraCondition(*(torch.cat(parts) for parts in zip(*asked, strict=True)))
            out = iter(said(x.repeat(len(asked), 1, 1, 1, 1), sigma, both).chunk(len(asked)))
        else:
            out = iter([said(x, sigma, told) for told in asked])
        return Prediction(*(next(out) if wanted else None for wanted in halves))

    return denoise

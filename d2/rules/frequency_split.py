"""Low frequencies from one prior, high frequencies from the other, along a chosen axis of the
matrix."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from d2.errors import InputError
from d2.rules.frequency import mix
from d2.rules.guidance import guided, guided_needs
from d2.sampling import Composition, Fields, Needs, Prediction, Step

OTHER = {"video": "multiview", "multiview": "video"}
PATTERNS = {  # axis -> how it comes last
    "space": "v f c h w -> v f c h w",
    "views": "v f c h w -> f c h w v",
    "frames": "v f c h w -> v c h w f",
}


def frequency_split(
    *,
    low: str = "multiview",
    along: str = "space",
    cutoff: float = 0.125,
    kind: str = "butterworth",
    order: int = 2,
) -> Composition:
    """The guided prediction of the term `low` where frequencies are low, that of the other where
    they are high.

    `along` space (h and w of the latents), views (around the ring) or frames (mirrored at their
    ends); `cutoff` in cycles per sample, half a cycle being the highest. The weights have no part
    in it. The filter is that of FreeInit (arXiv 2312.07537), here between two estimates instead of
    an estimate and noise; nobody is known to have tried it.
    """
    if low not in OTHER or along not in PATTERNS:
        raise InputError(
            f"composition.low={low}, along={along}: choose video or multiview, and space, views or"
            " frames"
        )
    if kind not in ("butterworth", "gaussian") or cutoff <= 0 or order < 1:
        raise InputError(
            f"composition.kind={kind}, cutoff={cutoff}, order={order}: choose butterworth or"
            " gaussian, a cutoff above 0 (cycles per sample) and an order of 1 or more"
        )

    def combine(
        predictions: dict[str, Prediction],
        weights: Fields,
        scales: Fields,
        x: Tensor,  # matrix
        step: Step,
        memory: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Any]]:
        of_low, of_high = (guided(predictions[name], scales[name]) for name in (low, OTHER[low]))
        assert of_low is not None and of_high is not None
        return split(of_low, of_high, along, cutoff, kind, order), memory

    def needs(weights: Fields, scales: Fields) -> Needs:
        return guided_needs(scales, names=OTHER)

    return Composition(combine, needs, couples_cells=along != "space")


def split(
    low: Tensor,  # matrix
    high: Tensor,  # matrix
    along: str,
    cutoff: float,
    kind: str,
    order: int,
) -> Tensor:  # matrix
    """The low frequencies of one matrix and the high ones of another."""
    there = PATTERNS[along]
    back = " -> ".join(reversed(there.split(" -> ")))
    low, high = rearrange(low, there), rearrange(high, there)
    length = low.shape[-1]
    if along == "frames":  # a sequence and its mirror image are periodic without a jump
        low, high = (torch.cat([x, x.flip(-1)], dim=-1) for x in (low, high))
    sizes = low.shape[-2:] if along == "space" else low.shape[-1:]
    mixed = mix(low, high, low_frequencies(tuple(sizes), cutoff, kind, order))[..., :length]
    return rearrange(mixed, back)


def low_frequencies(sizes: tuple[int, ...], cutoff: float, kind: str, order: int) -> Tensor:
    """How much of each frequency is low: float64, as torch.fft.fftn lays them out; 1 at 0, ½ or
    e^-½ at the cutoff."""
    axes = [torch.fft.fftfreq(size, dtype=torch.float64) for size in sizes]
    square = sum(f.square() for f in torch.meshgrid(*axes, indexing="ij")) / cutoff**2
    assert isinstance(square, Tensor)
    return 1 / (1 + square**order) if kind == "butterworth" else (-square / 2).exp()

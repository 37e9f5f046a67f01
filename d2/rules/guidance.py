"""Classifier-free guidance scales: (step, cameras, num_frames) -> {term: v f}, float64.

A term's result is u + scale · (c − u) (Ho & Salimans 2022, arXiv 2207.12598); scale 1 is the
conditional alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from d2.errors import InputError
from d2.matrix import Cameras
from d2.sampling import (
    Combine,
    Composition,
    Fields,
    Needs,
    Prediction,
    Schedule,
    Step,
    as_composition,
    wrapped,
)

Curve = Callable[[int], Tensor]


def per_term(
    step: Step,
    cameras: Cameras,
    num_frames: int,
    *,
    video: Curve,
    multiview: Curve,
    video_warmup: bool = False,
) -> Fields:
    """A curve along each term's sequences; with `video_warmup` the video scale grows from 1 over
    the steps."""
    along_frames, along_views = video(num_frames), multiview(cameras.num_views)
    if video_warmup:
        along_frames = 1 + (along_frames - 1) * step.progress
    shape = (cameras.num_views, num_frames)
    return {
        "video": along_frames[None, :].expand(shape),
        "multiview": along_views[:, None].expand(shape),
    }


def constant(length: int, *, scale: float) -> Tensor:
    """The same scale everywhere."""
    return torch.full((length,), scale, dtype=torch.float64)


def linear(length: int, *, first: float = 1.5, last: float = 3.0) -> Tensor:
    """From `first` to `last` along the sequence; SVD's own (arXiv 2311.15127) is 1.5 to 3 over the
    frames."""
    return torch.linspace(first, last, length, dtype=torch.float64)


def triangle(
    length: int,
    *,
    low: float,
    high: float,
    periods: tuple[float, ...] = (1.0,),
    fuse: str = "max",
) -> Tensor:
    """Triangle waves from `low` up to `high` and back over each period (in units of the sequence),
    fused into one.

    SV3D_u's own (arXiv 2403.12008) rises from 1 at the input view to 2.5 behind the object.
    """
    fusings = {"mean": torch.mean, "multiply": torch.prod, "max": torch.amax}
    if fuse not in fusings:
        raise InputError(f"guidance fuse={fuse}: choose mean, multiply or max")
    position = torch.linspace(0, 1, length, dtype=torch.float64)
    waves = torch.stack([1 - (2 * ((position / p) % 1) - 1).abs() for p in periods])
    return low + (high - low) * fusings[fuse](waves, dim=0)


def interval(
    step: Step,
    cameras: Cameras,
    num_frames: int,
    *,
    schedule: Schedule,
    sigma_low: float = 0.0,
    sigma_high: float,
) -> Fields:
    """A schedule's scales between two levels, 1 outside: no unconditional half there (arXiv
    2404.07724)."""
    scales = schedule(step, cameras, num_frames)
    if sigma_low <= step.sigma <= sigma_high:
        return scales
    return {name: torch.ones_like(scale) for name, scale in scales.items()}


def guided(
    prediction: Prediction,
    scale: Tensor,  # v f
) -> Tensor | None:  # matrix
    """u + scale · (c − u), of one half where that is all there is (Ho & Salimans 2022)."""
    uncond, cond = prediction
    if uncond is None or cond is None:
        return cond if uncond is None else uncond
    return uncond + scale.to(cond)[:, :, None, None, None] * (cond - uncond)


def guided_needs(scales: Fields, *, names: Iterable[str]) -> Needs:
    """The halves that `guided` makes use of."""
    return {name: (scales[name] != 1, scales[name] != 0) for name in names}


def rescaled(*, compose: Composition | Combine, share: float = 0.7) -> Composition:
    """A linear composition whose guided results get the spread of their conditional halves (arXiv
    2305.08891, 3.4).

    Both halves of a cell are multiplied by share·std(cond)/std(guided) + 1 − share, standard
    deviations over c h w.
    """

    def spread(x: Tensor) -> Tensor:
        return x.std(dim=(2, 3, 4), correction=0, keepdim=True)

    def adjusted(prediction: Prediction, scale: Tensor) -> Prediction:
        uncond, cond = prediction
        if uncond is None or cond is None:
            return prediction
        result = guided(prediction, scale)
        assert result is not None
        there = (spread(result) > 0) & (spread(cond) > 0)  # zero where nobody asked for a half
        ratio = torch.where(there, spread(cond) / spread(result), 1.0)
        factor = share * ratio + 1 - share
        return Prediction(uncond * factor, cond * factor)

    def rescale(combine: Combine) -> Combine:
        def rescaling(
            predictions: dict[str, Prediction],
            weights: Fields,
            scales: Fields,
            x: Tensor,  # matrix
            step: Step,
            memory: dict[str, Any],
        ) -> tuple[Tensor, dict[str, Any]]:
            one = torch.ones(x.shape[:2])
            changed = {name: adjusted(p, scales.get(name, one)) for name, p in predictions.items()}
            return combine(changed, weights, scales, x, step, memory)

        return rescaling

    return wrapped(as_composition(compose), rescale)

"""Weights of the terms in every cell: (step, cameras, num_frames) -> {term: v f}, float64, summing
to 1 in a cell.

`s` is the weight of the multi-view prior at the cells that a view's profile leaves free
(Diffusion², eq. 12-13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from d2.errors import InputError
from d2.matrix import Cameras
from d2.sampling import Fields, Step

Curve = Callable[[Step], float]
Profile = Callable[[Cameras], Tensor]


def scheduled(
    step: Step,
    cameras: Cameras,
    num_frames: int,
    *,
    curve: Curve,
    profile: Profile,
    video_only_from: float = math.inf,
) -> Fields:
    """The published weights (arXiv 2404.02148, eq. 12-13): multi-view gets 1 − e + e·s, with e of
    the view profile.

    Video gets the rest, e·(1 − s), and where the progress is above `video_only_from`, everything.
    """
    e = profile(cameras).to(torch.float64)[:, None].expand(-1, num_frames)
    video = torch.ones_like(e) if step.progress > video_only_from else e * (1 - curve(step))
    return {"video": video, "multiview": 1 - video}


def alone(step: Step, cameras: Cameras, num_frames: int, *, term: str) -> Fields:
    """One prior alone: "video" (rows) or "multiview" (columns)."""
    if term not in ("video", "multiview"):
        raise InputError(f"weights.term={term}: choose video or multiview")
    ones = torch.ones(cameras.num_views, num_frames, dtype=torch.float64)
    return {
        name: ones if name == term else torch.zeros_like(ones) for name in ("video", "multiview")
    }


def constant(step: Step, *, scale: float = 0.6) -> float:
    """The same share at every step."""
    return scale


def linear(step: Step, *, low: float = 0.0, high: float = 1.0) -> float:
    """From `high` at the first step to `low` at the last."""
    return high + (low - high) * step.progress


def cosine(step: Step, *, low: float = 0.0, high: float = 1.0) -> float:
    """Half a cosine from `high` to `low`."""
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * step.progress))


def logistic(
    step: Step, *, low: float = 0.0, high: float = 1.0, middle: float = 0.6, steepness: float = 15.0
) -> float:
    """A logistic curve falling through its middle at progress `middle`."""
    return low + (high - low) * 0.5 * (1 - math.tanh(0.5 * steepness * (step.progress - middle)))


def side_views(cameras: Cameras, *, depth: float = 0.75) -> Tensor:
    """1 − depth · sin²(azimuth): front and back are free, side views lean on the multi-view prior:
    v."""
    return 1 - depth * cameras.azimuth_rad.sin().square()


def flat(cameras: Cameras) -> Tensor:
    """1 in every view: v."""
    return torch.ones(cameras.num_views, dtype=torch.float64)


def listed(cameras: Cameras, *, values: Sequence[float]) -> Tensor:
    """An explicit list, one number a view: v."""
    if len(values) != cameras.num_views:
        raise InputError(
            f"weights.profile.values={list(values)}: {len(values)} numbers for"
            f" matrix.num_views={cameras.num_views}; give one a view"
        )
    return torch.tensor(list(values), dtype=torch.float64)


def alternating(step: Step, cameras: Cameras, num_frames: int, *, first: str = "video") -> Fields:
    """The terms in turn, one an evaluation: rows at even ones, columns at odd ones, or `first` the
    other way round.

    Only the prior whose turn it is is evaluated, so that an evaluation costs half; made for plans
    that return exactly to their levels between the turns (Zero4D, arXiv 2503.22622; ViBiDSampler,
    arXiv 2410.05651). An evaluation's number is index · num_repeats + repeat, as if all levels were
    passed as often as this one. In short steps the turns average: on exact Gaussian worlds, with
    returns or without, it errs as the even convex rule does.
    """
    if first not in ("video", "multiview"):
        raise InputError(f"weights.first={first}: choose video or multiview")
    second = "multiview" if first == "video" else "video"
    odd = (step.index * step.num_repeats + step.repeat) % 2
    return alone(step, cameras, num_frames, term=second if odd else first)

"""Choosing among particles: several samples of one scene, scored without truth; the best stays.

A score is a function (x, judge) -> number of an estimate of the clean matrix, the higher the
better. What it asks of the priors is counted like any other evaluation. Where a plan adds noise,
particles may be resampled on the way too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from d2.errors import InputError
from d2.sampling import Prediction, Step

PAIR = ("video", "multiview")


class Judge(NamedTuple):
    """What a score may ask; none of it knows the truth."""

    # x, its level, whether uncond too -> rows and columns
    ask: Callable[[Tensor, float, bool], dict[str, Prediction]]
    denoise: Callable[[Tensor, float], Tensor]  # x of a level -> what the composition makes of it
    noise: Callable[[int], Tensor]  # k -> a unit matrix, the same for all particles
    # clean latents -> v f d, the image tower's of the decoded cells
    features: Callable[[Tensor], Tensor]


Score = Callable[[Tensor, Judge], Tensor | float]


class Choosing(NamedTuple):
    """How many particles there are, and how they are chosen."""

    particles: int
    score: Score
    levels: tuple[float, ...]
    sharpness: float


def choosing(*, score: Score, levels: Sequence[float] = (), sharpness: float = 1.0) -> Choosing:
    """The best of all particles at the end; before it they are resampled where the plan first
    reaches a level.

    A particle is drawn in proportion to exp(sharpness · z), z its score in standard deviations over
    the particles, by systematic resampling. `particles` of the configuration says how many there
    are.
    """
    if not sharpness >= 0 or any(not level > 0 for level in levels):
        raise InputError(
            f"choosing.sharpness={sharpness}, levels={list(levels)}: give 0 or more, and levels"
            " above 0"
        )
    return Choosing(1, score, tuple(sorted(levels, reverse=True)), sharpness)


def shares(scores: Tensor, sharpness: float) -> Tensor:
    """How much each particle counts, from scores k: float64, summing to 1; even where all scores
    are the same."""
    spread = scores.double().std(correction=0)
    z = (scores.double() - scores.double().mean()) / torch.where(spread > 0, spread, 1.0)
    return torch.softmax(sharpness * z, dim=0)


def systematic(share: Tensor, uniform: float) -> list[int]:
    """Whose copies come next (Kitagawa 1996): one uniform number in [0, 1), the points (uniform +
    i) / k.

    A particle gets ⌊k · share⌋ or ⌈k · share⌉ copies, k · share on average.
    """
    points = (uniform + torch.arange(len(share), dtype=torch.float64)) / len(share)
    ends = share.double().cumsum(0) / share.double().sum()
    return torch.searchsorted(ends, points, right=True).clamp(max=len(share) - 1).tolist()


def cuts(plan: Sequence[Step], levels: Sequence[float]) -> list[int]:
    """The steps before which particles are resampled. An InputError where copies would never
    part."""
    found = []
    for level in levels:
        at = next((i for i, step in enumerate(plan) if i and step.sigma <= level), None)
        if at is None or not any(step.noise_before or step.noise_after for step in plan[at:]):
            raise InputError(
                f"choosing.levels={list(levels)}: the plan adds no noise below {level:g}, so that"
                " copies would stay the same; take renoise=churn, or levels=[], which chooses at"
                " the end"
            )
        found.append(at)
    return sorted(set(found))


# --- scores ---------------------------------------------------------------------------------------


def agreement(x: Tensor, judge: Judge, *, sigma: float = 1.0) -> Tensor:
    """Minus the mean squared difference of what rows and columns, told their conditions, say of x
    noised to σ."""
    said = judge.ask(x + sigma * judge.noise(0).to(x), sigma, False)
    row, column = (said[name].cond for name in PAIR)
    assert row is not None and column is not None
    return -(row - column).square().mean()


def lift(x: Tensor, judge: Judge, *, sigmas: Sequence[float] = (0.5, 2.0, 8.0)) -> Tensor:
    """How much the conditions help to denoise x: the lesser of rows' and columns' (CompLift, arXiv
    2505.13740).

    log p(x | c) / p(x) is, but for weights, the mean over levels of |u − x|² − |c − x|² over σ², u
    and c the halves at x noised to σ. Of two conditions that both have to hold the lesser counts,
    as in the paper.
    """
    gains = dict.fromkeys(PAIR, x.new_zeros(()))
    for k, sigma in enumerate(sigmas):
        said = judge.ask(x + sigma * judge.noise(k).to(x), sigma, True)
        for name in PAIR:
            without, told = (error(half, x) for half in said[name])
            gains[name] = gains[name] + (without - told) / sigma**2 / len(sigmas)
    return torch.stack(list(gains.values())).amin()


def smoothness(
    x: Tensor, judge: Judge, *, low: float = 0.1, high: float = 1.0, steps: int = 4
) -> Tensor:
    """Minus how much the slope turns along a short DDIM inversion from x, relative to it (after
    arXiv 2601.00126).

    Euler's steps of dx/dσ = (x − D(x; σ)) / σ lead up from σ = low to high, evenly in log σ; a
    sample that lies where the prior expects one goes up straight.
    """
    if steps < 1 or not 0 < low < high:
        raise InputError(
            f"choosing.score.low={low}, high={high}, steps={steps}: give 0 < low < high and"
            " steps ≥ 1"
        )
    levels = torch.logspace(0, 1, steps + 1, base=high / low, dtype=torch.float64) * low
    slopes, sigmas = [], levels.tolist()
    for sigma, above in zip(sigmas, [*sigmas[1:], sigmas[-1]], strict=True):
        slopes.append((x - judge.denoise(x, sigma)) / sigma)
        x = x + (above - sigma) * slopes[-1]
    path = torch.stack(slopes)
    return -path.diff(dim=0).square().sum() / path.square().sum().clamp(min=1e-30)


def neighbours(x: Tensor, judge: Judge) -> Tensor:
    """How alike the least alike neighbouring views are: cosine of their features, a frame's least,
    mean over frames.

    Views are neighbours around the ring. A view that jumps is unlike both that it stands between.
    """
    found = judge.features(x)
    return F.cosine_similarity(found, found.roll(1, dims=0), dim=-1).amin(dim=0).mean()


def error(half: Tensor | None, x: Tensor) -> Tensor:
    assert half is not None
    return (half - x).square().mean()

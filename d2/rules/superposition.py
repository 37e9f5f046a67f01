"""Superposition of two densities over the whole matrix, either or both (SuperDiff, Skreta et al.,
arXiv 2412.17762).

The rows make a density of the matrix, the product of the video prior's over all rows; the columns
make another. Their logarithms are followed along the trajectory without a divergence, for no
network call more. Guided predictions stand for scores as if guidance made a density of its own.

From x at σ to x' at σ', with s, s' the scores D − x over σ², δ = x' − x and τ = σ² − σ'², the heat
equation gives

    log p'(x') − log p(x) = ½⟨s + s', δ⟩ − ½τ(|s|² + Δ log p),        ½n Δ log p = ½⟨s' − s, δ⟩ on
    average,

where n is the variance of the noise in δ: noise measures the Laplacian by itself. At n = τ, the
reverse SDE, this is the Itô estimator of the paper. So a plan must add noise between any two
levels, by churn for example; a level that is reached again by noise alone (τ = 0) needs no
Laplacian. A solver's further evaluations within a step use the shares of its first and are no
points of the chain; what memory keeps is x and both scores of a step's first evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2.errors import InputError
from d2.rules.guidance import guided, guided_needs
from d2.sampling import Composition, Fields, Needs, Prediction, Step

TERMS = ("video", "multiview")
Share = Callable[[dict[str, Tensor], Fields, dict[str, Tensor], Step], Tensor]


class Point(NamedTuple):
    """A step's first evaluation."""

    step: Step
    x: Tensor  # matrix
    scores: dict[str, Tensor]  # term -> matrix
    # term -> log density, a float64 number, from 0 at the first step: there both are the same
    logs: dict[str, Tensor]
    share: Tensor  # v f, of the video prior


def logical_or(*, temperature: float = 1.0) -> Composition:
    """Samples of one density or of the other (arXiv 2412.17762, OR): shares as weight ·
    density^(1/temperature).

    At temperature 1 and weights w that are the same in all cells this is the score of the mixture w
    · rows + (1 − w) · columns; infinite, it is the convex rule. In many dimensions one of the two
    soon takes everything.
    """
    if not temperature > 0:
        raise InputError(
            f"composition.temperature={temperature}: give a number above 0; inf for the convex rule"
        )

    def share(
        denoised: dict[str, Tensor], weights: Fields, logs: dict[str, Tensor], step: Step
    ) -> Tensor:
        odds = (logs["video"] - logs["multiview"]) / temperature
        return torch.sigmoid((weights["video"].log() - weights["multiview"].log()).to(odds) + odds)

    return superposed(share=share)


def logical_and(*, reach: float = math.inf) -> Composition:
    """Samples equally likely under both densities (arXiv 2412.17762, AND): the convex rule with a
    shift of all weights.

    The shift is what makes both logarithms equal after the step, on average over its noise, if the
    step is one of the reverse SDE; where it is not, the next one mends what is left. Whatever
    weights are the same in all cells, they end up at ½ − (log rows − log columns) / (τ |difference
    of scores|²). `reach` bounds the shift; 0 is the convex rule.
    """
    if not reach >= 0:
        raise InputError(f"composition.reach={reach}: give 0 (the convex rule) to inf (no bound)")

    def share(
        denoised: dict[str, Tensor], weights: Fields, logs: dict[str, Tensor], step: Step
    ) -> Tensor:
        square = (denoised["video"] - denoised["multiview"]).double().square().sum(dim=(2, 3, 4))
        given = weights["video"].to(square)
        to_even = ((0.5 - given) * square).sum()
        gap = (
            (logs["video"] - logs["multiview"]) * step.sigma**2 / (1 - step.sigma_next / step.sigma)
        )
        shift = (to_even - gap) / square.sum()
        # not a number where both say the same
        return given + shift.nan_to_num(0.0).clamp(-reach, reach)

    return superposed(share=share)


def superposed(*, share: Share) -> Composition:
    """The composition of both guided predictions by shares that may depend on the log densities."""

    def combine(
        predictions: dict[str, Prediction],
        weights: Fields,
        scales: Fields,
        x: Tensor,  # matrix
        step: Step,
        memory: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Any]]:
        said = {name: guided(predictions[name], scales[name]) for name in TERMS}
        denoised = {name: matrix for name, matrix in said.items() if matrix is not None}
        before = point_of(memory)
        if before is None or (before.step.index, before.step.repeat) != (step.index, step.repeat):
            scores = {name: (matrix - x) / step.sigma**2 for name, matrix in denoised.items()}
            logs = log_densities(before, x, scores, step)
            before = Point(step, x, scores, logs, share(denoised, weights, logs, step))
        of_video = before.share.to(x)[:, :, None, None, None]
        joint = of_video * denoised["video"] + (1 - of_video) * denoised["multiview"]
        return joint, {**memory, "point": {**before._asdict(), "step": before.step._asdict()}}

    def needs(weights: Fields, scales: Fields) -> Needs:
        return guided_needs(scales, names=TERMS)

    return Composition(combine, needs, couples_cells=True)


def point_of(memory: dict[str, Any]) -> Point | None:
    """The point that memory keeps, in dictionaries, so that it can be saved."""
    kept = memory.get("point")
    return kept and Point(**{**kept, "step": Step(**kept["step"])})


def log_densities(
    before: Point | None,
    x: Tensor,  # matrix
    scores: dict[str, Tensor],  # term -> matrix
    step: Step,
) -> dict[str, Tensor]:
    """Of each term, since the first step. ValueError where no noise came between two levels."""
    if before is None:
        if step.sigma_next and not (step.noise_before or step.noise_after):
            raise InputError(no_noise(step.sigma, step.sigma_next))
        return dict.fromkeys(scores, x.new_zeros((), dtype=torch.float64))
    fall = before.step.sigma**2 - step.sigma**2
    noise = before.step.noise_after**2 + step.noise_before**2
    if not noise and fall:
        raise InputError(no_noise(before.step.sigma, step.sigma))
    delta = x - before.x
    logs = {}
    for name, score in scores.items():
        start, end = dot(before.scores[name], delta), dot(score, delta)
        drift = fall * (dot(before.scores[name], before.scores[name]) + dot(score, score)) / 4
        laplacian = fall / noise * (end - start) / 2 if fall else 0.0
        logs[name] = before.logs[name] + (start + end) / 2 - drift - laplacian
    return logs


def no_noise(above: float, below: float) -> str:
    return (
        f"renoise: no noise is added between levels {above:.4g} and {below:.4g}, without which log"
        " densities are unknown; take renoise=churn renoise.sigma_low=0 renoise.sigma_high=inf, or"
        " another composition"
    )


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum()

"""Calibrated weights: for each level and each view's distance, the linear weights of the terms'
halves that err least.

With p the halves of a cell and x0 its truth, E|x0 − Σ w_k p_k|² = E x0² − 2 w·E[p x0] + w·E[p pᵀ]
w: what is to be measured, once, on scenes whose truth is known, are these moments; the weights
follow in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2.errors import InputError
from d2.rules.composition import Coefficients, linear
from d2.sampling import Composition, Fields, Needs, Prediction, Step

CONDITIONAL = (
    "video.cond",
    "multiview.cond",
)  # what weights are drawn to where little is measured, even shares of each


FORMAT = "d2 calibrated 1"  # of moments as JSON


class Grams(NamedTuple):
    """Moments of the halves of all terms, means over cells and latents; float64."""

    halves: tuple[str, ...]  # k names: video.uncond, video.cond, multiview.uncond, …
    sigmas: Tensor  # s, ascending
    # d, how far a view is from the input view, in turns of the ring, ascending from 0
    turns: Tensor
    outer: Tensor  # s d k k, E[p pᵀ]
    with_truth: Tensor  # s d k, E[p x0]
    truth: Tensor  # s d, E[x0²]


class Table(NamedTuple):
    """The weights of some halves at levels and distances."""

    halves: tuple[str, ...]
    sigmas: Tensor  # s
    turns: Tensor  # d
    weights: Tensor  # s d k


def fitted(
    *, file: Grams, ridge: float = 1e-3, sum_to_one: bool = False, conditional: bool = False
) -> Composition:
    """The composition calibrated by moments, which a configuration gives as a file; see `fit` for
    the numbers."""
    return calibrated(table=fit(file, ridge=ridge, sum_to_one=sum_to_one, conditional=conditional))


def calibrated(*, table: Table) -> Composition:
    """The sum of the halves by a table's weights, linear in log σ and in the distance, constant
    beyond its ends.

    The views are a ring of even steps that ends with the input view, as `camera_ring` makes it;
    weights and guidance have no part in it. A term of the table that a run does not have is a
    ValueError, but for weights of zero.
    """

    def combine(
        predictions: dict[str, Prediction],
        weights: Fields,
        scales: Fields,
        x: Tensor,  # matrix
        step: Step,
        memory: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Any]]:
        factors = coefficients(table, step.sigma, *x.shape[:2])
        rule = linear(coefficients=lambda weights, scales: factors)
        return rule.combine(predictions, weights, scales, x, step, memory)

    def needs(weights: Fields, scales: Fields) -> Needs:
        at_all = coefficients(
            table._replace(weights=table.weights.abs()), 1.0, *next(iter(weights.values())).shape
        )
        return {name: (uncond != 0, cond != 0) for name, (uncond, cond) in at_all.items()}

    return Composition(combine, needs)


def coefficients(table: Table, sigma: float, num_views: int, num_frames: int) -> Coefficients:
    """The weights at one level, for all cells; 0 for a half that the table does not have."""
    level = torch.tensor([sigma], dtype=torch.float64).log()
    of_level = between(table.weights, table.sigmas.log(), level)[0]
    of_views = between(of_level, table.turns, distances(num_views))  # v k
    cells = dict(zip(table.halves, of_views.T[:, :, None].expand(-1, -1, num_frames), strict=True))
    nothing = torch.zeros(num_views, num_frames, dtype=torch.float64)
    names = dict.fromkeys(half.split(".")[0] for half in table.halves)
    return {
        name: (cells.get(f"{name}.uncond", nothing), cells.get(f"{name}.cond", nothing))
        for name in names
    }


def between(
    values: Tensor,  # n ...
    at: Tensor,  # n, ascending
    wanted: Tensor,  # m
) -> Tensor:  # m ...
    """Linear interpolation, constant beyond the ends."""
    if len(at) == 1:
        return values.expand(len(wanted), *values.shape[1:])
    wanted = wanted.clamp(at[0], at[-1])
    right = torch.searchsorted(at, wanted, right=True).clamp(1, len(at) - 1)
    share = (wanted - at[right - 1]) / (at[right] - at[right - 1])
    share = share.reshape(-1, *[1] * (values.dim() - 1))
    return torch.lerp(values[right - 1], values[right], share.expand(-1, *values.shape[1:]))


def distances(num_views: int) -> Tensor:
    """How far each view is from the input view, the last of an even ring, in turns from 0 to ½: v,
    float64."""
    steps = torch.arange(1, num_views + 1)
    return torch.minimum(steps, num_views - steps).double() / num_views


def fit(
    grams: Grams, *, ridge: float = 1e-3, sum_to_one: bool = False, conditional: bool = False
) -> Table:
    """The weights w that minimise E|x0 − w·p|² + ridge · e · |w − even|², of sum one where told.

    `even` is half of each conditional half, to which a large ridge leads; e is the mean over the
    halves of their own errors E|x0 − p|², so that the ridge means the same at every level.
    `conditional` leaves unconditional halves out, and with them half of the network calls.
    """
    if ridge < 0:
        raise InputError(f"composition.ridge={ridge}: give 0 or more")
    kept = [i for i, half in enumerate(grams.halves) if half.endswith(".cond") or not conditional]
    halves = tuple(grams.halves[i] for i in kept)
    outer, with_truth = grams.outer[:, :, kept][..., kept], grams.with_truth[:, :, kept]
    even = torch.tensor([0.5 * (half in CONDITIONAL) for half in halves], dtype=torch.float64)
    own = outer.diagonal(dim1=2, dim2=3) - 2 * with_truth + grams.truth[:, :, None]
    penalty = ridge * own.mean(dim=2, keepdim=True)
    matrix = outer + torch.diag_embed(penalty.expand_as(with_truth))
    weights = torch.linalg.solve(matrix, with_truth + penalty * even)
    if sum_to_one:  # the nearest in the metric of the error itself: a multiplier for the constraint
        way = torch.linalg.solve(matrix, torch.ones_like(weights))
        weights = weights + way * ((1 - weights.sum(dim=2)) / way.sum(dim=2))[:, :, None]
    return Table(halves, grams.sigmas, grams.turns, weights)


def errors(grams: Grams, weights: dict[str, Tensor]) -> Tensor:
    """E|x0 − w·p|² of weights given as half -> s d (or one number): s d."""
    zero = torch.zeros_like(grams.truth)
    w = torch.stack([zero + weights.get(half, zero) for half in grams.halves], dim=-1)
    cross = (w * grams.with_truth).sum(dim=-1)
    return grams.truth - 2 * cross + torch.einsum("sdk,sdkl,sdl->sd", w, grams.outer, w)


def by_half(table: Table) -> dict[str, Tensor]:
    """Half -> its weights s d."""
    return dict(zip(table.halves, table.weights.unbind(dim=-1), strict=True))


def measured(
    predictions: dict[str, Prediction],
    truth: Tensor,  # matrix
    sigma: float,
) -> Grams:
    """The moments of one evaluation: one level, all distances of the ring."""
    parts = {
        f"{name}.{kind}": half
        for name, prediction in predictions.items()
        for kind, half in zip(Prediction._fields, prediction, strict=True)
        if half is not None
    }
    p, x0 = torch.stack([h.flatten(1).double() for h in parts.values()]), truth.flatten(1).double()
    turns, place = distances(len(truth)).unique(return_inverse=True)
    place = place.to(x0.device)

    def mean(of_views: Tensor) -> Tensor:  # v ... -> 1 d ...
        total = of_views.new_zeros(len(turns), *of_views.shape[1:]).index_add_(0, place, of_views)
        count = place.bincount(minlength=len(turns)).to(total) * x0.shape[1]
        return (total / count.reshape(-1, *[1] * (total.dim() - 1)))[None].cpu()

    return Grams(
        tuple(parts),
        torch.tensor([sigma], dtype=torch.float64),
        turns,
        mean(torch.einsum("kvn,lvn->vkl", p, p)),
        mean(torch.einsum("kvn,vn->vk", p, x0)),
        mean(x0.square().sum(dim=1)),
    )


def stacked(one_each: list[Grams]) -> Grams:
    """Moments of one level each, in ascending order, as one."""
    return Grams(
        one_each[0].halves,
        torch.cat([g.sigmas for g in one_each]),
        one_each[0].turns,
        torch.cat([g.outer for g in one_each]),
        torch.cat([g.with_truth for g in one_each]),
        torch.cat([g.truth for g in one_each]),
    )


def averaged(scenes: list[Grams]) -> Grams:
    """The mean over scenes, each as much as any other."""
    return scenes[0]._replace(
        outer=torch.stack([g.outer for g in scenes]).mean(dim=0),
        with_truth=torch.stack([g.with_truth for g in scenes]).mean(dim=0),
        truth=torch.stack([g.truth for g in scenes]).mean(dim=0),
    )


def from_plain(found: Mapping[str, Any]) -> Grams:
    """Moments from what JSON holds of them; KeyError or ValueError if it is anything else."""
    if found["format"] != FORMAT:
        raise InputError(f"format={found['format']}: wanted {FORMAT!r}; calibrate anew")
    tensors = {
        name: torch.tensor(found[name], dtype=torch.float64)
        for name in Grams._fields
        if name != "halves"
    }
    return Grams(halves=tuple(found["halves"]), **tensors)


def levels(count: int, *, low: float = 0.05, high: float = 80.0) -> list[float]:
    """Levels to measure at, evenly spaced in log σ, ascending."""
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64).tolist()

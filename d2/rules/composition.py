"""Composition rules: predictions of the terms -> one denoised matrix.

    compose(predictions, weights, scales, x, step, memory) -> (denoised, memory)

A linear rule is given by the coefficient of each half, (weights, scales) -> {term: (uncond v f,
cond v f)}; `linear` makes the composition of it, which then evaluates a half only where its
coefficient is not zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from d2.errors import InputError
from d2.rules.guidance import guided
from d2.sampling import (
    Combine,
    Composition,
    Fields,
    Needs,
    Prediction,
    State,
    Step,
    altered,
    as_composition,
)

Coefficients = dict[str, tuple[Tensor, Tensor]]  # term -> (of uncond, of cond): v f
CoefficientRule = Callable[[Fields, Fields], Coefficients]


def linear(*, coefficients: CoefficientRule) -> Composition:
    """The composition whose denoised matrix is the sum of all halves times their coefficients."""

    def combine(
        predictions: dict[str, Prediction],
        weights: Fields,
        scales: Fields,
        x: Tensor,  # matrix
        step: Step,
        memory: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Any]]:
        denoised = torch.zeros_like(x)
        for name, factors in coefficients(weights, scales).items():
            if name not in predictions:
                if any(factor.any() for factor in factors):
                    raise InputError(
                        f"composition: the rule weighs a term {name}, and there is none; choose"
                        " another rule"
                    )
                continue
            for half, factor in zip(predictions[name], factors, strict=True):
                if half is not None and factor.any():
                    denoised = denoised + factor.to(x)[:, :, None, None, None] * half
        return denoised, memory

    def needs(weights: Fields, scales: Fields) -> Needs:
        return {name: (u != 0, c != 0) for name, (u, c) in coefficients(weights, scales).items()}

    return Composition(combine, needs)


def convex(weights: Fields, scales: Fields, *, uncond: str = "default") -> Coefficients:
    """The published rule: the weighted sum of the guided predictions (Diffusion², arXiv 2404.02148,
    eq. 9).

    With `uncond` video, multiview or mean, that unconditional result stands in for every prior's
    own.
    """
    shares = {
        "video": {"video": 1.0},
        "multiview": {"multiview": 1.0},
        "mean": {"video": 0.5, "multiview": 0.5},
    }
    if uncond != "default" and uncond not in shares:
        raise InputError(f"composition.uncond={uncond}: choose default, video, multiview or mean")
    of_uncond = {name: weights[name] * (1 - scales[name]) for name in weights}
    if uncond in shares:
        shared = sum(of_uncond.values(), torch.zeros(()))
        of_uncond = {name: shares[uncond].get(name, 0.0) * shared for name in weights}
    return {name: (of_uncond[name], weights[name] * scales[name]) for name in weights}


def inclusion_exclusion(
    weights: Fields, scales: Fields, *, alpha: float = 0.875, unary_scale: float = 1.0
) -> Coefficients:
    """From the convex rule (alpha ½) to row + column − unary (alpha 1).

    At even weights it is α(row + column) − (2α − 1) unary: what rows and columns both say of a cell
    counts twice in their sum, and the term "unary", each cell by itself, takes it away (the Bethe
    form of DiffCollage, Zhang et al. 2023, arXiv 2303.17076, whose factors are rows and columns).
    Uneven weights fade out as alpha grows: a term gets (2 − 2α)·weight + 2α − 1. Unbiased at alpha
    1 where, given a cell, its row and its column are independent.
    """
    if not 0.5 <= alpha <= 1:
        raise InputError(
            f"composition.alpha={alpha}: give 0.5 (the convex rule) to 1 (row + column − unary)"
        )
    shares = {
        name: (2 - 2 * alpha) * weights[name] + (2 * alpha - 1) for name in ("video", "multiview")
    }
    shares["unary"] = torch.full_like(weights["video"], 1 - 2 * alpha)
    scales = {"unary": torch.full_like(weights["video"], unary_scale), **scales}
    return {
        name: (share * (1 - scales[name]), share * scales[name]) for name, share in shares.items()
    }


def holding(
    *,
    compose: Composition | Combine,
    known: Tensor,  # matrix
    where: Tensor,  # v f, bool
) -> Composition:
    """A composition whose denoised matrix is what is known of it, where something is.

    RePaint (arXiv 2201.09865) does so with x itself, this rule with the estimate of x0.
    """
    rule = as_composition(compose)

    def held(denoised: Tensor, x: Tensor, step: Step) -> Tensor:
        return torch.where(where[:, :, None, None, None].to(x.device), known.to(x), denoised)

    def needs(weights: Fields, scales: Fields) -> Needs:
        assert rule.needs is not None
        wanted = rule.needs(weights, scales)
        return {name: (uncond & ~where, cond & ~where) for name, (uncond, cond) in wanted.items()}

    if rule.needs is None or rule.couples_cells:  # what is known of a cell serves others
        return altered(rule, held)
    return altered(rule._replace(needs=needs), held)


def disagreement(
    state: State,
) -> Tensor | None:  # v f
    """Root mean square of what rows and columns, each under its guidance, say of a cell: 0 where
    they agree.

    NaN where the rule does not weigh both; None where not both are terms.
    """
    if not {"video", "multiview"} <= state.predictions.keys() & state.weights.keys():
        return None
    row, column = (
        guided(state.predictions[name], state.scales[name]) for name in ("video", "multiview")
    )
    asked = (state.weights["video"] != 0) & (state.weights["multiview"] != 0)
    if row is None or column is None:
        return None
    distance = (row - column).square().mean(dim=(2, 3, 4)).sqrt()
    return torch.where(asked.to(distance.device), distance, torch.nan)

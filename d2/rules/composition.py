"""Composition rules: predictions of the terms -> one denoised matrix.

    compose(predictions, weights, scales, x, step, memory) -> (denoised, memory)

A linear rule is given by the coefficient of each half, (weights, scales) -> {term: (uncond v f, cond v f)}; `linear`
makes the composition of it, which then evaluates a half only where its coefficient is not zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from d2.sampling import Compose, Fields, Needs, Prediction, Step

Coefficients = dict[str, tuple[Tensor, Tensor]]  # term -> (of uncond, of cond): v f
CoefficientRule = Callable[[Fields, Fields], Coefficients]


def linear(*, coefficients: CoefficientRule) -> Compose:
    """The composition whose denoised matrix is the sum of all halves times their coefficients."""

    def compose(
        predictions: dict[str, Prediction],
        weights: Fields,
        scales: Fields,
        x: Tensor,  # matrix
        step: Step,
        memory: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Any]]:
        denoised = torch.zeros_like(x)
        for name, factors in coefficients(weights, scales).items():
            for half, factor in zip(predictions[name], factors, strict=True):
                if half is not None and factor.any():
                    denoised = denoised + factor.to(x)[:, :, None, None, None] * half
        return denoised, memory

    def needs(weights: Fields, scales: Fields) -> Needs:
        return {name: (u != 0, c != 0) for name, (u, c) in coefficients(weights, scales).items()}

    compose.needs = needs  # type: ignore[attr-defined]
    return compose


def convex(weights: Fields, scales: Fields, *, uncond: str = "default") -> Coefficients:
    """The published rule: the weighted sum of the guided predictions (Diffusion², eq. 9).

    With `uncond` video, multiview or mean, that unconditional result stands in for every prior's own.
    """
    shares = {"video": {"video": 1.0}, "multiview": {"multiview": 1.0}, "mean": {"video": 0.5, "multiview": 0.5}}
    if uncond != "default" and uncond not in shares:
        raise ValueError(f"composition.uncond={uncond}: choose default, video, multiview or mean")
    of_uncond = {name: weights[name] * (1 - scales[name]) for name in weights}
    if uncond in shares:
        shared = sum(of_uncond.values(), torch.zeros(()))
        of_uncond = {name: shares[uncond].get(name, 0.0) * shared for name in weights}
    return {name: (of_uncond[name], weights[name] * scales[name]) for name in weights}

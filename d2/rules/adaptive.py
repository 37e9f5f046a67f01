"""Weights that follow the disagreement of the terms, cell by cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d2.errors import InputError
from d2.rules.composition import convex, linear
from d2.rules.guidance import guided
from d2.sampling import Composition, Fields, Prediction, Step


def adaptive(*, temperature: float = 1.0) -> Composition:
    """The convex rule, its weights moved in every cell towards the prior that the neighbouring
    cells support.

    A term's weight is multiplied by exp(−e / (temperature · ē)): e the mean square of its guided
    prediction minus the mean of the convex result over the four neighbours, ē the mean of e over
    cells and terms of this evaluation, so that a temperature means the same at every sigma.
    Infinite, it is the convex rule; towards 0 the better supported prior alone. Weights by likeness
    to the neighbourhood are those of bilateral filters (Tomasi & Manduchi 1998).
    """
    if not temperature > 0:
        raise InputError(
            f"composition.temperature={temperature}: give a number above 0; inf for the convex rule"
        )
    plain = linear(coefficients=convex)

    def combine(
        predictions: dict[str, Prediction],
        weights: Fields,
        scales: Fields,
        x: Tensor,  # matrix
        step: Step,
        memory: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Any]]:
        mean, memory = plain.combine(predictions, weights, scales, x, step, memory)
        said = {
            name: guided(predictions[name], scales[name]) for name in weights if weights[name].any()
        }
        terms = {name: denoised for name, denoised in said.items() if denoised is not None}
        support = neighbourhood(mean)
        error = torch.stack(
            [
                (denoised - support).square().mean(dim=(2, 3, 4)).double()
                for denoised in terms.values()
            ]
        )
        weight = torch.stack([weights[name].to(error) for name in terms])
        shares = adapted(weight, error, temperature).to(x)
        return torch.einsum("kvf,kvfchw->vfchw", shares, torch.stack(list(terms.values()))), memory

    return Composition(combine, plain.needs, couples_cells=True)


def adapted(
    weight: Tensor,  # k v f, summing to 1 over k
    error: Tensor,  # k v f
    temperature: float,
) -> Tensor:  # k v f, summing to 1 over k
    """Weights times exp(−error / (temperature · mean error)); errors of weight zero do not
    count."""
    asked = (weight > 0).to(error)
    mean = (error * asked).sum() / asked.sum()
    return torch.softmax(weight.log() - error / (temperature * mean).clamp(min=1e-30), dim=0)


def neighbourhood(
    matrix: Tensor,  # v f ...
) -> Tensor:  # v f ...
    """The mean of the views beside a cell, around the ring, and of the frames before and after it,
    where there are."""
    total = matrix.roll(1, dims=0) + matrix.roll(-1, dims=0)
    count = torch.full_like(total[:1, :, :1, :1, :1], 2)
    total[:, 1:] += matrix[:, :-1]
    total[:, :-1] += matrix[:, 1:]
    count[:, 1:] += 1
    count[:, :-1] += 1
    return total / count

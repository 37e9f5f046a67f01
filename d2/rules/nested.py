"""Nested terms: one prior is evaluated on the other's answer, and the joint denoiser found as a
linear system.

At x of level σ let R and C be the derivatives of what rows and columns say (σ² times a Jacobian is
the covariance that a prior leaves of its sequences), and u = w / (w + σ²) that of a cell of
variance w by itself. Where views and frames covary separately, Σ = A ⊗ B with cells of variance w,
the joint denoiser J is the solution of

    M J = (1 − u) R C,   M = R C + u (1 − R − C),

which no weighted sum of R, C and u is, but a few steps of a Krylov method find. docs/rules.md
derives it, and says what becomes of means and conditions. A network is only asked about inputs of
its own level: R d is the difference quotient (D(x + ε d) − D(x)) / ε, where ε d is a share of the
noise that x has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from d2.errors import InputError
from d2.rules.composition import convex, linear
from d2.rules.guidance import guided, guided_needs
from d2.sampling import Ask, Combine, Composition, Fields, Needs, Prediction, Step

TERMS = ("video", "multiview")
Operator = Callable[[Tensor], Tensor]  # matrix -> matrix


def nested(
    *,
    steps: int = 2,
    keep: int | None = None,
    reach: float = 0.1,
    cell_variance: float = 1.0,
    sigma_low: float = 0.0,
    unary: bool = False,
) -> Composition:
    """The joint denoiser of rows and columns by `steps` of a Krylov method, from the rows' answer.

    A step evaluates rows and columns once more, and the first residual does too: steps + 2
    evaluations in all. `keep` is how many directions a step is made conjugate to: none of them is
    Richardson's iteration with the step length that leaves the least residual, all of them (None)
    is GCR, on a symmetric system the conjugate residual method. `reach` is the standard deviation
    of ε d in units of σ. `cell_variance` is that of a latent under no condition. Below `sigma_low`
    it is the convex rule, whose weights have no other part in it.

    With `unary` the term "unary", told what rows and columns are both told, tells them apart where
    their means differ (see docs/rules.md); it costs an evaluation of columns and two of cells more.
    Without it both means count half.
    """
    if steps < 1 or not reach > 0 or not cell_variance > 0 or (keep is not None and keep < 0):
        raise InputError(
            f"composition.steps={steps}, keep={keep}, reach={reach}, cell_variance={cell_variance}:"
            " give steps ≥ 1, keep ≥ 0 or null, and a reach and a variance above 0"
        )
    plain = linear(coefficients=convex)

    def asking(ask: Ask) -> Combine:
        def combine(
            predictions: dict[str, Prediction],
            weights: Fields,
            scales: Fields,
            x: Tensor,  # matrix
            step: Step,
            memory: dict[str, Any],
        ) -> tuple[Tensor, dict[str, Any]]:
            if step.sigma < sigma_low:
                return plain.combine(predictions, weights, scales, x, step, memory)
            said = {name: answer(name, predictions[name], scales) for name in names}

            def derivative(name: str, d: Tensor) -> Tensor:
                share = (
                    reach
                    * step.sigma
                    / d.square().mean().sqrt().clamp(min=torch.finfo(d.dtype).tiny)
                )
                return (answer(name, ask(name, x + share * d), scales) - said[name]) / share

            of = {name: partial(derivative, name) for name in names}
            u = cell_variance / (cell_variance + step.sigma**2)
            start, residual = beginning(x, said, of, u)
            return x + start + krylov(partial(operator, of=of, u=u), residual, steps, keep), memory

        return combine

    def needs(weights: Fields, scales: Fields) -> Needs:
        every = torch.ones_like(scales["video"], dtype=torch.bool)
        return guided_needs(scales, names=TERMS) | ({"unary": (~every, every)} if unary else {})

    names = (*TERMS, "unary") if unary else TERMS
    return Composition(plain.combine, needs, couples_cells=True, nested=asking)


def answer(name: str, prediction: Prediction, scales: Fields) -> Tensor:  # matrix
    """What a term says under its guidance; of the unary term, its conditional half."""
    found = prediction.cond if name == "unary" else guided(prediction, scales[name])
    assert found is not None
    return found


def operator(
    d: Tensor,  # matrix
    *,
    of: dict[str, Operator],  # term -> the derivative of what it says
    u: float,
) -> Tensor:  # matrix
    """M d = u (1 − C) d + R (C − u) d, for one evaluation of each."""
    after = of["multiview"](d)
    return u * (d - after) + of["video"](after - u * d)


def beginning(
    x: Tensor,  # matrix
    said: dict[str, Tensor],  # term -> matrix
    of: dict[str, Operator],  # term -> the derivative of what it says
    u: float,
) -> tuple[Tensor, Tensor]:
    """Where the solution d = y − x starts, at the rows' answer, and −u (1 − R)(1 − C)(x − μ) − M d:
    matrices.

    (1 − R)(x − μ) is x − a with the mean of the rows, (1 − C)(x − μ) is x − b with the columns'; μ
    is half of both, or their sum without that of the unary term.
    """
    rows, columns = said["video"], said["multiview"]
    start = rows - x
    after = of["multiview"](start)
    if "unary" not in said:
        inner = after - u * start - 0.5 * u * (x - columns)
        return start, -0.5 * u * (rows - columns - after) - of["video"](inner)
    away = x - said["unary"]  # (1 − U)(x − mean), where U of a cell is a number
    left = (away * (away - of["unary"](away))).sum(dim=(2, 3, 4), keepdim=True)
    away = away * away.square().sum(dim=(2, 3, 4), keepdim=True) / left
    beyond = u * (away - of["multiview"](away) - x + columns)
    return start, beyond - of["video"](beyond + after - u * start)


def krylov(
    apply: Operator,
    residual: Tensor,  # matrix
    steps: int,
    keep: int | None,
) -> Tensor:  # matrix
    """The solution of apply(d) = residual by GCR (Eisenstat, Elman & Schultz 1983), orthogonal to
    `keep` before."""
    d, least = torch.zeros_like(residual), torch.finfo(residual.dtype).tiny
    known: list[tuple[Tensor, Tensor]] = []
    for _ in range(steps):
        way, image = residual, apply(residual)
        for other, other_image in known if keep is None else known[len(known) - keep :]:
            share = (image * other_image).sum() / other_image.square().sum().clamp(min=least)
            way, image = way - share * other, image - share * other_image
        length = (residual * image).sum() / image.square().sum().clamp(min=least)
        d, residual = d + length * way, residual - length * image
        known.append((way, image))
    return d

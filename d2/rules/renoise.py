"""Correctors as plans: sigmas -> list[Step]. Nothing here touches x; a plan is data, to be read and cut.

Variance-reducing sampling (Diffusion², section 4.2) evaluates early steps again after adding noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from d2.sampling import Step


def none(sigmas: Sequence[float]) -> list[Step]:
    """Every level once."""
    return vrs(sigmas, steps=0)


def vrs(sigmas: Sequence[float], *, steps: int = 10, repeats: int = 2) -> list[Step]:
    """Variance-reducing sampling as published: the first `steps` levels are evaluated `repeats` times.

    After the step from σ to σ_next, noise of standard deviation σ − σ_next returns it towards σ. The level reached is
    sqrt(σ_next² + (σ − σ_next)²) < σ, yet the networks are told σ again: with r = σ_next/σ this is a Langevin step at
    temperature (1 − r)/2 rather than an exact return, which would add sqrt(σ² − σ_next²).
    """
    return churned(sigmas, steps=steps, repeats=repeats, s_churn=0.0)


def churned(
    sigmas: Sequence[float],
    *,
    steps: int = 10,
    repeats: int = 2,
    s_churn: float = 0.0,
    s_noise: float = 1.0,
) -> list[Step]:
    """VRS with the stochastic churn of Karras et al. 2022, algorithm 2, before every evaluation.

    γ = min(s_churn / n, √2 − 1) raises each σ to σ(1 + γ) by noise of standard deviation s_noise·σ·sqrt((1 + γ)² − 1).
    """
    n = len(sigmas) - 1
    if steps < 0 or repeats < 1 or s_churn < 0:
        raise ValueError(
            f"renoise.steps={steps}, repeats={repeats}, s_churn={s_churn}: give steps ≥ 0, repeats ≥ 1 and s_churn ≥ 0"
        )
    grow = 1 + min(s_churn / n, math.sqrt(2) - 1)
    plan = []
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        raised = sigma * grow
        count = repeats if i < steps else 1
        before = s_noise * math.sqrt(raised**2 - sigma**2)
        for j in range(count):
            after = raised - sigma_next if j + 1 < count else 0.0
            plan.append(Step(i, n, j, count, raised, sigma_next, before, after))
    return plan

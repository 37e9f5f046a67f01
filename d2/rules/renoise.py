"""Correctors as plans: sigmas -> list[Step]. Nothing here touches x; a plan is data, to be read and
cut.

All plans are points of one family, `corrector`: levels are evaluated again after noise has led back
to them. Variance-reducing sampling (Diffusion², section 4.2), RePaint, Restart, Langevin steps and
churn are names in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from d2.errors import InputError
from d2.sampling import Step

# level above, level below -> standard deviation added on the way back
Back = Callable[[float, float], float]


def none(sigmas: Sequence[float]) -> list[Step]:
    """Every level once."""
    return vrs(sigmas, steps=0)


def vrs(sigmas: Sequence[float], *, steps: int = 10, repeats: int = 2) -> list[Step]:
    """Variance-reducing sampling as published (arXiv 2404.02148, 4.2): the first `steps` levels
    come `repeats` times.

    After the step from σ to σ_next, noise of standard deviation σ − σ_next returns it towards σ.
    The level reached is sqrt(σ_next² + (σ − σ_next)²) < σ, yet the networks are told σ again: with
    r = σ_next/σ this is a Langevin step at temperature (1 − r)/2 rather than an exact return, which
    would add sqrt(σ² − σ_next²).
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
    """VRS with the stochastic churn of Karras et al. 2022 (arXiv 2206.00364, algorithm 2) before
    every evaluation."""
    return corrector(
        sigmas,
        back=cold,
        steps=steps,
        repeats=repeats,
        sigma_low=0.0,
        told="nominal",
        s_churn=s_churn,
        s_noise=s_noise,
    )


def corrector(
    sigmas: Sequence[float],
    *,
    back: Back,
    steps: int | None = None,
    repeats: int = 2,
    sigma_low: float = 5.0,
    sigma_high: float = math.inf,
    span: int = 1,
    depth: float | None = None,
    told: str = "level",
    s_churn: float = 0.0,
    s_noise: float = 1.0,
) -> list[Step]:
    """Levels of a range are passed `repeats` times; between two passes, `back` says how much noise
    leads up again.

    A pass is `span` steps down the levels (more than one: Restart's intervals, arXiv 2306.14878),
    or, but for the last pass, down to σ(1 − depth) alone (Langevin). `told`: the networks are told
    the level that was reached, or the nominal one again. Levels below `sigma_low` or above
    `sigma_high`, and all after the first `steps`, are passed once: where a rule's score is no
    density's, repeats diverge: below 4.57 at worst in 21 × 25 matrices (`iterable_above`). γ =
    min(s_churn / n, √2 − 1) raises every level of the range to σ(1 + γ) by noise of standard
    deviation s_noise·σ·sqrt((1 + γ)² − 1) (Karras et al. 2022, arXiv 2206.00364, algorithm 2).
    """
    n = len(sigmas) - 1
    _check(steps, repeats, s_churn, span, depth, told)
    in_range = [sigma_low <= sigma <= sigma_high for sigma in sigmas[:-1]]
    gamma = min(s_churn / n, math.sqrt(2) - 1)
    plan: list[Step] = []
    i = 0
    while i < n:
        block = range(i, i + span)
        again = repeats > 1 and all(
            k < n and in_range[k] and (steps is None or k < steps) for k in block
        )
        width, count = (span, repeats) if again else (1, 1)
        top = sigmas[i] * (1 + gamma * in_range[i])
        reached = sigmas[i]
        for j in range(count):
            last = j + 1 == count
            churn = j == 0 or told == "nominal"  # else noise has just led to the very level
            for k in range(i, i + width):
                level = reached if k == i else sigmas[k]
                raised = level * (1 + gamma * (in_range[k] and churn))
                down = sigmas[k + 1] if depth is None or last else raised * (1 - depth)
                before = s_noise * math.sqrt(raised**2 - level**2)
                after = back(top, down) if k + 1 == i + width and not last else 0.0
                plan.append(Step(k, n, j, count, raised, down, before, after))
            reached = (
                sigmas[i]
                if told == "nominal"
                else math.hypot(plan[-1].sigma_next, plan[-1].noise_after)
            )
        i += width
    return plan


def cold(sigma: float, down: float) -> float:
    """As published: σ − σ_down, temperature (1 − r)/2 with r = σ_down/σ."""
    return sigma - down


def returning(sigma: float, down: float, *, share: float = 1.0) -> float:
    """From the published noise (share 0) to an exact return to σ (share 1): temperature (1 − r)/2 +
    share·r.

    The exact return is RePaint's resampling (arXiv 2201.09865), over several levels Restart's
    (arXiv 2306.14878).
    """
    return math.sqrt((sigma - down) * (sigma + (2 * share - 1) * down))


def langevin(sigma: float, down: float, *, temperature: float = 1.0) -> float:
    """Of a Langevin step as long as the way from σ down (correctors of Song et al. 2021, arXiv
    2011.13456).

    x moves by δ·score, δ = σ(σ − σ_down), and gets noise of standard deviation sqrt(2Tδ).
    """
    return math.sqrt(2 * temperature * sigma * (sigma - down))


def iterable_above(view_variance: float, frame_variance: float, *, alpha: float = 1.0) -> float:
    """The σ below which α(row + column) − (2α − 1) unary is the score of no density, for unit
    variance a cell; or 0.

    The variances a and b are the largest along an eigenvector of a column's and of a row's
    covariance, at most V and F. The precision α/(a + σ²) + α/(b + σ²) − (2α − 1)/(1 + σ²) of their
    product mode is negative below; its numerator is a quadratic in σ². At α = 1 the root is σ² =
    sqrt((a − 1)(b − 1)) − 1; at α = ½ there is none.
    """
    a, b = view_variance, frame_variance
    half = ((1 - alpha) * (a + b) + 2 * alpha) / 2
    constant = alpha * (a + b) - (2 * alpha - 1) * a * b
    return math.sqrt(max(0.0, math.sqrt(max(0.0, half**2 - constant)) - half))


def _check(
    steps: int | None, repeats: int, s_churn: float, span: int, depth: float | None, told: str
) -> None:
    if (steps or 0) < 0 or repeats < 1 or s_churn < 0:
        raise InputError(
            f"renoise.steps={steps}, repeats={repeats}, s_churn={s_churn}: give steps ≥ 0, repeats"
            " ≥ 1 and s_churn ≥ 0"
        )
    if span < 1 or (depth is not None and (span > 1 or not 0 < depth <= 1)):
        raise InputError(
            f"renoise.span={span}, depth={depth}: give span ≥ 1; a depth above 0, up to 1, with"
            " span=1"
        )
    if told not in ("level", "nominal"):
        raise InputError(f"renoise.told={told}: choose level or nominal")

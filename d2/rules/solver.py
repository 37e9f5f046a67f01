"""Solver steps of dx/dσ = (x − D(x; σ)) / σ: (evaluate, x, step, memory) -> (x, memory).

Euler's is the sampler's default, and stands beside it in d2/sampling.py.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from d2.sampling import Evaluate, Step, euler

__all__ = ["dpmpp_2m", "euler", "heun"]


def heun(
    evaluate: Evaluate,
    x: Tensor,  # matrix
    step: Step,
    memory: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    """Euler's step, done again with the mean of the slopes at its two ends (arXiv 2206.00364,
    algorithm 1).

    Second order for two evaluations; the step to zero, where there is no slope, takes one.
    """
    gap = step.sigma_next - step.sigma
    d = (x - evaluate(x, step)) / step.sigma
    ahead = x + gap * d
    if step.sigma_next == 0:
        return ahead, memory
    d_ahead = (ahead - evaluate(ahead, step._replace(sigma=step.sigma_next))) / step.sigma_next
    return x + gap * (d + d_ahead) / 2, memory


def dpmpp_2m(
    evaluate: Evaluate,
    x: Tensor,  # matrix
    step: Step,
    memory: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order for one
    evaluation.

    In λ = −log σ the step for a constant D is exact, x_next = r·x + (1 − r)·D with r = σ_next/σ; D
    is taken from the line through its last two values at the middle of the step. A value from
    before x was renoised is not used, nor one of the same level, through which there is no line.
    """
    denoised = evaluate(x, step)
    middle = denoised
    above = memory.get("sigma", 0.0)
    if (
        above > step.sigma == memory.get("sigma_next")
        and not step.noise_before
        and step.sigma_next > 0
    ):
        ahead = math.log(step.sigma / step.sigma_next)
        behind = math.log(above / step.sigma)
        middle = denoised + (denoised - memory["denoised"]) * ahead / (2 * behind)
    r = step.sigma_next / step.sigma
    left = (
        {}
        if step.noise_after
        else {"denoised": denoised, "sigma": step.sigma, "sigma_next": step.sigma_next}
    )
    return r * x + (1 - r) * middle, left

"""Solver steps of dx/dσ = (x − D(x; σ)) / σ: (evaluate, x, step, memory) -> (x, memory)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from d2.sampling import Step


def euler(
    evaluate: Callable[[Tensor, Step], Tensor],
    x: Tensor,  # matrix
    step: Step,
    memory: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    """One Euler step from step.sigma to step.sigma_next (Karras et al. 2022, algorithm 1)."""
    d = (x - evaluate(x, step)) / step.sigma
    return x + (step.sigma_next - step.sigma) * d, memory

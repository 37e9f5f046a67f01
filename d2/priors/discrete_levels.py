"""The noise levels of a prior trained at a table of them: the table, what snapping does, and its
own plan.

The numbers are Stable Virtual Camera's (arXiv 2503.14489): squares of an even grid of sqrt(beta),
and a shift of the log signal-to-noise ratio that multiplies every level.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from d2.priors.precondition import Scaling
from d2.sampling import Step

NUM_LEVELS = 1000
BETA_START, BETA_END = 5e-6, 0.012
LOG_SNR_SHIFT = 2.4  # sigma is multiplied by exp of it
EXTRA = 1e-6  # by which the published sampler raises every level before it evaluates


@functools.cache
def table(shift: float = LOG_SNR_SHIFT) -> Tensor:
    """The levels, ascending: 1000, float64, from 0.0246 to 84.9 at the published shift."""
    grid = torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_LEVELS, dtype=torch.float64)
    kept = (1 - grid.square()).cumprod(0)
    return ((1 - kept) / kept).sqrt() * math.exp(shift)


def own_sigmas(num_steps: int, shift: float = LOG_SNR_SHIFT) -> list[float]:
    """The published levels of a run, then 0: entries trunc(999 − 999 k/n) of the table, k = 0 … n −
    1."""
    top = NUM_LEVELS - 1
    indices = [int(top - top * k / num_steps) for k in range(num_steps)]
    return [*table(shift)[indices].tolist(), 0.0]


def snapped(
    sigma: Tensor,  # ...
) -> Tensor:
    """Index of the nearest entry of the table, the lower one of two as near: ..., int64."""
    levels = table().to(sigma.device)
    above = torch.searchsorted(levels, sigma.double()).clamp(1, NUM_LEVELS - 1)
    below = above - 1
    return torch.where(sigma - levels[below] <= levels[above] - sigma, below, above)


def precondition_snapped(
    sigma: Tensor,  # ...
) -> Scaling:
    """Prediction of the noise, told the index of the snapped level; each field has the shape of
    sigma, float64."""
    index = snapped(sigma)
    s = table().to(sigma.device)[index]
    return Scaling(torch.ones_like(s), -s, (s.square() + 1).rsqrt(), index.double())


def own_plan(
    num_steps: int,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = 999.0,
    s_noise: float = 1.0,
) -> list[Step]:
    """The published sampler as a plan: Euler's steps with churn (Karras et al. 2022, algorithm 2)
    and a trace of noise.

    Every level is raised by 1e-6 more than the churn asks for, so some noise is added whatever the
    churn.
    """
    sigmas, plan = own_sigmas(num_steps), []
    churn = min(s_churn / num_steps, math.sqrt(2) - 1)
    for k, (sigma, down) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        raised = sigma * (1 + churn * (s_tmin <= sigma <= s_tmax)) + EXTRA
        before = s_noise * math.sqrt((raised - sigma) * (raised + sigma))
        plan.append(Step(k, num_steps, 0, 1, raised, down, before))
    return plan

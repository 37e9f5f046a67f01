"""Several samples of one scene, resampled on the way where a rule says so, and the one that scores
best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from d2.passes import Run, Sample, Trace
from d2.rules.choosing import Choosing, Judge, cuts, shares, systematic
from d2.sampling import State, Step

# between the noise streams of neighbouring particles; the first has the scene's own
SEED_STRIDE = 15_485_863


class Chosen(NamedTuple):
    """The best particle."""

    latents: Tensor  # matrix
    trace: Trace  # of the steps that led to it
    scores: list[float]  # of all particles at the end


def choose(
    choosing: Choosing,
    start: Callable[[int], Tensor],  # particle -> x at the plan's first level
    sample: Callable[[int], Sample],  # particle -> the sampler under its noise
    plan: Sequence[Step],
    see: Callable[[Trace], Callable[[State], None]],  # what notes a particle's steps
    judge: Judge,
    run: Run,
    uniform: Callable[[int], float],  # step -> a number in [0, 1)
) -> Chosen:
    """Sample all particles one after the other, a part of the plan at a time, and score what they
    end with.

    After a resampling a copy goes on under the noise of its own place, so that copies part at the
    next noise that the plan adds. A rule's memory begins anew there. Scores are of the
    composition's estimate at the level reached.
    """
    xs = [start(k) for k in range(choosing.particles)]
    traces: list[Trace] = [{} for _ in xs]
    for begin, end in pairwise([0, *cuts(plan, choosing.levels), len(plan)]):
        for k, x in enumerate(xs):
            trace: Trace = {"sigma": [], "distance": []}
            xs[k] = run(sample(k), x, plan[begin:end], see(trace), trace)
            traces[k] = {
                name: [*traces[k].get(name, []), *values] for name, values in trace.items()
            }
        if end < len(plan):
            level = math.hypot(plan[end - 1].sigma_next, plan[end - 1].noise_after)
            scores = [float(choosing.score(judge.denoise(x, level), judge)) for x in xs]
            kept = systematic(shares(torch.tensor(scores), choosing.sharpness), uniform(end))
            xs, traces = [xs[k] for k in kept], [traces[k] for k in kept]
    scores = [float(choosing.score(x, judge)) for x in xs]
    best = max(range(len(xs)), key=scores.__getitem__)
    return Chosen(xs[best], traces[best], scores)

"""Noise levels chosen for the solver: python experiments/quality_per_call/levels.py [scenes] [N …].

With r = σ_j/σ_i a step leaves x_j − r·x_i − (1 − r)·D of a fine trajectory, D being what
DPM-Solver++(2M) makes of its values at σ_i and at the level before. Of all choices of N of the
fine levels the printed one has the least sum of those errors' norms, each by the share that would
arrive at σ = 0 if data were Gaussian of unit variance, 1/sqrt(1 + σ_j²): an upper bound of the
error there, found by dynamic programming over pairs of levels (over single ones: Watson et al.
2021, arXiv 2106.03802). Truncation errors along a trajectory led Karras et al. 2022 (arXiv
2206.00364, appendix D) to their levels too.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

import d2
from d2.data.sources import list_scenes
from d2.sampling import State

FINE = 64  # levels of the trajectory, at ρ = 7
WORDS = (
    "preset=official_short",
    "renoise=none",
    "solver=dpmpp_2m",
    f"sampler.num_steps={FINE}",
    "scenes.split=validation",
    "scenes.first=16",  # the study has those before
)


def trajectory(states: list[State]) -> tuple[Tensor, Tensor]:
    """x at every level and at 0, and D at every level: n + 1 and n by numbers."""
    first = states[0].step
    r = first.sigma_next / first.sigma
    start = (states[0].x - (1 - r) * states[0].denoised) / r  # the first step has one value of D
    x = torch.stack([start, *(state.x for state in states)])
    return x.flatten(1).double(), torch.stack([s.denoised for s in states]).flatten(1).double()


def errors(x: Tensor, denoised: Tensor, sigmas: list[float]) -> Tensor:
    """The root mean square at 0 of a step from level i to j after one from k: k i j; k = i: the
    first."""
    n = len(sigmas) - 1
    found = torch.full((n, n, n + 1), math.inf, dtype=torch.float64)
    for i in range(n):
        change = denoised[i] - denoised[: i + 1]  # from k to i
        for j in range(i + 1, n + 1):
            r = sigmas[j] / sigmas[i]
            left = x[j] - r * x[i] - (1 - r) * denoised[i]
            ahead = [
                math.log(sigmas[i] / sigmas[j]) / (2 * math.log(sigmas[k] / sigmas[i]))
                if j < n and k < i
                else 0.0
                for k in range(i + 1)
            ]
            step = (1 - r) * torch.tensor(ahead, dtype=torch.float64)[:, None] * change
            rms = (left - step).square().mean(dim=1).sqrt()
            found[: i + 1, i, j] = rms / math.sqrt(1 + sigmas[j] ** 2)
    return found


def best(cost: Tensor, count: int) -> list[int]:
    """The `count` levels, the first of them fixed, whose steps down to 0 cost least."""
    n = cost.shape[0]
    first = torch.full((n, n), math.inf, dtype=torch.float64)  # of a way that ends in (k, i)
    first[0, 0] = 0.0
    ways, come_from = first, []
    for _ in range(count - 1):
        total, source = (ways[:, :, None] + cost).min(dim=0)  # i j, by the best k
        come_from.append(source)
        ways = total[:, :n]
    k, i = divmod(int((ways + cost[:, :, n]).argmin()), n)
    levels = [i]
    for source in reversed(come_from):
        levels.append(k)
        k, i = int(source[k, i]), k
    return levels[::-1]


def spent(cost: Tensor, levels: list[int]) -> float:
    """The cost of a choice of levels."""
    way = [0, *levels, cost.shape[0]]
    return sum(float(cost[k, i, j]) for k, i, j in zip(way, way[1:], way[2:], strict=False))


def main(scenes: int, counts: list[int]) -> None:
    """Print the schedules of `counts` levels, and the bound of theirs and of ρ = 7's error."""
    sampler = d2.load(*WORDS, f"scenes.count={scenes}")
    sigmas = sampler.job.settings.sigmas
    cost = torch.zeros(())
    for scene in list_scenes(sampler.job.source):
        states: list[State] = []
        sampler(scene.read(), on_step=states.append)
        cost = cost + errors(*trajectory(states), sigmas) / scenes
    for count in counts:
        levels = best(cost, count)
        even = torch.linspace(0, FINE - 1, count).round().int().tolist()
        said = ",".join(f"{sigmas[i]:.3g}" for i in levels)
        print(f"levels_{count}: sampler.levels=[{said}]")
        print(f"  error {spent(cost, levels):.3f}, of rho=7 {spent(cost, even):.3f}")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]] or [4, 8, 12]
    main(given[0], given[1:])

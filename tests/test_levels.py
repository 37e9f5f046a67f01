"""Noise levels that are given, and those that a study chooses for the solver."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from script import script

from d2.config import command_line
from d2.files import asset
from d2.resolve import resolve
from d2.rules.solver import dpmpp_2m
from d2.sampling import Step, karras_sigmas

study = script(asset("experiments") / "quality_per_call" / "levels.py")


def test_given_levels_are_the_plan() -> None:
    composed = command_line.composed("sample", ["sampler.levels=[20,3,0.5]", "renoise=none"])
    job = resolve(composed.config, composed.text, composed.name, composed.label)
    plan = job.rules.renoise(job.settings.sigmas)
    assert [(step.sigma, step.sigma_next) for step in plan] == [(20, 3), (3, 0.5), (0.5, 0)]
    assert job.settings.num_steps == 3


def test_the_errors_are_those_of_the_solver() -> None:
    """Of two steps of DPM-Solver++(2M), the second from where the trajectory is."""
    sigmas = karras_sigmas(5, sigma_min=0.1, sigma_max=9.0)
    x, denoised = torch.randn(6, 7).double(), torch.randn(5, 7).double()
    found = study.errors(x, denoised, sigmas)
    for k, i, j in ((0, 0, 3), (0, 2, 3), (1, 2, 4), (1, 3, 5)):
        memory: dict[str, object] = {}
        for level, to in [(k, i), (i, j)][k == i :]:
            step = Step(level, 5, 0, 1, sigmas[level], sigmas[to])
            made, memory = dpmpp_2m(
                lambda x, step, level=level: denoised[level], x[level], step, memory
            )
        rms = (x[j] - made).square().mean().sqrt() / (1 + sigmas[j] ** 2) ** 0.5
        assert found[k, i, j].item() == pytest.approx(rms.item(), rel=1e-9)
    assert found[2, 1, 3].isinf() and found[0, 2, 2].isinf()


def test_no_other_choice_costs_less() -> None:
    n = 7
    torch.manual_seed(0)
    cost = torch.rand(n, n, n + 1).double()
    for k in range(n):
        for i in range(n):
            cost[k, i, : i + 1] = torch.inf
    cost[torch.ones(n, n).tril(-1).bool()] = torch.inf  # k after i

    for count in (1, 2, 4):
        every = [[0, *rest] for rest in combinations(range(1, n), count - 1)]
        assert study.best(cost, count) == min(every, key=lambda levels: study.spent(cost, levels))

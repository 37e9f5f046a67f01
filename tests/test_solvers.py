"""Laws of the solvers: their order, what they cost, and what they may remember."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_world import sample, terms_of
from torch import Tensor

from d2.matrix import raster
from d2.noise import draw
from d2.priors import analytic
from d2.priors.analytic import autoregressive
from d2.rules import renoise, solver
from d2.sampling import State, Step, initial_x, karras_sigmas

SOLVERS = {"euler": (solver.euler, 1), "heun": (solver.heun, 2), "dpmpp_2m": (solver.dpmpp_2m, 2)}
LAMBDA = 0.3  # variance of the Gaussian of one cell


def between(num_steps: int) -> list[float]:
    """Levels from 20 to 0.05, evenly in the root, and no zero."""
    return karras_sigmas(num_steps + 1, sigma_min=0.05, sigma_max=20.0)[:-1]


def orders(errors: list[float]) -> list[float]:
    """Ratios of errors from halving the steps, as powers of two."""
    return [torch.tensor(a / b).log2().item() for a, b in zip(errors[:-1], errors[1:], strict=True)]


@pytest.mark.parametrize("name", SOLVERS)
def test_order_on_a_gaussian(name: str) -> None:
    """Its flow is known: x scales with sqrt(λ + σ²)."""
    step, order = SOLVERS[name]
    terms = terms_of(analytic.gaussian(torch.tensor([[LAMBDA]])), 1, 1, ["video"])
    exact = ((LAMBDA + 0.05**2) / (LAMBDA + 20.0**2)) ** 0.5

    def error(n: int) -> float:
        x = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
        return abs(
            sample(x, renoise.none(between(n)), terms, weight=0.0, solver=step).item() / exact - 1
        )

    assert orders([error(n) for n in (40, 80, 160, 320)])[-1] == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", SOLVERS)
def test_order_on_a_mixture(name: str) -> None:
    """Against itself at many more steps: nothing is linear here."""
    step, order = SOLVERS[name]
    world = analytic.two_kinds(autoregressive(2, 0.7), autoregressive(2, 0.4), share=0.5)
    terms = [analytic.term("joint", raster(2, 2), world, 2)]
    x = 20 * draw(0, "init", (2, 2, 1, 3, 3)).double()

    def end(n: int) -> Tensor:
        return sample(x, renoise.none(between(n)), terms, solver=step)

    best = sample(x, renoise.none(between(320)), terms, solver=solver.heun)
    errors = [(end(n) - best).square().mean().sqrt().item() for n in (40, 80)]
    assert orders(errors)[-1] == pytest.approx(order, abs=0.4)


def count(step: Any, plan: list[Step]) -> list[float]:
    """The levels that a solver evaluates along a plan, on a world of zero alone."""
    asked: list[float] = []
    x, memory = torch.ones(1, 1, 1, 1, 1), {}

    def evaluate(x: Tensor, at: Step) -> Tensor:
        asked.append(at.sigma)
        return 0 * x

    for at in plan:
        x, memory = step(evaluate, x, at, memory)
    assert x.item() == 0
    return asked


def test_what_solvers_evaluate() -> None:
    sigmas = karras_sigmas(5, sigma_min=0.1, sigma_max=10.0)
    plan = renoise.none(sigmas)
    assert count(solver.euler, plan) == count(solver.dpmpp_2m, plan) == sigmas[:-1]
    twice = [s for pair in zip(sigmas[:-1], sigmas[1:], strict=True) for s in pair]
    assert count(solver.heun, plan) == twice[:-1]  # nothing is asked at zero


@pytest.mark.parametrize("name", SOLVERS)
def test_a_constant_answer_is_followed_exactly(name: str) -> None:
    answer = draw(0, "init", (2, 2, 1, 1, 1)).double()
    x, memory = answer + 3.0, {}
    for step in renoise.none(between(4)):
        x, memory = SOLVERS[name][0](lambda x, step: answer, x, step, memory)
    torch.testing.assert_close(x, answer + 3.0 * 0.05 / 20)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_level_that_comes_again_changes_nothing(name: str) -> None:
    terms = terms_of(
        analytic.separable(autoregressive(2, 0.7), autoregressive(3, 0.5)),
        2,
        3,
        ("video", "multiview"),
    )
    x = initial_x(draw(0, "init", (2, 3, 1, 2, 2)).double(), 80.0)
    for sigmas in ([80.0, 0.0], [80.0, 20.0, 0.0]):
        stays = [sigmas[0], sigmas[0], *sigmas]
        got, once = (
            sample(x, renoise.none(s), terms, solver=SOLVERS[name][0]) for s in (stays, sigmas)
        )
        torch.testing.assert_close(got, once)


def test_what_is_from_before_a_renoise_is_forgotten() -> None:
    """The first step after noise, and a step to zero, are Euler's."""
    sigmas = karras_sigmas(6, sigma_min=0.1, sigma_max=10.0)
    answers = iter(draw(0, "init", (99,)).double())
    plan = renoise.corrector(sigmas, back=renoise.returning, steps=3, sigma_low=0.0, s_churn=0.0)
    x, memory = torch.tensor(1.0).double(), {}
    plain = []
    for step in plan:
        answer = next(answers)
        expected = answer + step.sigma_next / step.sigma * (x - answer)
        x, memory = solver.dpmpp_2m(lambda x, step, answer=answer: answer, x, step, memory)
        plain.append(torch.allclose(x, expected))
    # three levels twice: a pass after noise starts afresh, the next level goes on from it
    assert [s.repeat for s in plan] == [0, 1, 0, 1, 0, 1, 0, 0, 0]
    assert plain == [True, True, False, True, False, True, False, False, True]


def test_churn_is_a_renoise() -> None:
    step = Step(1, 4, 0, 1, 2.0, 1.0, noise_before=0.3)
    memory = {"denoised": torch.tensor(5.0), "sigma": 4.0, "sigma_next": 2.0}
    x, _ = solver.dpmpp_2m(lambda x, step: torch.tensor(1.0), torch.tensor(3.0), step, memory)
    assert x.item() == pytest.approx(1 + (3 - 1) / 2)


@pytest.mark.parametrize("name", SOLVERS)
def test_resuming_gives_the_same_bits(name: str) -> None:
    terms = terms_of(
        analytic.separable(autoregressive(2, 0.7), autoregressive(3, 0.5)),
        2,
        3,
        ("video", "multiview"),
    )
    plan = renoise.corrector(
        karras_sigmas(5, sigma_min=0.1, sigma_max=10.0), back=renoise.cold, steps=2
    )
    states: list[State] = []
    x = initial_x(draw(0, "init", (2, 3, 1, 2, 2)), plan[0].sigma)
    step = SOLVERS[name][0]
    whole = sample(x, plan, terms, solver=step, on_step=states.append)
    for k in range(1, len(plan)):
        again = sample(states[k - 1].x, plan[k:], terms, solver=step, memory=states[k - 1].memory)
        assert torch.equal(again, whole)

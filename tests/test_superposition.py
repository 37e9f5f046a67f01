"""Laws of superposition: log densities followed along a trajectory agree with the exact ones, and
steer as they should.

A world of 3 × 4 cells and one particle: rows and columns are two densities over 12 numbers, both
known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from exact_world import sample, terms_of
from torch import Tensor

from d2.noise import draw, step_noise
from d2.priors import analytic
from d2.priors.analytic import autoregressive
from d2.rules import composition, renoise, solver
from d2.rules.superposition import Point, logical_and, logical_or, point_of
from d2.sampling import Composition, Prediction, State, Step, initial_x, karras_sigmas

V, F = 3, 4
A, B = autoregressive(V, 0.9), autoregressive(F, 0.2)
PAIR = ("video", "multiview")
TERMS = terms_of(analytic.separable(A, B), V, F, PAIR)
SIGMAS = karras_sigmas(80, sigma_min=0.1, sigma_max=40.0)
CHURN = renoise.corrector(SIGMAS, back=renoise.returning, repeats=1, sigma_low=0.0, s_churn=20.0)
ODE = renoise.none(SIGMAS)


class Path(NamedTuple):
    """What came of a run."""

    x: Tensor  # matrix
    points: list[Point]  # one a step


def followed(seed: int, compose: Composition, plan: list[Step] = CHURN, **changes: Any) -> Path:
    x = initial_x(draw(seed, "init", (V, F, 1, 1, 1)).double(), plan[0].sigma)
    points: list[Point] = []

    def see(state: State) -> None:
        points.append(point_of(state.memory[0]))

    return Path(
        sample(x, plan, TERMS, compose=compose, noise=step_noise(seed, x), on_step=see, **changes),
        points,
    )


def log_density(sequences: Tensor, covariance: Tensor, sigma: float) -> float:
    """Of b sequences of t cells, each from N(0, covariance + σ²)."""
    noisy = covariance + sigma**2 * torch.eye(len(covariance)).double()
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(covariance)).double(), noisy)
    return normal.log_prob(sequences).sum().item()


def exact_logs(point: Point) -> tuple[float, float]:
    """Of rows and columns."""
    x, sigma = point.x[:, :, 0, 0, 0], point.step.sigma
    return log_density(x, B, sigma), log_density(x.T, A, sigma)


def ratio(path: Path, at: int) -> tuple[float, float]:
    """log rows − log columns since the start: as followed, and exactly."""
    logs, (rows, columns), (rows0, columns0) = (
        path.points[at].logs,
        *map(exact_logs, (path.points[at], path.points[0])),
    )
    return (logs["video"] - logs["multiview"]).item(), (rows - columns) - (rows0 - columns0)


def rms(values: list[float]) -> float:
    return math.sqrt(sum(v**2 for v in values) / len(values))


# ----------------------------------------------------------------------------------- the logarithms


@pytest.mark.parametrize("method", [solver.euler, solver.heun, solver.dpmpp_2m])
def test_the_ratio_followed_is_the_exact_one(method: Callable[..., Any]) -> None:
    """Whatever the solver: one that evaluates twice a step puts no more points on the chain."""
    paths = [followed(seed, logical_or(temperature=math.inf), solver=method) for seed in range(4)]
    ends = [ratio(path, -1) for path in paths]
    assert all(
        len({(p.step.index, p.step.repeat) for p in path.points}) == len(CHURN) for path in paths
    )
    off = rms([got - exact for got, exact in ends])
    assert off < 0.4 * rms([exact for _, exact in ends])


def test_shorter_steps_follow_closer() -> None:
    """Both logarithms themselves, which fall by tens, and not their difference alone."""
    errors = []
    for n in (25, 150):
        sigmas = karras_sigmas(n, sigma_min=0.5, sigma_max=40.0)
        plan = renoise.corrector(
            sigmas, back=renoise.returning, repeats=1, sigma_low=0.0, s_churn=15.0
        )
        off = []
        for seed in range(4):
            path = followed(seed, logical_or(temperature=math.inf), plan)
            (rows, columns), (rows0, columns0) = map(exact_logs, (path.points[-1], path.points[0]))
            assert rows - rows0 > 20 and columns - columns0 > 20
            logs = path.points[-1].logs
            off += [
                logs["video"].item() - (rows - rows0),
                logs["multiview"].item() - (columns - columns0),
            ]
        errors.append(rms(off))
    assert errors[1] < 0.7 * errors[0] and errors[1] < 3


def test_a_return_by_noise_alone_is_followed_too() -> None:
    """One level, again and again: the ratio wanders, and is known exactly where scores are
    linear."""
    down = 1.5
    back = math.sqrt(2.0**2 - down**2)
    plan = [Step(0, 1, k, 40, 2.0, down, 0.0, back) for k in range(40)]
    paths = [followed(seed, logical_or(temperature=math.inf), plan) for seed in range(4)]
    pairs = [ratio(path, at) for path in paths for at in (10, 20, 39)]
    assert (
        max(abs(got - exact) for got, exact in pairs)
        < 1e-9
        < 0.5
        < max(abs(exact) for _, exact in pairs)
    )


@pytest.mark.parametrize(
    "plan", [ODE, renoise.vrs(SIGMAS), renoise.corrector(SIGMAS, back=renoise.returning)]
)
def test_without_noise_between_two_levels_it_is_refused(plan: list[Step]) -> None:
    with pytest.raises(
        ValueError, match="no noise is added between levels .* take renoise=churn"
    ) as error:
        followed(0, logical_and(), plan)
    assert "\n" not in str(error.value)


def test_one_step_needs_no_noise() -> None:
    followed(0, logical_or(), [Step(0, 1, 0, 1, 10.0, 0.0)])


def test_a_run_resumes_from_its_memory() -> None:
    """Same bits; and nothing of a memory is changed in place."""
    x = initial_x(draw(0, "init", (V, F, 1, 1, 1)).double(), CHURN[0].sigma)
    states: list[State] = []
    rule = logical_and()
    end = sample(x, CHURN, TERMS, compose=rule, noise=step_noise(0, x), on_step=states.append)
    half = states[39]
    again = sample(
        half.x, CHURN[40:], TERMS, compose=rule, noise=step_noise(0, x), memory=half.memory
    )
    assert torch.equal(again, end)


# ----------------------------------------------------------------------------------------------- or


def test_or_is_the_score_of_the_mixture() -> None:
    """Its shares are those of exact densities, along its own way; and its runs end with one prior
    or the other."""
    off, ends = [], []
    for seed in range(8):
        path = followed(seed, logical_or(), weight=0.3)
        for point in path.points:
            rows, columns = exact_logs(point)
            exact = 1 / (1 + 0.3 / 0.7 * math.exp(columns - rows))
            off.append(point.share[0, 0].item() - exact)
        ends.append(path.points[-1].share[0, 0].item())
    assert rms(off) < 0.1
    assert min(ends) < 0.1 and max(ends) > 0.9


def test_or_at_infinite_temperature_is_the_convex_rule() -> None:
    convex = composition.linear(coefficients=composition.convex)
    plain = sample(start(), CHURN, TERMS, compose=convex, noise=step_noise(0, start()), weight=0.3)
    torch.testing.assert_close(followed(0, logical_or(temperature=math.inf), weight=0.3).x, plain)
    assert not torch.allclose(followed(0, logical_or(), weight=0.3).x, plain)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_or_leaves_a_weight_of_nothing_alone(weight: float) -> None:
    shares = torch.stack([point.share for point in followed(0, logical_or(), weight=weight).points])
    assert (shares == 1 - weight).all()


# ---------------------------------------------------------------------------------------------- and


def start() -> Tensor:
    return initial_x(draw(0, "init", (V, F, 1, 1, 1)).double(), CHURN[0].sigma)


def test_and_keeps_both_densities_equal() -> None:
    """Against the convex rule on the same noise: exactly, not by its own account."""
    sigmas = karras_sigmas(160, sigma_min=0.1, sigma_max=40.0)
    plan = renoise.corrector(sigmas, back=renoise.returning, repeats=1, sigma_low=0.0, s_churn=40.0)
    gaps: dict[float, list[float]] = {0.0: [], math.inf: []}
    for reach, found in gaps.items():
        for seed in range(4):
            path = followed(seed, logical_and(reach=reach), plan)
            found += [rows - columns for rows, columns in map(exact_logs, path.points[-10:])]
    assert rms(gaps[math.inf]) < 0.4 * rms(gaps[0.0])


def test_and_within_no_reach_is_the_convex_rule() -> None:
    convex = composition.linear(coefficients=composition.convex)
    plain = sample(start(), CHURN, TERMS, compose=convex, noise=step_noise(0, start()), weight=0.3)
    torch.testing.assert_close(followed(0, logical_and(reach=0.0), weight=0.3).x, plain)
    near = followed(0, logical_and(reach=0.2), weight=0.5).points
    assert all((p.share - 0.5).abs().max() <= 0.2 + 1e-12 for p in near)
    assert any((p.share - 0.5).abs().max() == pytest.approx(0.2) for p in near)


def test_and_does_not_depend_on_even_weights() -> None:
    one, other = (followed(0, logical_and(), weight=w).x for w in (0.2, 0.9))
    torch.testing.assert_close(one, other)


def test_and_of_two_that_agree_is_what_they_say() -> None:
    x = draw(0, "init", (V, F, 1, 1, 1)).double()
    w = {name: torch.full((V, F), 0.5).double() for name in PAIR}
    ones = {name: torch.ones(V, F).double() for name in PAIR}
    step = Step(0, 1, 0, 1, 10.0, 0.0)
    denoised, memory = logical_and().combine(
        {n: Prediction(None, x) for n in PAIR}, w, ones, 2 * x, step, {"kept": 1}
    )
    torch.testing.assert_close(denoised, x)
    assert memory["kept"] == 1


# ------------------------------------------------------------------------------------------ command


@pytest.mark.parametrize(
    "choice", ["composition=superposition_or", "composition=superposition_and"]
)
def test_the_command_takes_it_with_churn_and_refuses_it_without(
    choice: str, d2_sample: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert d2_sample(choice, "renoise=churn", "renoise.sigma_low=0", "renoise.sigma_high=inf") == 0
    assert d2_sample(choice, "renoise=none") == 2
    assert "d2: renoise: no noise is added between levels" in capfd.readouterr().err


@pytest.mark.parametrize(
    "rule", [partial(logical_or, temperature=0.0), partial(logical_and, reach=-1.0)]
)
def test_mistakes_are_told_on_one_line(rule: Callable[..., Composition]) -> None:
    with pytest.raises(
        ValueError, match="^composition.(temperature=0.0|reach=-1.0): give"
    ) as error:
        rule()
    assert "\n" not in str(error.value)

"""Laws of the correctors: plans that evaluate levels again, and what they leave of a known world's
variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from exact_world import ended, sample, terms_of, three_terms

from d2.matrix import raster
from d2.priors import analytic
from d2.priors.analytic import autoregressive, wasserstein2
from d2.rules import renoise
from d2.rules.renoise import cold, corrector, langevin, returning
from d2.sampling import Step, karras_sigmas

SIGMAS = karras_sigmas(12, sigma_min=0.01, sigma_max=50.0)
PUBLISHED = karras_sigmas(50, sigma_min=0.002, sigma_max=700.0)
UNIT = analytic.gaussian(torch.ones(1, 1))
BACKS = {
    "cold": cold,
    "halfway": partial(returning, share=0.5),
    "exact": returning,
    "langevin": langevin,
}


def spread(plan: Sequence[Step]) -> float:
    """Standard deviation that a unit Gaussian ends with, exactly."""
    return ended(plan, terms_of(UNIT, 1, 1, ["video"]), 1, 1, weight=0.0).item() ** 0.5


# ------------------------------------------------------------------------------------- named points


@pytest.mark.parametrize(("steps", "repeats"), [(0, 2), (4, 2), (12, 3), (50, 2)])
def test_vrs_is_a_point_of_the_family(steps: int, repeats: int) -> None:
    plan = corrector(SIGMAS, back=cold, steps=steps, repeats=repeats, sigma_low=0.0, told="nominal")
    assert plan == renoise.vrs(SIGMAS, steps=steps, repeats=repeats)
    same = corrector(
        SIGMAS,
        back=partial(returning, share=0.0),
        steps=steps,
        repeats=repeats,
        sigma_low=0.0,
        told="nominal",
    )
    assert same == plan  # to the bit


def test_churn_is_a_point_of_the_family() -> None:
    plan = corrector(SIGMAS, back=cold, repeats=1, sigma_low=0.0, s_churn=4.0, s_noise=1.01)
    assert plan == renoise.churned(SIGMAS, steps=0, s_churn=4.0, s_noise=1.01)
    some = corrector(SIGMAS, back=cold, repeats=1, sigma_low=0.1, sigma_high=10.0, s_churn=4.0)
    for step in some:
        sigma = SIGMAS[step.index]
        inside = 0.1 <= sigma <= 10
        assert step.sigma == (pytest.approx(sigma * (1 + 4 / 12)) if inside else sigma)
        assert math.hypot(sigma, step.noise_before) == pytest.approx(step.sigma)


def test_no_repeats_are_no_corrector() -> None:
    for back in BACKS.values():
        assert corrector(SIGMAS, back=back, repeats=1) == renoise.none(SIGMAS)
        assert corrector(SIGMAS, back=back, sigma_low=100.0) == renoise.none(SIGMAS)


@pytest.mark.parametrize("span", [1, 3])
@pytest.mark.parametrize("told", ["level", "nominal"])
def test_an_exact_return_reaches_the_level_it_left(span: int, told: str) -> None:
    """RePaint at one step, Restart at three."""
    plan = corrector(SIGMAS, back=returning, repeats=3, span=span, sigma_low=1.0, told=told)
    for before, after in zip(plan[:-1], plan[1:], strict=True):
        assert math.hypot(before.sigma_next, before.noise_after) == pytest.approx(after.sigma)
    repeated = [s.index for s in plan if s.num_repeats > 1]
    assert len(repeated) % (3 * span) == 0 and len(set(repeated)) == len(repeated) // 3 > 0
    assert all(sigma >= 1.0 for sigma in (SIGMAS[i] for i in repeated))
    assert [s.index for s in plan if s.noise_after] == [
        i + span - 1 for i in sorted(set(repeated))[::span] for _ in "ab"
    ]


def test_every_evaluation_has_a_name_of_its_own_and_every_level_is_left_once() -> None:
    for span in (1, 2, 5):
        plan = corrector(
            SIGMAS, back=returning, repeats=2, span=span, sigma_low=0.3, sigma_high=30.0
        )
        names = [(s.index, s.repeat) for s in plan]
        assert len(set(names)) == len(names) and {i for i, _ in names} == set(range(12))
        finals = [s for s in plan if s.repeat + 1 == s.num_repeats]
        assert [s.sigma_next for s in finals] == SIGMAS[1:]


def test_a_cold_return_falls_short_and_can_say_so() -> None:
    plan = corrector(SIGMAS, back=cold, repeats=2, sigma_low=5.0, told="level")
    first, second = plan[:2]
    level = math.hypot(first.sigma_next, first.sigma - first.sigma_next)
    assert first.noise_after == first.sigma - first.sigma_next
    assert second.sigma == pytest.approx(level) and level < 0.9 * first.sigma


@pytest.mark.parametrize("r", [0.2, 0.6, 0.95])
def test_temperatures(r: float) -> None:
    """Of Langevin dynamics: x moves by δ·score with δ = σ²(1 − r), so noise of variance 2δ is
    temperature 1."""
    temperatures = {
        name: back(3.0, 3.0 * r) ** 2 / (2 * 9 * (1 - r)) for name, back in BACKS.items()
    }
    assert temperatures["cold"] == pytest.approx((1 - r) / 2)
    assert temperatures["exact"] == pytest.approx((1 + r) / 2)
    assert temperatures["halfway"] == pytest.approx(0.5)
    assert temperatures["langevin"] == pytest.approx(1.0)


def test_langevin_steps_go_as_far_as_they_are_told_and_the_last_pass_goes_on() -> None:
    plan = corrector(SIGMAS, back=langevin, repeats=4, depth=0.1, sigma_low=5.0, told="nominal")
    for step in plan:
        last = step.repeat + 1 == step.num_repeats
        assert step.sigma == SIGMAS[step.index]
        assert step.sigma_next == (
            SIGMAS[step.index + 1] if last else pytest.approx(0.9 * step.sigma)
        )
        assert step.noise_after == (0 if last else pytest.approx(math.sqrt(0.2) * step.sigma))


# ---------------------------------------------------------------------------- variance that is kept


@pytest.mark.parametrize(("steps", "expected"), [(0, 0.93), (10, 0.34)])
def test_vrs_as_published_loses_two_thirds_of_the_spread(steps: int, expected: float) -> None:
    assert spread(renoise.vrs(PUBLISHED, steps=steps)) == pytest.approx(expected, rel=0.02)


def test_what_a_return_keeps_grows_with_its_noise() -> None:
    """Told the nominal level over the published ten steps; the exact return keeps what no corrector
    keeps."""
    plain = spread(renoise.none(PUBLISHED))
    kept = [
        spread(corrector(PUBLISHED, back=partial(returning, share=share), steps=10, told="nominal"))
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert kept == sorted(kept) and kept[0] < 0.4 * plain
    assert kept[-1] == pytest.approx(plain, rel=0.02)


def test_telling_the_level_reached_repairs_the_published_noise() -> None:
    plain = spread(renoise.none(PUBLISHED))
    assert spread(corrector(PUBLISHED, back=cold, steps=10, told="level")) == pytest.approx(
        plain, rel=0.05
    )


@pytest.mark.parametrize("span", [1, 4])
def test_exact_returns_keep_what_is_stationary(span: int) -> None:
    """The world, under its joint denoiser: at every level that score's own law is the law of x. Not
    so three terms."""
    world = analytic.separable(autoregressive(2, 0.8), autoregressive(3, 0.5))
    plan = corrector(
        karras_sigmas(80, sigma_min=0.02, sigma_max=50.0), back=returning, span=span, sigma_low=0.1
    )
    joint = [analytic.term("joint", raster(2, 3), world, 3)]
    off = wasserstein2(ended(plan, joint, 2, 3), world.covariances[0]) / 6
    three = (
        wasserstein2(
            ended(plan, terms_of(world, 2, 3), 2, 3, compose=three_terms()), world.covariances[0]
        )
        / 6
    )
    assert off < 2e-3 < three


# ---------------------------------------------------------------------------- where repeats diverge


def precision_of(correlation: float, v: int, f: int, alpha: float) -> Any:
    world = analytic.separable(autoregressive(v, correlation), autoregressive(f, correlation))
    shares = {"video": alpha, "multiview": alpha, "unary": 1 - 2 * alpha}
    return partial(analytic.score_precision, terms_of(world, v, f), shares, v, f)


def largest(size: int, correlation: float) -> float:
    return torch.linalg.eigvalsh(autoregressive(size, correlation))[-1].item()


@pytest.mark.parametrize(("correlation", "expected"), [(0.5, 0.6), (0.9, 1.7)])
def test_below_a_level_three_terms_are_the_score_of_no_density(
    correlation: float, expected: float
) -> None:
    assert analytic.critical_sigma(precision_of(correlation, 6, 6, 1.0)) == pytest.approx(
        expected, abs=0.05
    )


@pytest.mark.parametrize(
    ("correlation", "v", "f", "alpha"), [(0.9, 4, 6, 1.0), (0.9, 6, 6, 0.875), (0.7, 5, 5, 0.9)]
)
def test_the_level_in_closed_form(correlation: float, v: int, f: int, alpha: float) -> None:
    found = analytic.critical_sigma(precision_of(correlation, v, f, alpha))
    a, b = largest(v, correlation), largest(f, correlation)
    assert renoise.iterable_above(a, b, alpha=alpha) == pytest.approx(found, rel=1e-5)
    assert found < renoise.iterable_above(v, f, alpha=alpha)


def test_averages_of_scores_can_be_iterated_anywhere() -> None:
    assert renoise.iterable_above(21, 25, alpha=0.5) == 0
    assert analytic.critical_sigma(precision_of(0.9, 4, 4, 0.5)) == 0
    assert renoise.iterable_above(1, 25) == 0  # a column of one cell is its unary term


@pytest.mark.parametrize(("factor", "grows"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("back", [langevin, returning])
def test_repeats_diverge_below_the_level_and_converge_above(
    factor: float, grows: bool, back: Any
) -> None:
    """A pass down and back is x -> Mx + noise: repeats forget where they started if M shrinks every
    direction."""
    world = analytic.separable(autoregressive(3, 0.9), autoregressive(3, 0.9))
    sigma = factor * renoise.iterable_above(largest(3, 0.9), largest(3, 0.9))
    down = corrector([sigma, 0.9 * sigma], back=back, sigma_low=0.0, told="nominal")[0]
    x = torch.eye(9, dtype=torch.float64).reshape(3, 3, 9, 1, 1)
    noise = torch.zeros_like(x)
    pass_ = sample(
        x, [down], terms_of(world, 3, 3), compose=three_terms(), noise=lambda step, when: noise
    )
    assert down.noise_after > 0
    assert (torch.linalg.eigvals(pass_.reshape(9, 9)).abs().max().item() > 1) == grows


def test_correctors_keep_out_of_there() -> None:
    """Unless told otherwise, in any matrix of the published size."""
    worst = renoise.iterable_above(21, 25)
    assert worst == pytest.approx(4.57, abs=0.01)
    plans = [corrector(PUBLISHED, back=back, told="nominal") for back in BACKS.values()]
    for plan in (*plans, renoise.vrs(PUBLISHED)):
        assert all(step.sigma > worst for step in plan if step.noise_after)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": -1}, "renoise.steps=-1"),
        ({"repeats": 0}, "repeats=0"),
        ({"s_churn": -1.0}, "s_churn=-1.0"),
        ({"span": 0}, "renoise.span=0"),
        ({"span": 2, "depth": 0.1}, "renoise.span=2, depth=0.1"),
        ({"depth": 0.0}, "depth=0.0"),
        ({"told": "both"}, "renoise.told=both: choose level or nominal"),
    ],
)
def test_mistakes_are_told_on_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        corrector(SIGMAS, **{"back": cold, **changes})
    assert said in str(error.value) and "\n" not in str(error.value)

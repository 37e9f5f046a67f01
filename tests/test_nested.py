"""Laws of nested terms: the joint denoiser at every level, where views and frames covary
separately."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from exact_world import ended, sample, terms_of, three_terms
from torch import Tensor

from d2.errors import InputError
from d2.matrix import columns, raster, rows, single_cells
from d2.noise import draw
from d2.priors import analytic
from d2.priors.analytic import World, autoregressive, wasserstein2
from d2.rules import renoise
from d2.rules.composition import holding
from d2.rules.nested import nested
from d2.sampling import Prediction, State, Step, Term, karras_sigmas

V = F = 6
PAIR = ("video", "multiview")
WORLD = analytic.separable(autoregressive(V, 0.9), autoregressive(F, 0.9))
OFF_CENTRE = World(WORLD.shares, 2 * draw(1, "init", (1, V * F)).double(), WORLD.covariances)
LEVELS = (0.05, 0.1, 0.316, 1.0, 3.16, 10.0, 31.6, 80.0)


def noisy(world: World, sigma: float) -> tuple[Tensor, Tensor]:
    """Eight true matrices and the same at a level."""
    uniform = torch.linspace(0, 0.99, 8)
    truth = analytic.draw_truth(world, draw(0, "init", (V * F, 8)), uniform).reshape(V, F, 8, 1, 1)
    return truth, truth + sigma * draw(0, "renoise", (V, F, 8, 1, 1)).double()


def denoised(terms: list[Term], x: Tensor, sigma: float, **rules: Any) -> Tensor:
    """What a rule makes of x."""
    states: list[State] = []
    sample(x, [Step(0, 1, 0, 1, sigma, 0.0)], terms, on_step=states.append, **rules)
    return states[0].denoised


def off(terms: list[Term], joint: Term, x: Tensor, sigma: float, **rules: Any) -> float:
    """How far from what the joint denoiser says, relative to it."""
    exact = denoised([joint], x, sigma)
    return ((denoised(terms, x, sigma, **rules) - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("world", [WORLD, OFF_CENTRE], ids=["centred", "off centre"])
def test_nested_terms_are_the_joint_denoiser_at_every_level(world: World, sigma: float) -> None:
    x, joint = noisy(world, sigma)[1], analytic.term("joint", raster(V, F), world, F)
    terms = terms_of(world, V, F, PAIR)
    errors = [off(terms, joint, x, sigma, compose=nested(steps=steps)) for steps in (1, 2, 4, 12)]
    assert errors[-1] < 1e-4 and all(
        a > b or a < 1e-7 for a, b in zip(errors, errors[1:], strict=False)
    ), errors
    # Richardson, more slowly
    assert off(terms, joint, x, sigma, compose=nested(steps=40, keep=0)) < 1e-4
    # they are linear
    assert off(terms, joint, x, sigma, compose=nested(steps=12, reach=1.0)) < 1e-4


@pytest.mark.parametrize("sigma", LEVELS)
def test_of_conditions_the_unary_term_tells_the_means_apart(sigma: float) -> None:
    """Rows are told their first cell, columns their last, cells what both are told; the joint
    denoiser all of them."""
    truth, x = noisy(OFF_CENTRE, sigma)
    first, last = [[v, 0] for v in range(V)], [[V - 1, f] for f in range(F)]
    told = {
        "video": (rows(V, F), [[cell] for cell in first]),
        "multiview": (columns(V, F), [[cell] for cell in last]),
        "unary": (single_cells(V, F), [[last[0]]] * (V * F)),
        "joint": (raster(V, F), [first + last]),
    }
    of = {
        name: analytic.term(name, cut, OFF_CENTRE, F, told=torch.tensor(cells), truth=truth)
        for name, (cut, cells) in told.items()
    }
    joint, pair, three = (
        of["joint"],
        [of[name] for name in PAIR],
        [of[name] for name in (*PAIR, "unary")],
    )
    error = off(three, joint, x, sigma, compose=nested(steps=24, unary=True))
    without = off(pair, joint, x, sigma, compose=nested(steps=24))
    assert error < 1e-4 and without > 100 * error


@pytest.mark.parametrize("sigma", [1.0, 10.0, 31.6])
def test_no_weights_do_what_a_nested_evaluation_does(sigma: float) -> None:
    """Not even those fitted to the very answer."""
    x = noisy(WORLD, sigma)[1]
    exact = denoised([analytic.term("joint", raster(V, F), WORLD, F)], x, sigma).flatten()
    terms = terms_of(WORLD, V, F)
    said = torch.stack(
        [denoised([term], x, sigma, compose=only(term.name)).flatten() for term in terms], dim=1
    )
    best = said @ torch.linalg.lstsq(said, exact).solution
    linear = ((best - exact).norm() / exact.norm()).item()
    joint = analytic.term("joint", raster(V, F), WORLD, F)
    assert linear > 0.1 and off(terms[:2], joint, x, sigma, compose=nested(steps=4)) < 0.2 * linear


def only(name: str) -> Any:
    return lambda predictions, weights, scales, x, step, memory: (predictions[name].cond, memory)


@pytest.mark.parametrize("span", [1, 4])
def test_correctors_keep_what_is_stationary(span: int) -> None:
    """As under the joint denoiser, at all levels down to 0.1; three terms diverge there."""
    world = analytic.separable(autoregressive(2, 0.8), autoregressive(3, 0.5))
    plan = renoise.corrector(
        karras_sigmas(80, sigma_min=0.02, sigma_max=50.0),
        back=renoise.returning,
        repeats=2,
        span=span,
        sigma_low=0.1,
    )
    pair = terms_of(world, 2, 3, PAIR)
    error = wasserstein2(ended(plan, pair, 2, 3, compose=nested(steps=6)), world.covariances[0]) / 6
    three = (
        wasserstein2(
            ended(plan, terms_of(world, 2, 3), 2, 3, compose=three_terms()), world.covariances[0]
        )
        / 6
    )
    assert error < 2e-3 < three


@pytest.mark.parametrize("steps", [1, 3])
def test_priors_are_only_asked_about_inputs_of_their_level(steps: int) -> None:
    x, asked = noisy(WORLD, 3.0)[1], []

    def spying(term: Term) -> Term:
        def denoise(*given: Any) -> Prediction:
            asked.append((term.name, given[0]))
            return term.denoise(*given)

        return term._replace(denoise=denoise)

    denoised(
        [spying(term) for term in terms_of(WORLD, V, F, PAIR)],
        x,
        3.0,
        compose=nested(steps=steps, reach=0.1),
    )
    assert len(asked) == 2 * (steps + 2)
    for name, sequences in asked[2:]:
        there = x if name == "video" else x.transpose(0, 1)
        assert (sequences - there).square().mean().sqrt().item() == pytest.approx(0.1 * 3.0)


def test_below_its_level_it_is_the_convex_rule_and_cells_can_be_held() -> None:
    x, terms = noisy(WORLD, 0.5)[1], terms_of(WORLD, V, F, PAIR)
    assert torch.equal(
        denoised(terms, x, 0.5, compose=nested(sigma_low=0.6)), denoised(terms, x, 0.5)
    )
    free, where = (
        denoised(terms, x, 0.5, compose=nested()),
        torch.arange(V)[:, None].expand(V, F) == 1,
    )
    held = denoised(terms, x, 0.5, compose=holding(compose=nested(), known=0 * x, where=where))
    torch.testing.assert_close(held, free * ~where[:, :, None, None, None])
    assert not torch.equal(free, denoised(terms, x, 0.5))


@pytest.mark.parametrize(
    "given", [{"steps": 0}, {"keep": -1}, {"reach": 0.0}, {"cell_variance": math.nan}]
)
def test_mistakes_are_told_on_one_line(given: dict[str, Any]) -> None:
    (name, value), *_ = given.items()
    with pytest.raises(InputError, match=f"{name}={value}") as error:
        nested(**given)
    assert "\n" not in str(error.value)

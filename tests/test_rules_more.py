"""Laws of further rules: alternating weights, product of experts, frequency split, adaptive
weights."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from exact_world import ended, sample, terms_of
from torch import Tensor

from d2.matrix import camera_ring
from d2.noise import draw
from d2.priors import analytic
from d2.priors.analytic import autoregressive, wasserstein2
from d2.rules import composition, renoise, solver, weights
from d2.rules.adaptive import adaptive, neighbourhood
from d2.rules.frequency_split import frequency_split, low_frequencies, split
from d2.rules.product import product
from d2.sampling import Fields, Prediction, Step, initial_x, karras_sigmas, needed

V, F = 3, 4
A, B = autoregressive(V, 0.8), autoregressive(F, 0.5)
APART = analytic.separable(A, B)
PAIR = ("video", "multiview")
STEP = Step(0, 2, 0, 1, sigma=1.0, sigma_next=0.5)


def random(seed: int, *shape: int) -> Tensor:
    return draw(seed, "init", shape).double()


def fields(video: float | Tensor) -> Fields:
    """Two weights that sum to one: v f = V F."""
    field = torch.zeros(V, F, dtype=torch.float64) + video
    return {"video": field, "multiview": 1 - field}


def scales(scale: float) -> Fields:
    return dict.fromkeys(PAIR, torch.full((V, F), scale, dtype=torch.float64))


def halves(seed: int = 0, h: int = 4, w: int = 6) -> dict[str, Prediction]:
    return {name: Prediction(*random(seed + i, 2, V, F, 2, h, w)) for i, name in enumerate(PAIR)}


def composed(rule: Any, predictions: dict[str, Prediction], w: Fields, s: Fields) -> Tensor:
    x = torch.zeros_like(next(half for half in predictions["video"] if half is not None))
    return rule.combine(predictions, w, s, x, STEP, {})[0]


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


# -------------------------------------------------------------------------------------- alternating


@pytest.mark.parametrize("first", PAIR)
@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_terms_alternate_from_one_evaluation_to_the_next(first: str, repeats: int) -> None:
    sigmas = karras_sigmas(7, sigma_min=0.1, sigma_max=10.0)
    plan = renoise.corrector(sigmas, back=renoise.returning, repeats=repeats, sigma_low=0.0)
    compose = composition.linear(coefficients=composition.convex)
    turns = []
    for step in plan:
        w = weights.alternating(step, camera_ring(V), F, first=first)
        needs = needed(compose, [], w, scales(1.0))
        asked = [name for name in PAIR if any(half.any() for half in needs[name])]
        assert len(asked) == 1 and (w[asked[0]] == 1).all()  # the other is not evaluated
        turns += asked
    assert turns[0] == first and all(a != b for a, b in zip(turns, turns[1:], strict=False))


def test_alternating_without_return_is_the_even_convex_rule() -> None:
    """As steps grow short: two flows in turn are their sum at half the speed each."""
    plan = renoise.none(karras_sigmas(600, sigma_min=0.02, sigma_max=200.0))
    got = ended(plan, terms_of(APART, V, F, PAIR), V, F, weights=weights.alternating)
    torch.testing.assert_close(got, torch.kron(power(A, 0.5), power(B, 0.5)), rtol=0, atol=0.03)


def test_exact_returns_leave_alternation_where_the_convex_rule_is() -> None:
    """Each prior remakes the other's axis, but a step at a time, so that on the whole they are
    averaged still."""
    world = analytic.separable(autoregressive(V, 0.9), autoregressive(F, 0.9))
    sigmas = karras_sigmas(50, sigma_min=0.02, sigma_max=200.0)
    terms = terms_of(world, V, F, PAIR)
    convex = ended(renoise.none(sigmas), terms, V, F)
    plan = renoise.corrector(sigmas, back=renoise.returning, repeats=2, sigma_low=1.0)
    got = ended(plan, terms, V, F, weights=weights.alternating)
    off, of_convex = (wasserstein2(c, world.covariances[0]) / (V * F) for c in (got, convex))
    assert of_convex > 0.15 and off == pytest.approx(of_convex, rel=0.1)


# ------------------------------------------------------------------------------------------ product


@pytest.mark.parametrize("uncond", ["mean", "video", "multiview", "weighted"])
@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_a_product_is_one_unconditional_and_what_each_condition_adds(
    uncond: str, strength: float
) -> None:
    p, w, s = halves(), fields(torch.rand(V, F).double()), scales(2.5)
    base = {
        "mean": (p["video"].uncond + p["multiview"].uncond) / 2,  # type: ignore[operator]
        "video": p["video"].uncond,
        "multiview": p["multiview"].uncond,
        "weighted": sum(w[n][:, :, None, None, None] * p[n].uncond for n in PAIR),
    }[uncond]
    added = sum((w[n] * s[n])[:, :, None, None, None] * (p[n].cond - p[n].uncond) for n in PAIR)
    rule = composition.linear(coefficients=partial(product, uncond=uncond, strength=strength))
    torch.testing.assert_close(composed(rule, p, w, s), base + strength * added)
    total = sum(u + c for u, c in product(w, s, uncond=uncond, strength=strength).values())
    torch.testing.assert_close(total, torch.ones(V, F).double())


def test_a_product_over_the_weighted_unconditional_is_the_convex_rule() -> None:
    w, s = fields(0.3), scales(1.7)
    for name, expected in composition.convex(w, s).items():
        torch.testing.assert_close(product(w, s, uncond="weighted")[name], expected)


def test_a_product_without_conditions_ends_where_its_unconditional_does() -> None:
    """On the exact world told nothing every half is the same, and the mean of rows and columns the
    convex rule."""
    plan = renoise.none(karras_sigmas(80, sigma_min=0.02, sigma_max=200.0))
    rule = composition.linear(coefficients=partial(product, strength=2.0))
    got = ended(
        plan, terms_of(APART, V, F, PAIR), V, F, compose=rule, weight=0.8, solver=solver.heun
    )
    torch.testing.assert_close(got, torch.kron(power(A, 0.5), power(B, 0.5)), rtol=0, atol=5e-3)


# ---------------------------------------------------------------------------------- frequency split


@pytest.mark.parametrize("along", ["space", "views", "frames"])
@pytest.mark.parametrize("kind", ["butterworth", "gaussian"])
def test_a_split_runs_from_one_prior_to_the_other(along: str, kind: str) -> None:
    p, w, s = halves(), fields(0.5), scales(2.0)
    said = {n: composition.guided(p[n], s[n]) for n in PAIR}
    for cutoff, name in ((1e4, "multiview"), (1e-4, "video")):
        rule = frequency_split(low="multiview", along=along, cutoff=cutoff, kind=kind)
        got = composed(rule, p, w, s)
        if name == "video":  # but for the constant, which is low whatever the cutoff
            axes = {"space": (3, 4), "views": (0,), "frames": (1,)}[along]
            got = got - got.mean(dim=axes, keepdim=True) + said[name].mean(dim=axes, keepdim=True)  # type: ignore
        torch.testing.assert_close(got, said[name])


@pytest.mark.parametrize("along", ["space", "views", "frames"])
def test_a_split_shares_out_every_frequency(along: str) -> None:
    """What both say alike stays, and swapping the priors gives the other share."""
    low, high = random(0, V, F, 2, 4, 6), random(1, V, F, 2, 4, 6)
    rest = (along, 0.2, "butterworth", 2)
    torch.testing.assert_close(split(low, low, *rest), low)
    torch.testing.assert_close(split(low, high, *rest) + split(high, low, *rest), low + high)


def test_each_axis_is_cut_where_its_waves_say() -> None:
    """Ring waves are the eigenvectors along views, cosines of a mirrored sequence those along
    frames."""
    v, f, cut = 8, 6, 0.2
    # 2 half waves over f frames: 1/f cycles
    cosine = (math.pi * 2 * (torch.arange(f).double() + 0.5) / f).cos()
    ring = (2 * math.pi * 3 * torch.arange(v).double() / v + 0.4).cos()
    space = (2 * math.pi * torch.arange(4).double() / 4 + 0.1).cos()[:, None] * torch.ones(
        5
    ).double()
    zero = torch.zeros(v, f, 1, 4, 5, dtype=torch.float64)
    for along, wave, cycles in (
        ("views", zero + ring[:, None, None, None, None], 3 / 8),
        ("frames", zero + cosine[:, None, None, None], 1 / 6),
        ("space", zero + space, 1 / 4),
    ):
        share = 1 / (1 + (cycles / cut) ** 6)
        torch.testing.assert_close(split(wave, zero, along, cut, "butterworth", 3), share * wave)
        share = math.exp(-0.5 * (cycles / cut) ** 2)
        torch.testing.assert_close(split(wave, zero, along, cut, "gaussian", 3), share * wave)


def test_a_split_of_the_exact_world_ends_frequency_by_frequency_at_a_geometric_mean() -> None:
    """A spatial frequency of which the columns get m ends at A^m ⊗ B^(1−m)."""
    plan = renoise.none(karras_sigmas(80, sigma_min=0.02, sigma_max=200.0))
    rule = frequency_split(low="multiview", along="space", cutoff=0.3, order=2)
    shares = low_frequencies((1, 4), 0.3, "butterworth", 2)[0]
    basis = analytic.basis(plan, V, F)
    for k, wave in ((0, [1.0, 1, 1, 1]), (1, [1.0, 0, -1, 0]), (2, [1.0, -1, 1, -1])):
        wave = torch.tensor(wave).double()
        x = initial_x(basis.start * wave, plan[0].sigma)
        x = sample(
            x,
            plan,
            terms_of(APART, V, F, PAIR),
            compose=rule,
            solver=solver.heun,
            noise=basis.noise,
        )
        got, m = analytic.moments(x[..., :1])[1], shares[k].item()
        torch.testing.assert_close(got, torch.kron(power(A, m), power(B, 1 - m)), rtol=0, atol=5e-3)


def test_a_split_asks_for_the_halves_that_guidance_uses() -> None:
    s = {"video": torch.tensor([[1.0, 2.0]]), "multiview": torch.tensor([[0.0, 1.0]])}
    needs = needed(frequency_split(), [], s, s)
    assert {name: [half.tolist() for half in need] for name, need in needs.items()} == {
        "video": [[[False, True]], [[True, True]]],
        "multiview": [[[True, False]], [[False, True]]],
    }


# ----------------------------------------------------------------------------------------- adaptive


def test_adaptive_weights_at_infinite_temperature_are_the_convex_rule() -> None:
    p, w, s = halves(), fields(torch.rand(V, F).double()), scales(2.0)
    plain = composed(composition.linear(coefficients=composition.convex), p, w, s)
    torch.testing.assert_close(composed(adaptive(temperature=math.inf), p, w, s), plain)
    near, far = (composed(adaptive(temperature=t), p, w, s) - plain for t in (1.0, 1e6))
    assert near.abs().max() > 0.1 and far.abs().max() < 1e-4


def test_adaptive_weights_share_out_every_cell_whatever_the_scale() -> None:
    """Where all agree so does the rule; in other units it says the same; a weight of nothing stays
    nothing."""
    p, w, s = halves(), fields(0.4), scales(1.0)
    same = {name: p["video"] for name in PAIR}
    torch.testing.assert_close(composed(adaptive(), same, w, s), p["video"].cond)
    larger = {n: Prediction(None, 100 * p[n].cond) for n in PAIR}  # type: ignore[operator]
    torch.testing.assert_close(
        composed(adaptive(), larger, w, s), 100 * composed(adaptive(), p, w, s)
    )
    alone = composed(adaptive(), p, fields(1.0), s)
    torch.testing.assert_close(alone, p["video"].cond)
    zero = {name: Prediction(None, torch.zeros(V, F, 1, 2, 2)) for name in PAIR}
    assert torch.equal(composed(adaptive(), zero, w, s), torch.zeros(V, F, 1, 2, 2))


def test_the_prior_that_the_neighbours_support_wins_where_the_other_is_off() -> None:
    truth = random(0, 1, 1, 2, 4, 4).expand(V, F, -1, -1, -1)  # all cells alike
    off = torch.zeros(V, F, 1, 1, 1).double()
    off[1, 2] = 3.0
    p = {"video": Prediction(None, truth + off), "multiview": Prediction(None, truth)}
    w, s = fields(0.5), scales(1.0)
    errors = {
        t: (composed(adaptive(temperature=t), p, w, s) - truth)[1, 2].abs().mean()
        for t in (0.5, 20.0, math.inf)
    }
    assert errors[0.5] < 0.01 < errors[20.0] < 0.9 * errors[math.inf]
    assert errors[math.inf] == pytest.approx(1.5)


def test_a_neighbourhood_closes_over_views_and_ends_at_frames() -> None:
    x = random(0, 4, 3, 1, 1, 1)
    got = neighbourhood(x)
    torch.testing.assert_close(got[0, 0], (x[1, 0] + x[3, 0] + x[0, 1]) / 3)
    torch.testing.assert_close(got[2, 1], (x[1, 1] + x[3, 1] + x[2, 0] + x[2, 2]) / 4)


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (
            lambda: weights.alternating(STEP, camera_ring(3), 2, first="rows"),
            "weights.first=rows: choose",
        ),
        (
            lambda: product(fields(0.5), scales(2.0), uncond="both"),
            "composition.uncond=both: choose",
        ),
        (lambda: frequency_split(low="rows"), "composition.low=rows"),
        (lambda: frequency_split(along="time"), "along=time"),
        (lambda: frequency_split(cutoff=0.0), "cutoff=0.0"),
        (lambda: frequency_split(kind="box"), "composition.kind=box"),
        (lambda: adaptive(temperature=0.0), "composition.temperature=0.0: give a number above 0"),
    ],
)
def test_mistakes_are_told_on_one_line(mistake: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        mistake()
    assert said in str(error.value) and "\n" not in str(error.value)

"""Laws of the rules: weights, guidance, composition, plans."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import exact_world
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2.config import command_line
from d2.config.binding import bind
from d2.matrix import Cameras, camera_ring
from d2.priors import analytic
from d2.rules import composition, guidance, renoise, weights
from d2.sampling import Fields, Prediction, Step, karras_sigmas, needed

CURVES = [weights.constant, weights.linear, weights.cosine, weights.logistic]
PROFILES = [weights.side_views, weights.flat, partial(weights.side_views, depth=0.3)]
SIGMAS = karras_sigmas(12, sigma_min=0.01, sigma_max=50.0)

rings = st.builds(camera_ring, st.integers(1, 24))
schedules = st.one_of(
    st.builds(
        partial,
        st.just(weights.scheduled),
        curve=st.sampled_from(CURVES),
        profile=st.sampled_from(PROFILES),
        video_only_from=st.sampled_from([0.0, 0.5, math.inf]),
    ),
    st.builds(partial, st.just(weights.alone), term=st.sampled_from(["video", "multiview"])),
)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    num_steps = draw(st.integers(1, 60))
    return step(draw(st.integers(0, num_steps - 1)), num_steps)


def step(index: int, num_steps: int) -> Step:
    return Step(index, num_steps, 0, 1, sigma=2.0, sigma_next=1.0)


def two_fields(video: float, multiview: float) -> Fields:
    """Random fields of two terms around these values: v f = 3 4."""
    draw = torch.Generator().manual_seed(3)
    noise = torch.rand(2, 3, 4, generator=draw, dtype=torch.float64)
    return {"video": video + noise[0], "multiview": multiview + noise[1]}


# ------------------------------------------------------------------------------------------ weights


@settings(deadline=None, max_examples=200)
@given(schedule=schedules, step=steps(), cameras=rings, num_frames=st.integers(1, 9))
def test_weights_share_out_every_cell(
    schedule: Any, step: Step, cameras: Cameras, num_frames: int
) -> None:
    fields = schedule(step, cameras, num_frames)
    assert set(fields) == {"video", "multiview"}
    for field in fields.values():
        assert field.shape == (cameras.num_views, num_frames) and field.dtype == torch.float64
        assert (field >= 0).all() and (field <= 1).all()
    assert (fields["video"] + fields["multiview"] - 1).abs().max() < 1e-15


@pytest.mark.parametrize("num_steps", [2, 7, 50])
def test_schedules_run_between_their_ends(num_steps: int) -> None:
    first, last = step(0, num_steps), step(num_steps - 1, num_steps)
    for curve in (weights.linear, weights.cosine):
        # exactly: a weight of zero spares an evaluation
        assert (curve(first), curve(last)) == (1.0, 0.0)
        assert curve(first, low=0.2, high=0.7) == pytest.approx(0.7, abs=1e-15)
        assert curve(last, low=0.2, high=0.7) == pytest.approx(0.2, abs=1e-15)
    assert {weights.constant(step(i, num_steps), scale=0.4) for i in range(num_steps)} == {0.4}


def test_schedules_meet_in_the_middle_and_fall() -> None:
    middle = step(5, 11)
    for curve in (weights.linear, weights.cosine, partial(weights.logistic, middle=0.5)):
        assert curve(middle, low=0.2, high=0.8) == pytest.approx(0.5)
        values = [curve(step(i, 11)) for i in range(11)]
        assert values == sorted(values, reverse=True) and len(set(values)) == 11


def test_logistic_is_the_logistic_function_and_takes_any_steepness() -> None:
    for i in range(11):
        expected = 0.1 + 0.8 / (1 + math.exp(15 * (i / 10 - 0.6)))
        assert weights.logistic(step(i, 11), low=0.1, high=0.9) == pytest.approx(
            expected, abs=1e-14
        )
    steep = [weights.logistic(step(i, 11), steepness=1e6) for i in range(11)]
    assert steep[:6] + steep[7:] == [1.0] * 6 + [0.0] * 4


def test_scheduled_weights_are_the_published_ones() -> None:
    e = [0.2, 0.5, 1.0]
    schedule = partial(weights.scheduled, profile=partial(weights.listed, values=e))
    for i in range(5):
        s = 1 - i / 4
        got = schedule(step(i, 5), camera_ring(3), 2, curve=weights.linear)
        for view in range(3):
            assert got["multiview"][view].tolist() == pytest.approx([1 - e[view] + e[view] * s] * 2)
            assert got["video"][view].tolist() == pytest.approx([e[view] * (1 - s)] * 2)


@settings(deadline=None)
@given(e=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_share_of_nothing_is_exactly_nothing(e: list[float]) -> None:
    """Not 1e-16: the video prior would be evaluated for it."""
    profile = partial(weights.listed, values=e)
    curve = partial(weights.constant, scale=1.0)
    got = weights.scheduled(step(0, 5), camera_ring(len(e)), 2, curve=curve, profile=profile)
    assert (got["video"] == 0).all() and (got["multiview"] == 1).all()


def test_video_takes_over_strictly_after_its_point() -> None:
    schedule = partial(
        weights.scheduled, curve=weights.constant, profile=weights.side_views, video_only_from=0.5
    )
    alone = [
        bool((schedule(step(i, 5), camera_ring(8), 3)["multiview"] == 0).all()) for i in range(5)
    ]
    assert alone == [False, False, False, True, True]


def test_side_views_lean_on_the_multiview_prior() -> None:
    profile = weights.side_views(camera_ring(8))
    assert profile[[3, 7]].tolist() == pytest.approx([1, 1])  # back and front
    assert profile[[1, 5]].tolist() == pytest.approx([0.25, 0.25])  # sides
    assert profile[[0, 2, 4, 6]].tolist() == pytest.approx([0.625] * 4)


def test_alone_is_one_everywhere() -> None:
    got = weights.alone(step(0, 3), camera_ring(4), 2, term="multiview")
    assert (got["multiview"] == 1).all() and (got["video"] == 0).all()


# ----------------------------------------------------------------------------------------- guidance


def test_linear_guidance() -> None:
    assert guidance.linear(4).tolist() == pytest.approx([1.5, 2.0, 2.5, 3.0])
    assert guidance.linear(1).tolist() == [1.5]
    assert guidance.constant(3, scale=2.5).tolist() == [2.5] * 3


def test_triangle_guidance() -> None:
    wave = partial(guidance.triangle, low=1.0, high=2.5)
    assert wave(5).tolist() == pytest.approx([1, 1.75, 2.5, 1.75, 1])
    assert wave(5, periods=(0.5,)).tolist() == pytest.approx([1, 2.5, 1, 2.5, 1])
    one, two = (wave(9, periods=(p,)) for p in (1.0, 0.5))
    both = {fuse: wave(9, periods=(1.0, 0.5), fuse=fuse) for fuse in ("mean", "multiply", "max")}
    torch.testing.assert_close(both["mean"], (one + two) / 2)
    torch.testing.assert_close(both["max"], torch.maximum(one, two))
    torch.testing.assert_close(both["multiply"], 1 + (one - 1) * (two - 1) / 1.5)


def test_guidance_runs_along_each_terms_own_sequences() -> None:
    curves = {"video": guidance.linear, "multiview": partial(guidance.triangle, low=1.0, high=2.5)}
    got = guidance.per_term(step(0, 5), camera_ring(3), 4, **curves)
    assert all(field.shape == (3, 4) for field in got.values())
    for view in range(3):
        assert torch.equal(got["video"][view], guidance.linear(4))
    for frame in range(4):
        assert torch.equal(got["multiview"][:, frame], guidance.triangle(3, low=1.0, high=2.5))


def test_warm_up_grows_video_guidance_from_none() -> None:
    curves = {"video": guidance.linear, "multiview": partial(guidance.constant, scale=2.5)}
    got = [
        guidance.per_term(step(i, 5), camera_ring(2), 4, **curves, video_warmup=True)
        for i in range(5)
    ]
    assert (got[0]["video"] == 1).all()  # exactly: no unconditional half is wanted
    for i in range(5):
        assert got[i]["video"][0].tolist() == pytest.approx(
            [1 + (s - 1) * i / 4 for s in (1.5, 2, 2.5, 3)]
        )
        assert (got[i]["multiview"] == 2.5).all()


# -------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize("uncond", ["default", "video", "multiview", "mean"])
def test_convex_is_the_weighted_sum_of_guided_predictions(uncond: str) -> None:
    """Against the text of the paper: guide each prior, its unconditional half replaced or not, then
    average."""
    draw = torch.Generator().manual_seed(0)
    w, s = two_fields(0.1, 0.6), two_fields(1.5, 2.0)
    halves = torch.randn(2, 2, 3, 4, 1, 2, 2, generator=draw, dtype=torch.float64)
    u, c = dict(zip(w, halves[0], strict=True)), dict(zip(w, halves[1], strict=True))
    standing_in = {
        "default": u,
        "video": dict.fromkeys(w, u["video"]),
        "multiview": dict.fromkeys(w, u["multiview"]),
        "mean": dict.fromkeys(w, (u["video"] + u["multiview"]) / 2),
    }[uncond]

    def cells(field: Tensor) -> Tensor:
        return field[..., None, None, None]

    expected = sum(
        cells(w[n]) * (standing_in[n] + cells(s[n]) * (c[n] - standing_in[n])) for n in w
    )
    compose = composition.linear(coefficients=partial(composition.convex, uncond=uncond))
    predictions = {n: Prediction(u[n], c[n]) for n in w}
    denoised, memory = compose.combine(predictions, w, s, halves[0, 0], step(0, 3), {"kept": 1})
    torch.testing.assert_close(denoised, expected)
    assert memory == {"kept": 1}


@settings(deadline=None)
@given(
    uncond=st.sampled_from(["default", "video", "multiview", "mean"]),
    scale=st.floats(-5, 5),
    schedule=schedules,
    step=steps(),
)
def test_where_all_agree_the_composition_agrees(
    uncond: str, scale: float, schedule: Any, step: Step
) -> None:
    """The coefficients of all halves sum to one in a cell, whatever the guidance."""
    w = schedule(step, camera_ring(5), 3)
    halves = composition.convex(w, two_fields_like(w, scale), uncond=uncond).values()
    total = torch.stack([of_uncond + of_cond for of_uncond, of_cond in halves]).sum(dim=0)
    assert (total - 1).abs().max() < 1e-13


def two_fields_like(fields: Fields, value: float) -> Fields:
    return {name: torch.full_like(field, value) for name, field in fields.items()}


def test_a_shared_unconditional_leaves_other_terms_only_their_conditional_half() -> None:
    w = {**two_fields(0.1, 0.6), "unary": torch.full((3, 4), 0.2)}
    halves = composition.convex(w, two_fields_like(w, 2.0), uncond="multiview")
    assert not halves["unary"][0].any() and not halves["video"][0].any()
    torch.testing.assert_close(halves["multiview"][0], -sum(w.values()))


def test_a_linear_rule_wants_what_it_uses() -> None:
    w = {"video": torch.tensor([[0.0, 0.5]]), "multiview": torch.tensor([[1.0, 0.5]])}
    s = {"video": torch.tensor([[2.0, 2.0]]), "multiview": torch.tensor([[1.0, 1.0]])}
    needs = needed(composition.linear(coefficients=composition.convex), [], w, s)
    assert {name: [half.tolist() for half in need] for name, need in needs.items()} == {
        "video": [[[False, True]], [[False, True]]],
        "multiview": [[[False, False]], [[True, True]]],
    }


@settings(deadline=None)
@given(alpha=st.floats(0.5, 1), scale=st.floats(-5, 5), schedule=schedules, step=steps())
def test_inclusion_exclusion_shares_out_every_cell(
    alpha: float, scale: float, schedule: Any, step: Step
) -> None:
    w = schedule(step, camera_ring(5), 3)
    halves = composition.inclusion_exclusion(w, two_fields_like(w, scale), alpha=alpha).values()
    total = torch.stack([of_uncond + of_cond for of_uncond, of_cond in halves]).sum(dim=0)
    assert (total - 1).abs().max() < 1e-13


def test_inclusion_exclusion_runs_from_the_convex_rule_to_three_terms() -> None:
    video = two_fields(0.1, 0.6)["video"].clamp(0, 1)
    w, s = {"video": video, "multiview": 1 - video}, two_fields(1.5, 2.0)
    at_half = composition.inclusion_exclusion(w, s, alpha=0.5)
    for name, halves in composition.convex(w, s).items():
        for got, expected in zip(at_half[name], halves, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert not any(half.any() for half in at_half["unary"])  # exactly: the term is not evaluated
    at_one = composition.inclusion_exclusion(w, s, alpha=1.0, unary_scale=1.5)
    for name, share, scale in (
        ("video", 1, s["video"]),
        ("multiview", 1, s["multiview"]),
        ("unary", -1, 1.5),
    ):
        torch.testing.assert_close(at_one[name][0], share * (1 - scale) * torch.ones(3, 4).double())
        torch.testing.assert_close(at_one[name][1], share * scale * torch.ones(3, 4).double())
    even = {name: torch.full((1, 1), 0.5).double() for name in w}
    family = composition.inclusion_exclusion(even, two_fields_like(even, 1.0), alpha=0.8)
    assert {name: halves[1].item() for name, halves in family.items()} == pytest.approx(
        {"video": 0.8, "multiview": 0.8, "unary": -0.6}
    )


def test_a_term_that_is_not_there_is_named() -> None:
    """Where the rule has a share for it."""
    w = {"video": torch.full((2, 2), 0.5), "multiview": torch.full((2, 2), 0.5)}
    ones = two_fields_like(w, 1.0)
    x = torch.ones(2, 2, 1, 1, 1)
    predictions = {name: Prediction(None, x) for name in w}

    def run(alpha: float) -> Tensor:
        rule = composition.linear(
            coefficients=partial(composition.inclusion_exclusion, alpha=alpha)
        )
        return rule.combine(predictions, w, ones, x, step(0, 3), {})[0]

    assert torch.equal(run(0.5), x)
    with pytest.raises(ValueError, match="a term unary") as error:
        run(0.875)
    assert "\n" not in str(error.value)


def test_the_unary_rule_of_the_command_line_runs_on_three_terms() -> None:
    config = command_line.composed(
        "sample", command_line.readable(["composition=inclusion_exclusion"])
    ).config
    compose = bind(config.composition, "composition")
    world = analytic.separable(analytic.autoregressive(2, 0.8), analytic.autoregressive(3, 0.5))
    plan = renoise.none(karras_sigmas(4, sigma_min=0.1, sigma_max=10.0))
    basis = analytic.basis(plan, 2, 3)
    x = exact_world.sample(basis.start, plan, exact_world.terms_of(world, 2, 3), compose=compose)
    same = exact_world.sample(
        basis.start, plan, exact_world.terms_of(world, 2, 3), compose=exact_world.three_terms(0.875)
    )
    assert torch.equal(x, same) and not torch.equal(x, 0 * x)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_brings_the_spread_back(share: float) -> None:
    w, s = {"video": torch.ones(2, 3)}, {"video": torch.tensor([[1.0, 2.0, 4.0], [1.5, 3.0, 1.0]])}
    draw = torch.Generator().manual_seed(0)
    u, c = (torch.randn(2, 3, 2, 4, 4, generator=draw, dtype=torch.float64) for _ in "uc")
    plain = composition.linear(coefficients=composition.convex)
    rule = guidance.rescaled(compose=plain, share=share)
    assert rule.needs is plain.needs
    arguments = ({"video": Prediction(u, c)}, w, s, c, step(0, 3), {})
    guided, got = plain.combine(*arguments)[0], rule.combine(*arguments)[0]
    std_of, guided_of, cond_of = (t.std(dim=(2, 3, 4), correction=0) for t in (got, guided, c))
    torch.testing.assert_close(std_of, share * cond_of + (1 - share) * guided_of)
    turned = torch.nn.functional.cosine_similarity(got.flatten(2), guided.flatten(2), dim=2)
    torch.testing.assert_close(turned, torch.ones_like(turned))
    torch.testing.assert_close(got[0, 0], c[0, 0])  # scale 1
    alone = rule.combine(
        {"video": Prediction(None, c)}, w, two_fields_like(w, 1.0), c, step(0, 3), {}
    )[0]
    assert torch.equal(alone, c)


def test_guidance_outside_its_interval_is_one() -> None:
    base = partial(
        guidance.per_term, video=guidance.linear, multiview=partial(guidance.constant, scale=2.5)
    )
    rule = partial(guidance.interval, schedule=base, sigma_low=1.0, sigma_high=10.0)
    for sigma in (0.5, 1.0, 3.0, 10.0, 11.0):
        at = step(0, 5)._replace(sigma=sigma)
        got, full = rule(at, camera_ring(3), 4), base(at, camera_ring(3), 4)
        inside = 1 <= sigma <= 10
        assert got.keys() == full.keys()
        assert all(
            torch.equal(got[n], full[n] if inside else torch.ones(3, 4).double()) for n in full
        )


# -------------------------------------------------------------------------------------------- plans


def test_karras_sigmas_fall_evenly_in_the_root() -> None:
    sigmas = karras_sigmas(9, sigma_min=0.002, sigma_max=700.0, rho=7.0)
    assert len(sigmas) == 10 and sigmas[-1] == 0
    assert (sigmas[0], sigmas[-2]) == (pytest.approx(700.0), pytest.approx(0.002))
    roots = [s ** (1 / 7) for s in sigmas[:-1]]
    gaps = [a - b for a, b in zip(roots[:-1], roots[1:], strict=True)]
    assert gaps == pytest.approx([(700 ** (1 / 7) - 0.002 ** (1 / 7)) / 8] * 8)


def test_plain_plans_take_every_level_once() -> None:
    plan = renoise.none(SIGMAS)
    assert [(s.index, s.repeat, s.num_repeats, s.num_steps) for s in plan] == [
        (i, 0, 1, 12) for i in range(12)
    ]
    assert [s.sigma for s in plan] + [0.0] == SIGMAS
    assert [s.sigma_next for s in plan] == SIGMAS[1:]
    assert all(s.noise_before == s.noise_after == 0 for s in plan)
    assert (plan[0].progress, plan[-1].progress) == (0, 1)


@pytest.mark.parametrize(("first", "repeats"), [(0, 2), (4, 1), (4, 2), (3, 3), (12, 2), (50, 2)])
def test_vrs_evaluates_its_first_levels_again(first: int, repeats: int) -> None:
    plan = renoise.vrs(SIGMAS, steps=first, repeats=repeats)
    assert len(plan) == 12 + min(first, 12) * (repeats - 1)
    for s in plan:
        assert (s.sigma, s.sigma_next, s.noise_before) == (SIGMAS[s.index], SIGMAS[s.index + 1], 0)
        assert s.num_repeats == (repeats if s.index < first else 1)
        again = s.repeat + 1 < s.num_repeats
        assert s.noise_after == (
            pytest.approx(SIGMAS[s.index] - SIGMAS[s.index + 1]) if again else 0
        )
    order = [(s.index, s.repeat) for s in plan]
    assert order == sorted(set(order))


def test_vrs_takes_ten_levels_twice_as_published() -> None:
    plan = renoise.vrs(karras_sigmas(50, sigma_min=0.002, sigma_max=700.0))
    assert len(plan) == 60 and [s.index for s in plan if s.noise_after] == list(range(10))


@pytest.mark.parametrize("s_churn", [0.5, 4.0, 40.0])
@pytest.mark.parametrize("s_noise", [1.0, 1.007])
def test_churn_raises_every_level(s_churn: float, s_noise: float) -> None:
    """Karras et al. 2022, algorithm 2; its factor is capped at the square root of two."""
    gamma = {0.5: 0.5 / 12, 4.0: 4.0 / 12, 40.0: math.sqrt(2) - 1}[s_churn]
    for s in renoise.churned(SIGMAS, steps=3, s_churn=s_churn, s_noise=s_noise):
        sigma, sigma_next = SIGMAS[s.index : s.index + 2]
        assert s.sigma == pytest.approx(sigma * (1 + gamma))
        assert s.sigma_next == sigma_next
        assert s.noise_before == pytest.approx(s_noise * sigma * math.sqrt(2 * gamma + gamma**2))
        again = s.repeat + 1 < s.num_repeats
        assert s.noise_after == (pytest.approx(sigma * (1 + gamma) - sigma_next) if again else 0)


def test_no_churn_is_vrs() -> None:
    assert renoise.churned(SIGMAS, s_churn=0.0) == renoise.vrs(SIGMAS)


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (
            lambda: weights.listed(camera_ring(3), values=[0.1, 0.2]),
            "weights.profile.values=[0.1, 0.2]: 2 numbers",
        ),
        (
            lambda: weights.alone(step(0, 1), camera_ring(3), 2, term="rows"),
            "weights.term=rows: choose",
        ),
        (lambda: guidance.triangle(5, low=1.0, high=2.0, fuse="sum"), "guidance fuse=sum: choose"),
        (lambda: composition.convex({}, {}, uncond="both"), "composition.uncond=both: choose"),
        (
            lambda: composition.inclusion_exclusion({}, {}, alpha=0.4),
            "composition.alpha=0.4: give 0.5",
        ),
        (lambda: renoise.vrs(SIGMAS, steps=-1), "renoise.steps=-1"),
        (lambda: renoise.vrs(SIGMAS, repeats=0), "repeats=0"),
        (lambda: renoise.churned(SIGMAS, s_churn=-1.0), "s_churn=-1"),
        (lambda: karras_sigmas(0, sigma_min=0.1, sigma_max=1.0), "sampler.num_steps=0"),
        (lambda: karras_sigmas(5, sigma_min=2.0, sigma_max=1.0), "sigma_min=2.0, sigma_max=1.0"),
        (lambda: karras_sigmas(5, sigma_min=0.0, sigma_max=1.0), "sigma_min=0.0"),
    ],
)
def test_mistakes_are_told_on_one_line(mistake: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        mistake()
    assert said in str(error.value) and "\n" not in str(error.value)

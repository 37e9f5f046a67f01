"""Laws of the sampler on a world whose every answer is known.

The world: zero-mean Gaussian matrices whose cells covary as A ⊗ B, A between views and B between
frames, both with unit diagonal. The best denoiser of a column alone is then A (A + σ²)⁻¹, of a row
alone B (B + σ²)⁻¹, and everything is linear. Axes c h w of a matrix hold independent particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from d2.errors import InputError
from d2.matrix import camera_ring, columns, rows
from d2.noise import draw, step_noise
from d2.rules import composition, guidance, renoise, solver, weights
from d2.sampling import (
    Denoise,
    Fields,
    Prediction,
    State,
    Step,
    Term,
    initial_x,
    karras_sigmas,
    sample_matrix,
)
from d2.shard import make_shard

V, F = 3, 4
ONE = {
    "video": partial(guidance.constant, scale=1.0),
    "multiview": partial(guidance.constant, scale=1.0),
}


def covariance(size: int, correlation: float) -> Tensor:
    """Neighbours correlate, the further the less: size size."""
    at = torch.arange(size, dtype=torch.float64)
    return correlation ** (at[:, None] - at).abs()


A, B = covariance(V, 0.8), covariance(F, 0.5)


def gaussian(cov: Tensor) -> Denoise:
    """E[x0 | x, σ] of sequences of this covariance; the condition says nothing."""

    def denoise(
        x: Tensor, sigma: float, sequences: Tensor, halves: tuple[bool, bool]
    ) -> Prediction:
        gain = cov @ torch.linalg.inv(cov + sigma**2 * torch.eye(len(cov), dtype=cov.dtype))
        mean = torch.einsum("st,btchw->bschw", gain.to(x), x)
        return Prediction(*(mean if wanted else None for wanted in halves))

    return denoise


def terms(a: Tensor = A, b: Tensor = B) -> list[Term]:
    v, f = len(a), len(b)
    return [Term("video", rows(v, f), gaussian(b)), Term("multiview", columns(v, f), gaussian(a))]


def constant_weights(multiview: float) -> Any:
    curve = partial(weights.constant, scale=multiview)
    return partial(weights.scheduled, curve=curve, profile=weights.flat)


def sample(x: Tensor, plan: Sequence[Step], **changes: Any) -> Tensor:
    """The sampler with plain rules but for the changes."""
    return sample_matrix(
        x,
        plan,
        **{
            "terms": terms(),
            "cameras": camera_ring(x.shape[0]),
            "weights": constant_weights(0.6),
            "guidance": partial(guidance.per_term, **ONE),
            "compose": composition.linear(coefficients=composition.convex),
            "solver": solver.euler,
            "shard": make_shard(),
            "noise": step_noise(0, x),
            **changes,
        },
    )


def test_what_is_left_out_is_the_plainest() -> None:
    """Even weights, no guidance, the convex rule, Euler, this process, the streams of seed 0."""
    plan = renoise.vrs(karras_sigmas(6, sigma_min=0.002, sigma_max=80.0), steps=2)
    x = initial_x(draw(0, "init", (V, F, 2, 4, 4)), plan[0].sigma)
    for told in ({}, {"guidance": partial(guidance.per_term, **ONE | {"video": guidance.linear})}):
        left_out = sample_matrix(x, plan, terms=terms(), **told)
        torch.testing.assert_close(
            left_out, sample(x, plan, weights=constant_weights(0.5), **told), rtol=0, atol=1e-6
        )


# ---------------------------------------------------------------------------------- what is sampled


def test_columns_alone_have_the_columns_covariance() -> None:
    """And frames know nothing of each other."""
    plan = renoise.none(karras_sigmas(200, sigma_min=0.002, sigma_max=80.0))
    x = initial_x(draw(0, "init", (V, F, 1, 100, 100)), plan[0].sigma)
    x = sample(x, plan, weights=partial(weights.alone, term="multiview")).flatten(2)  # v f n
    between_views = torch.einsum("vfn,wfn->vw", x, x) / x[0].numel()
    between_frames = torch.einsum("vfn,vgn->fg", x, x) / x[:, 0].numel()
    # 200 steps, 40 000 columns
    torch.testing.assert_close(between_views.double(), A, rtol=0, atol=0.05)
    torch.testing.assert_close(between_frames, torch.eye(F), rtol=0, atol=0.05)


def test_rows_alone_have_the_rows_covariance() -> None:
    plan = renoise.none(karras_sigmas(600, sigma_min=0.002, sigma_max=80.0))
    x = sample(
        initial_x(basis(V, F), plan[0].sigma), plan, weights=partial(weights.alone, term="video")
    )
    torch.testing.assert_close(
        second_moment(x), torch.kron(torch.eye(V).double(), B), rtol=0, atol=0.01
    )


def basis(v: int, f: int) -> Tensor:
    """Particles that are 1 in one cell and 0 elsewhere: all that a linear sampler can be asked. v f
    c 1 1."""
    return torch.eye(v * f, dtype=torch.float64).reshape(v, f, v * f, 1, 1)


def second_moment(x: Tensor) -> Tensor:
    """Covariance of what unit noise turns into, from what the basis turned into: (v f) (v f)."""
    linear = x.flatten(0, 1).flatten(1)  # (v f) c
    return linear @ linear.T


@pytest.mark.parametrize("w", [0.0, 0.3, 0.6, 1.0])
def test_the_convex_rule_samples_a_geometric_mean(w: float) -> None:
    """Its flow takes an eigenmode from σ²-like variance to a^w b^(1-w): the integral of the
    averaged scores."""
    plan = renoise.none(karras_sigmas(300, sigma_min=0.002, sigma_max=500.0))
    (a, of_a), (b, of_b) = torch.linalg.eigh(A), torch.linalg.eigh(B)
    modes = torch.einsum("vi,fj->vfij", of_a, of_b).reshape(V, F, V * F, 1, 1)
    x = sample(initial_x(modes, plan[0].sigma), plan, weights=constant_weights(w))
    ended = torch.einsum("vi,fj,vfchw->ijchw", of_a, of_b, x).reshape(V * F, V * F)
    # no mode feeds another
    torch.testing.assert_close(ended, torch.diag(ended.diagonal()), rtol=0, atol=1e-9)
    expected = (a[:, None] ** w * b[None, :] ** (1 - w)).flatten()
    torch.testing.assert_close(ended.diagonal().square(), expected, rtol=0.03, atol=0)


def test_euler_converges_at_first_order() -> None:
    """The unit Gaussian's flow ends at the unit Gaussian; twice the steps, half the error."""
    unit = torch.ones(1, 1, dtype=torch.float64)

    def error(n: int) -> float:
        plan = renoise.none(karras_sigmas(n, sigma_min=1e-4, sigma_max=80.0))
        x = initial_x(torch.ones(1, 1, 1, 1, 1, dtype=torch.float64), plan[0].sigma)
        return abs(1 - sample(x, plan, terms=terms(unit, unit)).item())

    ratios = [error(n) / error(2 * n) for n in (40, 80, 160)]
    assert all(1.85 < ratio < 2.15 for ratio in ratios), ratios


def unit_gaussian_std(sigmas: Sequence[float], again: int) -> float:
    """Standard deviation that a unit Gaussian ends with, by recursion, the first `again` levels
    taken twice."""
    variance = 1 + sigmas[0] ** 2
    for i, (s, s_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        keep = 1 - (1 - s_next / s) * (s**2 / (1 + s**2))  # x - D(x) = x σ²/(1 + σ²)
        if i < again:
            variance = variance * keep**2 + (s - s_next) ** 2
        variance *= keep**2
    return variance**0.5


@pytest.mark.parametrize(("again", "expected"), [(0, 0.93), (10, 0.34)])
def test_vrs_as_published_loses_two_thirds_of_the_spread(again: int, expected: float) -> None:
    """It returns to less than the level it tells the networks, which then take away noise that is
    not there."""
    sigmas = karras_sigmas(50, sigma_min=0.002, sigma_max=700.0)
    plan = renoise.vrs(sigmas, steps=again)
    one = torch.ones(1, 1, dtype=torch.float64)
    x = initial_x(draw(0, "init", (1, 1, 1, 100, 200)), plan[0].sigma)
    std = sample(x, plan, terms=terms(one, one)).std().item()
    assert std == pytest.approx(unit_gaussian_std(sigmas, again), rel=0.02)
    assert std == pytest.approx(expected, rel=0.02)


def test_vrs_reaches_less_than_the_level_it_tells() -> None:
    """On a world of zero alone, where x is its noise: σ falls to σ_next, and σ - σ_next is added at
    right angles."""
    plan = renoise.vrs(karras_sigmas(10, sigma_min=0.002, sigma_max=700.0), steps=1)
    sigma, sigma_next = plan[0].sigma, plan[0].sigma_next
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    across = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(1, 1, 2, 1, 1)
    x = sample(
        sigma * across.flip(2),
        plan[:1],
        terms=terms(nothing, nothing),
        noise=lambda step, when: across,
    ).flatten()
    assert x.tolist() == pytest.approx([sigma_next, sigma - sigma_next])
    assert x.norm().item() == pytest.approx(math.sqrt(sigma_next**2 + (sigma - sigma_next) ** 2))
    assert x.norm().item() < 0.9 * plan[1].sigma  # told σ again


def test_churn_keeps_a_gaussian_a_gaussian_of_its_spread() -> None:
    """With exact noise and enough steps, a stochastic sampler ends where the flow does."""
    sigmas = karras_sigmas(500, sigma_min=0.01, sigma_max=50.0)
    plan = renoise.churned(sigmas, steps=0, s_churn=20.0)
    one = torch.ones(1, 1, dtype=torch.float64)
    x = initial_x(draw(0, "init", (1, 1, 1, 80, 100)), sigmas[0])
    assert sample(x, plan, terms=terms(one, one)).std().item() == pytest.approx(1.0, abs=0.04)


# --------------------------------------------------------------------------- what the loop promises


def averaging(
    predictions: dict[str, Prediction],
    w: Fields,
    scales: Fields,
    x: Tensor,
    step: Step,
    memory: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    """A rule that is not linear, says nothing of its needs, and remembers its last answer."""
    found = [half for prediction in predictions.values() for half in prediction if half is not None]
    assert len(found) == 2 * len(predictions), "a rule that says nothing is given everything"
    now = torch.stack(found).median(dim=0).values
    denoised = 0.5 * (now + memory.get("last", now))
    return denoised, {"last": denoised, "evaluations": memory.get("evaluations", 0) + 1}


def heun_with_momentum(
    evaluate: Callable[[Tensor, Step], Tensor], x: Tensor, step: Step, memory: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """A solver that evaluates twice where it can, and remembers its last slope."""
    gap = step.sigma_next - step.sigma
    slope = (x - evaluate(x, step)) / step.sigma
    if step.sigma_next:
        ahead = x + gap * slope
        slope = (
            slope
            + (ahead - evaluate(ahead, step._replace(sigma=step.sigma_next))) / step.sigma_next
        ) / 2
    kept = 0.9 * slope + 0.1 * memory.get("slope", slope)
    return x + gap * kept, {"slope": kept, "steps": memory.get("steps", 0) + 1}


PLAN = renoise.churned(karras_sigmas(8, sigma_min=0.01, sigma_max=20.0), steps=3, s_churn=2.0)
RULES: dict[str, dict[str, Any]] = {
    "linear, Euler": {},
    "remembering rule, Euler": {"compose": averaging},
    "remembering rule and solver": {"compose": averaging, "solver": heun_with_momentum},
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_resuming_gives_the_same_bits(rules: dict[str, Any]) -> None:
    states: list[State] = []
    x = initial_x(draw(0, "init", (V, F, 2, 3, 3)), PLAN[0].sigma)
    whole = sample(x, PLAN, **rules, on_step=states.append)
    # noise matters here
    assert not torch.equal(whole, sample(x, PLAN, **rules, noise=step_noise(1, x)))
    for k in range(1, len(PLAN)):
        again = sample(states[k - 1].x.clone(), PLAN[k:], **rules, memory=states[k - 1].memory)
        assert torch.equal(again, whole), f"resumed before step {k}"


@pytest.mark.parametrize("steps", [1, 2, len(PLAN)])
def test_rule_and_solver_each_remember_what_they_left(steps: int) -> None:
    states: list[State] = []
    x = initial_x(draw(0, "init", (V, F, 2, 3, 3)), PLAN[0].sigma)
    sample(x, PLAN[:steps], compose=averaging, on_step=states.append)
    assert states[-1].memory[0]["evaluations"] == steps  # under Euler, which remembers nothing
    sample(x, PLAN[:steps], compose=averaging, solver=heun_with_momentum, on_step=states.append)
    of_rule, of_solver = states[-1].memory
    assert of_solver["steps"] == steps
    assert of_rule["evaluations"] == 2 * steps - (steps == len(PLAN))  # one for the step to zero


def test_on_step_sees_every_step_and_changes_nothing() -> None:
    states: list[State] = []
    x = initial_x(draw(0, "init", (V, F, 2, 3, 3)), PLAN[0].sigma)
    start = x.clone()
    final = sample(x, PLAN, on_step=states.append)
    assert torch.equal(final, sample(x, PLAN))
    assert torch.equal(x, start)  # nothing is done in place
    assert [state.step for state in states] == list(PLAN)
    assert torch.equal(states[-1].x, final)
    for state in states:
        assert state.denoised.shape == x.shape
        assert {name: p.cond is not None for name, p in state.predictions.items()} == {
            "video": True,
            "multiview": True,
        }
    # the last Euler step lands on it
    torch.testing.assert_close(states[-1].denoised, final, rtol=0, atol=1e-5)


@dataclass
class Spy:
    """A denoiser that says nothing and remembers what it was asked: (σ, sequence, half)."""

    asked: list[tuple[float, int, str]] = field(default_factory=list)

    def __call__(
        self, x: Tensor, sigma: float, sequences: Tensor, halves: tuple[bool, bool]
    ) -> Prediction:
        assert len(x) == len(sequences) and any(halves)
        for name, wanted in zip(("uncond", "cond"), halves, strict=True):
            self.asked += [(sigma, sequence, name) for sequence in sequences.tolist() if wanted]
        return Prediction(*(0 * x if wanted else None for wanted in halves))

    def halves(self) -> dict[str, set[int]]:
        assert len(set(self.asked)) == len(self.asked), "nothing is asked twice"
        return {
            name: {s for _, s, half in self.asked if half == name} for name in ("uncond", "cond")
        }


def ask(num_steps: int = 1, **rules: Any) -> tuple[Spy, Spy]:
    """What video and multiview are asked under some rules."""
    video, multiview = Spy(), Spy()
    plan = renoise.none(karras_sigmas(num_steps, sigma_min=0.1, sigma_max=5.0))
    sample(
        torch.zeros(V, F, 1, 2, 2),
        plan,
        terms=[Term("video", rows(V, F), video), Term("multiview", columns(V, F), multiview)],
        **rules,
    )
    return video, multiview


VIEWS, FRAMES = set(range(V)), set(range(F))
GUIDED = partial(
    guidance.per_term, video=guidance.linear, multiview=partial(guidance.constant, scale=2.5)
)


def test_a_prior_without_weight_is_never_evaluated() -> None:
    video, multiview = ask(3, weights=partial(weights.alone, term="multiview"), guidance=GUIDED)
    assert not video.asked and len(multiview.asked) == 3 * 2 * F
    assert multiview.halves() == {"uncond": FRAMES, "cond": FRAMES}


def test_without_guidance_no_unconditional_half_is_evaluated() -> None:
    video, multiview = ask()
    assert video.halves() == {"uncond": set(), "cond": VIEWS}
    assert multiview.halves() == {"uncond": set(), "cond": FRAMES}


def test_a_shared_unconditional_is_evaluated_where_its_prior_has_no_weight() -> None:
    shared = composition.linear(coefficients=partial(composition.convex, uncond="multiview"))
    video, multiview = ask(
        weights=partial(weights.alone, term="video"), guidance=GUIDED, compose=shared
    )
    assert video.halves() == {"uncond": set(), "cond": VIEWS}
    assert multiview.halves() == {"uncond": FRAMES, "cond": set()}


def test_only_the_sequences_that_are_wanted_are_evaluated() -> None:
    """Rows of views that the profile gives to the multi-view prior are not the video prior's
    work."""
    profile = partial(weights.listed, values=[0.0, 1.0, 0.5])
    schedule = partial(
        weights.scheduled, profile=profile, curve=partial(weights.constant, scale=0.0)
    )
    video, multiview = ask(weights=schedule, guidance=GUIDED)
    assert video.halves() == {"uncond": {1, 2}, "cond": {1, 2}}
    assert multiview.halves() == {"uncond": FRAMES, "cond": FRAMES}


def test_halves_are_wanted_by_sequence() -> None:
    """Frames whose scale is one go without their unconditional half, in the same evaluation as
    those that need it."""

    def scales(step: Step, cameras: Any, num_frames: int) -> Fields:
        one = torch.ones(V, F)
        return {"video": one, "multiview": one + torch.tensor([0.0, 1.0, 0.0, 1.0])}

    _, multiview = ask(guidance=scales)
    assert multiview.halves() == {"uncond": {1, 3}, "cond": FRAMES}


def test_a_rule_that_says_nothing_of_its_needs_gets_everything() -> None:
    video, multiview = ask(weights=partial(weights.alone, term="multiview"), compose=averaging)
    assert video.halves() == {"uncond": VIEWS, "cond": VIEWS}
    assert multiview.halves() == {"uncond": FRAMES, "cond": FRAMES}


def test_networks_are_told_the_levels_of_the_plan() -> None:
    video, multiview = Spy(), Spy()
    sample(
        torch.zeros(V, F, 1, 2, 2),
        PLAN,
        terms=[Term("video", rows(V, F), video), Term("multiview", columns(V, F), multiview)],
    )
    for spy, count in ((video, V), (multiview, F)):
        assert [sigma for sigma, _, _ in spy.asked] == [s.sigma for s in PLAN for _ in range(count)]


def test_noise_is_asked_by_name_and_added_with_the_plans_deviations() -> None:
    """Before the evaluation and after the solver's step, and only where there is some."""
    asked: list[tuple[Step, str]] = []
    seen: list[State] = []
    met: list[Tensor] = []

    def noise(step: Step, when: str) -> Tensor:
        asked.append((step, when))
        return torch.full((1, 1, 1, 1, 1), 1.0 if when == "before" else -1.0, dtype=torch.float64)

    def stay(
        evaluate: Any, x: Tensor, step: Step, memory: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        met.append(x)
        return x, memory

    plan = [
        Step(0, 2, 0, 2, 5.0, 3.0, noise_before=0.25, noise_after=2.0),
        Step(0, 2, 1, 2, 5.0, 3.0, noise_before=0.5),
        Step(1, 2, 0, 1, 3.0, 0.0),
    ]
    sample(
        torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64),
        plan,
        noise=noise,
        solver=stay,
        on_step=seen.append,
    )
    assert asked == [(plan[0], "before"), (plan[0], "after"), (plan[1], "before")]
    assert [x.item() for x in met] == [0.25, -1.25, -1.25]
    assert [state.x.item() for state in seen] == [-1.75, -1.25, -1.25]


def test_a_known_world_is_sampled_the_same_with_guidance_and_shared_halves() -> None:
    """Where the condition says nothing, guidance of any scale does nothing, whoever lends the
    unconditional half."""
    x = initial_x(draw(0, "init", (V, V, 1, 2, 2)).double(), PLAN[0].sigma)
    plain = sample(x, PLAN, terms=terms(A, A))
    torch.testing.assert_close(sample(x, PLAN, terms=terms(A, A), guidance=GUIDED), plain)
    same = terms(torch.eye(V), torch.eye(V))
    shared = composition.linear(coefficients=partial(composition.convex, uncond="mean"))
    torch.testing.assert_close(
        sample(x, PLAN, terms=same, guidance=GUIDED, compose=shared), sample(x, PLAN, terms=same)
    )


# ------------------------------------------------------------------------------- what is not finite


def spoilt(bad: float, sequence: int, below: float) -> Denoise:
    """Rows, of which one says something that is not finite at low levels, in one number of one
    cell."""

    def denoise(
        x: Tensor, sigma: float, sequences: Tensor, halves: tuple[bool, bool]
    ) -> Prediction:
        said = 0 * x
        if sigma < below:
            said[sequences == sequence, 1, 0, 0, 0] = bad
        return Prediction(*(said if wanted else None for wanted in halves))

    return denoise


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_stops_the_sampler_at_its_first_level(bad: float) -> None:
    seen: list[State] = []
    two = [Term("video", rows(V, F), spoilt(bad, 2, below=1.0)), terms()[1]]
    x = initial_x(draw(0, "init", (V, F, 1, 2, 2)).double(), PLAN[0].sigma)
    first = next(step.sigma for step in PLAN if step.sigma < 1)
    with pytest.raises(
        InputError, match=f"^video, sequence 2: .* not finite at noise level {first:.4g}; "
    ) as error:
        sample(x, PLAN, terms=two, on_step=seen.append)
    assert "\n" not in str(error.value) and seen[-1].step.sigma >= 1 and seen[-1].x.isfinite().all()


def test_a_rule_or_a_solver_that_is_not_finite_is_named() -> None:
    def nothing(*given: Any) -> tuple[Tensor, dict[str, Any]]:
        return given[3] / 0, {}

    def far(
        evaluate: Any, x: Tensor, step: Step, memory: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        return x * math.inf, memory

    x = initial_x(draw(0, "init", (V, F, 1, 2, 2)).double(), PLAN[0].sigma)
    for said, rules in {"composition": {"compose": nothing}, "solver": {"solver": far}}.items():
        with pytest.raises(
            InputError,
            match=f"^{said}: its answer is not finite at noise level {PLAN[0].sigma:.4g}",
        ):
            sample(x, PLAN, **rules)

"""Laws of scaffold, then detail: which law the second pass keeps, which it gives back, and what
both cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import AUTOENCODER, MULTIVIEW, VIDEO
from exact_world import ended, sample, terms_of
from torch import Tensor

from d2.errors import InputError
from d2.matrix import camera_ring, raster
from d2.noise import draw
from d2.plan.rehearsal import Workload, cell_evaluations
from d2.priors import analytic
from d2.priors.analytic import autoregressive, wasserstein2
from d2.rules import renoise, scaffold, solver
from d2.rules.bundle import Rules
from d2.rules.composition import convex, linear
from d2.sampling import Step, Term, evenly, karras_sigmas
from d2.terms import Settings

V = F = 4
ACROSS, ALONG = autoregressive(V, 0.9), autoregressive(F, 0.8)
WORLD = analytic.separable(ACROSS, ALONG)
SIGMAS = karras_sigmas(60, sigma_min=0.02, sigma_max=60.0)
LEVEL = 1.0
PLAN = scaffold.plan(SIGMAS, level=LEVEL, steps=60)
PAIR = ("video", "multiview")


def joint_then(term: str | None) -> Any:
    """Weights: the joint denoiser, and in the last pass a term of the pair."""

    def weights(step: Step, cameras: Any, num_frames: int) -> dict[str, Tensor]:
        chosen = term if term and scaffold.is_last_pass(step) else "joint"
        one = torch.ones(V, num_frames, dtype=torch.float64)
        return {name: one * (name == chosen) for name in (*PAIR, "joint")}

    return weights


def law(finish: str | None) -> Tensor:
    """What a scaffold of the joint denoiser ends with, finished by a term or by itself."""
    terms = [*terms_of(WORLD, V, F, PAIR), analytic.term("joint", raster(V, F), WORLD, F)]
    return ended(
        PLAN,
        terms,
        V,
        F,
        weights=joint_then(finish),
        guidance=evenly(terms, 1.0),
        solver=solver.dpmpp_2m,
    )


def flow(matrix: Tensor, s: float) -> Tensor:
    """(matrix / (matrix + s))^½: how the exact flow from level √s takes x to the end."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * (values / (values + s)).sqrt()) @ vectors.T


@pytest.mark.parametrize("finish", [None, *PAIR])
def test_the_end_is_the_law_that_the_docstring_states(finish: str | None) -> None:
    """The estimate's covariance and the new noise, through the flow of who finishes."""
    sigma, s, eye = WORLD.covariances[0], LEVEL**2, torch.eye(V * F, dtype=torch.float64)
    seen = {
        None: sigma,
        "video": torch.kron(torch.eye(V, dtype=torch.float64), ALONG),
        "multiview": torch.kron(ACROSS, torch.eye(F, dtype=torch.float64)),
    }[finish]
    estimate = sigma @ sigma @ torch.linalg.inv(sigma + s / 4 * eye)
    expected = flow(seen, s) @ (estimate + s * eye) @ flow(seen, s)
    assert wasserstein2(law(finish), expected) / (V * F) < 1e-3
    lost = torch.linalg.eigvalsh(torch.linalg.solve(sigma + s * eye, sigma - estimate)).max()
    assert 0 < lost <= 1 / 9 + 1e-9


def test_who_finishes_keeps_its_own_axis_and_loosens_the_other() -> None:
    """Rows that rows finish have nearly their law; what holds views together keeps its coarse part
    alone."""
    ends = {finish: law(finish) for finish in PAIR}
    row, column = torch.arange(F), torch.arange(V) * F
    for finish, own, other in (("video", row, column), ("multiview", column, row)):
        of_own, of_other = (
            wasserstein2(ends[finish][at][:, at], WORLD.covariances[0][at][:, at])
            for at in (own, other)
        )
        assert of_own < 0.01 < of_other
        # neighbours on the other axis
        assert ends[finish][0, other[1]] < WORLD.covariances[0][0, other[1]]


def test_a_finisher_gives_variance_back_and_pays_with_the_other_axis() -> None:
    """Under the convex rule, from a high level: nearer to a unit variance, farther from the joint
    law."""
    terms, plan = terms_of(WORLD, V, F, PAIR), scaffold.plan(SIGMAS, level=3.0, steps=60)
    plain = ended(renoise.none(SIGMAS), terms, V, F, solver=solver.dpmpp_2m)
    found = {
        by: ended(plan, terms, V, F, weights=finishing(terms, by), solver=solver.dpmpp_2m)
        for by in scaffold.FINISHERS
    }
    kept = {by: end.trace().item() / (V * F) for by, end in found.items()}
    off = {by: wasserstein2(end, WORLD.covariances[0]) / (V * F) for by, end in found.items()}
    assert kept["both"] < plain.trace() / (V * F) < min(kept[name] for name in PAIR) - 0.1
    assert max(kept.values()) < 1.0
    assert (
        wasserstein2(plain, WORLD.covariances[0]) / (V * F)
        < off["both"]
        < min(off[name] for name in PAIR)
    )


def finishing(terms: list[Term], by: str) -> Any:
    return partial(scaffold.finished, schedule=evenly(terms, 0.5), by=by)


def test_estimates_are_low_passed_in_the_first_pass_alone() -> None:
    terms = terms_of(analytic.separable(torch.eye(2), torch.eye(2)), 2, 2, PAIR)
    x, rule = 3 * draw(0, "init", (2, 2, 1, 8, 8)).double(), linear(coefficients=convex)
    kept = {}
    for strength in (0.0, 0.5, 1.0):
        seen: list[Tensor] = []
        sample(
            x,
            scaffold.plan([3.0, 1.0, 0.0], level=2.0, steps=1),
            terms,
            compose=scaffold.coarse(compose=rule, strength=strength),
            on_step=lambda state: seen.append(state.denoised),  # noqa: B023
        )
        assert len(seen) == 3
        high = (
            torch.fft.fft2(seen[0])[..., 4, 4].abs().mean()
            / torch.fft.fft2(x)[..., 4, 4].abs().mean()
        )
        flat = torch.fft.fft2(seen[0])[..., 0, 0]
        kept[strength] = (high.item(), flat)
        late = torch.fft.fft2(seen[-1])[..., 4, 4].abs().mean()
        assert late > 0.01
    assert kept[1.0][0] < 0.01 * kept[0.0][0] and kept[0.5][0] == pytest.approx(
        kept[0.0][0] / 2, rel=0.02
    )
    torch.testing.assert_close(kept[1.0][1], kept[0.0][1])  # the mean passes
    plan = scaffold.plan([3.0, 1.0, 0.0], level=2.0, steps=1)
    assert torch.equal(
        sample(x, plan, terms, compose=scaffold.coarse(compose=rule, strength=0.0)),
        sample(x, plan, terms, compose=rule),
    )


@pytest.mark.parametrize(("by", "terms"), [("multiview", 1), ("video", 1), ("both", 2)])
def test_a_plan_counts_what_the_passes_cost(by: str, terms: int) -> None:
    """Two terms in the first pass, twice where it is guided; in the second no more than who
    finishes."""
    settings = Settings(num_steps=24)
    for scale, halves in ((1.0, 1), (2.0, 2)):
        even, scales = (evenly(terms_of(WORLD, V, F, PAIR), value) for value in (0.5, scale))
        rules = Rules(
            scaffold.plan,
            partial(scaffold.finished, schedule=even, by=by),
            partial(scaffold.guided_first, schedule=scales),
            scaffold.coarse(compose=linear(coefficients=convex)),
            solver.euler,
        )
        steps = rules.renoise(settings.sigmas)
        last = [step for step in steps if scaffold.is_last_pass(step)]
        assert len(steps) == 6 + len(last) and [step.sigma for step in last][:1] == [2.0]
        workload = Workload(VIDEO, MULTIVIEW, AUTOENCODER, rules, 3, 4, 64)
        cast = workload.cast(torch.float32)
        assert cell_evaluations(workload, cast, settings) == 12 * (
            6 * 2 * halves + len(last) * terms
        )


def test_a_plan_without_repeats_has_no_first_pass() -> None:
    once = renoise.none(SIGMAS)
    assert (
        all(scaffold.is_last_pass(step) for step in once)
        and [s.repeat for s in PLAN].count(0) == 60
    )
    schedule = evenly(terms_of(analytic.gaussian(torch.ones(1, 1)), 1, 1, PAIR), 2.0)
    scales = scaffold.guided_first(PLAN[0], camera_ring(1), 1, schedule=schedule)
    assert scales["video"].item() == 2.0
    assert (
        scaffold.guided_first(PLAN[-1], camera_ring(1), 1, schedule=schedule)["video"].item() == 1.0
    )


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda: scaffold.plan(SIGMAS, level=60.0), "renoise.level=60.0"),
        (lambda: scaffold.plan(SIGMAS, steps=0), "renoise.level=2.0, steps=0"),
        (
            lambda: scaffold.finished(
                PLAN[0], camera_ring(1), 1, schedule=evenly([], 1.0), by="rows"
            ),
            "weights.by=rows",
        ),
        (
            lambda: scaffold.coarse(compose=linear(coefficients=convex), strength=1.5),
            "composition.strength=1.5",
        ),
    ],
)
def test_mistakes_are_told_on_one_line(mistake: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        mistake()

"""Laws of choosing: whose copies come next, what the best of K scores, and what all of it costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import AUTOENCODER, MULTIVIEW, VIDEO
from exact_world import sample, terms_of
from torch import Tensor

from d2.errors import InputError
from d2.io import read_matrix
from d2.noise import draw, step_noise
from d2.particles import SEED_STRIDE, Chosen, choose
from d2.passes import straight
from d2.pipeline import uniform
from d2.plan.rehearsal import Workload, cell_evaluations
from d2.priors import analytic
from d2.priors.analytic import autoregressive
from d2.rules import choosing, renoise, solver
from d2.rules.bundle import Rules
from d2.rules.choosing import Choosing, Judge, cuts, shares, systematic
from d2.rules.composition import convex, linear
from d2.sampling import Prediction, Step, evenly, initial_x, karras_sigmas
from d2.terms import Settings

V, F = 3, 4
PAIR = ("video", "multiview")
WORLD = analytic.separable(autoregressive(V, 0.8), autoregressive(F, 0.8))
TERMS = terms_of(WORLD, V, F, PAIR)
SIGMAS = karras_sigmas(6, sigma_min=0.05, sigma_max=20.0)


def ask(x: Tensor, sigma: float, uncond: bool) -> dict[str, Prediction]:
    said = {}
    for term in TERMS:
        states: list[Any] = []
        sample(
            x,
            [Step(0, 1, 0, 1, sigma, 0.0)],
            [term],
            weight=1.0 * (term.name == "multiview"),
            on_step=states.append,
        )
        said[term.name] = Prediction(states[0].denoised, states[0].denoised)
    return said


JUDGE = Judge(
    ask=ask,
    denoise=lambda x, sigma: sample(x, [Step(0, 1, 0, 1, sigma, 0.0)], TERMS),
    noise=lambda k: draw(9, "score", (V, F, 16, 1, 1), step=k).double(),
    features=lambda x: x.flatten(2),
)


def chosen(how: Choosing, plan: list[Step]) -> Chosen:
    def start(k: int) -> Tensor:
        return initial_x(draw(SEED_STRIDE * k, "init", (V, F, 16, 1, 1)).double(), plan[0].sigma)

    def of(k: int) -> Any:
        def under(x: Tensor, part: Any, *, on_step: Any = None, memory: Any = None) -> Tensor:
            noise = step_noise(SEED_STRIDE * k, x)
            return sample(x, part, TERMS, on_step=on_step, memory=memory, noise=noise)

        return under

    return choose(
        how, start, of, plan, lambda trace: lambda state: None, JUDGE, straight, partial(uniform, 3)
    )


SCORES = [choosing.agreement, choosing.lift, choosing.smoothness, choosing.neighbours]


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.__name__)
def test_the_best_of_k_is_never_worse_in_its_own_score(score: Any) -> None:
    plan = renoise.none(SIGMAS)
    ends = [chosen(Choosing(k, score, (), 1.0), plan) for k in (1, 2, 4)]
    best = [max(end.scores) for end in ends]
    # the same particles, and two more
    assert best == sorted(best) and ends[2].scores[:2] == ends[1].scores
    assert score(ends[2].latents, JUDGE) == best[2]
    alone = sample(initial_x(draw(0, "init", (V, F, 16, 1, 1)).double(), SIGMAS[0]), plan, TERMS)
    assert torch.equal(ends[0].latents, alone)  # one particle is the sample that there is without


def test_scores_see_what_they_are_named_after() -> None:
    """Of the world's own matrices and of noise in their place, and of a view that jumps."""
    truth = analytic.draw_truth(WORLD, draw(4, "init", (V * F, 16)), torch.zeros(16)).reshape(
        V, F, 16, 1, 1
    )
    wrong = 2 * draw(5, "init", (V, F, 16, 1, 1)).double()
    assert choosing.agreement(truth, JUDGE) > choosing.agreement(wrong, JUDGE)
    assert choosing.smoothness(truth, JUDGE) <= 0
    smooth = torch.ones(V, F, 16, 1, 1).double()
    jumping = smooth.clone()
    jumping[1] *= -1
    assert (
        choosing.neighbours(smooth, JUDGE) == pytest.approx(1)
        and choosing.neighbours(jumping, JUDGE) < 0
    )


def test_the_lift_is_the_lesser_condition_s() -> None:
    """A half that says x itself gains all of the other's error; one that says what the other does
    gains nothing."""
    x = torch.ones(V, F, 16, 1, 1)
    told, nothing = Prediction(0 * x, x), Prediction(0 * x, 0 * x)
    for rows, columns, expected in ((told, told, 1.0), (told, nothing, 0.0), (nothing, told, 0.0)):
        judge = JUDGE._replace(
            ask=lambda x, sigma, uncond, r=rows, c=columns: {"video": r, "multiview": c}
        )
        assert choosing.lift(x, judge, sigmas=(1.0,)) == pytest.approx(expected)


@pytest.mark.parametrize("number", [0.0, 0.3, 0.999])
def test_systematic_resampling_keeps_every_share(number: float) -> None:
    share = torch.tensor([0.5, 0.02, 0.28, 0.2], dtype=torch.float64)
    counts = torch.tensor(systematic(share, number)).bincount(minlength=4)
    assert counts.sum() == 4 and ((counts - 4 * share).abs() < 1).all()
    assert systematic(torch.full((5,), 0.2), number) == [0, 1, 2, 3, 4]  # of equals everybody stays


def test_systematic_resampling_is_unbiased_and_follows_scores() -> None:
    share = shares(torch.tensor([0.0, 1.0, 3.0]), 1.0)
    mean = (
        sum(torch.tensor(systematic(share, i / 500)).bincount(minlength=3) for i in range(500))
        / 500
    )
    torch.testing.assert_close(torch.as_tensor(mean).double(), 3 * share, atol=5e-3, rtol=0)
    assert share[0] < share[1] < share[2]
    assert torch.equal(
        shares(torch.tensor([2.0, 2.0]), 5.0), torch.full((2,), 0.5, dtype=torch.float64)
    )
    numbers = [uniform(seed, 2) for seed in range(200)]
    assert all(0 <= n < 1 for n in numbers) and abs(sum(numbers) / 200 - 0.5) < 0.06


def test_resampled_copies_part_and_are_the_same_again() -> None:
    plan = renoise.churned(SIGMAS, steps=0, s_churn=4.0)
    how = Choosing(4, choosing.agreement, (5.0, 0.5), 2.0)
    one, other = chosen(how, plan), chosen(how, plan)
    assert one.scores == other.scores and torch.equal(one.latents, other.latents)
    assert (
        len(set(one.scores)) == 4 and cuts(plan, how.levels) == sorted(cuts(plan, how.levels)) != []
    )
    with pytest.raises(
        InputError, match=r"choosing.levels=\[5.0\]: the plan adds no noise below 5"
    ):
        cuts(renoise.none(SIGMAS), (5.0,))


def test_a_scene_costs_as_much_as_its_particles_and_their_scores() -> None:
    even, ones = (evenly(TERMS, value) for value in (0.5, 1.0))
    rules = Rules(renoise.none, even, ones, linear(coefficients=convex), solver.euler)
    cells, steps = V * F, 5

    workload = Workload(VIDEO, MULTIVIEW, AUTOENCODER, rules, V, F, 64)
    cast, settings = workload.cast(torch.float32), Settings(num_steps=steps)

    def cost(score: Any) -> int:
        chosen = rules._replace(choose=Choosing(3, score, (), 1.0))
        return cell_evaluations(workload._replace(rules=chosen), cast, settings)

    assert cell_evaluations(workload, cast, settings) == 2 * steps * cells
    plain, both = 3 * 2 * steps * cells, 2 * 2 * cells  # both halves of both terms
    assert [cost(score) - plain for score in SCORES] == [
        3 * both // 2,
        3 * 3 * both,
        3 * 5 * 2 * cells,
        0,
    ]


def test_the_command_chooses(d2_sample: Callable[..., int], tmp_path: Path) -> None:
    """With one particle no bit changes; with two every score of conf/choosing has its say."""
    found = []
    scores = ("agreement", "lift", "neighbours", "smoothness")
    for words in (
        ["particles=1", "choosing=lift"],
        [],
        *(["particles=2", f"choosing={score}"] for score in scores),
    ):
        assert d2_sample("guidance=none", *words) == 0
        (file,) = (tmp_path / "out").glob("*/matrix.safetensors")
        found.append(read_matrix(file.parent).pixels)
    assert torch.equal(found[0], found[1]) and all(one.shape == found[0].shape for one in found)


def test_mistakes_are_told_on_one_line() -> None:
    with pytest.raises(InputError, match="choosing.sharpness=-1"):
        choosing.choosing(score=choosing.agreement, sharpness=-1)
    with pytest.raises(InputError, match="choosing.score.low=2"):
        choosing.smoothness(torch.zeros(V, F, 16, 1, 1), JUDGE, low=2.0)

"""Laws of calibrated weights: least squares in closed form, their file, and the job that measures
them."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from exact_world import ended, terms_of, three_terms
from torch import Tensor

from d2.config import command_line
from d2.config.binding import bind, read_moments
from d2.files import asset, fingerprint
from d2.noise import draw
from d2.priors import analytic
from d2.priors.analytic import autoregressive
from d2.resolve import resolve
from d2.rules import renoise
from d2.rules.calibrated import (
    Grams,
    Table,
    averaged,
    by_half,
    calibrated,
    coefficients,
    distances,
    errors,
    fit,
    levels,
    measured,
    stacked,
)
from d2.sample.calibrate import LEVELS, calibrate
from d2.sampling import Prediction, Step, karras_sigmas, needed
from d2.shard import make_shard

V, F = 4, 3
WORLD = analytic.separable(autoregressive(V, 0.9), autoregressive(F, 0.9))
STEP = Step(0, 2, 0, 1, sigma=1.0, sigma_next=0.5)


def random(seed: int, *shape: int) -> Tensor:
    return draw(seed, "init", shape).double()


def answers(
    sigma: float, seed: int, count: int = 2000
) -> tuple[Tensor, Tensor, dict[str, Prediction]]:
    """Matrices of the exact world, the same with noise, and what rows, columns and cells say of
    them."""
    truth = analytic.draw_truth(WORLD, random(seed, V * F, count), torch.zeros(count))
    x0 = rearrange(truth, "(v f) c -> v f c 1 1", v=V)
    x = x0 + sigma * random(seed + 1, *x0.shape)
    every = torch.ones(V, F, dtype=torch.bool)
    shard = make_shard()
    return x0, x, {t.name: shard(t, x, sigma, (~every, every)) for t in terms_of(WORLD, V, F)}


def noise_levels() -> list[float]:
    return levels(5, low=0.1, high=10.0)


@pytest.fixture(scope="module")
def grams() -> Grams:
    found = [(answers(sigma, 10 + 2 * i), sigma) for i, sigma in enumerate(noise_levels())]
    return stacked([measured(predictions, x0, sigma) for (x0, _, predictions), sigma in found])


def mixed(weights: dict[str, Any], spread: float = 0.1) -> Grams:
    """Moments of halves of which the truth is a sum by known weights, and noise."""
    halves = {
        name: Prediction(*random(i, 2, 3, 2, 4, 10, 10))
        for i, name in enumerate(dict.fromkeys(h.split(".")[0] for h in weights))
    }
    parts = {
        f"{n}.{k}": half for n, p in halves.items() for k, half in zip(p._fields, p, strict=True)
    }
    truth = sum(w * parts[half] for half, w in weights.items()) + spread * random(
        9, 3, 2, 4, 10, 10
    )
    return measured(halves, truth, 1.0)  # type: ignore[arg-type]


TRUE = {"video.uncond": -0.3, "video.cond": 0.9, "multiview.uncond": 0.1, "multiview.cond": 0.4}


# ------------------------------------------------------------------------------------------ fitting


def test_known_weights_are_found() -> None:
    table = fit(mixed(TRUE), ridge=0.0)
    assert table.weights.shape == (1, 2, 4)  # three views lie at two distances
    for half, found in by_half(table).items():
        assert found.flatten().tolist() == pytest.approx([TRUE[half]] * 2, abs=0.02)
    assert errors(mixed(TRUE), by_half(table)).flatten().tolist() == pytest.approx(
        [0.01] * 2, rel=0.1
    )


def test_every_distance_has_its_own_weights() -> None:
    """View 2 is the input view; 0 and 1 are as far from it as each other, and fitted together."""
    halves = random(0, 2, 3, 2, 4, 10, 10)
    share = torch.tensor([0.2, 0.2, 0.7]).double()[:, None, None, None, None]
    truth = share * halves[0] + (1 - share) * halves[1]
    table = fit(
        measured({n: Prediction(None, h) for n, h in zip("ab", halves, strict=True)}, truth, 1.0),
        ridge=0.0,
    )
    torch.testing.assert_close(table.turns, torch.tensor([0.0, 1 / 3]).double())
    torch.testing.assert_close(table.weights[0], torch.tensor([[0.7, 0.3], [0.2, 0.8]]).double())


@pytest.mark.parametrize("sum_to_one", [False, True])
def test_a_fit_is_where_the_error_is_least(grams: Grams, sum_to_one: bool) -> None:
    """No step to the side does better; within its sum, if it has one."""
    table = fit(grams, ridge=0.0, sum_to_one=sum_to_one)
    least = errors(grams, by_half(table))
    for seed in range(5):
        aside = 1e-2 * random(seed, *table.weights.shape)
        if sum_to_one:
            aside = aside - aside.mean(dim=2, keepdim=True)
        there = table._replace(weights=table.weights + aside)
        assert (errors(grams, by_half(there)) > least).all()
    if sum_to_one:
        torch.testing.assert_close(table.weights.sum(dim=2), torch.ones_like(least))


def test_the_usual_ridge_costs_next_to_nothing_at_any_level(grams: Grams) -> None:
    least, usual = (errors(grams, by_half(fit(grams, **given))) for given in ({"ridge": 0.0}, {}))  # type: ignore[arg-type]
    assert (usual < 1.001 * least).all()


def test_a_large_ridge_is_the_even_convex_rule(grams: Grams) -> None:
    even = {"video.cond": 0.5, "multiview.cond": 0.5, "unary.cond": 0.0}
    for sum_to_one in (False, True):
        for half, found in by_half(fit(grams, ridge=1e9, sum_to_one=sum_to_one)).items():
            torch.testing.assert_close(found, torch.full_like(found, even[half]), rtol=0, atol=1e-6)


def test_without_unconditional_halves_they_are_left_out() -> None:
    table = fit(mixed(TRUE), conditional=True)
    assert table.halves == ("video.cond", "multiview.cond") and table.weights.shape[2] == 2
    needs = needed(calibrated(table=table), [], {"video": torch.ones(3, 2)}, {})
    assert all(cond.all() and not uncond.any() for uncond, cond in needs.values())


def test_scenes_count_alike() -> None:
    one, other = mixed(TRUE), mixed(TRUE, spread=2.0)
    mean = averaged([one, other])
    torch.testing.assert_close(errors(mean, TRUE), (errors(one, TRUE) + errors(other, TRUE)) / 2)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- composition


def test_weights_are_read_linearly_in_log_sigma_and_in_distance() -> None:
    weights = random(0, 3, 2, 2)
    table = Table(
        ("a.uncond", "b.cond"),
        torch.tensor([0.1, 1.0, 10.0]).double(),
        torch.tensor([0, 0.5]),
        weights,
    )
    at = coefficients(table, 1.0, 4, 3)
    middle = weights[1, :, 0].mean()
    expected = torch.stack([middle, weights[1, 1, 0], middle, weights[1, 0, 0]])
    torch.testing.assert_close(at["a"][0], expected[:, None].expand(4, 3))
    assert not at["a"][1].any() and not at["b"][0].any() and at["b"][1].shape == (4, 3)
    for sigma, expected in (
        (math.sqrt(10), weights[1:].mean(dim=0)),
        (1e-3, weights[0]),
        (1e3, weights[2]),
    ):
        got = coefficients(table, sigma, 1, 1)
        assert [got["a"][0].item(), got["b"][1].item()] == pytest.approx(expected[0].tolist())


@pytest.mark.parametrize("num_views", [1, 2, 3, 8, 21])
def test_distances_close_the_ring(num_views: int) -> None:
    turns = distances(num_views)
    assert turns[-1] == 0 and turns.max() <= 0.5
    assert torch.equal(turns[:-1], turns[:-1].flip(0)) and len(turns.unique()) == num_views // 2 + 1


def test_the_composition_is_the_sum_it_was_fitted_as() -> None:
    halves = {
        n: Prediction(*random(i, 2, 3, 2, 4, 2, 2)) for i, n in enumerate(("video", "multiview"))
    }
    table = fit(mixed(TRUE), ridge=0.0)
    w = {name: torch.full((3, 2), 0.5) for name in halves}
    got, memory = calibrated(table=table).combine(
        halves, w, w, random(0, 3, 2, 4, 2, 2), STEP, {"kept": 1}
    )
    parts = {
        f"{n}.{k}": half for n, p in halves.items() for k, half in zip(p._fields, p, strict=True)
    }
    place = [1, 1, 0]  # of views 0, 1, 2 in the table
    expected = sum(
        found[0, place][:, None, None, None, None] * parts[half]
        for half, found in by_half(table).items()
    )
    torch.testing.assert_close(got, expected)
    assert memory == {"kept": 1}


def test_a_term_that_is_not_there_is_named(grams: Grams) -> None:
    x = random(0, V, F, 1, 1, 1)
    w = {name: torch.full((V, F), 0.5) for name in ("video", "multiview")}
    with pytest.raises(ValueError, match="a term unary"):
        calibrated(table=fit(grams)).combine({n: Prediction(None, x) for n in w}, w, w, x, STEP, {})


# -------------------------------------------------------------------------------------- exact world


@pytest.mark.parametrize("level", range(5))
def test_no_rule_of_the_family_errs_less_in_one_evaluation(grams: Grams, level: int) -> None:
    """On matrices it has not seen, at its own levels; clearly less than the convex rule in the
    middle of them."""
    sigma = noise_levels()[level]
    x0, x, predictions = answers(sigma, 100 + 2 * level)
    w = {name: torch.full((V, F), 0.5).double() for name in ("video", "multiview")}
    ones = {name: torch.ones(V, F).double() for name in predictions}
    step = STEP._replace(sigma=sigma)

    def error(rule: Any) -> float:
        return (rule.combine(predictions, w, ones, x, step, {})[0] - x0).square().mean().item()

    own = error(calibrated(table=fit(grams)))
    others = {alpha: error(three_terms(alpha)) for alpha in (0.5, 0.75, 0.875, 1.0)}
    assert own < 1.01 * min(others.values())
    if level in (1, 2):
        assert own < 0.93 * others[0.5]


def test_least_error_in_one_evaluation_is_not_the_best_end(grams: Grams) -> None:
    """More variance is kept than by the convex rule, but not all of it, as row + column − unary
    does."""
    plan = renoise.none(karras_sigmas(60, sigma_min=0.05, sigma_max=100.0))
    terms = terms_of(WORLD, V, F)
    convex = ended(plan, terms, V, F).trace().item() / (V * F)
    own = ended(plan, terms, V, F, compose=calibrated(table=fit(grams))).trace().item() / (V * F)
    assert 1.1 * convex < own < 0.9


# ---------------------------------------------------------------------------------------------- job


@pytest.fixture
def job(small_networks: None, small_weights: list[str], tmp_path: Path) -> Callable[..., int]:
    """`d2 calibrate` in this process, on small networks."""

    def run(*overrides: str) -> int:
        short = ["sampler.num_steps=2", "matrix.num_views=3", "matrix.num_frames=2", "trainer=cpu"]
        place = [f"output_dir={tmp_path / 'measured'}", "scenes.split=validation"]
        composed = command_line.composed("sample", [*small_weights, *short, *place, *overrides])
        return calibrate(resolve(composed.config, composed.text, composed.name, composed.label))

    return run


def test_the_job_measures_and_the_command_samples_with_it(
    job: Callable[..., int],
    d2_sample: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert job("scenes.count=2") == 0
    file = tmp_path / "measured" / "calibrated.json"
    found = read_moments(str(file), "composition.file")
    assert found.halves == ("video.uncond", "video.cond", "multiview.uncond", "multiview.cond")
    assert (
        found.outer.shape == (LEVELS, 2, 4, 4)
        and (torch.linalg.eigvalsh(found.outer) > -1e-9).all()
    )
    facts = json.loads(file.read_text())["facts"]
    assert facts["split"] == "validation" and facts["scenes"] == [
        "validation_0000",
        "validation_0001",
    ]
    with (file.parent / "calibrated.csv").open() as f:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
    assert len(rows) == 2 * LEVELS
    for row in rows:
        assert row["calibrated"] <= min(row[k] for k in ("even", "sum_to_one", "conditional")) * (
            1 + 1e-3
        )
        assert all(value >= 0 for value in row.values())
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="composition.file")
        assert (
            d2_sample(
                "composition=calibrated", f"composition.file={file}", "composition.sum_to_one=true"
            )
            == 0
        )
    with pytest.warns(
        UserWarning,
        match=r"composition.file=null: measured with other weights \(video, multiview\)",
    ):
        # the shipped moments, of eight views
        assert d2_sample("composition=calibrated", "matrix.num_views=8") == 0


def test_the_shipped_moments_are_of_the_shipped_priors() -> None:
    facts = json.loads((asset("checkpoints") / "tiny_calibrated.json").read_text())["facts"]
    for kind in ("video", "multiview"):
        assert facts[kind] == fingerprint(asset("checkpoints") / f"tiny_{kind}.safetensors")


def test_the_convex_column_is_the_runs_own_rule(job: Callable[..., int], tmp_path: Path) -> None:
    """Under even weights and no guidance it is the even column, which comes from the moments."""
    assert (
        job("scenes.count=1", "guidance=none", "weights.curve.scale=0.5", "weights.profile.depth=0")
        == 0
    )
    with (tmp_path / "measured" / "calibrated.csv").open() as f:
        for row in csv.DictReader(f):
            assert float(row["convex"]) == pytest.approx(float(row["even"]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("text", [None, "no json", "{}", '{"format": "another"}', "[]"])
def test_a_file_of_another_kind_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(
        ValueError, match="composition.file=.*: not a file that `d2 calibrate` has written"
    ) as error:
        bind({"_target_": "d2.rules.calibrated.fitted", "file": str(path)}, "composition")
    assert "\n" not in str(error.value)


def test_scenes_without_truth_are_refused(job: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scenes.source=folder: calibration needs truth"):
        job("scenes=folder", f"scenes.path={tmp_path}")


def test_a_negative_ridge_is_refused(grams: Grams) -> None:
    with pytest.raises(ValueError, match="composition.ridge=-1: give 0 or more"):
        fit(grams, ridge=-1)

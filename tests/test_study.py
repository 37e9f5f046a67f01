"""Studies, single runs and sweeps leave the same long table; what was finished is not sampled
again."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import AUTOENCODER, MULTIVIEW, VIDEO

from d2 import cli
from d2.io import read_matrix, read_truth
from d2.metrics.energy import energy_score, object_disc
from d2.metrics.figures import COST, EVALUATED, SAMPLED, Figure, read_figures, write_figures
from d2.metrics.intervals import by_scene, differences, means
from d2.metrics.table import mean_rows
from d2.plan.rehearsal import Workload, cell_evaluations
from d2.rules import renoise, solver, weights
from d2.rules.bundle import Rules
from d2.rules.composition import convex, linear
from d2.rules.nested import nested
from d2.sample.matrix_sampler import MatrixSampler
from d2.study.results import table_text
from d2.terms import Settings, Unary

Run = Callable[..., int]
TWO = "+variants={whole:['renoise=none'],columns:['renoise=none','weights=multiview']}"
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
OWN_COLUMNS = ("budget", "choosing", "exact_world", "metric_response")  # tables not of runs
HEAD = [
    "run",
    "variant",
    "scene",
    "seed",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "config",
    "weights",
    "commit",
]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as f:
        return list(csv.DictReader(f))


def value(path: Path, **key: str) -> float:
    (row,) = [
        row for row in rows_of(path) if all(row[name] == wanted for name, wanted in key.items())
    ]
    return float(row["value"])


# --- the long table -------------------------------------------------------------------------------


def test_a_single_run_leaves_its_figures_under_its_own_name(d2_sample: Run, tmp_path: Path) -> None:
    assert d2_sample("seed=7", "baselines=true") == 0
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert list(rows[0]) == HEAD and {row["seed"] for row in rows} == {"7"}
    assert {row["variant"] for row in rows} >= {"out", "columns_alone", "rows_alone", "show_input"}
    metrics = {row["method"]: row for row in rows_of(tmp_path / "out" / "metrics.csv")}
    for variant, method in (("out", "joint"), ("columns_alone", "columns_alone")):
        for name in ("psnr_masked", "sharpness", "own_frame"):
            found = value(
                tmp_path / "out" / "results.csv", variant=variant, scene="test_0000", metric=name
            )
            assert found == float(metrics[method][name])
    assert all(row["config"] == "" for row in rows if row["variant"] != "out")


def test_several_seeds_are_samples_of_one_scene(
    d2_sample: Run, tmp_path: Path, predicted: list[str]
) -> None:
    assert d2_sample(TWO, "seeds=[0,3]", "compare_to=columns") == 0
    assert predicted == ["seed_0"] * 2 + ["seed_3"] * 2
    out = tmp_path / "out"
    folders = [out / "whole" / f"seed_{seed}" / "test_0000" for seed in (0, 3)]
    samples = torch.stack([read_matrix(folder).pixels for folder in folders])
    truth = read_truth(folders[0])
    assert truth is not None and not torch.equal(samples[0], samples[1])
    energy = energy_score(samples, truth.pixels, object_disc(64, 64))
    of_all = {"variant": "whole", "scene": "test_0000", "seed": "all"}
    for name, wanted in (
        ("energy", energy.score),
        ("energy_error", energy.error),
        ("energy_spread", energy.spread),
    ):
        assert value(out / "results.csv", metric=name, **of_all) == pytest.approx(wanted, rel=1e-9)
    # the mean of two samples is nearer to the truth than they are, in decibels at least on average
    both = [
        value(out / "results.csv", variant="whole", metric="psnr_masked", seed=seed)
        for seed in ("0", "3")
    ]
    assert value(out / "results.csv", metric="psnr_masked_of_mean", **of_all) > sum(both) / 2
    table = (out / "table.md").read_text()
    assert "seeds 0, 3" in table and "| energy " in table and "cell_evaluations" in table

    # A seed of a study is the run of that seed.
    assert d2_sample("renoise=none", "seed=3", f"output_dir={tmp_path / 'alone'}") == 0
    assert torch.equal(read_matrix(tmp_path / "alone" / "test_0000").pixels, samples[1])


def test_seeds_need_no_variants(d2_sample: Run, tmp_path: Path) -> None:
    assert d2_sample("seeds=[0,1]") == 0
    assert {row["variant"] for row in rows_of(tmp_path / "out" / "results.csv")} == {"out"}
    assert (tmp_path / "out" / "seed_1" / "test_0000" / "matrix.safetensors").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["seeds=[0,0]"], "seeds=[0, 0]: give different numbers"),
        (["seeds=[-1]"], "seeds=[-1]: give different numbers, none below 0"),
        (["seeds=[0,1]", "metrics=[]"], "a study compares figures"),
        (
            ["-m", "weights.curve.scale=0.2,0.8", "objective=nosuch"],
            "objective=nosuch: no such figure; choose energy",
        ),
        (
            ["-m", "weights.curve.scale=0.2,0.8", "objective=energy"],
            "objective=energy: wants several samples",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    line: list[str], says: str, d2_sample: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert d2_sample(*line) == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


# --- going on after a kill ------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone; nothing catches it."""


def test_a_study_goes_on_with_the_scene_at_which_it_was_killed(
    d2_sample: Run, tmp_path: Path, predicted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [TWO, "scenes.count=3", "baselines=true"]
    assert d2_sample(*line, f"output_dir={tmp_path / 'straight'}") == 0
    predicted.clear()
    own = MatrixSampler.predict_step

    def kill(self: Any, batch: Any, batch_idx: int) -> Any:
        if batch.name == "test_0002":
            raise Killed
        return own(self, batch, batch_idx)

    monkeypatch.setattr(MatrixSampler, "predict_step", kill)
    with pytest.raises(BaseException):  # noqa: B017  (Lightning may wrap it)
        d2_sample(*line)
    assert not (tmp_path / "out" / "results.csv").exists()
    monkeypatch.setattr(MatrixSampler, "predict_step", own)
    assert d2_sample(*line) == 0
    assert predicted == ["whole"] * 3 + ["columns"] * 3
    assert rows_of(tmp_path / "out" / "whole" / "metrics.csv") == rows_of(
        tmp_path / "straight" / "whole" / "metrics.csv"
    )
    named = [{**row, "config": ""} for row in rows_of(tmp_path / "out" / "results.csv")]
    assert named == [
        {**row, "config": ""} for row in rows_of(tmp_path / "straight" / "results.csv")
    ]
    predicted.clear()
    assert d2_sample(*line) == 0
    assert predicted == []


def test_scenes_of_another_configuration_are_not_taken_for_its_own(
    d2_sample: Run, tmp_path: Path, predicted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert d2_sample("+variants={a:[]}", "scenes.count=2") == 0
    own = MatrixSampler.predict_step
    monkeypatch.setattr(MatrixSampler, "predict_step", lambda *_: (_ for _ in ()).throw(Killed()))
    changed = ["+variants={a:['weights=video']}", "scenes.count=2"]
    with pytest.raises(BaseException):  # noqa: B017
        d2_sample(*changed)
    monkeypatch.setattr(MatrixSampler, "predict_step", own)
    predicted.clear()
    assert d2_sample(*changed) == 0
    assert predicted == ["a"] * 2


# --- sweeps ---------------------------------------------------------------------------------------


def test_a_sweep_leaves_one_table_of_all_its_points(d2_sample: Run, tmp_path: Path) -> None:
    assert d2_sample("-m", "renoise=none", "weights.curve.scale=0.2,0.8", "seed=0,1") == 0
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert list(rows[0]) == HEAD
    names = ["weights.curve.scale=0.2", "weights.curve.scale=0.8"]
    # the seed is no variant, what is fixed no part of a name
    assert sorted({row["variant"] for row in rows}) == names
    assert {row["seed"] for row in rows} == {"0", "1", "all"}
    for point, (name, seed) in enumerate((n, s) for n in names for s in "01"):
        own = rows_of(tmp_path / "out" / str(point) / "results.csv")
        assert {(row["variant"], row["seed"]) for row in own} == {(name, seed)}
        assert all(row in rows for row in own)
    assert "energy" in (tmp_path / "out" / "table.md").read_text()
    assert not (tmp_path / "out" / ".codes").exists()


def test_a_finished_point_is_not_run_again(
    d2_sample: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["-m", "weights.curve.scale=0.2,0.8"]
    assert d2_sample(*line) == 0
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/*/matrix.safetensors")}
    table = rows_of(tmp_path / "out" / "results.csv")
    assert len(stamps) == 2
    (tmp_path / "out" / "1" / "test_0000" / "matrix.safetensors").unlink()
    capfd.readouterr()
    assert d2_sample(*line) == 0
    err = capfd.readouterr().err.splitlines()
    assert err == [
        f"d2: {tmp_path / 'out' / '0'}: finished before, not run again",
        "sampling test_0000 (1 of 1)",
    ]
    for path, stamp in stamps.items():
        assert (path.stat().st_mtime_ns == stamp) == (path.parts[-3] == "0")
    assert rows_of(tmp_path / "out" / "results.csv") == table
    assert d2_sample("-m", "weights.curve.scale=0.3,0.8") == 0  # the first point is another one
    assert (
        tmp_path / "out" / "0" / "test_0000" / "matrix.safetensors"
    ).stat().st_mtime_ns not in stamps.values()


def test_only_sampling_and_training_have_points(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", "-m", "seed=0,1"]) == 2
    assert "-m: d2 report has no points" in capfd.readouterr().err


# --- what a rule costs ----------------------------------------------------------------------------


def rules(**changes: Any) -> Rules:
    def share(step: Any, cameras: Any, num_frames: int) -> Any:
        return weights.scheduled(
            step,
            cameras,
            num_frames,
            curve=partial(weights.constant, scale=0.5),
            profile=weights.flat,
        )

    def one(step: Any, cameras: Any, num_frames: int) -> Any:
        ones = torch.ones(cameras.num_views, num_frames, dtype=torch.float64)
        return {"video": ones, "multiview": ones}

    return Rules(renoise.none, share, one, linear(coefficients=convex), solver.euler)._replace(
        **changes
    )


def two(step: Any, cameras: Any, num_frames: int) -> Any:
    twos = torch.full((cameras.num_views, num_frames), 2.0, dtype=torch.float64)
    return {"video": twos, "multiview": twos}


def test_the_cost_of_a_rule_is_counted_by_hand() -> None:
    v, f, n = 4, 3, 5
    settings = Settings(num_steps=n)
    workload = Workload(VIDEO, MULTIVIEW, AUTOENCODER, rules(), v, f, 64)
    cast = workload.cast(torch.float32)

    def cells(rules: Rules, settings: Settings = settings) -> int:
        return cell_evaluations(workload._replace(rules=rules), cast, settings)

    assert cells(rules()) == 2 * n * v * f  # scale 1: the conditional halves alone
    assert cells(rules(guidance=two)) == 4 * n * v * f
    alone = rules(weights=partial(weights.alone, term="video"))
    assert cells(alone) == n * v * f
    assert cells(rules(solver=solver.heun)) == 2 * (2 * n - 1) * v * f
    vrs = rules(renoise=partial(renoise.vrs, steps=2, repeats=2))
    assert cells(vrs) == 2 * (n + 2) * v * f
    unary = Settings(num_steps=n, unary=Unary())

    def three(w: Any, scales: Any) -> Any:
        zero = torch.zeros_like(w["video"])
        return {name: (zero, torch.ones_like(zero)) for name in ("video", "multiview", "unary")}

    assert cells(rules(compose=linear(coefficients=three)), unary) == 3 * n * v * f
    # each step once more, and the first residual
    again = rules(compose=nested(steps=3, sigma_low=1.0))
    above = sum(sigma >= 1 for sigma in settings.sigmas)
    assert cells(again) == 2 * (n + 4 * above) * v * f


def test_the_table_of_a_run_holds_the_cost_of_its_own_rule(d2_sample: Run, tmp_path: Path) -> None:
    assert d2_sample("baselines=true", "renoise=none", "guidance=none", "weights=constant") == 0
    results = tmp_path / "out" / "results.csv"
    costs = {
        name: value(results, variant=name, metric=COST)
        for name in ("out", "columns_alone", "rows_alone")
    }
    assert costs["out"] == 2 * 2 * 9 and costs["columns_alone"] == costs["rows_alone"] == 2 * 9


# --- averages -------------------------------------------------------------------------------------


def long(variant: str, scene: str, seed: int, value: float, metric: str = "psnr_masked") -> Figure:
    return Figure(
        variant=variant, scene=scene, metric=metric, value=value, sample=str(seed), config="c"
    )


def test_a_scene_counts_once_however_many_seeds_it_has() -> None:
    figures = [long("a", "s", seed, float(seed)) for seed in range(4)] + [long("a", "t", 0, 9.5)]
    assert by_scene(figures) == {"a": {"psnr_masked": {"s": 1.5, "t": 9.5}}}
    (row,) = mean_rows(means(figures, seed=0))
    assert row["scenes"] == "2" and row["psnr_masked"].startswith("5.50 [1.50, 9.50]")


def test_differences_are_paired_by_scene() -> None:
    figures = [long("a", f"s{i}", 0, 10.0 * i) for i in range(8)]
    figures += [long("b", f"s{i}", 0, 10.0 * i + 1 + 0.1 * (i % 2)) for i in reversed(range(6))]
    (row,) = mean_rows(differences(figures, "a", seed=0), signed=True)
    assert row["variant"] == "b" and row["scenes"] == "6"  # scenes that both have
    mean, low, high = (float(part.strip(",[]")) for part in row["psnr_masked"].split())
    assert mean == pytest.approx(1.05) and 1.0 <= low < mean < high <= 1.1


# --- tables of every age --------------------------------------------------------------------------


TABLES = [
    path
    for path in sorted(EXPERIMENTS.glob("*/results*.csv"))
    if path.parent.name not in OWN_COLUMNS
]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_committed_table_gives_the_page_beside_it(path: Path) -> None:
    """Whatever columns it has: means, differences and bounds are the same to the last digit."""
    page = (
        path.with_name(path.name.replace("results", "table"))
        .with_suffix(".md")
        .read_text(encoding="utf-8")
    )
    compare_to = re.search(r"^Paired differences from (\S+)\.$", page, re.MULTILINE)
    assert table_text(read_figures(path), compare_to and compare_to[1]) == page


def test_a_figure_is_read_as_it_was_written(tmp_path: Path) -> None:
    figures = [
        Figure(
            run="r",
            variant="a",
            scene="s",
            sample="3",
            metric="psnr",
            value=1 / 3,
            config="c",
            weights="w",
        ),
        Figure(run="r", variant="a", metric="fvd", value=2.0, low=1.0, high=3.0, n=16),
        Figure(run="r", variant="b", scene="s", metric="own_view", value=math.nan),
    ]
    for columns in (SAMPLED, EVALUATED):
        write_figures(tmp_path / "results.csv", figures, columns)
        # NaN is no number, not even its own equal
        assert str(read_figures(tmp_path / "results.csv")) == str(figures)

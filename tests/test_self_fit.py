"""A matrix against its own fit: what it says of consistency, and that both commands measure it."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from conftest import SHORT
from evaluation_files import write_object
from script import script

from d2 import cli
from d2.config.recipe import Recipe
from d2.data import world4d
from d2.files import asset
from d2.metrics.consistency import self_figures
from d2.metrics.figures import Figure, read_figures
from d2.metrics.reference import reference_metrics
from d2.recon import self_fit

study = script(asset("experiments") / "does_the_matrix_make_an_asset" / "study.py")
QUICK = Recipe(num_gaussians=200, max_steps=50, hull_resolution=32, cells_per_step=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_fit, "RECIPE", QUICK)


def test_one_scene_fits_itself_better_than_a_torn_one_and_the_truth_is_no_part_of_it() -> None:
    scene, other = (world4d.scene("test", i, num_views=5, num_frames=3, size=24) for i in (0, 1))
    assert scene.truth is not None and other.truth is not None
    whole = scene.truth.pixels
    torn = whole.clone()
    torn[1::2] = other.truth.pixels[1::2]  # some views are of another creature
    with torch.inference_mode():  # as matrices are sampled
        fits = [self_fit.fitted_matrix(pixels, scene.cameras) for pixels in (whole, torn)]
        alone = [self_figures(x, fit, None) for x, fit in zip((whole, torn), fits, strict=True)]
    # measured: 16.6 and 14.3
    assert alone[0]["self_psnr_masked"] > alone[1]["self_psnr_masked"] + 1.5
    with_truth = self_figures(torn, fits[1], scene.truth)
    assert alone[1].items() <= with_truth.items()
    assert fits[1] is not None
    asset, own = (reference_metrics(x, scene.truth, 4)["psnr_masked"] for x in (fits[1], torn))
    assert with_truth["asset_gain"] == pytest.approx(asset - own)
    again = self_fit.fitted_matrix(torn, scene.cameras)
    assert again is not None and torch.equal(again, fits[1])


def test_what_no_scene_can_be_made_of_has_no_figure() -> None:
    scene = world4d.scene("test", 0, num_views=2, num_frames=2, size=16)
    assert scene.truth is not None
    fitted = self_fit.fitted_matrix(scene.truth.pixels, scene.cameras)
    assert fitted is None
    assert all(map(math.isnan, self_figures(scene.truth.pixels, fitted, scene.truth).values()))


def test_the_study_of_assets_and_an_evaluation_have_the_same_figures(
    small_networks: None,
    small_weights: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        self_fit, "RECIPE", Recipe(num_gaussians=30, max_steps=2, hull_resolution=16)
    )
    own = [*small_weights, *SHORT, "matrix.num_views=3"]
    one = [f"{variant}:1" for variant in study.VARIANTS]
    out = tmp_path / "study"
    study.main(out, *one, *own)
    found = {(f.variant, f.metric): f.value for f in read_figures(out / "results.csv")}
    assert {variant for variant, _ in found} == set(study.VARIANTS)
    said = (out / "assets.md").read_text()
    assert "| truth " in said and "Asset minus matrix, paired." in said
    monkeypatch.setattr(study, "measured", None)  # what is there is read
    study.main(out, *one, *own)
    assert (out / "assets.md").read_text() == said
    run = tmp_path / "run"
    job = [*own, f"output_dir={run}", "trainer=cpu", "scenes.count=1", "metrics=[]"]
    assert cli.run(["sample", *job]) == 0
    own = [f"output_dir={tmp_path / 'evaluated'}", "metrics=[self_psnr]", "trainer=cpu"]
    assert cli.run(["evaluate", f"run={run}", *own]) == 0
    with (tmp_path / "evaluated/results.csv").open() as file:
        evaluated = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    ours = {metric: found["default", metric] for metric in evaluated}
    assert evaluated == pytest.approx(ours, rel=0.05, abs=0.2)  # its pictures are of 8 bits
    write_object(tmp_path / "pred/ant", torch.rand(3, 2, 3, 16, 16), "frames")
    assert cli.run(["evaluate", f"pred={tmp_path / 'pred'}", *own]) == 2
    assert "metrics=[self_psnr]: wants cameras" in capfd.readouterr().err


def test_ranks_are_spearmans() -> None:
    values = {"a": (3.0, 10.0), "b": (1.0, 2.0), "c": (2.0, 400.0), "truth": (0.0, 100.0)}
    figures = [
        Figure(variant=variant, scene=scene, metric=metric, value=value)
        for scene in ("x", "y")
        for variant, pair in values.items()
        for metric, value in zip(("self_psnr_masked", "psnr_masked"), pair, strict=True)
    ]
    line = study.ranks(figures).splitlines()[2]
    # 3 1 2 against 2 1 3, truth apart
    assert line.startswith("| psnr_masked ") and "| 0.50" in line

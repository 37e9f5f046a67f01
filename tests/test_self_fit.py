"""A matrix against its own fit: what it says of consistency, and that both commands measure it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from evaluation_files import write_object

from d2 import cli
from d2.config.recipe import Recipe
from d2.data import world4d
from d2.metrics.consistency import self_figures
from d2.metrics.reference import reference_metrics
from d2.recon import self_fit

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
    assert alone[0]["self_psnr_masked"] > alone[1]["self_psnr_masked"] + 1.5  # measured: 16.6 and 14.3
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


def test_a_study_and_an_evaluation_have_the_same_rows(
    d2_sample: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    short = Recipe(num_gaussians=30, max_steps=2, hull_resolution=16)
    monkeypatch.setattr(self_fit, "RECIPE", short)
    assert d2_sample("metrics=[reference,self_psnr]", "matrix.num_views=3", "baselines=true") == 0
    sampled = json.loads((tmp_path / "out/test_0000/metrics.json").read_text())
    assert sampled["joint"].keys() > {"self_psnr", "self_psnr_masked", "asset_gain"}
    assert "self_psnr" in sampled["columns_alone"] and "asset_psnr_masked" in sampled["truth"]
    own = [f"output_dir={tmp_path / 'evaluated'}", "metrics=[self_psnr]", "trainer=cpu"]
    assert cli.run(["evaluate", f"run={tmp_path / 'out'}", *own]) == 0
    with (tmp_path / "evaluated/results.csv").open() as file:
        evaluated = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    joint = {metric: sampled["joint"][metric] for metric in evaluated}
    assert evaluated == pytest.approx(joint, rel=0.05, abs=0.2)  # its pictures are of 8 bits
    write_object(tmp_path / "pred/ant", torch.rand(3, 2, 3, 16, 16), "frames")
    assert cli.run(["evaluate", f"pred={tmp_path / 'pred'}", *own]) == 2
    assert "metrics=[self_psnr]: wants cameras" in capfd.readouterr().err

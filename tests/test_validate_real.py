"""`make validate-real` with small weights standing in for the real ones, and what it says of a
rotation."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from conftest import SHORT

from d2.data import world4d

REAL = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks/validate_real.py"))


def test_an_orbit_that_turns_the_other_way_is_told_from_one_that_turns_as_ours() -> None:
    scene = world4d.scene("test", 0, num_views=8, num_frames=2, size=32)
    assert scene.truth is not None
    orbit = scene.truth.pixels[:, 1] + 0.05 * torch.randn(8, 3, 32, 32)
    turned = orbit[(2 * scene.cameras.input_view - torch.arange(8)) % 8]
    assert REAL["rotation_of"](orbit, scene.truth, scene, 1).verdict.startswith("as ours")
    assert REAL["rotation_of"](turned, scene.truth, scene, 1).verdict == "the other way"
    grey = torch.full_like(orbit, 0.5)
    assert REAL["rotation_of"](grey, scene.truth, scene, 1).verdict == "unclear"


@pytest.mark.usefixtures("small_networks")
def test_the_report_has_every_figure(tmp_path: Path, small_weights: list[str]) -> None:
    words = [*small_weights, *SHORT, "sampler.num_steps=4", "trainer=cpu"]
    assert REAL["main"]([str(tmp_path / "report"), *words]) == 0
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert len(report["weights"]) == 3 and report["planned_gib"] > 0 and report["peak_gib"] is None
    assert report["evaluation_seconds"] > 0 and report["evaluations"] >= 4
    assert {*report["unary"][0]} == {"sigma", "video", "multiview", "unary"}
    assert all(value > 0 for row in report["unary"] for value in row.values())
    text = (tmp_path / "report/report.md").read_text()
    assert "Sense of rotation" in text and (tmp_path / "report/orbit.png").stat().st_size > 0


def test_what_the_user_can_mend_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert REAL["main"]([str(tmp_path), "video=svd_xt", "multiview=sv3d_p"]) == 2
    assert "svd_xt" in capsys.readouterr().err and not list(tmp_path.iterdir())

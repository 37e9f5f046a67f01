"""The studies that are scripts run from end to end: small networks, a scene, few levels."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from script import script

import d2
from d2.files import asset

pytestmark = pytest.mark.usefixtures("small_networks")
SIZE = ("matrix.num_views=3", "matrix.num_frames=3", "sampler.num_steps=3")


@pytest.fixture
def study(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, small_weights: list[str]
) -> ModuleType:
    """A script of experiments/, whose priors are the small ones."""
    load = d2.load
    monkeypatch.setattr(d2, "load", lambda *words: load(*words, *SIZE, *small_weights))
    return script(asset("experiments") / request.param)


@pytest.mark.parametrize(
    ("study", "third"),
    [("budget/study.py", 2), ("choosing/study.py", 2)],
    indirect=["study"],
    ids=["budget", "choosing"],
)
def test_a_script_measures_every_scene_once(
    study: ModuleType, third: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "plot", lambda *_: None, raising=False)  # matplotlib is an extra
    study.main(tmp_path, 1, third)
    first = (tmp_path / "results.csv").read_text()
    rows = list(csv.DictReader(first.splitlines()))
    assert rows and {row["weights"] for row in rows} != {""}
    assert (tmp_path / "table.md").read_text().strip()
    monkeypatch.setattr(study, "measured", partial(pytest.fail, "measured again"))
    study.main(tmp_path, 1, third)
    assert (tmp_path / "results.csv").read_text() == first

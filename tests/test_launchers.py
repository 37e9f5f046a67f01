"""Sweeps in other processes, and sweeps that tune: `pip install -e .[sweep]`. Hydra's own launcher:
test_study.py."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

SCRIPT = str(Path(sys.executable).with_name("d2"))
SHORT = [
    "sampler.num_steps=2",
    "matrix.num_views=3",
    "matrix.num_frames=3",
    "baselines=false",
    "pages=false",
]
SWEPT = ["weights.curve.scale=0.2,0.8"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as f:
        return list(csv.DictReader(f))


def means(folder: Path, metric: str) -> dict[str, float]:
    """Variant -> the mean over scenes of a figure."""
    values: dict[str, list[float]] = {}
    for row in rows_of(folder / "results.csv"):
        if row["metric"] == metric:
            values.setdefault(row["variant"], []).append(float(row["value"]))
    return {variant: sum(of) / len(of) for variant, of in values.items()}


@pytest.fixture
def sweep(
    tiny_weights: list[str], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`d2 sample -m` in a process of its own, into a folder of tmp_path."""

    def run(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        place = f"hydra.sweep.dir={tmp_path / name}"
        command = [SCRIPT, "sample", "-m", *tiny_weights, *SHORT, "trainer=cpu", place, *overrides]
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=500
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "launcher"),
    [
        (
            "hydra_plugins.hydra_joblib_launcher",
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ),
        (
            "hydra_plugins.hydra_submitit_launcher",
            ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=9"],
        ),
    ],
    ids=["joblib", "submitit_local"],
)
def test_points_in_other_processes_are_those_of_one(
    plugin: str,
    launcher: list[str],
    sweep: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    pytest.importorskip(plugin)
    done = sweep("spread", *launcher, *SWEPT)
    assert done.returncode == 0, done.stderr
    found = means(tmp_path / "spread", "psnr_masked")
    assert list(found) == ["weights.curve.scale=0.2", "weights.curve.scale=0.8"]
    assert len(list((tmp_path / "spread").glob("*/test_0000/matrix.safetensors"))) == 2

    before = {
        p: p.stat().st_mtime_ns
        for p in (tmp_path / "spread").glob("*/test_0000/matrix.safetensors")
    }
    done = sweep("spread", *SWEPT)  # what others finished, this process does not run again
    assert done.returncode == 0 and done.stderr.count("finished before, not run again") == 2, (
        done.stderr
    )
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert means(tmp_path / "spread", "psnr_masked") == found


@pytest.mark.slow
def test_a_point_that_fails_elsewhere_is_told_here(
    sweep: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = sweep(
        "failing", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "scenes.anchor_frame=0,3"
    )
    assert (
        done.returncode == 3 and "scenes.anchor_frame=3: the clip has frames 0 to 2" in done.stderr
    )
    assert (tmp_path / "failing" / "0" / "results.csv").exists()


def test_optuna_tunes_a_number_of_a_rule(d2_sample: Callable[..., int], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    optuna += ["hydra.sweeper.sampler.seed=1", "hydra.sweeper.direction=maximize"]
    assert (
        d2_sample("-m", *optuna, "weights.curve.scale=interval(0,1)", "objective=psnr_masked") == 0
    )
    found = means(tmp_path / "out", "psnr_masked")
    assert len(found) == 3 and all(name.startswith("weights.curve.scale=0.") for name in found)
    best = yaml.safe_load((tmp_path / "out" / "optimization_results.yaml").read_text())
    assert best["best_value"] == pytest.approx(max(found.values()))
    assert f"weights.curve.scale={best['best_params']['weights.curve.scale']}" == max(
        found, key=lambda n: found[n]
    )


def test_optuna_tunes_the_energy_score_of_several_samples(
    d2_sample: Callable[..., int], tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    line = [
        "seeds=[0,1]",
        "renoise.steps=choice(0,1)",
        "objective=energy",
        "hydra.sweeper.sampler.seed=1",
    ]
    assert d2_sample("-m", *optuna, *line) == 0
    best = yaml.safe_load((tmp_path / "out" / "optimization_results.yaml").read_text())
    energies = [
        float(row["value"])
        for point in (tmp_path / "out").glob("*/results.csv")
        for row in rows_of(point)
        if row["metric"] == "energy"
    ]
    assert len(energies) == 2 and best["best_value"] == pytest.approx(min(energies))


def test_an_unknown_launcher_is_refused(
    d2_sample: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert d2_sample("-m", "hydra/launcher=nosuch", "seed=0,1") == 2
    err = capfd.readouterr().err
    assert "hydra/launcher=nosuch" in err and "choose basic" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()

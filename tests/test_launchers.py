"""Sweeps in other processes, of our launcher and of others (`pip install -e .[sweep]`), and sweeps
that tune. Points one after another: test_study.py."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import Forked

from d2 import cli, processes
from d2 import sweep as sweep_module

SCRIPT = str(Path(sys.executable).with_name("d2"))
SHORT = [
    "sampler.num_steps=2",
    "matrix.num_views=3",
    "matrix.num_frames=3",
    "baselines=false",
    "pages=false",
]


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


LEFT = ("results.csv", "table.md", "plot.svg", "matrix.safetensors", "metrics.json", "config.yaml")


def left_in(folder: Path) -> dict[str, bytes]:
    """The tables, matrices and configurations of a sweep."""
    paths = [path for path in sorted(folder.rglob("*")) if path.parent.name != ".hydra"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.name in LEFT}


def test_points_dealt_to_devices_leave_what_one_device_leaves(
    d2_sample: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def start(arguments: list[str], *more: Any) -> Forked:
        started.append(arguments)
        return Forked(arguments, *more)

    monkeypatch.setattr(processes, "start", start)
    line = ["-m", "weights.curve.scale=0.3,0.6", "renoise=none,vrs_short", "trainer.threads=1"]
    out, kept = tmp_path / "out", {}
    for devices in (1, 2):
        assert d2_sample(*line, f"trainer.devices={devices}", "trainer.accelerator=cpu") == 0
        kept[devices] = left_in(out)
        shutil.rmtree(out)
    assert len(started) == 4 and len(kept[1]) == 3 + 4 * 4
    assert kept[1] == kept[2]


def test_a_point_that_fails_or_is_killed_leaves_the_others_whole(
    d2_sample: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def start(arguments: list[str], *more: Any) -> Any:
        if "seed=2" in arguments:
            return subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
        return Forked(arguments, *more)

    monkeypatch.setattr(processes, "start", start)
    line = ["renoise=none", "trainer.devices=2", "trainer.accelerator=cpu"]
    assert d2_sample("-m", *line, "scenes.anchor_frame=0,3", "seed=1,2") == 3
    said = [s for s in capfd.readouterr().err.splitlines() if s.startswith("d2: ")]
    killed = "was ended by SIGKILL, out of memory?; start the same command again to go on"
    assert sorted(said) == [
        f"d2: point 1 {killed}",
        f"d2: point 3 {killed}",
        "d2: scenes.anchor_frame=3: the clip has frames 0 to 2",
    ]
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert {(row["variant"], row["seed"]) for row in rows} == {("scenes.anchor_frame=0", "1")}
    assert not (tmp_path / "out" / ".codes").exists()


def test_a_point_with_a_fault_of_ours_leaves_the_others_whole(
    d2_sample: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own = cli.execute

    def execute(command: str, composed: Any, *more: Any, **named: Any) -> int:
        if composed.config.seed == 0:
            raise RuntimeError("a fault")
        return own(command, composed, *more, **named)

    monkeypatch.setattr(cli, "execute", execute)
    monkeypatch.setattr(sweep_module, "log_of_job", lambda: "a job's log")
    assert d2_sample("-m", "renoise=none", "seed=0,1") == 3
    said = capfd.readouterr().err
    assert "RuntimeError: a fault" in said
    assert said.endswith("d2: point 0 ended with code 1; it said why in a job's log\n")
    assert {row["seed"] for row in rows_of(tmp_path / "out" / "results.csv")} == {"1"}


@pytest.fixture
def sweep(tiny_weights: list[str], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`d2 sample -m` in a process of its own, into tmp_path / "out"."""

    def run(*overrides: str) -> subprocess.Popen[str]:
        place = f"hydra.sweep.dir={tmp_path / 'out'}"
        command = [SCRIPT, "sample", "-m", *tiny_weights, *SHORT, "trainer=cpu", place, *overrides]
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env)

    return run


@pytest.mark.slow
def test_points_by_joblib(sweep: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """One of which fails in its process, and is told here."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "scenes.anchor_frame=0,1,3")
    _, said = process.communicate(timeout=500)
    assert process.returncode == 3, said
    assert "scenes.anchor_frame=3: the clip has frames 0 to 2" in said
    found = means(tmp_path / "out", "psnr_masked")
    assert list(found) == ["scenes.anchor_frame=0", "scenes.anchor_frame=1"]
    assert not (tmp_path / "out" / ".codes").exists()


@pytest.mark.slow
def test_points_by_submitit_of_which_one_is_taken_away(
    sweep: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Its signal leaves the state, it is queued again and goes on there; on one device and two they
    end with the same bits."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    line = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=30"]
    line += ["trainer.devices=1,2", "save_every_seconds=0.01"]
    process = sweep(*line, "sampler.num_steps=4", "renoise=none", "sampler.sequences_per_call=1")
    state = tmp_path / "out" / "0" / "test_0000" / "state.safetensors"
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.01)
    jobs = [folder.name for folder in (tmp_path / "out" / ".submitit").iterdir()]
    first = min(int(name) for name in jobs if name.isdigit())
    (job,) = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    os.kill(int(job), signal.SIGUSR2)
    while Path(f"/proc/{job}/status").exists():
        time.sleep(0.01)
    assert state.exists() and process.poll() is None
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0, said
    one, two = sorted((tmp_path / "out").glob("*/test_0000/matrix.safetensors"))
    assert one.read_bytes() == two.read_bytes()
    points = ["trainer.devices=1", "trainer.devices=2"]
    assert list(means(tmp_path / "out", "psnr_masked")) == points


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

"""Sweeps in other processes, of our launcher and of others (`pip install -e .[sweep]`), and sweeps
that tune. Points one after another: test_study.py."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from d2 import cli, launch

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


class Forked:
    """A process of d2 that has the networks of this one, where `launch.start` would start one
    anew."""

    def __init__(self, arguments: list[str], own: dict[str, str], count: int):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                os.environ.update(own)
                code = cli.run(arguments)
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


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

    monkeypatch.setattr(launch, "start", start)
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

    monkeypatch.setattr(launch, "start", start)
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
    assert d2_sample("-m", "renoise=none", "seed=0,1") == 3
    assert "RuntimeError: a fault" in capfd.readouterr().err
    assert {row["seed"] for row in rows_of(tmp_path / "out" / "results.csv")} == {"1"}


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

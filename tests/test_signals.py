"""SIGINT, SIGTERM and SIGUSR1 end a command within seconds, with 130, 143 and 75, wherever it
is."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluation_files import write_run
from forked import Forked, wait_for
from small_encoder import random_matrix

from d2 import cli, signals
from d2.commands import plan
from d2.errors import say
from d2.evaluate import job as evaluate_job
from d2.priors import catalog
from d2.recon.files import write_scene
from d2.recon.motion import cubic_bspline
from d2.recon.scene import MovingGaussians
from d2.sample import calibrate, write
from d2.study import report

LONG = ["sampler.num_steps=1000", "matrix.num_views=3", "matrix.num_frames=3", "pages=false"]
LONG += ["baselines=false", "reconstruct=false"]
WITHIN = 10.0  # seconds


@pytest.fixture
def handled() -> object:
    """Handlers as in a command, and as they were afterwards."""
    before = {signum: signal.getsignal(signum) for signum in signals.SIGNALS}
    signals.install()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signals.forget()


def test_a_signal_is_raised_where_the_program_is(handled: None) -> None:
    with pytest.raises(signals.Stopped) as stopped:
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.exit_code == 143 and str(stopped.value) == "stopped by SIGTERM"
    assert {signals.Stopped(signum).exit_code for signum in signals.TAKEN_AWAY} == {75}


def test_a_signal_waits_for_what_has_to_be_whole(handled: None) -> None:
    seen = []
    with pytest.raises(signals.Stopped) as stopped, signals.held_back():
        assert signals.received() is None
        signal.raise_signal(signal.SIGINT)
        seen.append("whole")
        assert signals.received() == signal.SIGINT
    assert seen == ["whole"] and stopped.value.exit_code == 130


def test_a_stop_that_a_library_swallows_is_cut_off_and_said() -> None:
    code = """if True:
        import signal, time
        from d2 import signals
        signals.GRACE_SECONDS = 0.2
        signals.install()
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            time.sleep(30)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (143, "d2: stopped by SIGTERM\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "devices", "signum"),
    # seconds, while it imports
    [(0.5, 1, signal.SIGTERM), (1.0, 1, signal.SIGINT), (3.0, 2, signal.SIGTERM)],
)
def test_a_signal_ends_a_start_up(
    after: float, devices: int, signum: int, tiny_weights: list[str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "d2", "sample", *LONG, f"trainer.devices={devices}", *tiny_weights],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
    )
    time.sleep(after)
    asked = time.monotonic()
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    ended_well(process.returncode, asked, signum, said, tmp_path)


def ended_well(code: int | None, asked: float, signum: int, said: str, folder: Path) -> None:
    """In time, with the signal's code, said once and last, and nothing half-written."""
    assert time.monotonic() - asked < WITHIN
    assert code == 128 + signum
    stopped = f"d2: stopped by {signal.Signals(signum).name}"
    assert said.splitlines()[-1] == stopped and said.count(stopped) == 1
    assert "Traceback" not in said and not list(folder.rglob("*.partial"))


TWO = ["trainer.devices=2", "trainer.parallel=matrix"]
SAMPLE = ["sample", *LONG]
TRAIN = ["train", "prior=tiny_multiview", "num_scenes=4", "num_validation_scenes=2"]
TRAIN += ["prior.batch_size=2", "prior.singles=1", "validate_every=2", "cache_dir=cache"]
EVALUATE = ["evaluate", "run=run", "metrics=[reference]"]
RECONSTRUCT = ["reconstruct", "matrix=run/a/matrix.safetensors", "recon.max_steps=100000"]
RECONSTRUCT += ["recon.num_gaussians=40", "recon.hull_resolution=16"]
CALIBRATE = ["calibrate", "sampler.num_steps=2", *LONG[1:3], "scenes.count=2"]
IN = {  # command, what it says where the signal comes, and how often
    "sampling": (SAMPLE, "sampling ", 1),
    "sampling-on-two": ([*SAMPLE, *TWO], "sampling ", 1),
    "scenes-on-two": ([*SAMPLE, "trainer.devices=2", "scenes.count=2"], "sampling ", 2),
    "sweep": ([*SAMPLE, "-m", "seed=0,1"], "sampling ", 1),
    "sweep-on-two": ([*SAMPLE, "-m", "seed=0,1", "trainer.devices=2"], "sampling ", 2),
    "study-on-two": ([*SAMPLE, *TWO, "variants={a:[],b:[weights=video]}"], "sampling ", 1),
    "writing": ([*SAMPLE, "sampler.num_steps=2"], "busy\n", 1),
    "writing-on-two": ([*SAMPLE, *TWO, "sampler.num_steps=2"], "busy\n", 1),
    "evaluation": (EVALUATE, "evaluating ", 1),
    "evaluation-on-two": ([*EVALUATE, "trainer.devices=2"], "evaluating ", 2),
    "training": (TRAIN, "step 2 of", 1),
    "training-on-two": ([*TRAIN, "trainer.devices=2", "trainer.strategy=ddp"], "step 2 of", 1),
    "reconstruction": (RECONSTRUCT, "reconstructing ", 1),
    "calibration": (CALIBRATE, "busy\n", 1),
    "calibration-on-two": ([*CALIBRATE, "trainer.devices=2"], "busy\n", 2),
    "plan": ([*SAMPLE, "plan=true"], "busy\n", 1),
    "report": (["report", "runs=[run]"], "busy\n", 1),
    "view": (["view", "run=asset", "port=8931"], "busy\n", 1),
    "download": (["checkpoints", "download", "sv3d_p"], "busy\n", 1),
}


@pytest.mark.parametrize("where", IN)
def test_a_signal_ends_a_command_wherever_it_is(
    where: str,
    small_networks: None,
    small_weights: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On one process and several, of which none is left; SIGTERM and SIGINT in turn."""

    line, sign, times = IN[where]

    def slowly(*_: Any, **__: Any) -> None:
        say("busy")
        time.sleep(60)

    monkeypatch.setattr(write, "write_matrix", slowly)
    monkeypatch.setattr(evaluate_job, "measured", lambda *_: time.sleep(60))
    monkeypatch.setattr(calibrate, "measured", slowly)
    monkeypatch.setattr(plan, "planned", slowly)
    monkeypatch.setattr(report, "read_runs", slowly)
    hub = SimpleNamespace(hf_hub_download=slowly)
    monkeypatch.setattr(catalog, "import_module", lambda _: hub)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**11))
    monkeypatch.setattr(cli, "asset", lambda name: tmp_path / name)
    monkeypatch.setattr(logging.root, "handlers", [])  # other tests' may write to closed streams
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", {name: random_matrix(0, 3, 4) for name in "ab"})
    if where == "view":
        server = pytest.importorskip("viser").ViserServer
        forever = server.sleep_forever
        monkeypatch.setattr(server, "sleep_forever", lambda own: (say("busy"), forever(own)))
        moving = MovingGaussians(cubic_bspline, 3, 20, 1)
        write_scene(tmp_path / "asset" / "scene.safetensors", moving, 8.0)
    weights = {"train": small_weights[-1:]}
    weights |= dict.fromkeys(("sample", "calibrate"), small_weights)
    place = "hydra.sweep.dir=out" if "-m" in line else "output_dir=out"
    said, signum = tmp_path / "said", (signal.SIGTERM, signal.SIGINT)[list(IN).index(where) % 2]
    own = {"checkpoints": [], "report": [place], "view": []}
    own = own.get(line[0], [*weights.get(line[0], []), place, "trainer.accelerator=cpu"])
    process = Forked([*line, *own], said=said)
    wait_for(sign, said, times)
    time.sleep(0.2)
    asked = time.monotonic()
    process.send_signal(signum)
    code = process.wait()
    ended_well(code, asked, signum, said.read_text(), tmp_path)

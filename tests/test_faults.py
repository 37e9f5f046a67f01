"""What goes wrong around a command, provoked: each fault is one line, and nothing that was finished
is lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked, wait_for
from safetensors import SafetensorError
from test_state import files_of

from d2 import files, loggers, signals
from d2.nn.video_unet import VideoUNet

LINE = ["sample", "sampler.num_steps=3", "matrix.num_views=3", "matrix.num_frames=3"]
LINE += ["baselines=false", "pages=false", "reconstruct=false", "metrics=[]", "renoise=none"]
LINE += ["trainer.accelerator=cpu"]
Start = Callable[..., Forked]


@pytest.fixture
def start(small_networks: None, small_weights: list[str], tmp_path: Path) -> Start:
    """`d2 sample`, short and small, in a process of its own; what it says is in tmp_path /
    "said"."""
    return lambda *more: Forked([*LINE, *small_weights, *more], said=tmp_path / "said")


def said_by(process: Forked, folder: Path) -> list[str]:
    """The lines of d2's own that a process says to its end; no other kind of complaint is among
    them."""
    process.wait()
    said = (folder / "said").read_text()
    (folder / "said").unlink()
    assert "Traceback" not in said and "Error" not in said, said
    return [line for line in said.splitlines() if line.startswith("d2: ")]


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own; skipped where this user may not mount any."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "d2-test", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system, and in some containers nobody")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written; root, who may write anywhere, needs a file system for
    it."""
    if os.geteuid():
        (tmp_path / "read_only").mkdir(mode=0o555)
        yield tmp_path / "read_only"
    else:
        yield from mounted(tmp_path / "read_only", "ro")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "size=16k")


def test_a_folder_that_cannot_be_written(start: Start, read_only: Path, tmp_path: Path) -> None:
    process = start(f"output_dir={read_only / 'out'}")
    (said,) = said_by(process, tmp_path)
    assert process.returncode == 2 and not list(read_only.iterdir())
    assert said.startswith(f"d2: output_dir={read_only / 'out'}: cannot be written (")
    assert said.endswith("; choose another folder")


def test_a_file_where_the_folder_should_be(start: Start, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    process = start(f"output_dir={tmp_path / 'out'}")
    (said,) = said_by(process, tmp_path)
    assert process.returncode == 2 and (tmp_path / "out").read_text() == "mine"
    assert f"output_dir={tmp_path / 'out'}: cannot be written (" in said


def test_a_full_disk(start: Start, small_disk: Path, tmp_path: Path) -> None:
    """What is finished stays, and the same command goes on once there is room."""
    out = small_disk / "out"

    def room(kib: int) -> None:
        command = ["mount", "-o", f"remount,size={kib}k", str(small_disk)]
        subprocess.run(command, check=True)

    room(10_000)
    assert start(f"output_dir={out}", "scenes.count=2").wait() == 0
    whole = files_of(out)
    scene = sum(-(-len(of) // 4096) * 4 for name, of in whole.items() if "test_0000/" in name)
    subprocess.run(["rm", "-r", str(out), str(tmp_path / "said")], check=True)
    room(scene + scene // 2 + 24)
    process = start(f"output_dir={out}", "scenes.count=2")
    (said,) = said_by(process, tmp_path)
    assert process.returncode == 2 and "No space left on device; mend that and start" in said
    kept = {name: of for name, of in files_of(out).items() if "test_0000/" in name}
    assert kept.items() >= {n: of for n, of in whole.items() if "test_0000/" in n}.items()
    room(10_000)
    assert said_by(process := start(f"output_dir={out}", "scenes.count=2"), tmp_path) == []
    assert process.returncode == 0 and files_of(out) == whole


def test_a_file_that_may_not_grow(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a quota, or a limit of the shell."""
    own = Forked._run

    def limited(self: Forked, *what: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        own(self, *what)

    monkeypatch.setattr(Forked, "_run", limited)
    process = start(f"output_dir={tmp_path / 'out'}")
    (said,) = said_by(process, tmp_path)
    assert process.returncode == 2 and "File too large; mend that and start the same" in said
    monkeypatch.undo()


def test_tensors_on_a_full_disk_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        files.write_tensors(tmp_path / "x", {"a": torch.zeros(1)}, {})
    assert files.is_out_of_room(error.value) and not list(tmp_path.iterdir())


def test_two_runs_in_one_folder(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = start(f"output_dir={out}", "sampler.num_steps=1000")
    try:
        wait_for("sampling ", tmp_path / "said")
        (tmp_path / "said").unlink()
        monkeypatch.setattr(files, "LOCK_SECONDS", 0.2)
        second = start(f"output_dir={out}", "sampler.num_steps=1000")
        (said,) = said_by(second, tmp_path)
    finally:
        first.kill()
    assert second.returncode == 2 and first.wait() == -9
    assert f"d2: output_dir={out}: process {first.pid} on {os.uname().nodename} writes" in said
    assert start(f"output_dir={out}", "overwrite=true").wait() == 0 and not (out / ".lock").exists()


def test_two_sweeps_in_one_folder(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["-m", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'out'}", "sampler.num_steps=1000"]
    first = start(*line)
    try:
        wait_for("sampling ", tmp_path / "said")
        (tmp_path / "said").unlink()
        monkeypatch.setattr(files, "LOCK_SECONDS", 0.2)
        second = start(*line)
        (said,) = said_by(second, tmp_path)
    finally:
        first.kill()
    assert second.returncode == 2 and first.wait() == -9
    assert f"hydra.sweep.dir={tmp_path / 'out'}: process {first.pid} on " in said


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_not_finite_leaves_the_last_good_state(
    ranks: int, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that goes wrong at the second level of noise."""
    own = VideoUNet.forward

    def broken(self: Any, x: Any, timesteps: Any, *more: Any, **named: Any) -> Any:
        answer = own(self, x, timesteps, *more, **named)
        if answer.is_meta or not broken.armed:
            return answer
        level = float(timesteps.flatten()[0])
        broken.first = max(broken.first, level)
        return answer if level == broken.first else answer * float("nan")

    broken.armed, broken.first = True, -float("inf")
    monkeypatch.setattr(VideoUNet, "forward", broken)
    out = tmp_path / "out"
    line = [f"output_dir={out}", f"trainer.devices={ranks}", "sampler.sequences_per_call=1"]
    process = start(*line)
    (said,) = said_by(process, tmp_path)
    assert process.returncode == 2
    assert ": its answer is not finite at noise level " in said and "sequence " in said
    assert (out / "test_0000" / "state.safetensors").exists()
    broken.armed = False
    assert start(*line).wait() == 0
    assert not (out / "test_0000" / "state.safetensors").exists()


# --- W&B ------------------------------------------------------------------------------------------

VIEWER = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"id": "p", "name": "d2", "entity": {"id": "e", "name": "me"}}
BUCKET = {"id": "r", "displayName": "run", "config": "{}", "project": PROJECT}


class Server(BaseHTTPRequestHandler):
    """Lets whoever asks in and takes a run, and answers no more from there on."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        seen: set[bytes] = self.server.seen  # type: ignore[attr-defined]
        if seen or not self.path.endswith("graphql"):
            time.sleep(60)
            return
        data: Any = {"viewer": VIEWER, "model": {**PROJECT, "bucket": None}}
        if b"UpsertBucket" in body:
            seen.add(b"run")
            own = {**BUCKET, "name": json.loads(body)["variables"]["name"]}
            data = {"upsertBucket": {"bucket": own, "inserted": True}}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[bytes]]:
    """What the server has seen."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.seen = set()  # type: ignore[attr-defined]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield server.seen  # type: ignore[attr-defined]
    server.shutdown()


def test_a_server_that_stops_answering_is_left(
    silent_server: set[bytes], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "_check_account", lambda: None)
    monkeypatch.setattr(loggers, "FINISH_SECONDS", 1.0)
    monkeypatch.setattr(signals, "GRACE_SECONDS", 1.0)
    out = tmp_path / "out"
    process = start(f"output_dir={out}", "logger=wandb", "logger.offline=false")
    (said,) = said_by(process, tmp_path)
    assert process.returncode == 0 and silent_server
    assert said.startswith("d2: logger=wandb: the server has not taken all that was logged")
    run = Path(said.rpartition("wandb sync ")[2])
    assert run.parent == out / "wandb" and list(run.glob("*.wandb"))
    assert (out / "test_0000" / "matrix.safetensors").exists()

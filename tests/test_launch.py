"""Commands of several processes: each way of launching makes the same bits, and what goes wrong
ends all of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file

from d2 import launch, processes, signals
from d2.errors import InputError
from d2.sample.matrix_sampler import MatrixSampler
from d2.settings import Devices
from d2.trainer import strategy

Run = Callable[..., int]


# --- processes that are watched -------------------------------------------------------------------


def child(code: str, *, ready: Path | None = None) -> subprocess.Popen[bytes]:
    """A process of plain Python, once it has made the file `ready`."""
    process = subprocess.Popen([sys.executable, "-c", f"import os, signal, sys, time\n{code}"])
    while ready is not None and not ready.exists():
        time.sleep(0.01)
    return process


def watched(codes: Sequence[str], folder: Path) -> tuple[int, float]:
    """The exit code of processes watched together, and the seconds it took."""
    began = time.monotonic()
    code = processes.watch(
        [child(code) for code in codes], [folder / str(i) for i in range(len(codes))]
    )
    return code, time.monotonic() - began


def noting(folder: Path, rank: int, text: str, code: int, after: float = 0.0) -> str:
    """A process that says why it ends."""
    return (
        f"time.sleep({after}); open({str(folder / str(rank))!r}, 'w').write({text!r});"
        f" os._exit({code})"
    )


def test_the_first_that_fails_ends_all_and_alone_is_heard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lost = noting(tmp_path, 0, "Connection closed by peer", 1, after=0.6)
    code, took = watched(
        [lost, noting(tmp_path, 1, "d2: the reason", 2, after=0.1), "time.sleep(60)"], tmp_path
    )
    assert code == 2 and took < 30 and capfd.readouterr().err == "d2: the reason\n"


def test_a_killed_rank_is_named_before_those_that_lost_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = "time.sleep(0.1); os.kill(os.getpid(), signal.SIGKILL)"
    code, took = watched([noting(tmp_path, 0, "Connection closed by peer", 1), killed], tmp_path)
    assert code == 1 and took < 30
    said = capfd.readouterr().err
    assert (
        said == "Connection closed by peer\n"
        or "rank 1 was ended by SIGKILL, out of memory?" in said
    )


def test_ends_of_their_own_are_the_largest_code(tmp_path: Path) -> None:
    assert watched(["", "sys.exit(3)"], tmp_path)[0] == 3


def test_a_signal_reaches_all(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); open({!r}, 'w'); time.sleep(60)"
    heard = "open({!r}, 'w'); time.sleep(60)"
    ready = [tmp_path / "ready.0", tmp_path / "ready.1"]
    started = [
        child(code.format(str(path)), ready=path)
        for code, path in zip((heard, deaf), ready, strict=True)
    ]
    processes.PATIENCE = 0.5
    try:
        processes.end(started, signal.SIGTERM)
    finally:
        processes.PATIENCE = signals.GRACE_SECONDS + 1
    assert [process.wait(10) for process in started] == [-signal.SIGTERM, -signal.SIGKILL]


def test_whatever_ends_the_parent_ends_the_others(tmp_path: Path) -> None:
    """As submitit does, whose handler raises SystemExit."""

    def taken_away(*_: Any) -> None:
        raise SystemExit(144)

    other, before = child("time.sleep(60)"), signal.signal(signal.SIGALRM, taken_away)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(SystemExit):
            processes.watch([other], [tmp_path / "0"])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert other.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("devices", "nodes", "env", "count"),
    [
        (1, 1, {}, 0),
        (2, 1, {}, 2),
        ([0, 3], 1, {}, 2),
        ("auto", 1, {}, 0),
        (1, 2, {}, 1),
        (2, 1, {"LOCAL_RANK": "0"}, 0),  # torchrun, or ourselves
        (2, 1, {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}, 0),  # srun
        (2, 1, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, 2),  # a batch script
    ],
)
def test_who_starts_processes(
    devices: Any, nodes: int, env: dict[str, str], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "SLURM_STEP_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    trainer = SimpleNamespace(devices=devices, num_nodes=nodes, accelerator="cpu", strategy="auto")
    assert launch.processes(SimpleNamespace(trainer=trainer)) == count


# --- each way of launching ------------------------------------------------------------------------


def torchrun(rank: int, world: int) -> dict[str, str]:
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "GROUP_RANK": 0,
    }
    return {name: str(value) for name, value in own.items()} | {"TORCHELASTIC_RUN_ID": "7"}


def srun(rank: int, world: int) -> dict[str, str]:
    own = {
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank,
        "SLURM_NODEID": 0,
        "SLURM_STEP_ID": 0,
        "SLURM_JOB_ID": 7,
    }
    own |= {"SLURM_NTASKS": world, "SLURM_STEP_NUM_TASKS": world, "SLURM_NTASKS_PER_NODE": world}
    return {name: str(value) for name, value in own.items()} | {
        "SLURM_JOB_NAME": "d2",
        "SLURM_NODELIST": "localhost",
    }


def spawned(rank: int, world: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}


def two_nodes(rank: int, world: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": "0", "NODE_RANK": str(rank), "WORLD_SIZE": str(world)}


@pytest.fixture
def ranks(d2_sample: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """`d2 sample` in processes with the environment of a way of launching: their exit codes."""

    def run(way: Callable[[int, int], dict[str, str]], world: int, *line: str) -> list[int]:
        port, children = str(processes.free_port()), []
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                code = 99
                try:
                    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                    os.environ.update(way(rank, world))
                    rank_zero_only.rank = rank
                    code = d2_sample(*line, "trainer.threads=1")
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(pid)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]

    return run


@pytest.mark.slow
def test_every_way_and_number_of_ranks_makes_the_same_bits(
    ranks: Callable[..., list[int]], d2_sample: Run, tmp_path: Path
) -> None:
    """Each denoises its share of the blocks, of which rows and columns have two by default."""
    line = ["matrix.num_views=6", "matrix.num_frames=5", "renoise=none", "metrics=[]"]
    line += ["trainer=ddp", "trainer.accelerator=cpu"]
    one = [*line[:-2], "trainer=cpu", "trainer.threads=1"]
    assert d2_sample(*one, f"output_dir={tmp_path / 'one'}") == 0
    matrix = load_file(tmp_path / "one" / "test_0000" / "matrix.safetensors")
    places = {
        (srun, 2): ["trainer=slurm", "trainer.accelerator=cpu"],
        (spawned, 5): [],
        (spawned, 2): [],
        (spawned, 3): [],
        (torchrun, 2): [],
    }
    for (way, world), more in {
        **places,
        (two_nodes, 2): ["trainer.devices=1", "trainer.num_nodes=2"],
    }.items():
        place = tmp_path / f"{way.__name__}{world}"
        more = more or [f"trainer.devices={world}"]
        assert ranks(way, world, *line, *more, f"output_dir={place}") == [0] * world, way
        other = load_file(place / "test_0000" / "matrix.safetensors")
        assert all(torch.equal(matrix[name], other[name]) for name in matrix), (way, world)


def dealt(rank: int, world: int) -> dict[str, str]:
    return {"RANK": str(rank), launch.WORKER: f"{rank}/{world}/1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "worlds"),
    [
        (["scenes.count=3"], (2, 3, 5)),
        (["variants={a:[],b:[weights=video]}", "scenes.count=2"], (2, 4)),
        (["particles=2", "scenes.count=2"], (2, 4)),
    ],
)
def test_scenes_that_are_dealt_out_leave_the_files_of_one_device(
    line: list[str], worlds: tuple[int, ...], ranks: Callable[..., list[int]], tmp_path: Path
) -> None:
    """Tables and pages too, whether a worker is one rank or, of four, two; on five there are
    workers without a scene."""
    line = [*line, "renoise=none", "pages=true", "sampler.sequences_per_call=1"]
    out, kept, ports = tmp_path / "out", {}, [str(processes.free_port()) for _ in range(2)]

    def pairs(rank: int, world: int) -> dict[str, str]:
        group, own = divmod(rank, 2)
        return spawned(own, 2) | {launch.WORKER: f"{group}/2/2", "MASTER_PORT": ports[group]}

    for world in (1, *worlds):
        if world > 1:
            assert ranks(pairs if world == 4 else dealt, world, *line) == [0] * world
        assert ranks(dealt, 1, *line) == [0]
        kept[world] = {
            str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()
        }
        shutil.rmtree(out)
    assert all(files == kept[1] for files in kept.values()) and "results.csv" in kept[1]


@pytest.mark.parametrize(
    ("count", "seeds", "parallel", "devices", "groups"),
    [(1, [], "auto", 4, 1), (1, [], "scenes", 4, 4), (3, [], "auto", 4, 4),
     (5, [], "auto", 4, 2), (2, [], "auto", 8, 2), (1, [0, 1, 2, 3], "auto", 2, 2),
     (3, [], "auto", 2, 1), (8, [], "matrix", 4, 1)],
)  # fmt: skip
def test_devices_share_a_matrix_or_have_scenes_of_their_own(
    count: int,
    seeds: list[int],
    parallel: str,
    devices: int,
    groups: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways: list[int] = []
    monkeypatch.setattr(launch, "deal", lambda _, dealt, __: ways.append(len(dealt)))
    monkeypatch.setattr(launch, "run", lambda *_: ways.append(1))
    trainer = SimpleNamespace(devices=devices, num_nodes=1, accelerator="cpu", parallel=parallel)
    scenes = SimpleNamespace(source="world4d", views=None, count=count)
    matrix, sampler = SimpleNamespace(num_views=None), SimpleNamespace(sequences_per_call=4)
    parts = {"trainer": trainer, "scenes": scenes, "matrix": matrix, "sampler": sampler}
    config = SimpleNamespace(**parts, variants={}, seeds=seeds)
    launch.begin("sample", [], config, devices)
    assert ways == [groups]


def test_a_node_is_told_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    missing = "trainer.num_nodes=2: MASTER_ADDR, NODE_RANK must be set"
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(InputError, match=missing):
        launch.ranks_of_group(2, num_nodes=2)
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("NODE_RANK", "1")
    told = launch.ranks_of_group(2, num_nodes=2)
    assert [(each["RANK"], each["LOCAL_RANK"], each["WORLD_SIZE"]) for each in told] == [
        ("2", "0", "4"),
        ("3", "1", "4"),
    ]
    assert {each["MASTER_ADDR"] for each in told} == {"node0"}


def test_a_training_waits_as_long_as_a_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    own = strategy(Devices("cpu", 2, "ddp", timeout_seconds=7.0), find_unused_parameters=True)
    assert own._timeout.total_seconds() == 7 and own._ddp_kwargs["find_unused_parameters"]


def test_a_batch_job_without_srun_runs_as_one_device(
    d2_sample: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert d2_sample("renoise=none", "metrics=[]") == 0


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_process_that_hangs_ends_the_others_in_time(
    ranks: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own = MatrixSampler.sample_all

    def hangs(self: MatrixSampler, *scene: Any) -> Any:
        if os.environ["RANK"] == "1":
            time.sleep(8)
            os._exit(7)
        return own(self, *scene)

    monkeypatch.setattr(MatrixSampler, "sample_all", hangs)
    line = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.timeout_seconds=2"]
    assert ranks(spawned, 2, *line, "renoise=none", "metrics=[]") == [2, 7]
    said = [s for s in capfd.readouterr().err.splitlines() if s.startswith("d2: ")]
    assert len(said) == 1
    assert "trainer.timeout_seconds=2: a process has not answered for so long" in said[0]

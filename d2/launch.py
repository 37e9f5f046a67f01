"""Several processes of one command on this machine: the one place that starts them, watches them
and ends them.

Lightning would start the others from the first, and when one dies the rest wait for it. Here a
parent that samples nothing starts them all. The first that fails ends the others within seconds,
and what it had to say is what is said; each leaves its last words in a file instead of on stderr,
since those that only lost a neighbour have nothing to tell.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2 import signals
from d2.errors import InputError, say

NOTES = "D2_NOTES"  # of the environment: the file for last words
POINT = "D2_POINT"  # and the names of a sweep's point
WORKER = "D2_WORKER"  # and which of how many workers this process is of, and of how many ranks
BUSY = 0.75  # of the time, which devices that share nothing have to be
PATIENCE = signals.GRACE_SECONDS + 2  # seconds that the others have to note where they stand
GOOD = (0, 3)  # exit codes of a process that came to its end


def is_launched() -> bool:
    """Whether this is one of several processes already, whoever started them: d2, torchrun or
    srun."""
    return "LOCAL_RANK" in os.environ or is_worker() or in_srun()


def in_srun() -> bool:
    """Whether srun started this process. A batch script has SLURM's other variables too, but is one
    process."""
    return "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def worker() -> tuple[int, int]:
    """Which of how many workers this process is of; of one where scenes are not dealt out."""
    number, count, _ = _worker()
    return number, count


def is_worker() -> bool:
    """Whether `deal` started this process, as one of the ranks of a worker."""
    return WORKER in os.environ


def ranks_of_worker() -> int:
    """How many ranks share each matrix of this worker."""
    return _worker()[2]


def _worker() -> tuple[int, int, int]:
    number, count, ranks = os.environ.get(WORKER, "0/1/1").split("/")
    return int(number), int(count), int(ranks)


def processes(config: Any) -> int:
    """How many processes a command wants to be started as on this node; 0 where there is nothing to
    start."""
    trainer = getattr(config, "trainer", None)
    if (
        trainer is None
        or is_launched()
        or getattr(config, "plan", False)
        or trainer.strategy not in ("auto", "ddp")
    ):
        return 0
    count = device_count(trainer.devices, trainer.accelerator)
    return count if count > 1 or trainer.num_nodes > 1 else 0


def begin(
    command: str, arguments: Sequence[str], config: Any, count: int, point: Any = None
) -> int:
    """Run a command on `count` devices, which share each matrix or are dealt the scenes, in groups
    of ranks where that keeps them busy."""
    trainer = config.trainer
    number = 1
    if command == "sample" and config.scenes.count is not None:
        units = config.scenes.count * max(1, len(config.variants)) * max(1, len(config.seeds))
        number = number_of_groups(trainer, units, count)
    elif command == "sample" and trainer.parallel == "scenes":
        number = count
    if number == 1:
        return launch([command, *arguments], count, trainer.num_nodes, point)
    if trainer.num_nodes > 1:
        raise InputError(
            f"trainer.parallel=scenes, num_nodes={trainer.num_nodes}: scenes are dealt out on"
            " one machine; take a sweep with hydra/launcher=submitit_slurm, or"
            " trainer.parallel=matrix"
        )
    names = names_of(trainer.devices, trainer.accelerator, count)
    return deal([command, *arguments], in_groups(names, number), point)


def number_of_groups(trainer: Any, units: int, count: int) -> int:
    """Into how many groups of ranks `count` devices fall to work on so many scenes or points.

    Groups share nothing, so the more of them the better, as long as they are busy for `BUSY` of the
    time.
    """
    if trainer.parallel != "auto":
        return count if trainer.parallel == "scenes" else 1
    if trainer.num_nodes > 1:
        return 1
    divisors = (number for number in range(count, 0, -1) if count % number == 0)
    return next(g for g in divisors if units / (-(-units // g) * g) >= BUSY)


def in_groups(names: Sequence[str], number: int) -> list[list[str]]:
    """Devices in so many groups of as many each."""
    size = len(names) // number
    return [list(names[i * size : (i + 1) * size]) for i in range(number)]


def seen(devices: Sequence[str]) -> dict[str, str]:
    """What lets a process see these devices alone."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices[0] else {}


def names_of(devices: Any, accelerator: str, count: int) -> list[str]:
    """What CUDA calls the devices of a command, so that each worker sees its own; empty on a
    CPU."""
    if accelerator == "cpu":
        return [""] * count
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    chosen = devices if isinstance(devices, list) else range(count)
    return [visible[i] if i < len(visible) else str(i) for i in chosen]


def device_count(devices: Any, accelerator: str) -> int:
    """How many devices Lightning would take for `trainer.devices`."""
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1):
        import torch

        return 1 if accelerator == "cpu" else max(1, torch.cuda.device_count())
    return devices if isinstance(devices, int) else 1


def launch(
    arguments: Sequence[str], count: int, num_nodes: int, point: Mapping[str, Any] | None = None
) -> int:
    """Run `d2 ARGUMENTS` as `count` processes of one group, the share of this node. Returns the
    exit code.

    `point` are the names that the results of a sweep's point go by.
    """
    node = int(os.environ.get("NODE_RANK", "0"))
    port = os.environ.get("MASTER_PORT") or str(free_port())
    common = {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": port,
        "NODE_RANK": str(node),
        "WORLD_SIZE": str(count * num_nodes),
        POINT: json.dumps(point),
    }
    own = [{"LOCAL_RANK": str(i), "RANK": str(node * count + i)} for i in range(count)]
    return run(arguments, [{**common, **each} for each in own])


def deal(
    arguments: Sequence[str],
    groups: Sequence[Sequence[str]],
    point: Mapping[str, Any] | None = None,
) -> int:
    """Run `d2 ARGUMENTS` as a worker a group of devices, each with its share of the scenes; then
    one process makes the tables.

    `groups` hold what CUDA calls the devices, empty on a CPU. The ranks of a worker share each of
    its matrices. Returns the exit code.
    """
    names, own = {POINT: json.dumps(point)}, []
    for i, devices in enumerate(groups):
        ranks = len(devices)
        worker = {**names, **seen(devices), WORKER: f"{i}/{len(groups)}/{ranks}", "RANK": "0"}
        if ranks == 1:
            own.append(worker)
            continue
        worker |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        worker |= {"NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
        own += [{**worker, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(ranks)]
    code = run(arguments, own)
    last = {**names, **seen(groups[0][:1]), WORKER: "0/1/1", "RANK": "0"}
    return code if code not in GOOD else run(arguments, [last])


def spread(lines: Sequence[tuple[list[str], Any]], groups: Sequence[Sequence[str]]) -> list[int]:
    """Run the points of a sweep, each on one of the groups of devices, the next as soon as one is
    free; what becomes of one is nothing to the others.

    `lines` are a point's arguments and the names that its results go by. Returns the exit codes.
    """
    signals.loaded()
    count = sum(len(devices) for devices in groups)
    waiting, codes = deque(range(len(lines))), [0] * len(lines)
    running: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}  # group -> point, process
    with tempfile.TemporaryDirectory(prefix="d2-") as notes:
        try:
            while waiting or running:
                for group, devices in enumerate(groups):
                    if group not in running and waiting:
                        point = waiting.popleft()
                        own = {**seen(devices), NOTES: f"{notes}/{point}"}
                        own[POINT] = json.dumps(lines[point][1])
                        running[group] = point, start(lines[point][0], own, count)
                time.sleep(0.05)
                for group, (point, process) in list(running.items()):
                    if (code := process.poll()) is not None:
                        codes[point] = code if code >= 0 else 1
                        say_why(f"point {point}", code, Path(notes) / str(point))
                        del running[group]
        except signals.Stopped as stopped:
            end([process for _, process in running.values()], stopped.signum)
            raise
    return codes


def run(arguments: Sequence[str], own: Sequence[Mapping[str, str]]) -> int:
    """Run `d2 ARGUMENTS` once under each of these additions to the environment. Returns the exit
    code."""
    signals.loaded()
    with tempfile.TemporaryDirectory(prefix="d2-") as notes:
        files = [Path(notes) / str(rank) for rank in range(len(own))]
        processes = [
            start(arguments, {**each, NOTES: str(file)}, len(own))
            for each, file in zip(own, files, strict=True)
        ]
        return watch(processes, files)


def start(arguments: Sequence[str], own: Mapping[str, str], count: int) -> subprocess.Popen[bytes]:
    """One process, with its share of the machine's cores unless told otherwise."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    return subprocess.Popen(
        [sys.executable, "-m", "d2", *arguments], env={**threads, **os.environ, **own}
    )


def watch(processes: Sequence[subprocess.Popen[bytes]], notes: Sequence[Path]) -> int:
    """Wait for all; end them when one fails, or when this process is asked to stop."""
    try:
        while True:
            codes = [process.poll() for process in processes]
            if any(code not in (None, *GOOD) for code in codes):
                break
            if None not in codes:
                return max(code for code in codes if code is not None)
            time.sleep(0.05)
    except signals.Stopped as stopped:
        end(processes, stopped.signum)
        raise
    first = first_to_fail(codes, notes)
    end(processes, signal.SIGTERM)
    code = codes[first] or 1
    say_why(f"rank {notes[first].name}", code, notes[first])
    return code if code > 0 else 1


def say_why(who: str, code: int, note: Path) -> None:
    """Say what a process noted that failed, or what ended it."""
    if code < 0:
        died = f"d2: {who} was ended by {signal.Signals(-code).name}"
        say(
            f"{died}{', out of memory?' if code == -signal.SIGKILL else ''}; start the same command"
            " again to go on"
        )
    elif note.exists():
        say(note.read_text(encoding="utf-8").rstrip())
    elif code not in GOOD:
        say(f"d2: {who} ended with code {code}")


def first_to_fail(codes: Sequence[int | None], notes: Sequence[Path]) -> int:
    """Of those that failed, the one that was killed, else the one that noted it first: the others
    lost a neighbour."""

    def when(rank: int) -> tuple[bool, float]:
        code = codes[rank] or 0
        return code >= 0, notes[rank].stat().st_mtime if notes[rank].exists() else float("inf")

    return min((rank for rank, code in enumerate(codes) if code not in (None, *GOOD)), key=when)


def end(processes: Sequence[subprocess.Popen[bytes]], signum: int) -> None:
    """Ask those that are left to stop, and kill them if they do not."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signum)
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- in one of the processes ----------------------------------------------------------------------


def point() -> dict[str, Any] | None:
    """The names of the sweep's point that this process is started for, if it is."""
    return json.loads(os.environ.get(POINT, "null"))


def is_watched() -> bool:
    """Whether `launch` started this process."""
    return NOTES in os.environ


def last_words(text: str) -> None:
    """Say why a command ends; one of several processes notes it, and whoever started them says
    it."""
    note = os.environ.get(NOTES)
    if note is None:
        say(text)
    elif not Path(note).exists():
        Path(note).write_text(text, encoding="utf-8")


def end_with_parent() -> None:
    """End this process, if `launch` started it, when the one that did is gone."""
    if not is_watched():
        return
    parent = os.getppid()

    def watch_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()

"""Several processes of `d2` on this machine: the one place that starts them, watches them and ends
them.

Lightning would start the others from the first, and when one dies the rest wait for it. Here a
parent that samples nothing starts them all. The first that fails ends the others within seconds,
and what it had to say is what is said; each leaves its last words in a file instead of on stderr,
since those that only lost a neighbour have nothing to tell.
"""

from __future__ import annotations

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

from d2 import signals
from d2.errors import say

NOTES = "D2_NOTES"  # of the environment: the file for last words
PATIENCE = signals.GRACE_SECONDS + 1  # seconds that processes have to note where they stand
GOOD = (0, 3)  # exit codes of a process that came to its end


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


def spread(
    lines: Sequence[tuple[Sequence[str], Mapping[str, str]]],
    places: Sequence[Mapping[str, str]],
    count: int,
) -> list[int]:
    """Run `d2 ARGUMENTS` for each of these arguments and additions to the environment, one at a
    time on each of the places, which add to it too; what becomes of one is nothing to the others.

    `count` is how many processes share the machine's cores. Returns the exit codes.
    """
    signals.loaded()
    waiting, codes = deque(range(len(lines))), [0] * len(lines)
    running: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}  # place -> line, process
    with tempfile.TemporaryDirectory(prefix="d2-") as notes:
        try:
            while waiting or running:
                for place, where in enumerate(places):
                    if place not in running and waiting:
                        line = waiting.popleft()
                        arguments, own = lines[line]
                        own = {**where, **own, NOTES: f"{notes}/{line}"}
                        running[place] = line, start(arguments, own, count)
                time.sleep(0.05)
                for place, (line, process) in list(running.items()):
                    if (code := process.poll()) is not None:
                        codes[line] = code if code >= 0 else 1
                        say_why(f"point {line}", code, Path(notes) / str(line))
                        del running[place]
        except BaseException as error:
            end([process for _, process in running.values()], asked_by(error))
            raise
    return codes


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
    except BaseException as error:
        end(processes, asked_by(error))
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


def asked_by(error: BaseException) -> int:
    """The signal that ends processes as this one is ended; submitit, for one, raises SystemExit
    where a job is taken away."""
    return error.signum if isinstance(error, signals.Stopped) else signal.SIGTERM


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


def is_watched() -> bool:
    """Whether `start` started this process."""
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
    """End this process, if `start` started it, when the one that did is gone."""
    if not is_watched():
        return
    parent = os.getppid()

    def watch_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()

"""Kills `d2 sample` at random moments and starts it again until it is done: `python tests/kill.py
[KILLS] [RANKS]`.

Every process of the command gets SIGKILL, start-up and writing included. What is left has to be the
bytes of a run that nobody killed, no scene may have been finished twice, and nothing else may lie
there.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

NAMES = ("test_0000", "test_0001", "test_0002")
LINE = [
    "scenes.count=3",
    "sampler.num_steps=12",
    "matrix.num_views=3",
    "matrix.num_frames=3",
    "reconstruct=false",
]
LINE += [
    "sampler.sequences_per_call=1",
    "baselines=false",
    "save_every_seconds=0.2",
    "trainer.accelerator=cpu",
]
RANKS = {
    1: ["trainer=cpu"],
    2: ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.parallel=matrix"],
}


class Counts(NamedTuple):
    """What became of one run."""

    kills: int
    starts: int
    resumed: int  # starts that found a state
    writings: dict[str, int]  # scene -> how often it was finished


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def start(folder: Path, weights: Sequence[str], ranks: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "d2",
        "sample",
        *weights,
        *LINE,
        *RANKS[ranks],
        f"output_dir={folder}",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder.parent / "stderr").open("ab") as said:
        return subprocess.Popen(command, env=env, stderr=said, start_new_session=True)


def seconds_of(process: subprocess.Popen[bytes]) -> float:
    """How long it takes to its end, which has to be a good one."""
    began = time.monotonic()
    assert process.wait(600) == 0
    return time.monotonic() - began


def killed(
    folder: Path, weights: Sequence[str], ranks: int, kills: int, whole: float, dice: random.Random
) -> Counts:
    """A run that is killed so often, at moments spread over all that it does, and then left to
    finish."""
    written: dict[str, set[tuple[int, int]]] = {name: set() for name in NAMES}
    done, starts, resumed = 0, 0, 0
    while True:
        process, starts = start(folder, weights, ranks), starts + 1
        resumed += bool(list(folder.glob("*/state.safetensors")))
        deadline = time.monotonic() + dice.uniform(0, whole) if done < kills else float("inf")
        while process.poll() is None and time.monotonic() < deadline:
            for name in NAMES:
                matrix = folder / name / "matrix.safetensors"
                if matrix.exists():
                    written[name].add((matrix.stat().st_ino, matrix.stat().st_mtime_ns))
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            continue
        assert process.returncode == 0
        return Counts(
            done, starts, resumed, {name: len(inodes) for name, inodes in written.items()}
        )


def main(kills: int, ranks: int, folder: Path, weights: Sequence[str] = (), seed: int = 0) -> int:
    """Runs until so many kills have hit, with a line of counts each; returns how many were not as
    they should be."""
    # one place: files tell where they lie
    place, dice, wrong, hit = folder / "run", random.Random(seed), 0, 0
    whole = seconds_of(start(place, weights, ranks))
    wanted = files_of(place)
    while hit < kills:
        shutil.rmtree(place)
        counts = killed(place, weights, ranks, min(4, kills - hit), whole, dice)
        left = files_of(place)
        bad = sorted(
            name for name in left.keys() | wanted.keys() if left.get(name) != wanted.get(name)
        )
        twice = [name for name, times in counts.writings.items() if times > 1]
        print(
            f"{ranks} rank(s): {counts}; files that differ: {bad}; finished twice: {twice}",
            flush=True,
        )
        wrong, hit = wrong + bool(bad or twice), hit + counts.kills
    return wrong


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as place:
        sys.exit(main(*(given + [20, 1][len(given) :]), folder=Path(place)))

"""How long `d2 evaluate` takes: reference, consistency and the world4d-encoder's video distances,
on a CPU.

    python benchmarks/evaluation_time.py                             # 100 matrices of 8 x 8 x 64 x
    64, as in the README python benchmarks/evaluation_time.py --objects 4 --size 32       # a quick
    look

Samples are true matrices of world4d under smooth random errors, written as a run of `d2 sample`
writes them. The files are made before the clock starts. Time is told twice: on the wall, and of the
processor, which other programs of the machine do not lengthen. Results go into
benchmarks/README.md, with the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from d2 import io
from d2.data import world4d
from d2.files import asset
from d2.matrix import ImageMatrix
from d2.nn.video_encoder import VideoEncoder, VideoEncoderConfig
from d2.priors import tiny

ERROR = 0.2  # standard deviation of a sample's error, in units of a pixel's range


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=100)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="where the matrices are kept between calls; default: nowhere"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "run"
        for index in range(args.objects):
            write_scene(folder / f"test_{index:04}", index, args.views, args.frames, args.size)
        wall, cpu = timed(folder, Path(temporary), args.objects, args.threads)
    what = f"{args.objects} matrices of {args.views} x {args.frames} x {args.size} x {args.size}"
    print(f"{what}, {args.threads} threads: {wall:.1f} s on the wall, {cpu:.1f} s of the processor")


def write_scene(folder: Path, index: int, views: int, frames: int, size: int) -> None:
    """One scene of a run, unless it is there."""
    if (folder / "truth.safetensors").exists():
        return
    scene = world4d.scene("test", index, num_views=views, num_frames=frames, size=size)
    assert scene.truth is not None
    matrix = ImageMatrix(perturbed(scene.truth.pixels, index), scene.cameras, scene.fps)
    io.write_matrix(folder, matrix, scene.truth, {})


def perturbed(
    pixels: Tensor,  # v f 3 h w
    seed: int,
) -> Tensor:
    """With an error that varies slowly over the picture, and from cell to cell."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(*pixels.shape[:3], 8, 8, generator=generator).flatten(0, 1)
    error = F.interpolate(coarse, pixels.shape[-2:], mode="bilinear").unflatten(0, pixels.shape[:2])
    return (pixels + ERROR * error).clamp(0, 1)


def timed(run: Path, temporary: Path, objects: int, threads: int) -> tuple[float, float]:
    """Seconds of the whole command, from its start to its exit: on the wall, and of all its
    threads."""
    names = ",".join(f"test_{index:04}" for index in range(objects))
    command = [
        sys.executable,
        "-m",
        "d2",
        "evaluate",
        f"run={run}",
        f"output_dir={temporary / 'out'}",
    ]
    command += [
        f"objects=[{names}]",
        "metrics=[reference,consistency,video]",
        f"features_file={encoder(temporary)}",
    ]
    command += ["trainer=cpu", f"trainer.threads={threads}"]
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])


def encoder(temporary: Path) -> Path:
    """The shipped encoder; where it is not there, one of its size with random weights takes as
    long."""
    path = asset("checkpoints") / "tiny_video_encoder.safetensors"
    if not path.exists():
        path, config = temporary / "encoder.safetensors", VideoEncoderConfig()
        tiny.save_weights(
            path, "video_encoder", VideoEncoder(config), {"config": dataclasses.asdict(config)}
        )
    return path


if __name__ == "__main__":
    main()

"""Whether gathering one term's answers while the other term is denoised makes a shared matrix
faster: `python benchmarks/overlap.py`.

Two processes of one thread each denoise an 8 × 8 matrix by both tiny priors, their shares in blocks
of 4, and gather every half; the two ways take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

SIDE, BLOCK = 8, 4


def terms() -> list[Any]:
    """Rows by the video prior, columns by the multi-view prior; weights do not matter here."""
    from d2.matrix import columns, rows
    from d2.priors import tiny
    from d2.priors.prior import Condition, Prior, denoiser
    from d2.sampling import Term

    made = []
    for name, config, cut in (("video", tiny.VIDEO, rows), ("multiview", tiny.MULTIVIEW, columns)):
        prior = Prior(config).eval().requires_grad_(False)
        side = tiny.SIZE // 8
        parts = (
            (1, config.unet.context_dim),
            (config.unet.in_channels - tiny.CHANNELS, side, side),
            (config.unet.adm_in_channels,),
        )
        condition = Condition(*(torch.zeros(SIDE, SIDE, *part) for part in parts))
        made.append(Term(name, cut(SIDE, SIDE), denoiser(prior, condition)))
    return made


def evaluate(made: list[Any], x: Tensor, *, overlap: bool) -> None:
    """One evaluation of both terms, both halves."""
    from d2.matrix import take
    from d2.shard import denoise_share

    rank, world = dist.get_rank(), dist.get_world_size()
    wanted, waiting = torch.ones(SIDE, 2, dtype=torch.bool), []
    for term in made:
        for half in denoise_share(term, take(x, term.cut), 1.0, wanted, rank, world, BLOCK):
            parts = [torch.empty_like(half) for _ in range(world)]
            work = dist.all_gather(parts, half, async_op=overlap)
            waiting += [work] if overlap else []
    for work in waiting:
        work.wait()


def process(rank: int, port: int, repeats: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    from d2.priors import tiny

    side = tiny.SIZE // 8
    made, x = terms(), torch.randn(SIDE, SIDE, tiny.CHANNELS, side, side)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(repeats + 1):
        for overlap in (False, True) if repeat % 2 else (True, False):
            dist.barrier()
            began = time.perf_counter()
            evaluate(made, x, overlap=overlap)
            dist.barrier()
            if repeat:  # the first warms up
                seconds[overlap].append(time.perf_counter() - began)
    if rank == 0:
        ratios = sorted(a / b for a, b in zip(*seconds.values(), strict=True))
        quarter = len(ratios) // 4
        print(
            f"one after another {statistics.median(seconds[False]):.3f} s, overlapping"
            f" {statistics.median(seconds[True]):.3f} s; speed-up {statistics.median(ratios):.3f}"
            f" [{ratios[quarter]:.3f}, {ratios[-1 - quarter]:.3f}] (quartiles)"
        )
    dist.destroy_process_group()


def main() -> None:
    from d2.processes import free_port

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    arguments = (free_port(), parser.parse_args().repeats)
    mp.spawn(process, arguments, nprocs=2)  # pyright: ignore[reportPrivateImportUsage]


if __name__ == "__main__":
    main()

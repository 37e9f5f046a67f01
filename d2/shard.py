"""Who denoises which sequences, and how everyone gets the result. The only user of
torch.distributed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from d2.matrix import put, take
from d2.sampling import Prediction, Shard, Term, sequences_needed

T = TypeVar("T")
_BY_ITSELF: ContextVar[bool] = ContextVar("_BY_ITSELF", default=False)


def make_shard(*, sequences_per_call: int | None = None) -> Shard:
    """Evaluate terms on every process of the default group, or on this one where there is none.

    Blocks of `sequences_per_call` neighbours are dealt to the ranks in turn, and a network call
    takes those of one block: what goes into a call does not depend on the number of ranks, and so
    neither do the bits. None: all in one block, which one rank takes. Every rank returns the same
    matrix.
    """

    def shard(term: Term, x: Tensor, sigma: float, need: tuple[Tensor, Tensor]) -> Prediction:
        rank, world = place()
        v, f = x.shape[:2]
        wanted = sequences_needed(term.cut, need)
        halves: list[Tensor | None] = []
        sequences = take(x, term.cut)
        size = min(sequences_per_call or len(sequences), len(sequences))
        results = denoise_share(term, sequences, sigma, wanted, rank, world, size)
        for half, result in enumerate(results):
            if not wanted[:, half].any():
                halves.append(None)
                continue
            full = gather(result, len(sequences), world, size)
            halves.append(put(full, term.cut, v, f))
        return Prediction(*halves)

    return shard


def spread(work: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """`work` on one index at a time, every rank its share; all results in order, on every rank:
    count ..."""
    rank, world = place()
    mine = torch.arange(count)[rank::world]
    # of none there is one part, which is empty
    results = [work(index) for index in mine.split(1) if len(index)]
    share = torch.cat(results) if results else work(torch.zeros(1, dtype=torch.long))[:0]
    padded = share.new_zeros(-(-count // world), *share.shape[1:])
    padded[: len(share)] = share
    return gather(padded, count, world, 1)


def meet() -> None:
    """Go on once every rank is here."""
    if place()[1] > 1:
        dist.barrier()


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, on every process: for what depends on files, so that all decide
    alike."""
    rank, world = place()
    made: list[Any] = [make() if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(made, src=0)
    return made[0]


def waited_too_long(error: RuntimeError) -> bool:
    """Whether a collective gave up on another process that still holds its connection: gloo's and
    NCCL's words."""
    return bool(re.search(r"[Tt]imed out|[Tt]imeout", str(error))) and dist.is_initialized()


def place() -> tuple[int, int]:
    """This process's rank and the world size."""
    if not dist.is_initialized() or _BY_ITSELF.get():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def by_itself() -> Iterator[None]:
    """Within it this process works as if there were no other: for what one of them alone has to
    find out."""
    token = _BY_ITSELF.set(True)
    try:
        yield
    finally:
        _BY_ITSELF.reset(token)


def denoise_share(
    term: Term,
    sequences: Tensor,  # b t c h w
    sigma: float,
    wanted: Tensor,  # b 2, bool
    rank: int,
    world: int,
    size: int,
) -> tuple[Tensor, Tensor]:
    """This rank's sequences denoised, both halves, block after block: n t c h w each, as many on
    every rank, zero where not wanted or nobody's."""
    blocks = torch.arange(len(sequences)).split(size)
    share = -(-len(blocks) // world) * size
    results = (
        sequences.new_zeros(share, *sequences.shape[1:]),
        sequences.new_zeros(share, *sequences.shape[1:]),
    )
    for i, block in enumerate(blocks[rank::world]):
        # sequences that want the same go into one call
        for halves in ((True, True), (True, False), (False, True)):
            slots = (wanted[block] == torch.tensor(halves)).all(dim=1).nonzero()[:, 0]
            if len(slots):
                mine = block[slots]
                prediction = term.denoise(sequences[mine], sigma, mine, halves)
                for result, half in zip(results, prediction, strict=True):
                    if half is not None:
                        result[i * size + slots] = half
    return results


def gather(
    share: Tensor,  # n t c h w, blocks of `size`
    count: int,
    world: int,
    size: int,
) -> Tensor:
    """All sequences in their order, on every rank: b t c h w."""
    if world == 1:
        return share[:count]
    parts = [torch.empty_like(share) for _ in range(world)]
    dist.all_gather(parts, share.contiguous())
    blocks = torch.stack([part.unflatten(0, (-1, size)) for part in parts], dim=1)
    return blocks.flatten(0, 2)[:count]

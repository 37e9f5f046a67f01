"""Where the weights of a run lie: all on the device, or in host memory while they wait for their
turn.

    none        everything lies on the device idle        one network at a time does: two moves an
    evaluation, as the terms alternate sequential  one block of a network at a time does: the least
    memory, and as many moves as there are blocks

Frozen weights never change, so the copy in host memory (pinned for CUDA) stays, and leaving the
device costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from d2.errors import InputError
from d2.priors.first_stage import FirstStage

# from the fastest to the one that takes the least device memory
OFFLOADS = ("none", "idle", "sequential")


def place(
    # priors and first stages, on the CPU; one may share networks with another
    holders: Sequence[nn.Module],
    device: torch.device | str,
    offload: str,
    *,
    # told every network or block that comes to the device
    on_move: Callable[[nn.Module], None] | None = None,
) -> None:
    """Bring the weights to where `offload` wants them, and see to it that each is on the device
    when it is called.

    Once only, and before anything else moves them: a later `.to(device)` of a holder would bring
    all.
    """
    device = torch.device(device)
    if offload == "none":
        for holder in holders:
            holder.to(device)
        return
    waiting = {
        unit: [(t, at_home(t.data, device)) for t in tensors(unit)]
        for unit in units(holders, offload)
    }
    for tensor in loose(holders, waiting):
        tensor.data = tensor.data.to(device)
    here: list[nn.Module] = []

    def call_up(unit: nn.Module, *_: object) -> None:
        if unit in here:
            return
        while here:
            for tensor, home in waiting[here.pop()]:
                tensor.data = home
        with torch.inference_mode(False):  # weights outlive an inference mode that may be on
            for tensor, home in waiting[unit]:
                tensor.data = home.to(device, non_blocking=True, copy=True)
        here.append(unit)
        if on_move:
            on_move(unit)

    for unit, pairs in waiting.items():
        for tensor, home in pairs:
            tensor.data = home
        for called in (unit, *unit.children()):  # an autoencoder is called by its halves
            called.register_forward_pre_hook(partial(call_up, unit))


def at_home(weights: Tensor, device: torch.device) -> Tensor:
    """Weights as they wait: pinned where that makes moves faster."""
    return weights.pin_memory() if device.type == "cuda" else weights


def units(holders: Iterable[nn.Module], offload: str) -> list[nn.Module]:
    """What is moved as one."""
    if offload not in OFFLOADS:
        raise InputError(f"offload={offload}: choose none, idle or sequential")
    whole = networks(holders)
    return whole if offload == "idle" else [block for network in whole for block in blocks(network)]


def networks(holders: Iterable[nn.Module]) -> list[nn.Module]:
    """The networks of priors and first stages; one that two of them share comes once."""
    found: list[nn.Module] = []
    for holder in holders:
        for child in holder.children():
            found += networks([child]) if isinstance(child, FirstStage) else [child]
    return list(dict.fromkeys(found))


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules of a network that are called one after another."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from blocks(child)
        else:
            yield child


def loose(holders: Iterable[nn.Module], moved: Iterable[nn.Module]) -> list[Tensor]:
    """What belongs to nothing that is moved, a few numbers: it always lies on the device."""
    inside = {id(t) for unit in moved for t in tensors(unit)}
    own = {id(t): t for holder in holders for t in tensors(holder)}
    return [t for key, t in own.items() if key not in inside]


def tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def num_bytes(weights: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in weights)


def resident_bytes(holders: Sequence[nn.Module], network: nn.Module | None, offload: str) -> int:
    """Device memory of the weights while a network runs, or while none does."""
    if offload == "none":
        return num_bytes({id(t): t for holder in holders for t in tensors(holder)}.values())
    always = num_bytes(loose(holders, units(holders, offload)))
    if network is None:
        return always
    parts = [network] if offload == "idle" else blocks(network)
    return always + max((num_bytes(tensors(part)) for part in parts), default=0)


def waiting_bytes(holders: Sequence[nn.Module], offload: str, *, pinned: bool) -> int:
    """Host memory of the weights; PyTorch rounds every pinned allocation up to a power of two."""
    sizes = (
        [num_bytes([t]) for unit in units(holders, offload) for t in tensors(unit)]
        if offload != "none"
        else []
    )
    return sum(1 << (size - 1).bit_length() if pinned and size else size for size in sizes)

"""What a job will cost, and the settings under which it fits a device.

Found by a rehearsal on the meta device, before anything is loaded. Memory is in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from d2.errors import InputError
from d2.plan.cast import UNETS, Cast
from d2.plan.rehearsal import Rehearsal, Workload, rehearse
from d2.priors.placement import OFFLOADS, resident_bytes, waiting_bytes
from d2.sampling import within
from d2.terms import Settings

GIB = 2**30
# of a device's memory, left to the allocator's gaps, the libraries' workspaces and the driver
MARGIN = 0.1
PROCESS = 0.7 * GIB  # of host memory: Python with all libraries imported, roughly
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# those settings of the sampler that memory depends on
CHUNKS = ("sequences_per_call", "decode_chunk")


class Choice(NamedTuple):
    """The settings that memory depends on; a chunk of None is everything at once."""

    sequences_per_call: int | None
    decode_chunk: int | None
    offload: str
    dtype: torch.dtype


class Work(NamedTuple):
    """One line of what is evaluated."""

    name: str
    calls: int  # of the network
    items: int  # pictures, or sequences, one for each half
    flops: float


class Peak(NamedTuple):
    """Device memory while a network runs."""

    name: str
    weights: int  # of everything on the device then
    tensors: int  # activations, and what the sampler keeps meanwhile

    @property
    def sum(self) -> int:
        return self.weights + self.tensors


class Plan(NamedTuple):
    """What a job will cost."""

    steps: int  # of the joint sampling
    work: list[Work]
    peaks: list[Peak]
    host: dict[str, int]  # what -> bytes
    choice: Choice
    memory: int | None  # of the device; None: the job runs in host memory
    silent: str = ""  # a prior with a range of levels: where it has no share

    @property
    def device_bytes(self) -> int:
        return max(peak.sum for peak in self.peaks)

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values()) + (self.device_bytes if self.memory is None else 0)

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.work)


def plan(
    workload: Workload,
    settings: Settings,
    choice: Choice,
    *,
    memory: int | None = None,  # bytes of the device; None: a CPU
    free: Collection[str] = (),  # fields of the choice that may be changed
    cast: Cast | None = None,  # of another plan for the same networks, which knows what they cost
) -> Plan:
    """What the job costs under a choice, the free fields of which become those that fit the device
    best.

    A ValueError if nothing fits.
    """
    cast = cast or workload.cast(choice.dtype)
    rehearsals: dict[Choice, Rehearsal] = {}

    def seen(choice: Choice) -> Rehearsal:
        key = choice._replace(offload="none")  # on which no tensor but the weights depends
        if key not in rehearsals:
            chunks = {name: getattr(choice, name) for name in CHUNKS}
            rehearsals[key] = rehearse(workload, cast, replace(settings, **chunks))
        return rehearsals[key]

    def peaks(choice: Choice) -> list[Peak]:
        return peaks_of(seen(choice), cast, choice.offload)

    if memory is not None and free:
        choice = choose(choice, free, memory, workload, peaks)
    steps = workload.rules.renoise(settings.sigmas)
    host = host_of(workload, cast, choice, pinned=memory is not None)
    silent = silent_at(cast.priors.multiview.sigma_range, [step.sigma for step in steps])
    return Plan(
        len(steps), work_of(seen(choice), workload), peaks(choice), host, choice, memory, silent
    )


def silent_at(sigma_range: tuple[float, float], sigmas: Sequence[float]) -> str:
    """One line where the multi-view prior has no share at some levels, else nothing."""
    low, high = sigma_range
    above, below = (
        sum(not within((a, b), sigma) for sigma in sigmas)
        for a, b in ((0.0, high), (low, math.inf))
    )
    if not above + below:
        return ""
    return (
        f"multiview: no share at {above + below} of {len(sigmas)} evaluations, {above} above noise"
        f" level {high:.4g} and {below} below {low:.4g}"
    )


def choose(
    choice: Choice,
    free: Collection[str],
    memory: int,
    workload: Workload,
    peaks: Callable[[Choice], Sequence[Peak]],
) -> Choice:
    """The lightest offload, then the largest chunks that fit with a margin; what is not free is
    kept."""
    num_views, num_frames = workload.num_views, workload.num_frames
    largest: dict[str, int] = dict(
        zip(CHUNKS, (max(num_views, num_frames), num_frames), strict=True)
    )
    chunks = [name for name in CHUNKS if name in free]
    modes = OFFLOADS if "offload" in free else (choice.offload,)

    def need(choice: Choice) -> Peak:
        return max(peaks(choice), key=lambda peak: peak.sum)

    def fits(choice: Choice) -> bool:
        return need(choice).sum <= (1 - MARGIN) * memory

    for mode in modes:
        best = choice._replace(offload=mode, **dict.fromkeys(chunks, 1))
        if not fits(best):
            continue
        for name in chunks:
            low, high = 1, largest[name]
            while low < high:  # low fits, above high nothing does
                middle = (low + high + 1) // 2
                low, high = (
                    (middle, high) if fits(best._replace(**{name: middle})) else (low, middle - 1)
                )
            best = best._replace(**{name: low})
        return best
    least = choice._replace(offload=modes[-1], **dict.fromkeys(chunks, 1))
    raise InputError(
        f"device memory {memory / GIB:.1f} GiB: {need(least).name} takes"
        f" {need(least).sum / GIB:.1f} GiB, too much with a margin of {MARGIN:.0%}; try"
        f" {way_out(least)}"
    )


def peaks_of(seen: Rehearsal, cast: Cast, offload: str) -> list[Peak]:
    """Weights and tensors while each network runs, and until the next one does."""
    return [
        Peak(
            name or "before",
            resident_bytes(cast.priors.present, cast.units.get(name), offload),
            tensors,
        )
        for name, tensors in seen.peaks.items()
    ]


def work_of(seen: Rehearsal, workload: Workload) -> list[Work]:
    """References first, then the joint sampling; of UNets sequences are counted rather than their
    frames."""
    lengths: dict[str, int] = dict(
        zip(UNETS, (workload.num_frames, workload.num_views, 1), strict=True)
    )
    return [
        Work(f"{part}: {name}", count.calls, count.items // lengths.get(name, 1), count.flops)
        for part, counts in (("reference", seen.reference), ("joint", seen.joint))
        for name, count in counts.items()
        if count.calls
    ]


def host_of(workload: Workload, cast: Cast, choice: Choice, *, pinned: bool) -> dict[str, int]:
    """What lies in host memory, besides what a CPU's run computes there."""
    cells = workload.num_views * workload.num_frames
    latents = (
        cells * workload.first_stage.channels * (workload.size // workload.first_stage.factor) ** 2
    )
    parts = {
        "process": int(PROCESS),
        "waiting weights": waiting_bytes(cast.priors.present, choice.offload, pinned=pinned),
        "noise": latents * 4,  # a draw of the whole matrix in float32
        # the result, and once more while it is written
        "pixels": 2 * cells * 3 * workload.size**2 * 4,
    }
    return {name: size for name, size in parts.items() if size}


def way_out(choice: Choice) -> str:
    """The next setting to lower, from the one that costs least."""
    if choice.sequences_per_call != 1:
        return "sampler.sequences_per_call=1"
    if choice.decode_chunk is None or choice.decode_chunk > 1:
        return f"sampler.decode_chunk={1 if choice.decode_chunk else 8}"
    for mode in OFFLOADS[OFFLOADS.index(choice.offload) + 1 :]:
        return f"offload={mode}"
    return (
        "precision=bf16"
        if choice.dtype == torch.float32
        else "a smaller matrix.num_frames or matrix.num_views"
    )


def out_of_memory_advice(error: BaseException, choice: Choice) -> str:
    """One line for the user whose device was too small."""
    said = str(error).partition("\n")[0].split(". ")
    return (
        f"{'. '.join(said[:2]) or 'out of memory'}: try {way_out(choice)}; plan=true shows what"
        " fits"
    )


def render(plan: Plan) -> str:
    """The plan as a table of a terminal's width."""
    lines = [f"{'what':32}{'calls':>8}{'items':>9}{'TFLOP':>12}"]
    lines += [f"{w.name:32}{w.calls:8}{w.items:9}{w.flops / 1e12:12.4g}" for w in plan.work]
    lines += [f"{f'in all, {plan.steps} joint evaluations':32}{'':17}{plan.flops / 1e12:12.4g}", ""]
    lines += [f"{'memory in GiB, while it runs':32}{'weights':>8}{'tensors':>9}{'sum':>12}"]
    lines += [
        f"{p.name:32}{p.weights / GIB:8.2f}{p.tensors / GIB:9.2f}{p.sum / GIB:12.2f}"
        for p in plan.peaks
    ]
    if plan.memory is not None:
        peak, there = plan.device_bytes / GIB, plan.memory / GIB
        lines += [f"{'device peak, and what there is':41}{peak:8.2f}{there:12.2f}"]
    lines += [f"{'host: ' + name:49}{size / GIB:12.2f}" for name, size in plan.host.items()]
    lines += [f"{'host peak':49}{plan.host_bytes / GIB:12.2f}", ""]
    lines += [plan.silent] if plan.silent else []
    c = plan.choice
    chunks = [
        f"sampler.{name}={'null' if getattr(c, name) is None else getattr(c, name)}"
        for name in CHUNKS
    ]
    lines += [
        " ".join(["settings:", *chunks, f"offload={c.offload}", f"precision={PRECISIONS[c.dtype]}"])
    ]
    return "\n".join(lines)

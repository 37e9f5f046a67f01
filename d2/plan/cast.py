"""Networks on the meta device, where tensors have shapes but no contents, each with what it costs.

Every network runs once; its further calls are counted in proportion to their batch. Memory is in
bytes; a multiplication with its addition is two operations.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from d2.plan import shapes
from d2.priors.camera_prior import CameraPrior, CameraPriorConfig
from d2.priors.first_stage import FirstStage, FirstStageConfig
from d2.priors.prior import Prior, PriorConfig
from d2.terms import Priors

UNETS = ("video", "multiview", "cell")


class Count(NamedTuple):
    """What a network evaluated."""

    calls: int = 0
    items: int = 0  # of its batch: pictures, frames
    flops: float = 0.0

    def plus(self, other: Count, times: int = 1) -> Count:
        return Count(
            self.calls + times * other.calls,
            self.items + times * other.items,
            self.flops + times * other.flops,
        )


class Meter(shapes.Blank):
    """Counts operations, and the bytes of tensors that were made since it was entered and still
    live.

    What was there before, as weights, is not counted. `at` says on whose account a peak goes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at, self.live, self.flops = "", 0, 0.0
        self.peaks: Counter[str] = Counter()
        self.known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def note(self, extra: int = 0) -> None:
        """Take down how much lives now, with `extra` bytes that only lived for a moment."""
        self.peaks[self.at] = max(self.peaks[self.at], self.live + extra)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = shapes.answer(func, args, kwargs)
        if count := flop_registry.get(func.overloadpacket):
            self.flops += count(*args, **kwargs, out_val=out)
        new = [t for t in shapes.tensors_in([out]) if key_of(t) not in self.known]
        if new:
            # views of what was there
            old = {key_of(t) for t in shapes.tensors_in((*args, *kwargs.values()))}
            for tensor in new:
                self.watch(tensor, old)
        return out

    def watch(self, tensor: Tensor, old: Collection[int]) -> None:
        storage, key = tensor.untyped_storage(), key_of(tensor)
        if key in self.known or key in old:
            return
        self.live += storage.nbytes()
        self.known[key] = weakref.ref(storage, partial(self.gone, key, storage.nbytes()))
        self.note()

    def gone(self, key: int, size: int, _: object) -> None:
        del self.known[key]
        self.live -= size


def key_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Fused(TorchFunctionMode):
    """Attention on the meta device as one fused kernel, as on a real one; else its table of scores
    would be counted."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args[:3], None, False)[0]
        return func(*args, **(kwargs or {}))


# --- the cast ------------------------------------------------------------------------------------


class Cast(NamedTuple):
    """A job's networks on the meta device, each under an understudy that remembers what it
    costs."""

    priors: Priors
    units: dict[str, nn.Module]  # name of a network -> what is moved as one with it
    meter: Meter
    counts: dict[str, Count]  # of the pass that runs


class Sizes(NamedTuple):
    """Those of a job's networks."""

    video: PriorConfig
    multiview: PriorConfig | CameraPriorConfig
    first_stage: FirstStageConfig
    decoder: FirstStageConfig | None  # the multi-view prior's own
    cell: PriorConfig | None


def cast_of(sizes: Sizes, dtype: torch.dtype) -> Cast:
    """Networks of these sizes on the meta device."""
    with shapes.Blank(), torch.device("meta"):
        rows, stage = Prior(sizes.video), FirstStage(sizes.first_stage)
        columns = multiview_of(sizes.multiview, rows, sizes.video)
        priors = Priors(rows, columns, stage, sizes.cell and Prior(sizes.cell))
        priors.multiview.decoder = sizes.decoder and FirstStage(sizes.decoder)
    for holder in priors.present:
        holder.to(dtype).eval().requires_grad_(False)
    cast = Cast(priors, {}, Meter(), {})
    for name, network, unit in called(priors):
        cast.units[name] = unit
        understudy(network, name, cast)
    return cast


def multiview_of(
    config: PriorConfig | CameraPriorConfig, video: Prior, beside: PriorConfig
) -> Prior | CameraPrior:
    """A prior of any cameras has its image tower from the video prior beside it, if it is as
    large."""
    if not isinstance(config, CameraPriorConfig):
        return Prior(config)
    cameras = CameraPrior(config, with_tower=config.tower != beside.tower)
    cameras.tower = cameras.tower or video.tower
    return cameras


def called(priors: Priors) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Every network that is called: its name, itself, and what is moved as one with it."""
    stages = {"": priors.first_stage}
    for name, prior in zip(UNETS, (priors.video, priors.multiview, priors.cell), strict=True):
        if prior is None:
            continue
        yield name, prior.unet, prior.unet
        if prior.tower is not None and (
            prior is priors.video or prior.tower is not priors.video.tower
        ):
            yield f"{name} tower", prior.tower, prior.tower
        if prior.encoder is not None:
            yield f"{name} encoder", prior.encoder, prior.encoder
        if prior.decoder is not None:
            stages[f"{name} "] = prior.decoder
    for name, stage in stages.items():
        autoencoder = stage.autoencoder
        yield f"{name}decoder", autoencoder.decoder, autoencoder
        if autoencoder.config.has_encoder:
            yield f"{name}first encoder", autoencoder.encoder, autoencoder


class Cost(NamedTuple):
    """Of one item of a network's batch."""

    flops: float
    bytes: float  # that live during the call, beyond what lived before
    shape: torch.Size  # of the result


def understudy(network: nn.Module, name: str, cast: Cast) -> None:
    """Let the first call of a network run, and answer later ones from what it cost."""
    forward, meter = network.forward, cast.meter
    known: dict[Any, Cost] = {}
    dtype = next(network.parameters()).dtype

    def measure(x: Tensor, *rest: Any, **options: Any) -> Cost:
        flops, peaks, live = meter.flops, meter.peaks, meter.live
        meter.flops, meter.peaks = 0.0, Counter()
        given = tree_map(lambda t: t.to(dtype) if isinstance(t, Tensor) else t, (x, rest, options))
        out = forward(given[0], *given[1], **given[2])
        cost = Cost(meter.flops / len(x), (meter.peaks[name] - live) / len(x), out.shape[1:])
        meter.flops, meter.peaks = flops, peaks
        return cost

    def play(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        meter.at = name
        key = (x.shape[1:], *(option for option, value in options.items() if value is not None))
        if key not in known:
            known[key] = measure(x, *rest, **options)
        cost, n = known[key], len(x)
        cast.counts[name] = cast.counts.get(name, Count()).plus(Count(1, n, n * cost.flops))
        meter.note(round(n * cost.bytes))
        return x.new_empty(n, *cost.shape)

    network.forward = play

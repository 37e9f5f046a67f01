"""A scene of more cameras than one forward takes, cut into forwards: which cells each of them sees,
in which slots.

The strategies are those of Stable Virtual Camera's published program (arXiv 2503.14489, section
4.3). Inputs are cells whose pictures are given, targets those that are wanted; where targets that
were made before are given in their turn, they count on from the inputs. Poses are camera-to-world.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from d2.errors import InputError


class Slot(NamedTuple):
    """A place of a forward."""

    known: bool  # an input, else a target
    index: int  # among the inputs, or among the targets


class Forward(NamedTuple):
    """What one call of the network sees, slot by slot, and whose targets it makes."""

    slots: tuple[Slot, ...]  # filled up to the length of a call
    own: tuple[bool, ...]  # whether the slot stands for itself, or fills up

    @property
    def known(self) -> list[bool]:
        return [slot.known for slot in self.slots]


def forwards(chunks: Sequence[Sequence[Slot]], length: int) -> list[Forward]:
    """Chunks as calls of `length` slots each; what is empty, or an input for the second time,
    repeats the last cell.

    The last cell is the last input where that stands behind the last target, else the last target.
    """
    found = []
    for chunk in chunks:
        first = {slot: place for place, slot in reversed([*enumerate(chunk)])}
        last = max(first, key=lambda slot: first[slot])
        own = tuple(place < len(chunk) and first[chunk[place]] == place for place in range(length))
        found.append(Forward(tuple(chunk[k] if o else last for k, o in enumerate(own)), own))
    return found


def cut_into_chunks(
    # gt | gt-ltr | gt-nearest | nearest-K | nearest | nearest-gt | interp | interp-gt
    strategy: str,
    length: int,  # slots of a forward
    inputs: Tensor,  # m 4 4
    targets: Tensor,  # n 4 4
    *,
    # inputs that every forward of interp-gt and nearest-gt sees: the true ones
    always: Sequence[int] = (),
    # of interp: places along the path; None: no order known
    input_orders: Sequence[float] | None = None,
    target_orders: Sequence[float] | None = None,
    # of gt-ltr and gt-nearest: share of the free slots for what was made before
    ratio: float = 0.33,
    most: int = 10_000,  # and at most so many
) -> list[list[Slot]]:
    """Slots of every forward; an InputError where a strategy cannot serve all targets."""
    if strategy in ("gt", "gt-ltr", "gt-nearest"):
        return from_made(strategy, length, inputs, targets, ratio, most)
    if strategy.startswith("interp"):
        assert input_orders is not None and target_orders is not None
        return between(
            length, input_orders, target_orders, always if strategy.endswith("-gt") else ()
        )
    distance = torch.cdist(targets[:, :3, 3].double(), inputs[:, :3, 3].double())
    if strategy in ("nearest", "nearest-gt"):
        return packed(length, distance, always if strategy.endswith("-gt") else ())
    return by_vote(length, distance, int(strategy.removeprefix("nearest-")))


def known(indices: Sequence[int]) -> list[Slot]:
    return [Slot(True, i) for i in indices]


def wanted(indices: Sequence[int]) -> list[Slot]:
    return [Slot(False, i) for i in indices]


def from_made(
    strategy: str, length: int, inputs: Tensor, targets: Tensor, ratio: float, most: int
) -> list[list[Slot]]:
    """All inputs in every forward, then some of the targets that were made before, then the next
    targets."""
    m, n = len(inputs), len(targets)
    free, done = length - m, 0
    if free < 1:
        raise InputError(
            f"{m} known views: a forward of {length} cells has no room for another; give fewer"
        )
    chunks: list[list[Slot]] = []
    while done < n:
        made: Sequence[int] = ()
        if done and strategy != "gt":
            enough = n - done >= math.floor(free * ratio)
            count = min(math.ceil(free * ratio) if enough else free - (n - done), most)
            made = (
                nearest_made(targets, done, free, count)
                if strategy == "gt-nearest"
                else range(done - count, done)
            )
        step = range(done, min(done + free - len(made), n))
        chunks.append([*known([*range(m), *(m + i for i in made)]), *wanted(step)])
        done = step.stop
    return chunks


def nearest_made(targets: Tensor, done: int, free: int, count: int) -> list[int]:
    """Those of the made targets that are nearest, by angle or by distance, to most of the next
    ones; the last too."""
    pairs = [nearest_two(targets[i], targets[:done]) for i in range(done, len(targets))]
    q = count
    while True:
        votes = [made for pair in pairs[: free - q] for made in pair if made != done - 1]
        chosen = [*sorted(made for made, _ in Counter(votes).most_common(count - 1)), done - 1]
        if len(chosen) >= q:
            return chosen
        q = len(chosen)


def nearest_two(pose: Tensor, others: Tensor) -> tuple[int, int]:
    """The one of the others that is turned least against a pose, and the one that is least far."""
    trace = torch.einsum("a b, n a b -> n", pose[:3, :3].double(), others[:, :3, :3].double())
    angle = ((trace - 1) / 2).clamp(-1, 1).arccos()
    distance = (others[:, :3, 3] - pose[:3, 3]).double().norm(dim=1)
    return int(angle.argmin()), int(distance.argmin())


def by_vote(length: int, distance: Tensor, count: int) -> list[list[Slot]]:
    """Blocks of targets behind the inputs that are nearest to most of them."""
    n, chunks = len(distance), []
    for start in range(0, n, length - count):
        block = range(start, min(start + length - count, n))
        votes = (
            distance[start : block.stop].argsort(dim=1, stable=True)[:, :count].flatten().tolist()
        )
        chunks.append(
            [*known(sorted(i for i, _ in Counter(votes).most_common(count))), *wanted(block)]
        )
    return chunks


def packed(length: int, distance: Tensor, always: Sequence[int]) -> list[list[Slot]]:
    """Every target behind its nearest input, as many inputs with their targets in a forward as
    fit."""
    chunks: list[list[Slot]] = []
    nearest, chunk = distance.argmin(dim=1), known(always)
    for i in range(distance.shape[1]):
        own = (nearest == i).nonzero()[:, 0].tolist()
        while own:
            head = [] if i in always else known([i])
            if length - len(chunk) <= len(head):  # no room for a target
                chunks.append(chunk)
                chunk = known(always)
                continue
            room = length - len(chunk) - len(head)
            chunk = [*chunk, *head, *wanted(own[:room])]
            own = own[room:]
    return [*chunks, chunk] if len(chunk) > len(always) else chunks


def between(
    length: int,
    input_orders: Sequence[float],
    target_orders: Sequence[float],
    always: Sequence[int],
) -> list[list[Slot]]:
    """Targets between the anchors that they lie between, one anchor shared by a forward and the
    next.

    `input_orders` of inputs without a place on the path are NaN: they serve as `always` alone.
    """
    anchors = [i for i, order in enumerate(input_orders) if not math.isnan(order)]
    starts = [0.0, *(input_orders[i] for i in anchors)]
    starts[-1] += 0.01
    ends = [*starts[1:], math.inf]
    ranges = [
        [j for j, o in enumerate(target_orders) if a <= o < b]
        for a, b in zip(starts, ends, strict=True)
    ]
    widest = max(map(len, ranges))
    if widest > length - 2:
        raise InputError(
            f"{widest} cells lie between two anchors, and a forward takes {length - 2}; make more"
            " anchors"
        )
    chunk = [*known(always), *wanted(ranges[0]), *known(anchors[:1])]
    chunks: list[list[Slot]] = []
    for i, own in enumerate(ranges[1:]):
        if not own:
            continue
        more = [*wanted(own), *known(anchors[i + 1 : i + 2])]
        if len(chunk) + len(more) > length:
            chunks.append(chunk)
            chunk = known([*always, anchors[i]])
        chunk = [*chunk, *more]
    return [*chunks, chunk] if len(chunk) > 1 else chunks


# --- anchors --------------------------------------------------------------------------------------


class Anchors(NamedTuple):
    """How many cells are made first, and how many slots the forwards of both passes have."""

    count: int
    first: int
    second: int


def count_anchors(
    strategy: str,  # of the second pass
    lengths: tuple[int, int],  # slots of a forward, of both passes
    num_inputs: int,
    num_targets: int,
    *,
    ratio: float = 1.0,
    least: int = 0,
) -> Anchors:
    """So many that what lies between two anchors fits into a forward; beyond eight inputs the
    forwards grow."""
    first, second = lengths
    many, told = num_inputs >= 9, strategy.endswith("-gt")
    if strategy.startswith("interp"):
        room = second - 2 - (num_inputs if told and not many else 0)
        count = math.ceil(num_targets / room * ratio) + 1
        count = first - num_inputs if count + num_inputs < first else count
    else:
        count = max(first - num_inputs, 0)
    count = max(count, least)
    if not many:
        return Anchors(count, first, second)
    grown = second + num_inputs if strategy == "interp-gt" else second
    return Anchors(count, count + num_inputs, grown)


def along_path(count: int, num_inputs: int, num_targets: int) -> list[float]:
    """Places of the anchors on a path whose targets are numbered on from the inputs, both ends
    included."""
    return torch.linspace(
        num_inputs, num_inputs + num_targets - 1, count, dtype=torch.float64
    ).tolist()


def among_frames(count: int, inputs: Sequence[int], num_frames: int, *, even: bool) -> list[int]:
    """Anchors among the frames of a clip that are not given: evenly, or each as far from all chosen
    as can be."""
    rest = [i for i in range(num_frames) if i not in inputs]
    if even:
        return [
            rest[math.ceil(k)]
            for k in torch.linspace(0, len(rest) - 1, count, dtype=torch.float64).tolist()
        ]
    chosen = [*inputs]
    for _ in range(count):
        chosen.append(max(rest, key=lambda i: min(abs(i - j) for j in chosen)))
    return sorted(chosen[len(inputs) :])

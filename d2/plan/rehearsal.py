"""A run of the job on the meta device: what it evaluates and keeps.

It is the job's own code that runs, so what is found follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2.matrix import Cameras, camera_ring
from d2.pipeline import sample_scene
from d2.plan import shapes
from d2.plan.cast import UNETS, Cast, Count, Fused, Sizes, cast_of
from d2.priors.camera_prior import CameraPriorConfig
from d2.priors.first_stage import FirstStageConfig
from d2.priors.prior import PriorConfig
from d2.reference import make_clip, make_orbits
from d2.rules.bundle import Rules
from d2.rules.choosing import Choosing, Judge, cuts
from d2.sampling import State, Step, as_composition, needed, within
from d2.scene import Scene
from d2.shard import by_itself
from d2.terms import Settings


class Workload(NamedTuple):
    """What is to be sampled, and by which networks."""

    video: PriorConfig
    multiview: PriorConfig | CameraPriorConfig
    first_stage: FirstStageConfig
    rules: Rules
    num_views: int
    num_frames: int
    size: int  # pixels of a side
    picture: bool = False  # a single picture is the input, of which the video prior makes the clip
    decoder: FirstStageConfig | None = None  # the multi-view prior's own
    cell: PriorConfig | None = None  # of unary.prior=cell

    @property
    def sizes(self) -> Sizes:
        """Those of its networks."""
        return Sizes(self.video, self.multiview, self.first_stage, self.decoder, self.cell)

    def cast(self, dtype: torch.dtype) -> Cast:
        """The networks, to be rehearsed with."""
        return cast_of(self.sizes, dtype)


class Rehearsal(NamedTuple):
    """What a run evaluates and what memory its tensors take at most, by the name of the network
    that runs."""

    reference: dict[str, Count]  # of orbit and clip
    joint: dict[str, Count]  # of one joint sampling
    peaks: dict[str, int]


def rehearse(workload: Workload, cast: Cast, settings: Settings) -> Rehearsal:
    """Run the job on the meta device, steps that evaluate the same not more often than it takes to
    see their peak."""
    seed, cameras = 0, camera_ring(workload.num_views)
    # of references: the first and the last step
    short = replace(settings, num_steps=min(2, settings.num_steps), levels=settings.levels[:2])
    given = (cast.priors, workload.rules, told_motion(short))
    cast.meter.peaks.clear()
    cast.meter.at = ""

    def references(on_step: Callable[[State], None]) -> tuple[Tensor, Tensor]:
        clip = nothing(workload.num_frames, 3, workload.size, workload.size)
        if workload.picture:
            clip = make_clip(clip[0], len(clip), seed, *given, noise=blank_noise, on_step=on_step)
        return clip, make_orbits(clip, cameras, seed, *given, noise=blank_noise, on_step=on_step)

    with cast.meter:
        (clip, orbits), reference = counted(
            cast, references, lambda step: 1 if step.index else max(1, settings.num_steps - 1)
        )
        joint = joint_counts(workload, cast, settings, clip, orbits)
    return Rehearsal(reference, joint, dict(cast.meter.peaks))


def cell_evaluations(workload: Workload, cast: Cast, settings: Settings) -> int:
    """Cells through networks in one joint sampling; a cell with both halves of guidance counts
    twice.

    No memory is metered, so that the cast is of no use for a `rehearse` afterwards.
    """
    pixels = (3, workload.size, workload.size)
    with shapes.Blank():
        clip = nothing(workload.num_frames, *pixels)
        orbits = nothing(len(settings.anchor_frames), workload.num_views, *pixels)
        joint = joint_counts(workload, cast, settings, clip, orbits)
    return sum(joint[name].items for name in UNETS if name in joint)


def joint_counts(
    workload: Workload,
    cast: Cast,
    settings: Settings,
    clip: Tensor,  # f 3 h w
    orbits: Tensor,  # a v 3 h w
) -> dict[str, Count]:
    """What one joint sampling evaluates, by the name of the network."""
    rules, cameras = workload.rules, camera_ring(workload.num_views)
    ranges = [prior.sigma_range for prior in cast.priors[:2]]
    steps = rules.renoise(settings.sigmas)
    shown = shown_steps(steps, rules, cameras, workload.num_frames, ranges)
    stands_for = {(step.index, step.repeat): times for step, times in shown}
    short = rules._replace(renoise=lambda sigmas: [step for step, _ in shown], choose=None)
    scene = Scene("rehearsal", 0, clip, clip[:, :1], cameras, 1.0)
    given = (scene, cast.priors, short, told_motion(settings))

    def sample(on_step: Callable[[State], None]) -> None:
        sample_scene(*given, orbits=orbits, noise=blank_noise, on_step=on_step)

    found = counted(cast, sample, lambda step: stands_for[step.index, step.repeat])[1]
    if rules.choose is None:
        return found
    scored = asked_by_scores(
        rules.choose, cast, given, orbits, len(cuts(steps, rules.choose.levels))
    )
    times = {name: rules.choose.particles if name in UNETS else 1 for name in found}
    return {
        name: (
            Count()
            .plus(found.get(name, Count()), times.get(name, 1))
            .plus(scored.get(name, Count()))
        )
        for name in found | scored
    }


def asked_by_scores(
    choosing: Choosing, cast: Cast, given: tuple[Any, ...], orbits: Tensor, resamplings: int
) -> dict[str, Count]:
    """What the scores of all particles evaluate: at the end, and with an estimate at every
    resampling."""
    asked: dict[str, Count] = {}

    def spy(x: Tensor, judge: Judge) -> float:
        before = dict(cast.counts)
        choosing.score(x, judge)
        after = dict(cast.counts)
        if resamplings:
            judge.denoise(x, 1.0)
        for start, end, times in (
            (before, after, 1 + resamplings),
            (after, cast.counts, resamplings),
        ):
            for name in end:
                more = end[name].plus(start.get(name, Count()), -1)
                asked[name] = asked.get(name, Count()).plus(more, times * choosing.particles)
        return 0.0

    scene, priors, rules, settings = given
    watched = rules._replace(choose=Choosing(1, spy, (), 1.0))

    def sample(on_step: Callable[[State], None]) -> None:
        sample_scene(
            scene, priors, watched, settings, orbits=orbits, noise=blank_noise, on_step=on_step
        )

    counted(cast, sample, lambda step: 1)
    return asked


def told_motion(settings: Settings) -> Settings:
    """Settings with a motion, as that of nothing cannot be measured."""
    return (
        settings
        if settings.motion_bucket_id is not None
        else replace(settings, motion_bucket_id=0.0)
    )


def nothing(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def blank_noise(stream: str, shape: tuple[int, ...], *, step: int = 0, repeat: int = 0) -> Tensor:
    return nothing(*shape)


def counted(
    cast: Cast, run: Callable[[Callable[[State], None]], Any], times: Callable[[Step], int]
) -> tuple[Any, dict[str, Count]]:
    """The result of a pass and what it evaluates; UNets count as often as their step stands for
    others."""
    cast.counts.clear()
    unets: dict[str, Count] = {}
    before: dict[str, Count] = {}

    def on_step(state: State) -> None:
        for name in UNETS:
            now = cast.counts.get(name, Count())
            of_step = now.plus(before.get(name, Count()), -1)
            unets[name] = unets.get(name, Count()).plus(of_step, times(state.step))
            before[name] = now

    with by_itself(), torch.no_grad(), Fused():
        result = run(on_step)
    return result, {**cast.counts, **unets}


def shown_steps(
    steps: Sequence[Step],
    rules: Rules,
    cameras: Cameras,
    num_frames: int,
    ranges: Sequence[tuple[float, float]] = (),  # of levels, of priors that say nothing outside
) -> list[tuple[Step, int]]:
    """One step of every kind with the number of those it stands for, two of the largest kind in a
    row.

    A step's predictions live into the next.
    """
    kinds = steps_by_kind(steps, rules, cameras, num_frames, ranges)
    largest = max(kinds.values(), key=len)
    shown = []
    for of_kind in kinds.values():
        if of_kind is largest and len(of_kind) > 1:
            shown += [(of_kind[0], 1), (of_kind[1], len(of_kind) - 1)]
        else:
            shown.append((of_kind[0], len(of_kind)))
    return shown


def steps_by_kind(
    steps: Sequence[Step],
    rules: Rules,
    cameras: Cameras,
    num_frames: int,
    ranges: Sequence[tuple[float, float]] = (),
) -> dict[Hashable, list[Step]]:
    """Steps of a kind evaluate the same cells, by the same priors, and add noise alike."""
    kinds: dict[Hashable, list[Step]] = {}
    for step in steps:
        weights, scales = (
            rules.weights(step, cameras, num_frames),
            rules.guidance(step, cameras, num_frames),
        )
        needs = needed(rules.compose, [], weights, scales)
        halves = tuple(
            (name, *(half.numpy().tobytes() for half in need)) for name, need in needs.items()
        )
        # it may ask for more at some levels
        nested = step.sigma if as_composition(rules.compose).nested else None
        spoken = tuple(within(one, step.sigma) for one in ranges)
        kind = (
            halves,
            spoken,
            nested,
            step.noise_before > 0,
            step.noise_after > 0,
            step.sigma_next > 0,
        )
        kinds.setdefault(kind, []).append(step)
    return kinds

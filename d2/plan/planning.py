"""`plan=true`: what jobs would cost, before anything is loaded."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from d2.job import PUBLISHED, Job
from d2.matrix import camera_ring
from d2.plan.cast import Cast, cast_of
from d2.plan.planner import CHUNKS, Choice, plan, render
from d2.plan.rehearsal import Workload, cell_evaluations, steps_by_kind
from d2.priors import checkpoint, tiny
from d2.priors.prior import PriorConfig
from d2.rules.bundle import under_one_prior
from d2.terms import Settings

_counting_cast = functools.lru_cache(1)(cast_of)


def planned(job: Job, cast: Cast | None = None) -> str:
    """The plan as text: work, memory, and settings that fit the device it sees; what is given is
    kept."""
    choice = choice_of(job)
    unset = {name: getattr(Settings, name) for name in CHUNKS} | {"offload": "none"}
    free = [name for name, default in unset.items() if getattr(choice, name) == default]
    memory = device_memory(job.devices.accelerator)
    found = plan(workload_of(job), job.settings, choice, memory=memory, free=free, cast=cast)
    return render(found)


def plans(jobs: Sequence[Job]) -> str:
    """What variants cost: each distinct plan is rehearsed once, and stands below all whose it
    is."""
    rehearsed: dict[Hashable, str] = {}
    names: dict[str, list[str]] = {}
    cast = workload_of(jobs[0]).cast(jobs[0].networks.dtype)
    for variant, job in {job.variant: job for job in jobs}.items():
        work = plan_key(job)
        if work not in rehearsed:
            rehearsed[work] = planned(job, cast)
        names.setdefault(rehearsed[work], []).append(variant)
    parts = [f"{', '.join(of)}\n{plan}" for plan, of in names.items()]
    return "\n\n".join([*parts, f"{len(jobs)} runs; the plans are of one scene"])


def cells_of_methods(job: Job) -> dict[str, float]:
    """Cells through networks for one scene, by the name under which metrics.csv knows a method.

    Of the baselines it knows those that sample.
    """
    workload = workload_of(job)
    cast = _counting_cast(workload.sizes, torch.float32)
    methods = {"joint": job.rules}
    if job.baselines:
        methods["columns_alone"] = under_one_prior(job.rules, "multiview")
        methods["rows_alone"] = under_one_prior(job.rules, "video")
        if job.published is not None:
            methods[PUBLISHED] = job.published
    return {
        name: float(cell_evaluations(workload._replace(rules=rules), cast, job.settings))
        for name, rules in methods.items()
    }


def plan_key(job: Job) -> Hashable:
    """What a plan depends on: how many steps of each kind there are, and the functions that take
    their predictions."""
    steps = job.rules.renoise(job.settings.sigmas)
    kinds = steps_by_kind(steps, job.rules, camera_ring(job.size.num_views), job.size.num_frames)
    counts = tuple((kind, len(of_kind)) for kind, of_kind in kinds.items())
    levels = job.settings  # outside of which a published prior may say nothing
    if job.networks.is_tiny:
        levels = replace(levels, sigma_min=1.0, sigma_max=1.0, rho=1.0, levels=())
    functions = (*targets_of(job.told["composition"]), *targets_of(job.told["solver"]))
    return counts, levels, functions


def targets_of(node: Any) -> Iterator[str]:
    """The functions that the node of a rule names."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [value] if key == "_target_" else targets_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets_of(value)


def choice_of(job: Job) -> Choice:
    """The settings that memory depends on."""
    settings = job.settings
    return Choice(
        settings.sequences_per_call, settings.decode_chunk, job.offload, job.networks.dtype
    )


def workload_of(job: Job) -> Workload:
    """What is to be sampled, by sizes alone."""
    if job.networks.is_tiny:
        cell = tiny.CELL if "cell" in job.networks.files else None
        columns = job.networks.multiview_config
        return Workload(tiny.VIDEO, columns, tiny.AUTOENCODER, job.rules, *job.size, cell=cell)
    published = checkpoint.PUBLISHED
    video, multiview = published[job.networks.video], published[job.networks.multiview]
    assert isinstance(video.prior, PriorConfig)
    return Workload(
        video.prior,
        multiview.prior,
        video.first_stage,
        job.rules,
        *job.size,
        decoder=multiview.first_stage,
    )


def device_memory(accelerator: str) -> int | None:
    """Bytes of the first accelerator that a trainer would take; None for a CPU."""
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory

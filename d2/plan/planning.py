"""`plan=true`: what a configuration would cost, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from d2.config.schema import SampleConfig
from d2.config.tiers import DTYPES, is_tiny, sizes, weights_files
from d2.errors import InputError
from d2.pipeline import Rules
from d2.plan.planner import Choice, plan, render
from d2.plan.rehearsal import Job
from d2.priors import tiny
from d2.priors.checkpoint import PUBLISHED
from d2.priors.prior import PriorConfig
from d2.priors.tensor_file import read_header
from d2.terms import Settings


def planned(config: SampleConfig, rules: Rules, settings: Settings) -> str:
    """The plan as text: work, memory, and settings that fit the device it sees; what is given is kept."""
    choice = choice_of(config)
    unset = {"sequences_per_call": None, "decode_chunk": None, "offload": "none"}
    free = [name for name, default in unset.items() if getattr(choice, name) == default]
    return render(plan(job_of(config, rules), settings, choice, memory=device_memory(config), free=free))


def choice_of(config: SampleConfig) -> Choice:
    s = config.sampler
    return Choice(s.sequences_per_call, s.decode_chunk, config.offload, DTYPES[config.precision])


def job_of(config: SampleConfig, rules: Rules) -> Job:
    """What is to be sampled, by sizes alone."""
    size = sizes(config)
    if config.unary.prior == "cell":
        raise InputError("unary.prior=cell: no plan knows this network; take unary.prior=multiview")
    if is_tiny(config):
        stage = tiny.first_stage_of(read_header(Path(weights_files(config)["autoencoder"])))
        return Job(tiny.VIDEO, tiny.MULTIVIEW, stage, rules, *size)
    video, multiview = PUBLISHED[config.video.network], PUBLISHED[config.multiview.network]
    assert isinstance(video.prior, PriorConfig)
    return Job(video.prior, multiview.prior, video.first_stage, rules, *size, decoder=multiview.first_stage)


def device_memory(config: SampleConfig) -> int | None:
    """Bytes of the first accelerator that the trainer would take; None for a CPU."""
    if config.trainer.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory

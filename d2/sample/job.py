"""`d2 sample`: jobs that share their networks and scenes, one predict loop each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from d2 import launch
from d2.data.matting import open_model
from d2.data.sources import Stream, list_scenes, refuse_unreadable
from d2.errors import InputError, say
from d2.files import ensure_writable
from d2.job import Job
from d2.loggers import start_loggers
from d2.metrics.networks import suite_of_matrix
from d2.metrics.suite import Suite
from d2.networks import load_priors
from d2.plan.planner import out_of_memory_advice
from d2.plan.planning import cells_of_methods, choice_of
from d2.sample.earlier import (
    begin,
    clear_another,
    end,
    has_begun,
    held,
    refuse_another,
    was_finished,
)
from d2.sample.log import Log
from d2.sample.matrix_sampler import MatrixSampler
from d2.sample.measure import Measure
from d2.sample.progress import SamplerProgress
from d2.sample.write import Origin, Write
from d2.shard import waited_too_long
from d2.trainer import make_trainer


def sample(job: Job) -> int:
    """Run one job. Returns the exit code: 0, or 3 if scenes were left out."""
    with held(job.folder):
        failures = run([job])
    if rank_zero_only.rank:  # Lightning kills all processes when one of them exits with a code
        return 0
    for line in failures:
        say(f"d2: left out: {line}")
    return 3 if failures else 0


def run(jobs: Sequence[Job], references: Path | None = None) -> list[str]:
    """Sample jobs of the same networks and scenes in turn; what was finished before is left as it
    is.

    `references` is a folder for what all jobs' scenes are told, made once. Returns one line for
    each scene that could not be read.
    """
    first = jobs[0]
    if first.source.cut_out:
        open_model(first.source.matting_model)  # what is missing stops the run
    refuse_unreadable(first.source)
    load_metrics(first, "cpu")  # so does a missing network of a metric
    for job in jobs:
        if not job.overwrite:
            refuse_another(job.folder, job.text)
    if launch.worker()[1] > 1:
        return run_share(jobs, references)
    module, failures = None, []
    for job in jobs:
        stream = Stream(list_scenes(job.source))
        if was_finished(job.folder, job.text, stream):
            say_finished(job)
        else:
            module = module or MatrixSampler(first, load_priors(first.networks), references)
            clear_another(job.folder, job.text)
            predict(job, module, stream)
        end(job.folder, [scene.name for scene in stream.scenes])
        failures = stream.failures
    return failures


def run_share(jobs: Sequence[Job], references: Path | None) -> list[str]:
    """Sample this worker's share of all jobs' scenes; the tables are made when all are there.

    A scene's variants fall to one worker where the number of scenes is a multiple of the workers:
    it makes their orbit once.
    """
    number, count = launch.worker()
    left = [
        job
        for job in jobs
        if not was_finished(job.folder, job.text, Stream(list_scenes(job.source)))
    ]
    for job in left:
        if number == 0:
            clear_another(job.folder, job.text)
            begin(job.folder, job.text)
        while not has_begun(job.folder, job.text):
            time.sleep(0.05)
    module = None
    for place, job in enumerate(jobs):
        scenes = list_scenes(job.source)
        mine = [
            scene for i, scene in enumerate(scenes) if (i + place * len(scenes)) % count == number
        ]
        if job in left and mine:
            module = module or MatrixSampler(jobs[0], load_priors(jobs[0].networks), references)
            predict(job, module, Stream(mine), whole=False)
    return []


@rank_zero_only
def say_finished(job: Job) -> None:
    say(f"d2: {job.folder}: finished before, not run again")


def predict(job: Job, module: MatrixSampler, stream: Stream, *, whole: bool = True) -> None:
    """Run one predict loop over the scenes, everything into the job's folder; what is finished
    there stays.

    Where the scenes are not the whole of the job's, nothing is logged, and no table made.
    """
    module.take(job)
    particles = 1 if job.rules.choose is None else job.rules.choose.particles
    alike = particles + (2 if job.baselines else 0)
    evaluations = alike * len(job.rules.renoise(job.settings.sigmas))
    if job.published is not None:
        evaluations += len(job.published.renoise(job.settings.sigmas))
    name, costs = job.folder.resolve().name, cache(partial(cells_of_methods, job))
    origin = Origin(name, job.variant, job.seed, job.text, job.facts, costs)
    measure = Measure(partial(load_metrics, job), job.folder, whole=whole)
    write = Write(job.folder, measure, origin, pages=job.pages)
    callbacks = [SamplerProgress(len(stream.scenes), evaluations), measure, write]
    trainer = make_trainer(
        job.devices, job.folder, [], [*callbacks, *([Log(job.folder, measure)] if whole else [])]
    )
    ensure_writable(job.folder)
    if whole:
        begin(job.folder, job.text)
        told = {**job.told, "weights_hash": job.facts}
        trainer.loggers = start_loggers(job.logging, job.folder, job.label, told)
    try:
        trainer.predict(module, DataLoader(stream, batch_size=None), return_predictions=False)
    except torch.OutOfMemoryError as error:
        raise InputError(out_of_memory_advice(error, choice_of(job))) from error
    except RuntimeError as error:
        if not waited_too_long(error):
            raise
        raise InputError(
            f"trainer.timeout_seconds={job.devices.timeout_seconds:g}: a process has not answered"
            " for so long; start the same command again to go on from the last state, or give more"
            " seconds"
        ) from error


def load_metrics(job: Job, device: torch.device | str) -> Suite | None:
    """Load what a job measures; an InputError names a file that is missing."""
    if job.metrics is None:
        return None
    return suite_of_matrix(job.metrics, job.size.num_views, job.size.num_frames, device)

"""`d2 sample`: a single run, or a study of variants and seeds."""

from __future__ import annotations

from d2 import launch
from d2.commands.runs import runs_of
from d2.config.command_line import Composed
from d2.files import absolute
from d2.recon.job import after_sampling
from d2.sample.job import sample
from d2.study.job import rename, study


def run(composed: Composed) -> int:
    """Sample; the exit code. A point of a sweep makes no assets."""
    jobs, config = runs_of(composed), composed.config
    if config.variants or config.seeds:
        return study(jobs, absolute(config.output_dir), config.compare_to)
    (job,) = jobs
    code = sample(job)
    if composed.swept:
        rename(job.folder, job.variant)
    elif job.assets is not None and launch.worker()[1] == 1:
        after_sampling(job.folder, **job.assets._asdict(), accelerator=job.devices.accelerator)
    return code

"""A study: jobs sampled in one process, the priors loaded once, under the same noise and
conditions.

Every variant's folder holds its scenes, or a folder seed_N for each seed; results.csv holds every
figure in long format, and table.md the means with their bootstrap intervals and paired differences.
What a single run and a sweep leave is the same.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from d2 import launch
from d2.errors import InputError
from d2.job import Job
from d2.metrics.figures import COST, read_figures, write_figures
from d2.metrics.intervals import by_scene
from d2.metrics.metric import METRIC_NAMES
from d2.sample.earlier import held
from d2.sample.job import run
from d2.study.results import OF_SAMPLES, study_figures, sweep_figures, write_summary

# orbits and clips of reference, which all variants share, while a study runs
REFERENCES = ".references"


def study(jobs: Sequence[Job], folder: Path, compare_to: str | None) -> int:
    """Sample every job and write results.csv, table.md and a plot into `folder`. Returns the exit
    code.

    What was sampled to its end by the same configuration is not run again.
    """
    references = folder / REFERENCES
    if launch.worker()[1] > 1:  # the tables are made when all is there
        run(jobs, references)
        return 0
    with held(folder):
        _remove(references)  # of a study that was killed
        run(jobs, references)
        if rank_zero_only.rank == 0:
            _remove(references)
            write_summary(folder, study_figures(folder, [job.folder for job in jobs]), compare_to)
    return 0


@rank_zero_only
def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


# --- what is left behind --------------------------------------------------------------------------


def rename(folder: Path, variant: str) -> None:
    """Let the results of a run go by another name: in a sweep, that of what is swept over."""
    path = folder / "results.csv"
    if path.exists():
        figures = read_figures(path)
        write_figures(
            path, [dataclasses.replace(f, variant=variant) if f.config else f for f in figures]
        )


def sweep_results(folder: Path) -> None:
    """results.csv, table.md and plot.svg of a sweep, from what its points left."""
    figures = sweep_figures(folder)
    if figures:
        write_summary(folder, figures, None)


# --- what a sweeper tunes -------------------------------------------------------------------------


def check_objective(wanted: str, *, num_variants: int, num_seeds: int) -> None:
    """Refuse a figure that no point will have."""
    if num_variants:
        raise InputError(
            f"objective={wanted}: of which variant? give no variants to a sweep that tunes"
        )
    if wanted in OF_SAMPLES and num_seeds < 2:
        raise InputError(f"objective={wanted}: wants several samples of a scene; give seeds=[0,1]")
    if wanted not in (*OF_SAMPLES, *METRIC_NAMES, COST):
        raise InputError(
            f"objective={wanted}: no such figure; choose"
            f" {' or '.join((*OF_SAMPLES, *METRIC_NAMES, COST))}"
        )


def objective_of(folder: Path, variant: str, metric: str) -> float:
    """The mean over scenes of the figure that a sweeper tunes for; NaN where the point has none."""
    path = folder / "results.csv"
    figures = by_scene(read_figures(path)).get(variant, {}) if path.exists() else {}
    values = figures.get(metric, {}).values()
    return sum(values) / len(values) if values else math.nan

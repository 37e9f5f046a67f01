"""`d2 reconstruct`, and the end of a single run of `d2 sample`: matrices and folders to scenes of
moving Gaussians."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only

from d2.config.names import Label
from d2.config.recipe import Recipe
from d2.errors import InputError, say
from d2.files import ensure_writable
from d2.io import read_matrix
from d2.loggers import Logging, finish_loggers, log_figures, log_videos, start_loggers
from d2.metrics.figures import JOINT, Figure, write_figures
from d2.metrics.networks import load_distance
from d2.recon.capture import MIN_VIEWS, Capture, capture_matrix
from d2.recon.motion import Motion
from d2.recon.multiview import write_multiview
from d2.recon.run import reconstruct
from d2.recon.transforms import capture_folders, read_capture
from d2.recon.world import world_figures, world_scene
from d2.report.asset_page import show_asset

MATRIX = "matrix.safetensors"


class Source(NamedTuple):
    """One scene to be made."""

    name: str  # a path relative to the output folder, empty for the folder itself
    label: str  # what people call it
    # the pictures, and what is measured besides, for `reconstruct`
    read: Callable[[], tuple[Capture, Any]]


@dataclass(frozen=True)
class ReconstructJob:
    """All that decides `d2 reconstruct`."""

    sources: Sequence[Source]
    folder: Path
    recipe: Recipe
    motion: Motion
    metrics: Sequence[str]  # perceptual distances, of d2.metrics.suite.PERCEPTUAL
    exports: Sequence[str]  # multiview
    seed: int
    accelerator: str
    logging: Logging
    label: Label
    told: Mapping[str, Any]  # the configuration, for loggers


def reconstruct_command(job: ReconstructJob) -> int:
    """Run the job. Returns the exit code: 0, or 3 if some scenes of several could not be made."""
    sources, folder = job.sources, job.folder
    rows: list[Figure] = []
    failures: list[str] = []
    # what is missing stops the run
    distances = [load_distance(name, torch.device("cpu")) for name in job.metrics]
    ensure_writable(folder)
    loggers = start_loggers(job.logging, folder, job.label, job.told)
    for index, source in enumerate(sources):
        try:
            capture, more_figures = source.read()
            done = reconstruct(
                capture,
                job.recipe,
                job.motion,
                folder / source.name,
                name=source.label,
                seed=job.seed,
                accelerator=job.accelerator,
                # steps of several fits would be drawn over each other
                loggers=loggers if len(sources) == 1 else (),
                distances=distances,
                more_figures=more_figures,
            )
            if "multiview" in job.exports:
                write_multiview(folder / source.name / "multiview", capture, done.scene)
        except InputError as error:
            if len(sources) == 1:
                raise
            failures.append(f"{source.label}: {error}")
            continue
        log_videos(loggers, folder / source.name, source.label, ("orbit", "spiral"))
        log_figures(
            loggers, {f"asset/{name}": value for name, value in done.figures.items()}, index
        )
        rows += figures_of(source.label, done.figures)
    if not rows:
        raise InputError(failures[0])
    write_figures(folder / "results.csv", rows)
    finish_loggers(loggers)
    for line in failures:
        say(f"d2: left out: {line}")
    return 3 if failures else 0


def figures_of(label: str, figures: Mapping[str, float]) -> list[Figure]:
    """A scene's figures as lines of results.csv, under the variant and the seed that the folders of
    a study name: VARIANT/seed_0/SCENE."""
    *parts, scene = label.split("/")
    seeds = [part.removeprefix("seed_") for part in parts if re.fullmatch(r"seed_\d+", part)]
    variant = "/".join(part for part in parts if not re.fullmatch(r"seed_\d+", part))
    return [
        Figure(
            variant=variant or JOINT, scene=scene, sample=(seeds or ["0"])[-1], metric=k, value=v
        )
        for k, v in figures.items()
    ]


def after_sampling(
    folder: Path, recipe: Recipe, motion: Motion, *, required: bool, accelerator: str
) -> None:
    """Make an asset of every matrix of a run, in SCENE/asset.

    What cannot be made is raised where it is required, else said in one line; too few views are
    passed over.
    """
    if rank_zero_only.rank:
        return
    for source in matrices_of(folder, str(folder)):
        try:
            capture, more_figures = source.read()
            if not required and capture.num_views < MIN_VIEWS:
                continue
            reconstruct(
                capture,
                recipe,
                motion,
                folder / source.name / "asset",
                name=source.label,
                accelerator=accelerator,
                more_figures=more_figures,
            )
            show_asset(folder / source.name / "index.html", "asset")
        except InputError as error:
            if required:
                raise
            say(f"d2: no asset of {source.label}: {error}")


def find_sources(runs: Sequence[Path], matrix: Path | None, pictures: Path | None) -> list[Source]:
    """What is to be reconstructed, in the order of names; an InputError where there is nothing."""
    if matrix is not None:
        path = matrix
        if not path.is_file():
            raise InputError(f"matrix={path}: no such file; give a matrix.safetensors")
        label = path.parent.name if path.name == MATRIX else path.stem
        return [Source("", label, partial(read_source, path))]
    if pictures is not None:
        folders = capture_folders(pictures)
        return [Source(f.name, f.name, partial(read_folder, f)) for f in folders]
    several = len(runs) > 1
    return [
        (
            source._replace(name=f"{run.name}/{source.name}", label=f"{run.name}/{source.label}")
            if several
            else source
        )
        for run in runs
        for source in matrices_of(run, f"run={run}")
    ]


def matrices_of(run: Path, said: str) -> Sequence[Source]:
    """The matrices of a run or a study, by the folders they lie in."""
    paths = [
        path
        for path in sorted(run.rglob(MATRIX))
        if not any(part.startswith(".") for part in path.relative_to(run).parts)
    ]
    if not paths:
        raise InputError(f"{said}: holds no {MATRIX}; give the output_dir of d2 sample")
    names = [str(path.parent.relative_to(run)) for path in paths]
    return [
        Source(
            "" if name == "." else name,
            run.name if name == "." else name,
            partial(read_source, path),
        )
        for name, path in zip(names, paths, strict=True)
    ]


def read_source(path: Path) -> tuple[Capture, Any]:
    """A matrix, and the figures between its pictures where its world is known."""
    matrix = read_matrix(path)
    capture = capture_matrix(matrix)
    names = (path.parent.name, path.stem)
    known = next((found for name in names if (found := world_scene(name, matrix.cameras))), None)
    if known is None:
        return capture, None
    return capture, lambda render, device: world_figures(render, matrix, *known, device)


def read_folder(folder: Path) -> tuple[Capture, Any]:
    """Pictures with their cameras; of their world nothing is known."""
    return read_capture(folder), None

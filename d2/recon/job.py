"""`d2 reconstruct`, and the end of a single run of `d2 sample`: matrices and folders to scenes of moving Gaussians."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only

from d2.config.binding import bind
from d2.config.names import Label
from d2.config.recipe import Recipe
from d2.config.schema import ReconstructConfig, SampleConfig
from d2.errors import InputError, say
from d2.files import csv_text, ensure_writable, write_text
from d2.io import read_matrix
from d2.loggers import finish_loggers, log_figures, log_videos, start_loggers
from d2.recon.capture import MIN_VIEWS, Capture, capture_matrix
from d2.recon.motion import Motion
from d2.recon.run import reconstruct
from d2.recon.transforms import capture_folders, read_capture
from d2.recon.world import world_figures, world_scene
from d2.report.asset_page import link_asset

MATRIX = "matrix.safetensors"


class Source(NamedTuple):
    """One scene to be made."""

    name: str  # a path relative to the output folder, empty for the folder itself
    label: str  # what people call it
    read: Callable[[], tuple[Capture, Any]]  # the pictures, and what is measured besides, for `reconstruct`


def reconstruct_command(config: ReconstructConfig, label: Label) -> int:
    """Run the job. Returns the exit code: 0, or 3 if some scenes of several could not be made."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    motion, folder = motion_of(config.recon), Path(config.output_dir)
    sources = find_sources(config)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    ensure_writable(folder)
    loggers = start_loggers(config.logger, folder, label, dataclasses.asdict(config))
    for index, source in enumerate(sources):
        try:
            capture, more_figures = source.read()
            done = reconstruct(
                capture,
                config.recon,
                motion,
                folder / source.name,
                name=source.label,
                seed=config.seed,
                accelerator=config.trainer.accelerator,
                loggers=loggers if len(sources) == 1 else (),  # steps of several fits would be drawn over each other
                more_figures=more_figures,
            )
        except InputError as error:
            if len(sources) == 1:
                raise
            failures.append(f"{source.label}: {error}")
            continue
        log_videos(loggers, folder / source.name, source.label, ("orbit", "spiral"))
        log_figures(loggers, {f"asset/{name}": value for name, value in done.figures.items()}, index)
        rows += [{"object": source.label, "metric": name, "value": value} for name, value in done.figures.items()]
    if not rows:
        raise InputError(failures[0])
    write_text(folder / "results.csv", csv_text(rows))
    finish_loggers(loggers)
    for line in failures:
        say(f"d2: left out: {line}")
    return 3 if failures else 0


def after_sampling(config: SampleConfig) -> None:
    """Make an asset of every matrix of a run, in SCENE/asset, where `reconstruct` asks for it.

    `auto` does so with pages and enough views, and says in one line what could not be made; `true` raises that.
    """
    if config.reconstruct is False or config.plan or rank_zero_only.rank:
        return
    if config.reconstruct == "auto" and not config.pages:
        return
    folder, motion = Path(config.output_dir), motion_of(config.recon)
    for source in matrices_of(folder, str(folder)):
        try:
            capture, more_figures = source.read()
            if config.reconstruct == "auto" and capture.num_views < MIN_VIEWS:
                continue
            reconstruct(
                capture,
                config.recon,
                motion,
                folder / source.name / "asset",
                name=source.label,
                accelerator=config.trainer.accelerator,
                more_figures=more_figures,
            )
            link_asset(folder / source.name / "index.html", "asset/index.html")
        except InputError as error:
            if config.reconstruct is True:
                raise
            say(f"d2: no asset of {source.label}: {error}")


def motion_of(recipe: Recipe) -> Motion:
    """The motion that a configuration names."""
    return bind(recipe.motion, "recon.motion")


def find_sources(config: ReconstructConfig) -> list[Source]:
    """What is to be reconstructed, in the order of names; ValueError where there is nothing."""
    if config.matrix is not None:
        path = Path(config.matrix)
        if not path.is_file():
            raise InputError(f"matrix={path}: no such file; give a matrix.safetensors")
        label = path.parent.name if path.name == MATRIX else path.stem
        return [Source("", label, partial(read_source, path))]
    if config.scenes.path is not None:
        return [Source(f.name, f.name, partial(read_folder, f)) for f in capture_folders(Path(config.scenes.path))]
    runs = [config.run] if isinstance(config.run, str) else config.run
    several = len(runs) > 1
    return [
        source._replace(name=f"{Path(run).name}/{source.name}", label=f"{Path(run).name}/{source.label}")
        if several
        else source
        for run in runs
        for source in matrices_of(Path(run), f"run={run}")
    ]


def matrices_of(run: Path, said: str) -> Sequence[Source]:
    """The matrices of a run or a study, by the folders they lie in."""
    paths = [path for path in sorted(run.rglob(MATRIX)) if not any(part.startswith(".") for part in path.parts[1:])]
    if not paths:
        raise InputError(f"{said}: holds no {MATRIX}; give the output_dir of d2 sample")
    names = [str(path.parent.relative_to(run)) for path in paths]
    return [
        Source("" if name == "." else name, run.name if name == "." else name, partial(read_source, path))
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

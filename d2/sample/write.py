"""The callback that writes: a folder for every scene, and at the end the run's tables and its
index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch

from d2.cameras import frusta
from d2.files import commit, csv_text, staged_folder, write_json, write_text
from d2.io import write_disagreement, write_matrix
from d2.job import PUBLISHED
from d2.matrix import ImageMatrix, rig_of
from d2.metrics.figures import (
    ALL,
    COST,
    JOINT,
    Figure,
    deciding,
    hash_of,
    owned,
    weights_hash,
    write_figures,
)
from d2.metrics.intervals import means
from d2.metrics.table import by_method, columns_of, mean_rows, scene_rows
from d2.report.figures import ranking_charts
from d2.report.page import Card, Table, thumbnail, write_index_page, write_scene_page
from d2.sample.kept import Kept, write_kept
from d2.sample.matrix_sampler import SceneResult
from d2.sample.measure import Measure, is_mine
from d2.sample.state import input_of
from d2.scene import Scene

BESIDE = ("columns_alone", PUBLISHED)  # what can be looked at beside a sample
FRUSTUM_DEPTH = 0.35  # of a camera in the viewer; the scene's radius is 0.5


class Origin(NamedTuple):
    """What every figure of a run says of where it comes from."""

    run: str
    variant: str
    seed: int
    config: str  # YAML, as it is kept beside the results
    facts: Mapping[str, str]  # what results depend on besides: weights, the world
    # method -> cells that went through networks for one scene, which it takes a rehearsal to know
    costs: Callable[[], Mapping[str, float]]


class Write(L.Callback):
    """Writes every scene's folder, each on one rank, and the run's tables and index on the first at
    the end."""

    def __init__(self, folder: Path, measure: Measure, origin: Origin, *, pages: bool):
        self.folder, self.measure, self.origin, self.pages = folder, measure, origin, pages

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Scene,
        batch_idx: int,
        *_: Any,
    ) -> None:
        if not isinstance(outputs, SceneResult) or not is_mine(trainer, batch_idx):
            return
        sampled, measured = outputs.sampled, self.measure.of_scene
        rows = scene_figures(
            [figure for each in measured.values() for figure in each.figures], batch.name
        )
        matrix, facts = on_cpu(sampled.matrix), {"seed": str(batch.seed), "input": input_of(batch)}
        card = (
            Card(batch.name, f"{batch.name}/index.html", thumbnail(matrix.pixels))
            if self.pages
            else None
        )
        with staged_folder(self.folder / batch.name) as partial:
            write_matrix(partial, matrix, batch.truth, {**self.origin.facts, **facts})
            write_json(partial / "metrics.json", rows)
            write_disagreement(partial, *sampled.disagreement)
            write_kept(partial, Kept(measured, card))
            if self.pages:
                page, config = partial / "index.html", deciding(self.origin.config)
                write_page(page, batch, outputs, rows, config)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (trainer.is_global_zero and self.measure.whole):
            return
        write_tables(self.folder, self.measure.figures, self.origin)
        if self.pages:
            cards = [kept.card for kept in self.measure.scenes.values() if kept.card]
            write_index(self.folder / "index.html", cards, self.measure.figures, self.origin)
        write_text(self.folder / "config.yaml", self.origin.config)


def scene_figures(figures: list[Figure], name: str) -> dict[str, dict[str, float]]:
    """metrics.json: method -> metric -> value."""
    return {method: scenes[name] for method, scenes in by_method(figures).items()}


def write_tables(folder: Path, figures: list[Figure], origin: Origin) -> None:
    """results.csv, every figure a line; metrics.csv, every scene a line under each method."""
    rows = scene_rows(figures)
    if figures:
        write_figures(folder / "results.csv", run_results(figures, origin))
    else:
        (folder / "results.csv").unlink(missing_ok=True)  # of an earlier run
    if rows:
        write_text(folder / "metrics.csv", csv_text(rows))
    else:
        (folder / "metrics.csv").unlink(missing_ok=True)


def run_results(figures: list[Figure], origin: Origin) -> list[Figure]:
    """A run's figures with their origin, and what each method costs a scene."""
    scenes = dict.fromkeys(
        (figure.variant, figure.scene) for figure in figures if figure.scene != ALL
    )
    cells = origin.costs()
    costs = [
        Figure(variant=method, scene=scene, metric=COST, value=cells[method])
        for method, scene in scenes
        if method in cells
    ]
    return owned(
        [*figures, *costs],
        run=origin.run,
        variant=origin.variant,
        sample=str(origin.seed),
        config=hash_of(deciding(origin.config)),
        weights=weights_hash(origin.facts),
        commit=commit(),
    )


# --- pages ----------------------------------------------------------------------------------------


def write_index(path: Path, cards: list[Card], figures: list[Figure], origin: Origin) -> None:
    """The index of a run: its scenes to look at, the means of all methods, and every scene's own
    figures."""
    found = means(run_results(figures, origin), seed=0)
    own = by_method(figures).get(JOINT, {})
    scenes = [{"scene": card.name, **shown(own.get(card.name, {}))} for card in cards]
    note = (
        "Means over scenes with their 95 % bootstrap intervals. PSNR rewards blur: read it beside"
        " the others."
    )
    write_index_page(
        path,
        title="d2: sampled image matrices",
        facts=f"{len(cards)} scene{'s' * (len(cards) != 1)}",
        cards=cards,
        tables=[
            Table("Summary", note, mean_rows(found)),
            Table("Scenes", "", scenes, hrefs=[card.href for card in cards]),
        ],
        charts=[ranking_charts(found)] if len(found) > 1 else [],
        config=deciding(origin.config),
    )


def write_page(
    path: Path, scene: Scene, result: SceneResult, rows: dict[str, dict[str, float]], config: str
) -> None:
    """The viewer of one scene, with truth, columns alone and the published rule to choose
    beside it."""
    sampled, others = result.sampled, {}
    if scene.truth is not None:
        others["Truth"] = scene.truth.pixels
    for method in BESIDE:
        if method in result.baselines:
            others[method.replace("_", " ").capitalize()] = result.baselines[method].cpu()
    write_scene_page(
        path,
        title=f"d2: {scene.name}",
        sample=sampled.matrix.pixels,
        others=others,
        input_view=scene.cameras.input_view,
        azimuth_deg=torch.rad2deg(scene.cameras.azimuth_rad).tolist(),
        elevation_deg=torch.rad2deg(scene.cameras.elevation_rad).tolist(),
        frusta=frusta(rig_of(scene.cameras), FRUSTUM_DEPTH).tolist(),
        fps=scene.fps,
        metrics=shown(rows.get(JOINT, {})),
        baselines=[{"method": name, **shown(row)} for name, row in rows.items() if name != JOINT],
        config=config,
        disagreement=sampled.disagreement,
    )


def shown(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures people read, in their order."""
    return {name: figures[name] for name in columns_of(figures)}


def on_cpu(matrix: ImageMatrix) -> ImageMatrix:
    return matrix._replace(
        pixels=matrix.pixels.cpu(), latents=None if matrix.latents is None else matrix.latents.cpu()
    )

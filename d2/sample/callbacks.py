"""What happens around a predict step: progress, files, metrics, pages, loggers.

A scene's outputs are written, and it is measured, on exactly one rank: its index modulo the world size. At the end the
first rank has what all have found, and makes the run's tables of it in the order of scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from d2.files import csv_text, staged_folder, write_json, write_text
from d2.io import write_disagreement, write_matrix
from d2.loggers import finish_loggers, log_figures, log_scene, log_table
from d2.matrix import ImageMatrix
from d2.metrics.baselines import true_orbit_repeated
from d2.metrics.suite import Measured, Suite
from d2.metrics.table import TABLE_COLUMNS
from d2.pipeline import Sampled
from d2.report.page import SceneEntry, write_index_page, write_scene_page
from d2.sample.figures import JOINT, Figures, Tables, figures_of, measure_scene, scene_rows, set_rows, tables_of
from d2.sample.matrix_sampler import MatrixSampler, SceneResult
from d2.sampling import State
from d2.scene import Scene
from d2.shard import gather_objects


class SamplerProgress(L.Callback):
    """A progress bar with the scene, the step, its sigma and the time left; plain lines where there is no terminal."""

    def __init__(self, num_scenes: int, evaluations: int):
        self.console = Console(stderr=True)
        self.num_scenes = num_scenes
        self.scene = ""
        text = TextColumn("{task.description}")
        columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=self.console)
        self.task = self.progress.add_task("sampling", total=num_scenes * evaluations)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MatrixSampler)
        pl_module.listeners.append(self.advance)
        if trainer.is_global_zero and self.console.is_terminal:
            self.progress.start()

    def on_predict_batch_start(self, trainer: Any, pl_module: Any, batch: Scene, batch_idx: int, *_: Any) -> None:
        self.scene = batch.name
        if trainer.is_global_zero and not self.console.is_terminal:
            self.console.print(f"sampling {batch.name} ({batch_idx + 1} of {self.num_scenes})", highlight=False)

    def advance(self, name: str, state: State) -> None:
        step = state.step
        description = f"{self.scene} {name} step {step.index + 1}/{step.num_steps} σ {step.sigma:.3g}"
        self.progress.update(self.task, advance=1, description=description)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop()
        assert isinstance(pl_module, MatrixSampler)
        pl_module.listeners.remove(self.advance)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        """Give the terminal its cursor back."""
        if self.progress.live.is_started:
            self.progress.stop()


class SceneOutputs(L.Callback):
    """Writes every scene's folder, and the run's tables and index at the end."""

    def __init__(
        self,
        folder: Path,
        *,
        config: str,
        facts: dict[str, str],
        pages: bool,
        load_suite: Callable[[torch.device], Suite | None],  # what is measured; None: nothing
    ):
        self.folder, self.config, self.facts, self.pages = folder, config, facts, pages
        self.load_suite = load_suite
        self.suite: Suite | None = None
        self.entries: dict[int, SceneEntry] = {}
        self.measured: dict[int, dict[str, Measured]] = {}  # scene's index -> method -> what was found

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.suite = self.load_suite(pl_module.device)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Scene,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, MatrixSampler) and isinstance(outputs, SceneResult)
        if batch_idx % trainer.world_size != trainer.global_rank:
            return
        methods = {} if self.suite is None else all_methods(pl_module, outputs, batch)
        measured = {} if self.suite is None else measure_scene(self.suite, methods, batch)
        rows = {method: figures_of(found) for method, found in measured.items() if found.rows}
        matrix = on_cpu(outputs.sampled.matrix)
        with staged_folder(self.folder / batch.name) as partial:
            write_matrix(partial, matrix, batch.truth, self.facts | {"seed": str(batch.seed)})
            write_json(partial / "metrics.json", rows)
            write_disagreement(partial, *outputs.sampled.disagreement)
            if self.pages:
                write_page(partial / "index.html", batch, outputs.sampled, rows, self.config)
        self.measured[batch_idx] = measured
        self.entries[batch_idx] = SceneEntry(
            batch.name, f"{batch.name}/index.html", matrix.pixels, shown(rows.get(JOINT, {}))
        )
        if trainer.is_global_zero:
            log_scene(trainer.loggers, self.folder / batch.name, batch_idx, rows.get(JOINT, {}))

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        gathered = gather_objects((self.entries, self.measured))
        if not trainer.is_global_zero:
            return
        entries = dict(sorted((index, entry) for part, _ in gathered for index, entry in part.items()))
        tables = tables_of(self.suite, {index: found for _, part in gathered for index, found in part.items()})
        self.write_tables(tables, entries)
        joint = tables.scenes.get(JOINT, {})
        for index in sorted(entries.keys() - self.entries.keys()):  # of other ranks
            log_scene(trainer.loggers, self.folder / entries[index].name, index, joint.get(index, {}))
        summary = {f"mean/{k}": v for k, v in tables.means.get(JOINT, {}).items()}
        summary |= {f"set/{figure.metric}": figure.value for figure in tables.sets.get(JOINT, [])}
        log_figures(trainer.loggers, summary)
        rows = scene_rows(tables, {index: entry.name for index, entry in entries.items()})
        log_table(trainer.loggers, "figures", rows)
        finish_loggers(trainer.loggers)

    def write_tables(self, tables: Tables, entries: Mapping[int, SceneEntry]) -> None:
        """metrics.csv, set_metrics.csv, config.yaml, index.html."""
        rows = scene_rows(tables, {index: entry.name for index, entry in entries.items()})
        for name, lines in (("metrics.csv", rows), ("set_metrics.csv", set_rows(tables))):
            if lines:
                write_text(self.folder / name, csv_text(lines))
            else:
                (self.folder / name).unlink(missing_ok=True)  # of an earlier run
        write_text(self.folder / "config.yaml", self.config)
        if self.pages:
            summary = [
                {"method": name, **shown(mean), **{figure.metric: figure.value for figure in tables.sets[name]}}
                for name, mean in tables.means.items()
            ]
            write_index_page(
                self.folder / "index.html",
                title="d2: sampled image matrices",
                scenes=list(entries.values()),
                summary=summary,
                config=self.config,
            )


def all_methods(module: MatrixSampler, result: SceneResult, scene: Scene) -> dict[str, Tensor]:
    """The sample, and where truth is known the baselines, the oracle and the ceiling: name -> v f 3 h w."""
    methods = {JOINT: result.sampled.matrix.pixels}
    if scene.truth is not None and result.baselines:
        methods |= result.baselines
        methods["true_orbit_repeated"] = true_orbit_repeated(scene.truth, module.settings.anchor_frames[0])
        methods["autoencoder_ceiling"] = module.ceiling(scene.truth.pixels)
    return methods


def write_page(path: Path, scene: Scene, sampled: Sampled, rows: dict[str, Figures], config: str) -> None:
    """The viewer of one scene."""
    baselines = [{"method": name, **shown(row)} for name, row in rows.items() if name != JOINT]
    write_scene_page(
        path,
        title=f"d2: {scene.name}",
        sample=sampled.matrix.pixels,
        truth=scene.truth.pixels if scene.truth else None,
        input_view=scene.cameras.input_view,
        azimuth_deg=torch.rad2deg(scene.cameras.azimuth_rad).tolist(),
        elevation_deg=torch.rad2deg(scene.cameras.elevation_rad).tolist(),
        fps=scene.fps,
        metrics=shown(rows.get(JOINT, {})) or None,
        baselines=baselines or None,
        config=config,
        disagreement=sampled.disagreement,
    )


def shown(figures: Figures) -> Figures:
    """The figures people read, in their order: PSNR never without sharpness and retrieval; then those of networks."""
    names = [*(name for name in TABLE_COLUMNS if name in figures), *(name for name in figures if "[" in name)]
    return {name: figures[name] for name in names}


def on_cpu(matrix: ImageMatrix) -> ImageMatrix:
    return matrix._replace(pixels=matrix.pixels.cpu(), latents=None if matrix.latents is None else matrix.latents.cpu())

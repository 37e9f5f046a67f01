"""What happens around a predict step: progress, files, metrics, pages, loggers.

A scene's outputs are written, and its metrics updated, on exactly one rank: its index modulo the world size.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from d2 import io as files
from d2.data.scene import Scene
from d2.lit.matrix_sampler import MatrixSampler, SceneResult
from d2.matrix import ImageMatrix
from d2.metrics.baselines import true_orbit_repeated
from d2.metrics.metric import METRIC_NAMES, MatrixMetrics
from d2.metrics.table import TABLE_COLUMNS
from d2.report.page import SceneEntry, write_index_page, write_scene_page
from d2.sampling import State
from d2.shard import gather_objects

JOINT = "joint"


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
    """Writes every scene's folder, and the run's table and index at the end."""

    def __init__(self, folder: Path, *, config: str, facts: dict[str, str], pages: bool, metrics: bool):
        self.folder, self.config, self.facts = folder, config, facts
        self.pages, self.metrics = pages, metrics
        self.entries: dict[int, SceneEntry] = {}

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.collections: dict[str, MatrixMetrics] = {}

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
        methods = all_methods(pl_module, outputs, batch) if self.metrics and batch.truth else {}
        for name in methods:  # on every rank, so that all have the same states to gather
            self.collections.setdefault(name, MatrixMetrics().to(pl_module.device))
        if batch_idx % trainer.world_size != trainer.global_rank:
            return
        rows = {name: self.measure(name, pixels, batch, batch_idx) for name, pixels in methods.items()}
        matrix = on_cpu(outputs.sampled.matrix)
        with files.staged_folder(self.folder / batch.name) as partial:
            files.write_matrix(partial, matrix, batch.truth, self.facts | {"seed": str(batch.seed)})
            files.write_json(partial / "metrics.json", rows)
            if self.pages:
                write_page(partial / "index.html", batch, matrix, rows, self.config)
        self.entries[batch_idx] = SceneEntry(
            batch.name, f"{batch.name}/index.html", matrix.pixels, shown(rows.get(JOINT, {}))
        )
        if trainer.is_global_zero:
            self.tell_loggers(trainer, batch.name, batch_idx, rows.get(JOINT, {}))

    def measure(self, method: str, pixels: Tensor, scene: Scene, index: int) -> dict[str, float]:
        """The figures of one matrix, also counted in the run's means."""
        assert scene.truth is not None
        self.collections[method].update(pixels.cpu(), scene.truth, scene.cameras.input_view, index)
        row = self.collections[method].rows[-1]
        return dict(zip(METRIC_NAMES, row[1:].tolist(), strict=True))

    def tell_loggers(self, trainer: L.Trainer, name: str, index: int, figures: dict[str, float]) -> None:
        """Hand a scene's figures, grid and videos to the loggers, which work on the first rank alone."""
        figures = {f"scene/{k}": v for k, v in figures.items() if math.isfinite(v)}
        for logger in trainer.loggers:
            if figures:
                logger.log_metrics(figures, step=index)
            if isinstance(logger, WandbLogger):
                folder = self.folder / name
                logger.log_image(f"grid/{name}", [str(folder / "grid.png")])
                logger.log_video(f"preview/{name}", [str(folder / "preview.mp4")], format=["mp4"])

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        results = {name: metric.compute() for name, metric in self.collections.items()}
        entries = {index: entry for part in gather_objects(self.entries) for index, entry in part.items()}
        if not trainer.is_global_zero:
            return
        table = [
            {"scene": entries[int(row["scene"])].name, "method": method, **{k: row[k] for k in METRIC_NAMES}}
            for method, result in results.items()
            for row in result.scenes
        ]
        if table:
            files.write_text(self.folder / "metrics.csv", csv_text(table))
        files.write_text(self.folder / "config.yaml", self.config)
        if self.pages:
            summary = [{"method": name, **shown(result.mean)} for name, result in results.items()]
            ordered = [entries[index] for index in sorted(entries)]
            write_index_page(
                self.folder / "index.html", title="d2: sampled image matrices", scenes=ordered, summary=summary,
                config=self.config,
            )  # fmt: skip
        figures = {int(row.pop("scene")): row for row in results[JOINT].scenes} if JOINT in results else {}
        for index in sorted(entries.keys() - self.entries.keys()):  # of other ranks
            self.tell_loggers(trainer, entries[index].name, index, figures.get(index, {}))
        for logger in trainer.loggers:
            if JOINT in results:
                logger.log_metrics({f"mean/{k}": v for k, v in results[JOINT].mean.items() if math.isfinite(v)})
            logger.finalize("success")
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()  # the next run of this process is another one


def all_methods(module: MatrixSampler, result: SceneResult, scene: Scene) -> dict[str, Tensor]:
    """The sample, the baselines, the oracle and the ceiling: name -> v f 3 h w."""
    assert scene.truth is not None
    methods = {JOINT: result.sampled.matrix.pixels, **result.baselines}
    if result.baselines:
        methods["true_orbit_repeated"] = true_orbit_repeated(scene.truth, module.settings.anchor_frame)
        methods["autoencoder_ceiling"] = module.ceiling(scene.truth.pixels)
    return methods


def write_page(path: Path, scene: Scene, matrix: ImageMatrix, rows: dict[str, dict[str, float]], config: str) -> None:
    """The viewer of one scene."""
    baselines = [{"method": name, **shown(row)} for name, row in rows.items() if name != JOINT]
    write_scene_page(
        path,
        title=f"d2: {scene.name}",
        sample=matrix.pixels,
        truth=scene.truth.pixels if scene.truth else None,
        input_view=scene.cameras.input_view,
        azimuth_deg=torch.rad2deg(scene.cameras.azimuth_rad).tolist(),
        elevation_deg=torch.rad2deg(scene.cameras.elevation_rad).tolist(),
        fps=scene.fps,
        metrics=shown(rows.get(JOINT, {})) or None,
        baselines=baselines or None,
        config=config,
    )


def shown(figures: dict[str, float]) -> dict[str, float]:
    """The figures people read, in their order: PSNR never without sharpness and retrieval."""
    return {name: figures[name] for name in TABLE_COLUMNS if name in figures}


def on_cpu(matrix: ImageMatrix) -> ImageMatrix:
    return matrix._replace(pixels=matrix.pixels.cpu(), latents=None if matrix.latents is None else matrix.latents.cpu())


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()

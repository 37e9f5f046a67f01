"""The callback that logs: every scene as soon as it is written, and at the end the figures of
all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from d2.loggers import finish_loggers, log_figures, log_scene, log_table
from d2.metrics.figures import ALL, JOINT, Figure
from d2.metrics.intervals import means
from d2.metrics.table import scene_rows
from d2.sample.kept import read_kept
from d2.sample.measure import Measure, is_mine
from d2.scene import Scene


class Log(L.Callback):
    """Hands what `Measure` found and `Write` wrote to the loggers, which work on the first rank
    alone."""

    def __init__(self, folder: Path, measure: Measure):
        self.folder, self.measure = folder, measure
        self.logged: set[int] = set()

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Scene,
        batch_idx: int,
        *_: Any,
    ) -> None:
        if trainer.is_global_zero and is_mine(trainer, batch_idx):
            self.hand_over(trainer, batch_idx)

    def hand_over(self, trainer: L.Trainer, index: int) -> None:
        """One scene, whoever finished it."""
        self.logged.add(index)
        folder = self.folder / self.measure.names[index]
        log_scene(trainer.loggers, folder, index, own_figures(read_kept(folder).figures))

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        figures = self.measure.figures
        for index in sorted(self.measure.names.keys() - self.logged):  # of other ranks
            self.hand_over(trainer, index)
        sets = own_figures(figures, ALL)
        own = means(figures, seed=0).get(JOINT, {})
        summary = {
            f"{'set' if name in sets else 'mean'}/{name}": interval.mean
            for name, interval in own.items()
        }
        log_figures(trainer.loggers, summary)
        log_table(trainer.loggers, "figures", scene_rows(figures))
        finish_loggers(trainer.loggers)


def own_figures(figures: list[Figure], scene: str | None = None) -> dict[str, float]:
    """What was measured of the sample itself, in one scene or in all that are given."""
    return {f.metric: f.value for f in figures if f.variant == JOINT and scene in (None, f.scene)}

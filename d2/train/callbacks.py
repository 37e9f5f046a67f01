"""What happens around a training step: checkpoints to go on from, weights, a bar of steps with the
time left."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning as L

from d2 import signals
from d2.priors import tiny
from d2.progress import ProgressBar
from d2.train.encoder_trainer import EncoderTrainer
from d2.train.prior_trainer import Trained


class Checkpoints(L.Callback):
    """Saves what a training goes on from: before validation, every few minutes, at its end, at its
    time limit, and when a signal stops it.

    A step is never cut in two: signals wait until it is over (`signals.held_back`).
    """

    def __init__(self, path: Path, every_minutes: float, max_minutes: float | None):
        self.path, self.every_seconds, self.saved = path, 60 * every_minutes, time.monotonic()
        self.ends = math.inf if max_minutes is None else self.saved + 60 * max_minutes

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        stopped = signals.received() is not None
        now = time.monotonic()
        overdue, ended = now - self.saved > self.every_seconds, now > self.ends
        if trainer.world_size > 1:  # all ranks save, and stop, at the same step
            stopped, overdue, ended = (
                trainer.strategy.reduce_boolean_decision(of, all=False)
                for of in (stopped, overdue, ended)
            )
        trainer.should_stop = trainer.should_stop or ended
        due = trainer.global_step % trainer.val_check_batch == 0  # type: ignore[operator]
        if stopped or overdue or ended or due or trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.path)
            self.saved = time.monotonic()
        if stopped:
            signals.stop()

    def on_validation_batch_end(self, *_: Any) -> None:
        if signals.received() is not None:  # the step before was saved
            signals.stop()


class WeightsWriter(L.Callback):
    """Writes the averaged weights to `path` after every validation, and at the end."""

    def __init__(self, path: Path, kind: str, meta: dict[str, Any]):
        self.path, self.kind, self.meta = path, kind, meta

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (trainer.global_step and trainer.is_global_zero and isinstance(pl_module, Trained)):
            return
        figures = {
            k: round(float(v), 5)
            for k, v in trainer.callback_metrics.items()
            if k.startswith("val/")
        }
        meta = self.meta | {
            "steps": trainer.global_step,
            "phases": pl_module.phases,
            "validation": figures,
        }
        network = pl_module.ema.encoder if isinstance(pl_module, EncoderTrainer) else pl_module.ema
        tiny.save_weights(self.path, self.kind, network, meta)


class TrainingProgress(ProgressBar):
    """A bar of steps with the loss and the time left; where there is no terminal, a line at every
    validation."""

    def __init__(self, name: str, max_steps: int):
        super().__init__()
        self.name, self.max_steps = name, max_steps
        self.first, self.began = 0, time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first, self.began = trainer.global_step, time.monotonic()
        self.task = self.progress.add_task(
            f"training {self.name}", total=self.max_steps, completed=self.first
        )
        if trainer.is_global_zero and self.console.is_terminal:
            self.progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        if self.progress.live.is_started:
            loss = float(outputs["loss"])
            self.progress.update(
                self.task, completed=trainer.global_step, description=f"{self.name} loss {loss:.4g}"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        told = trainer.is_global_zero and trainer.state.fn == "fit" and not self.console.is_terminal
        if not told or trainer.global_step <= self.first:
            return
        done = trainer.global_step
        seconds = (time.monotonic() - self.began) * (self.max_steps - done) / (done - self.first)
        figures = ", ".join(
            f"{k} {float(v):.4g}"
            for k, v in trainer.callback_metrics.items()
            if k.startswith("val/")
        )
        left = f"{seconds / 60:.0f} min left" if seconds >= 60 else f"{seconds:.0f} s left"
        self.console.print(
            f"{self.name}: step {done} of {self.max_steps}, {left}; {figures}",
            highlight=False,
            soft_wrap=True,
        )

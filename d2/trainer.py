"""Lightning's Trainer from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from d2 import signals
from d2.config.schema import TrainerConfig
from d2.errors import InputError


def make_trainer(config: TrainerConfig, folder: Path, loggers: list[Any], callbacks: list[L.Callback]) -> L.Trainer:
    """Every rank gets every scene: it is the sequences of a scene that are shared out."""
    try:
        return L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy=config.strategy,
            logger=loggers,
            callbacks=[StopsAtOnce(), *callbacks],
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:  # a device that is not there, a wrong name
        asked = f"trainer.accelerator={config.accelerator}, devices={config.devices}, strategy={config.strategy}"
        raise InputError(f"{asked}: {' '.join(str(error).split())}") from error


class StopsAtOnce(L.Callback):
    """Signals end Lightning's loops as they end anything else.

    Its own handler notes SIGTERM, calls a collective from wherever the program is, and predicts on.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.reinstall()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.reinstall()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.reinstall()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tell the processes that this one has started."""
        launcher = trainer.strategy.launcher
        if isinstance(exception, signals.Stopped) and launcher is not None:
            launcher.kill(exception.signum)

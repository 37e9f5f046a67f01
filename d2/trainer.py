"""Lightning's Trainer on the devices that a job is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from d2 import signals
from d2.errors import InputError


class Devices(NamedTuple):
    """What a job runs on, in Lightning's words."""

    accelerator: str  # auto, cpu, gpu, …
    devices: Any  # number of processes, or what else Lightning takes
    strategy: str  # auto, ddp, ddp_fork, …


def make_trainer(devices: Devices, folder: Path, loggers: list[Any], callbacks: list[L.Callback]) -> L.Trainer:
    """Make a trainer whose ranks all get every scene: the sequences of a scene are shared out.

    An InputError names a device that is not there.
    """
    try:
        return L.Trainer(
            accelerator=devices.accelerator,
            devices=devices.devices,
            strategy=devices.strategy,
            logger=loggers,
            callbacks=[StopsAtOnce(), *callbacks],
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:  # a device that is not there, a wrong name
        asked = f"trainer.accelerator={devices.accelerator}, devices={devices.devices}"
        asked += f", strategy={devices.strategy}"
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

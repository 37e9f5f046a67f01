"""Lightning's Trainer on the devices that a job is given."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy

from d2 import launch, signals
from d2.errors import InputError
from d2.settings import Devices


def make_trainer(
    devices: Devices, folder: Path, loggers: list[Any], callbacks: list[L.Callback]
) -> L.Trainer:
    """Make a trainer whose ranks all get every scene: the sequences of a scene are shared out.

    An InputError names a device that is not there.
    """
    if launch.is_worker():
        devices = replace(devices, devices=launch.ranks_of_worker(), strategy="auto")
    try:
        return L.Trainer(
            accelerator=devices.accelerator,
            devices=devices.devices,
            num_nodes=devices.num_nodes,
            strategy=strategy(devices),
            plugins=[environment()],
            logger=loggers,
            callbacks=[StopsAtOnce(), *callbacks],
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
    # a device that is not there, a wrong name, srun -n
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        asked = f"trainer.accelerator={devices.accelerator}, devices={devices.devices}"
        asked += f", strategy={devices.strategy}"
        raise InputError(f"{asked}: {' '.join(str(error).split())}") from error


def strategy(devices: Devices, **of_ddp: Any) -> Any:
    """Lightning's, with our limit on how long a process waits for another."""
    many = devices.devices != 1 or devices.num_nodes > 1
    if launch.is_launched() and devices.strategy in ("auto", "ddp") and many:
        return DDPStrategy(timeout=timedelta(seconds=devices.timeout_seconds), **of_ddp)
    return devices.strategy


def environment() -> ClusterEnvironment:
    """Who started the processes: srun, torchrun, or else d2 itself, in a batch job too."""
    if launch.in_srun():
        return SLURMEnvironment(auto_requeue=False)
    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()


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

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tell the processes that Lightning has started (strategy=ddp_fork)."""
        launcher = trainer.strategy.launcher
        if isinstance(exception, signals.Stopped) and launcher is not None:
            launcher.kill(exception.signum)

"""Lightning's Trainer and loggers from their configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from d2.config import LoggerConfig, TrainerConfig


def make_trainer(config: TrainerConfig, folder: Path, loggers: list[Any], callbacks: list[L.Callback]) -> L.Trainer:
    """Every rank gets every scene: it is the sequences of a scene that are shared out."""
    try:
        return L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy=config.strategy,
            logger=loggers,
            callbacks=callbacks,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:  # a device that is not there, a wrong name
        asked = f"trainer.accelerator={config.accelerator}, devices={config.devices}, strategy={config.strategy}"
        raise ValueError(f"{asked}: {' '.join(str(error).split())}") from error


def make_loggers(config: LoggerConfig, folder: Path) -> list[Any]:
    """CSV under output_dir/log, or W&B, online or offline."""
    if config.kind == "wandb":
        return [WandbLogger(project=config.project, save_dir=folder, offline=config.offline)]
    return [CSVLogger(folder, "log", version="")]


def start_loggers(loggers: Sequence[Any], config: dict[str, Any]) -> None:
    """Tell the loggers the configuration; ValueError where W&B has no account or no connection."""
    for logger in loggers:
        try:
            logger.log_hyperparams(config)
        except Exception as error:
            if not isinstance(logger, WandbLogger):
                raise
            raise ValueError(f"logger=wandb: {' '.join(str(error).split())}; or take logger.offline=true") from error

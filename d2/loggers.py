"""Loggers from their configuration: CSV, or W&B."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, WandbLogger

from d2.config.schema import LoggerConfig


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

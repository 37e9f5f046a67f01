"""Lightning's Trainer from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from d2.config.schema import TrainerConfig


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

"""`d2 reconstruct`: what is to be fitted, and the fits."""

from __future__ import annotations

from dataclasses import asdict

from d2.config.binding import bind
from d2.config.bounds import values
from d2.config.command_line import Composed
from d2.config.names import Label
from d2.config.schema import ReconstructConfig
from d2.files import absolute, all_absolute, given_path
from d2.recon.job import ReconstructJob, find_sources, reconstruct_command
from d2.settings import Logging


def run(composed: Composed) -> int:
    """Reconstruct; the exit code."""
    return reconstruct_command(resolve(composed.config, composed.label))


def resolve(config: ReconstructConfig, label: Label) -> ReconstructJob:
    """Resolve a configuration; an InputError where there is nothing to reconstruct."""
    motion, runs = bind(config.recon.motion, "recon.motion"), all_absolute(config.run)
    return ReconstructJob(
        sources=find_sources(runs, given_path(config.matrix), given_path(config.scenes.path)),
        folder=absolute(config.output_dir),
        recipe=config.recon,
        motion=motion,
        **values(config, "metrics exports seed"),
        accelerator=config.trainer.accelerator,
        logging=Logging(**vars(config.logger)),
        label=label,
        told=asdict(config),
    )

"""`d2 evaluate`: an evaluation of its configuration, and its run."""

from __future__ import annotations

from d2.config.bounds import values
from d2.config.command_line import Composed
from d2.config.schema import EvaluateConfig
from d2.evaluate.job import EvaluateJob, evaluate
from d2.files import absolute, all_absolute, given_path
from d2.resolve import devices_of, metrics_of


def run(composed: Composed) -> int:
    """Evaluate; the exit code."""
    return evaluate(resolve(composed.config))


def resolve(config: EvaluateConfig) -> EvaluateJob:
    """Resolve a configuration; the truth of runs lies beside their matrices."""
    sampled = all_absolute(config.run if config.pred is None else config.pred)
    return EvaluateJob(
        sampled=sampled,
        truth=given_path(config.truth) or (sampled[0] if config.run else None),
        metrics=metrics_of(config, config.metrics, config.traversals, config.features_resize),
        compare_to=given_path(config.compare_to),
        folder=absolute(config.output_dir),
        devices=devices_of(config.trainer),
        **values(config, "objects size input_view seed"),
    )

"""`d2 report`: a report of its configuration, and its pages."""

from __future__ import annotations

from dataclasses import asdict

from d2.config.bounds import values
from d2.config.command_line import Composed
from d2.files import absolute
from d2.settings import Logging
from d2.study.report import ReportJob, report


def run(composed: Composed) -> int:
    """Report; the exit code."""
    config = composed.config
    return report(
        ReportJob(
            runs={run: absolute(run) for run in config.runs},
            folder=absolute(config.output_dir),
            **values(config, "compare_to quality shown_scenes seed"),
            logging=Logging(**vars(config.logger)),
            label=composed.label,
            text=composed.text,
            told=asdict(config),
        )
    )

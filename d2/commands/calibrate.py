"""`d2 calibrate`, which is configured as what is sampled."""

from __future__ import annotations

from d2.config.command_line import Composed
from d2.resolve import resolve
from d2.sample.calibrate import calibrate


def run(composed: Composed) -> int:
    """Calibrate; the exit code."""
    return calibrate(resolve(composed.config, composed.text, composed.name, composed.label))

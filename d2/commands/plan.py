"""`d2 sample plan=true`: what it would evaluate and what memory it takes, without Lightning."""

from __future__ import annotations

from d2.commands.runs import runs_of
from d2.config.command_line import Composed
from d2.plan.planning import planned, plans


def run(composed: Composed) -> int:
    """Print the plan of a single run, or of a study's."""
    jobs, config = runs_of(composed), composed.config
    print(plans(jobs) if config.variants or config.seeds else planned(jobs[0]))
    return 0

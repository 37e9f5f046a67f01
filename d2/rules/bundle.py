"""What an ablation swaps, as one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from d2.rules.choosing import Choosing
from d2.rules.composition import convex, linear
from d2.rules.frequency import LowPass, low_pass
from d2.rules.weights import alone
from d2.sampling import Combine, Composition, Schedule, Solver, Step


class Rules(NamedTuple):
    """What an ablation swaps."""

    renoise: Callable[[Sequence[float]], list[Step]]
    weights: Schedule
    guidance: Schedule
    compose: Composition | Combine
    solver: Solver
    low_pass: LowPass = low_pass  # what a further pass of a reference keeps of the pass before
    choose: Choosing | None = None  # among several particles; None: there is one


def under_one_prior(rules: Rules, term: str) -> Rules:
    """The same plan, guidance and solver, with one term in all cells: columns alone, rows alone."""
    return rules._replace(
        weights=partial(alone, term=term), compose=linear(coefficients=convex), choose=None
    )

"""Sampling of analytic worlds, for the tests: plain rules, and what the sampler makes of every unit
input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from d2.matrix import camera_ring, columns, rows, single_cells
from d2.noise import step_noise
from d2.priors import analytic
from d2.priors.analytic import World
from d2.rules import composition, solver
from d2.sampling import Step, Term, initial_x, sample_matrix
from d2.shard import make_shard

CUTS = {"video": rows, "multiview": columns, "unary": single_cells}


def terms_of(
    world: World, v: int, f: int, names: Sequence[str] = ("video", "multiview", "unary")
) -> list[Term]:
    """Exact rows, columns and cells of a world, told nothing."""
    return [analytic.term(name, CUTS[name](v, f), world, f) for name in names]


def sample(
    x: Tensor, plan: Sequence[Step], terms: Sequence[Term], *, weight: float = 0.5, **changes: Any
) -> Tensor:
    """The sampler with these terms; the multi-view prior has this weight, and scales are 1."""
    shares = {"video": 1 - weight, "multiview": weight, "joint": 1.0}
    fields = {
        t.name: torch.full(x.shape[:2], shares.get(t.name, 0.0), dtype=torch.float64) for t in terms
    }
    ones = {name: torch.ones_like(field) for name, field in fields.items()}
    rules: dict[str, Any] = {
        "weights": lambda step, cameras, num_frames: fields,
        "guidance": lambda step, cameras, num_frames: ones,
        "compose": composition.linear(coefficients=composition.convex),
        "solver": solver.euler,
        "noise": step_noise(0, x),
    }
    fixed = {"terms": terms, "cameras": camera_ring(x.shape[0]), "shard": make_shard()}
    return sample_matrix(x, plan, **fixed, **{**rules, **changes})


def ended(plan: Sequence[Step], terms: Sequence[Term], v: int, f: int, **changes: Any) -> Tensor:
    """The exact covariance that a linear rule ends with: n n."""
    basis = analytic.basis(plan, v, f)
    x = sample(initial_x(basis.start, plan[0].sigma), plan, terms, noise=basis.noise, **changes)
    return analytic.moments(x)[1]


def three_terms(alpha: float = 1.0) -> Any:
    """Row + column − unary, or the family down to the convex rule."""
    return composition.linear(coefficients=partial(composition.inclusion_exclusion, alpha=alpha))

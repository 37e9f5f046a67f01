"""Sampling of a whole image matrix from composed priors (Diffusion², Yang et al. 2025, algorithm
1).

Axes: v views, f frames, b sequences, t along a sequence, c h w. `matrix` means v f c h w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from d2.errors import InputError
from d2.matrix import Cameras, Cut, camera_ring, put, take
from d2.noise import step_noise


class Prediction(NamedTuple):
    """What a prior says of x at one sigma; a half that nobody needs is None, and zero in sequences
    that need it not."""

    uncond: Tensor | None  # E[x0 | x, sigma] with the condition dropped
    cond: Tensor | None  # the same, with it


class Denoise(Protocol):
    """A prior bound to its conditions. Halves that are not asked for come back as None."""

    def __call__(
        self,
        x: Tensor,  # b t c h w
        sigma: float,
        sequences: Tensor,  # b, which sequences of the cut these are
        halves: tuple[bool, bool],  # whether uncond, cond are wanted
    ) -> Prediction: ...


class Term(NamedTuple):
    """One prior's view of the matrix."""

    name: str  # "video" (rows), "multiview" (columns), "unary" (cells)
    cut: Cut
    denoise: Denoise
    sigma_range: tuple[float, float] = (0.0, math.inf)  # levels at which its prior says something
    # v f, bool: cells that it is told, so that it says nothing of them; None: of all
    told: Tensor | None = None


class Step(NamedTuple):
    """One evaluation; all that a schedule may depend on."""

    index: int
    num_steps: int
    repeat: int
    num_repeats: int
    sigma: float  # level told to the networks
    sigma_next: float  # level the solver steps to
    noise_before: float = 0.0  # standard deviation added before the evaluation
    noise_after: float = 0.0  # and after the solver's step

    @property
    def progress(self) -> float:
        """0 at the first step, 1 at the last."""
        return self.index / max(1, self.num_steps - 1)


class State(NamedTuple):
    """What `on_step` sees after a step."""

    x: Tensor  # matrix
    step: Step
    predictions: dict[str, Prediction]  # of the step's last evaluation, as matrices
    weights: Fields  # that the rule was given for it
    scales: Fields
    denoised: Tensor  # matrix
    memory: Memory


# what the composition keeps between evaluations, and the solver
Memory = tuple[dict[str, Any], dict[str, Any]]
Fields = dict[str, Tensor]  # term name -> v f
Schedule = Callable[[Step, Cameras, int], Fields]
Needs = dict[str, tuple[Tensor, Tensor]]  # term name -> which cells want (uncond, cond): v f, bool
Shard = Callable[[Term, Tensor, float, tuple[Tensor, Tensor]], Prediction]
Combine = Callable[
    # predictions weights scales x step memory
    [dict[str, Prediction], Fields, Fields, Tensor, Step, dict[str, Any]],
    tuple[Tensor, dict[str, Any]],  # denoised, memory
]
# name of a term, another x -> what it says of that at the step's level
Ask = Callable[[str, Tensor], Prediction]
Evaluate = Callable[[Tensor, Step], Tensor]  # x, step -> denoised
Noise = Callable[[Step, Literal["before", "after"]], Tensor]  # unit noise of a whole matrix
# -> x, memory
Solver = Callable[[Evaluate, Tensor, Step, dict[str, Any]], tuple[Tensor, dict[str, Any]]]


class Composition(NamedTuple):
    """How the terms' predictions become one denoised matrix. A plain `combine` function will do
    where one is wanted."""

    combine: Combine
    # weights, scales -> the halves it uses; None: all of all
    needs: Callable[[Fields, Fields], Needs] | None = None
    # what is said of a cell serves others too, so cells that are held are evaluated
    couples_cells: bool = False
    # makes the `combine` of a rule that asks for further evaluations
    nested: Callable[[Ask], Combine] | None = None


def karras_sigmas(
    num_steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0
) -> list[float]:
    """Noise levels from sigma_max down to sigma_min, then 0 (Karras et al. 2022, eq. 5): num_steps
    + 1 numbers."""
    if num_steps < 1 or not 0 < sigma_min <= sigma_max:
        raise InputError(
            f"sampler.num_steps={num_steps}, sigma_min={sigma_min}, sigma_max={sigma_max}: "
            "at least one step and 0 < sigma_min <= sigma_max are wanted"
        )
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [*((high + ramp * (low - high)) ** rho).tolist(), 0.0]


def initial_x(
    noise: Tensor,  # matrix, unit
    sigma: float,
) -> Tensor:
    """Where sampling starts: noise scaled by sqrt(1 + σ²), as unit data at the first level σ."""
    return noise * (1 + sigma**2) ** 0.5


@torch.no_grad()
def sample_matrix(
    x: Tensor,  # matrix, at the level of the plan's first step
    plan: Sequence[Step],
    *,
    terms: Sequence[Term],
    cameras: Cameras | None = None,  # None: an even ring
    weights: Schedule | None = None,  # None: every term the same in every cell
    guidance: Schedule | None = None,  # None: no guidance, so only conditional halves
    compose: Composition | Combine | None = None,  # None: the weighted sum
    solver: Solver | None = None,  # None: Euler's
    shard: Shard | None = None,  # None: all in this process, a term in one call
    noise: Noise | None = None,  # None: the named streams of seed 0
    on_step: Callable[[State], None] | None = None,
    memory: Memory | None = None,
) -> Tensor:
    """Denoise a matrix along a plan; every rule is an argument.

    Each evaluation asks every term for the halves that the rule needs, composes them to one
    denoised matrix, and lets the solver step. To resume, pass `plan[k:]` with the x and the memory
    that `on_step` saw. What is left out is the plainest there is. An InputError names the first
    term, rule or solver whose answer is not finite, and the level.
    """
    cameras, noise = cameras or camera_ring(len(x)), noise or step_noise(0, x)
    weights, guidance = weights or evenly(terms, 1 / len(terms)), guidance or evenly(terms, 1.0)
    solver, shard = solver or euler, shard or in_this_process
    of_rule, of_solver = memory or ({}, {})
    rule, by_name = as_composition(compose or weighted_sum), {term.name: term for term in terms}
    num_frames = x.shape[1]

    def evaluate(x: Tensor, step: Step) -> Tensor:
        nonlocal of_rule, predictions, denoised, w, scales
        w = among_speakers(weights(step, cameras, num_frames), terms, step.sigma)
        scales = guidance(step, cameras, num_frames)
        needs = needed(rule, terms, w, scales)
        for term in terms:
            if not in_range(term, step.sigma) and any(half.any() for half in needs[term.name]):
                raise InputError(out_of_range(term, step.sigma))

        def ask(name: str, x: Tensor) -> Prediction:
            prediction = shard(by_name[name], x, step.sigma, needs[name])
            check_term(by_name[name], prediction, step.sigma)
            return prediction

        predictions = {name: ask(name, x) for name in by_name}
        combine = rule.nested(ask) if rule.nested else rule.combine
        denoised, of_rule = combine(predictions, w, scales, x, step, of_rule)
        check_finite(denoised, "composition", step.sigma)
        return denoised

    predictions: dict[str, Prediction] = {}
    w: Fields = {}
    scales: Fields = {}
    denoised = x
    for step in plan:
        if step.noise_before:
            x = x + step.noise_before * noise(step, "before")
        x, of_solver = solver(evaluate, x, step, of_solver)
        check_finite(x, "solver", step.sigma)
        if step.noise_after:
            x = x + step.noise_after * noise(step, "after")
        if on_step:
            on_step(State(x, step, predictions, w, scales, denoised, (of_rule, of_solver)))
    return x


def evenly(terms: Sequence[Term], value: float) -> Schedule:
    """The same value for every term, in every cell, at every step."""

    def schedule(step: Step, cameras: Cameras, num_frames: int) -> Fields:
        return {
            t.name: torch.full((cameras.num_views, num_frames), value, dtype=torch.float64)
            for t in terms
        }

    return schedule


def among_speakers(weights: Fields, terms: Sequence[Term], sigma: float) -> Fields:
    """The weights of a level, those of terms that say nothing there or of a cell given to the
    others: v f each.

    What remains keeps its proportions and its sum. A cell of which nobody else has a share stays
    with a term that is told it. An InputError where a level is out of the range of all that have a
    share.
    """
    kept = dict(weights)
    for term in terms:
        if term.name in weights and not in_range(term, sigma):
            kept[term.name] = torch.zeros_like(weights[term.name])
        elif term.name in weights and term.told is not None:
            kept[term.name] = weights[term.name].masked_fill(term.told, 0.0)
    if all(kept[name] is weights[name] for name in weights):
        return weights
    total, left = (torch.stack(list(fields.values())).sum(dim=0) for fields in (weights, kept))
    nobody = (left == 0) & (total != 0)
    for term in terms:
        if not in_range(term, sigma) and (weights[term.name][nobody] != 0).any():
            raise InputError(out_of_range(term, sigma))
    factor = torch.where(nobody, 1.0, total / left.masked_fill(left == 0, 1.0))
    return {
        name: torch.where(nobody, weights[name], share * factor) for name, share in kept.items()
    }


def in_range(term: Term, sigma: float) -> bool:
    """Whether a term's prior says something at a level."""
    return within(term.sigma_range, sigma)


def within(sigma_range: tuple[float, float], sigma: float) -> bool:
    """Whether a level lies in a range, or a rounding off its ends."""
    low, high = sigma_range
    return low * (1 - 1e-6) <= sigma <= high * (1 + 1e-6)


def out_of_range(term: Term, sigma: float) -> str:
    low, high = term.sigma_range
    return (
        f"{term.name}: its prior says nothing at noise level {sigma:.4g}, where the rule gives it a"
        f" share; it does from {low:.4g} to {high:.4g}: set"
        f" sampler.sigma_max={math.floor(10 * high) / 10:g}, or give others a share"
    )


def _weighted_sum(
    predictions: dict[str, Prediction],
    weights: Fields,
    scales: Fields,
    x: Tensor,  # matrix
    step: Step,
    memory: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    denoised = torch.zeros_like(x)
    for name, (uncond, cond) in predictions.items():
        share, scale = (field[name].to(x)[:, :, None, None, None] for field in (weights, scales))
        for factor, half in ((share * (1 - scale), uncond), (share * scale, cond)):
            denoised = denoised if half is None else denoised + factor * half
    return denoised, memory


def _weighted_needs(weights: Fields, scales: Fields) -> Needs:
    return {
        name: (w * (1 - scales[name]) != 0, w * scales[name] != 0) for name, w in weights.items()
    }


# of the guided predictions: Diffusion², eq. 9
weighted_sum = Composition(_weighted_sum, _weighted_needs)


def euler(
    evaluate: Evaluate,
    x: Tensor,  # matrix
    step: Step,
    memory: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    """One Euler step of dx/dσ = (x − D(x; σ)) / σ to step.sigma_next (arXiv 2206.00364, algorithm
    1)."""
    d = (x - evaluate(x, step)) / step.sigma
    return x + (step.sigma_next - step.sigma) * d, memory


def in_this_process(term: Term, x: Tensor, sigma: float, need: tuple[Tensor, Tensor]) -> Prediction:
    """A term's halves that any sequence needs, all sequences in one call."""
    uncond, cond = sequences_needed(term.cut, need).any(dim=0).tolist()
    prediction = term.denoise(
        take(x, term.cut), sigma, torch.arange(len(term.cut.cells)), (uncond, cond)
    )
    return Prediction(
        *(None if half is None else put(half, term.cut, *x.shape[:2]) for half in prediction)
    )


def as_composition(rule: Composition | Combine) -> Composition:
    """A plain function as the composition that wants all halves of all cells."""
    return rule if isinstance(rule, Composition) else Composition(rule)


def wrapped(rule: Composition, wrap: Callable[[Combine], Combine]) -> Composition:
    """A composition whose `combine` goes through `wrap`, nested or not."""
    nested = rule.nested
    return rule._replace(
        combine=wrap(rule.combine), nested=None if nested is None else lambda ask: wrap(nested(ask))
    )


def altered(
    rule: Composition,
    # of the estimate of x0, x and the step: all matrices
    change: Callable[[Tensor, Tensor, Step], Tensor],
) -> Composition:
    """A composition whose estimate of x0 is changed before it is used."""

    def wrap(combine: Combine) -> Combine:
        def changed(
            predictions: dict[str, Prediction],
            weights: Fields,
            scales: Fields,
            x: Tensor,  # matrix
            step: Step,
            memory: dict[str, Any],
        ) -> tuple[Tensor, dict[str, Any]]:
            denoised, memory = combine(predictions, weights, scales, x, step, memory)
            return change(denoised, x, step), memory

        return changed

    return wrapped(rule, wrap)


def needed(
    rule: Composition | Combine, terms: Sequence[Term], weights: Fields, scales: Fields
) -> Needs:
    """Which halves of which cells a rule wants: v f each. A rule without `needs` wants everything.

    A term that a rule's `needs` do not speak of is not evaluated.
    """
    needs = as_composition(rule).needs
    every = torch.ones_like(next(iter(weights.values())), dtype=torch.bool)
    if needs is None:
        return {term.name: (every, every) for term in terms}
    return {term.name: (~every, ~every) for term in terms} | needs(weights, scales)


def check_term(term: Term, prediction: Prediction, sigma: float) -> None:
    """Raise an InputError that names the first sequence of a term of which not all that is said is
    finite."""
    for half in prediction:
        if half is not None and not finite(half):
            bad = ~take(half.isfinite().flatten(2).all(dim=2), term.cut).all(dim=1)
            check_finite(half, f"{term.name}, sequence {int(bad.nonzero()[0])}", sigma)


def check_finite(matrix: Tensor, said_by: str, sigma: float) -> None:
    """Raise an InputError where a matrix holds what is not a number, or infinite."""
    if not finite(matrix):
        raise InputError(
            f"{said_by}: its answer is not finite at noise level {sigma:.4g}; take other weights, "
            "trainer.precision=fp32, or other numbers of the rules"
        )


def finite(tensor: Tensor) -> bool:
    """Whether all numbers are; on the meta device there are none."""
    return tensor.is_meta or bool(tensor.isfinite().all())


def sequences_needed(cut: Cut, need: tuple[Tensor, Tensor]) -> Tensor:
    """Which halves of which sequences are wanted, from cells: b 2, bool."""
    return torch.stack([take(half, cut).any(dim=1) for half in need], dim=1)

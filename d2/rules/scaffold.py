"""Scaffold, then detail: a first pass agrees on what is coarse, and a second, from noise in the
middle, does the rest.

Two passes of the levels, in the manner of arXiv 2606.00837 and of SDEdit (2108.01073): few steps of
the joint rule, whose estimates may be low-passed, then noise of standard deviation `level`, and
from there one prior alone, or both without guidance. The passes are told apart by the step's
`repeat`; a plan without repeats has but the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2.errors import InputError
from d2.matrix import Cameras
from d2.rules.frequency_split import low_frequencies
from d2.rules.weights import alone
from d2.sampling import (
    Combine,
    Composition,
    Fields,
    Schedule,
    Step,
    altered,
    as_composition,
    karras_sigmas,
)

END = 0.5  # of `level`: where the first pass takes its estimate
FINISHERS = ("video", "multiview", "both")


def plan(sigmas: Sequence[float], *, level: float = 2.0, steps: int = 6) -> list[Step]:
    """`steps` levels down to level/2 and the estimate there, noised to `level`; then `level` and
    the sigmas below it.

    The estimate at s' = (level/2)² lacks the variance that it does not know: of a mode of variance
    λ, under the exact denoiser, λs'/(λ + s'), which is at most a ninth of what x has at `level` (at
    λ = level²/2).
    """
    if steps < 1 or not 0 < level < sigmas[0]:
        raise InputError(
            f"renoise.level={level}, steps={steps}: give steps ≥ 1 and a level above 0, below"
            f" sampler.sigma_max ({sigmas[0]:.4g})"
        )
    first = karras_sigmas(steps, sigma_min=END * level, sigma_max=sigmas[0])
    last = [level, *(sigma for sigma in sigmas if sigma < level)]
    pairs = [*zip(first, first[1:], strict=False), *zip(last, last[1:], strict=False)]
    return [
        Step(i, len(pairs), int(i >= steps), 2, sigma, down, noise_after=level * (i == steps - 1))
        for i, (sigma, down) in enumerate(pairs)
    ]


def is_last_pass(step: Step) -> bool:
    """Whether the levels from this one down are not passed again."""
    return step.repeat + 1 == step.num_repeats


def finished(
    step: Step, cameras: Cameras, num_frames: int, *, schedule: Schedule, by: str = "multiview"
) -> Fields:
    """Weights: a schedule's, but in the last pass those of one prior alone; the schedule's to the
    end with by=both."""
    if by not in FINISHERS:
        raise InputError(f"weights.by={by}: choose {', '.join(FINISHERS)}")
    if by == "both" or not is_last_pass(step):
        return schedule(step, cameras, num_frames)
    return alone(step, cameras, num_frames, term=by)


def guided_first(step: Step, cameras: Cameras, num_frames: int, *, schedule: Schedule) -> Fields:
    """Guidance: a schedule's scales, and none in the last pass, which then evaluates conditional
    halves alone."""
    scales = schedule(step, cameras, num_frames)
    return (
        {name: torch.ones_like(scale) for name, scale in scales.items()}
        if is_last_pass(step)
        else scales
    )


def coarse(
    *, compose: Composition | Combine, strength: float = 1.0, cutoff: float = 0.125
) -> Composition:
    """A composition whose estimates lose a share `strength` of their high frequencies in all passes
    but the last.

    The filter is Butterworth's of second order over h and w of the latents; `cutoff` is in cycles
    per sample. At strength 0 it is the composition itself.
    """
    if not 0 <= strength <= 1 or not cutoff > 0:
        raise InputError(
            f"composition.strength={strength}, cutoff={cutoff}: give a strength from 0 to 1 and a"
            " cutoff above 0"
        )

    def filtered(denoised: Tensor, x: Tensor, step: Step) -> Tensor:
        if strength == 0 or is_last_pass(step):
            return denoised
        size = (denoised.shape[-2], denoised.shape[-1])
        low = low_frequencies(size, cutoff, "butterworth", 2).to(denoised)
        spectrum = torch.fft.fft2(denoised) * (1 - strength * (1 - low))
        return torch.fft.ifft2(spectrum).real

    return altered(as_composition(compose), filtered)

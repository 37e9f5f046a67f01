"""Named noise streams: a draw depends on its name alone, never on what was drawn before.

So a skipped step, another rule, a resume, another device or another number of processes shifts
nothing, and rules are compared under the same noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from d2.sampling import Step

Stream = Literal["init", "churn", "renoise", "orbit", "clip", "augmentation", "score", "resampling"]


def draw(
    seed: int, stream: Stream, shape: tuple[int, ...], *, step: int = 0, repeat: int = 0
) -> Tensor:
    """Unit Gaussian float32 on the CPU, named by (scene seed, stream, step index, repeat)."""
    name = f"{seed}/{stream}/{step}/{repeat}".encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:8], "little", signed=True)
    generator = torch.Generator("cpu").manual_seed(key)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def step_noise(seed: int, like: Tensor) -> Callable[[Step, Literal["before", "after"]], Tensor]:
    """The noise of a sampling loop: a whole matrix for (step, before or after its evaluation), on
    `like`'s device."""

    def noise(step: Step, when: Literal["before", "after"]) -> Tensor:
        stream: Stream = "churn" if when == "before" else "renoise"
        return draw(seed, stream, tuple(like.shape), step=step.index, repeat=step.repeat).to(like)

    return noise

"""Cameras that the prior of any cameras is trained on: anywhere, around the scene, or near one
another.

All stand upright and have the ring's lens; where nothing else is said, they look within 0.15 of the
origin. Axes: t cameras of a walk.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from d2.cameras import Z_UP, looking_at, on_sphere

ELEVATION = (math.radians(-15), math.radians(50))
DISTANCE = (1.7, 2.4)  # from the origin; the ring's is 2
SPREAD = (0.3, 1.3)  # how far a near camera stands from the first, along each axis of a walk
NEAREST = 0.95  # no camera comes closer to the origin


class Uniform(Protocol):
    """Draws of a walk's own generator, float64."""

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor: ...


def draw_walk(index: int, num_cells: int) -> Tensor:
    """Poses t 4 4 (camera-to-world, OpenCV, float64), in no order; a function of the index
    alone."""
    generator = torch.Generator().manual_seed(index)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        draws = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * draws

    kind = (anywhere, around, nearby)[int(torch.randint(3, (1,), generator=generator))]
    positions, targets = kind(num_cells, uniform)
    distance = positions.norm(dim=-1, keepdim=True)
    return looking_at(positions * (NEAREST / distance).clamp(min=1), targets, Z_UP)


def anywhere(t: int, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """Cameras that know nothing of one another: positions and what they look at, t 3 each."""
    direction = on_sphere(uniform(t, high=2 * math.pi), span(uniform(t), ELEVATION))
    return span(uniform(t), DISTANCE)[:, None] * direction, uniform(t, 3, low=-0.15, high=0.15)


def around(t: int, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """A ring, even or not, level or tilted by up to 20 degrees."""
    uneven, tilt = uniform(1), math.radians(20) * uniform(1).square()
    turn = (torch.arange(t) + uneven * uniform(t, low=-0.5, high=0.5)) / t
    azimuth = 2 * math.pi * (turn + uniform(1))
    elevation = span(uniform(1), ELEVATION) + tilt * (azimuth + 2 * math.pi * uniform(1)).sin()
    positions = span(uniform(1), DISTANCE) * on_sphere(azimuth, elevation)
    return positions, uniform(1, 3, low=-0.05, high=0.05).expand(t, 3)


def nearby(t: int, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """Spirals, dollies and moves: cameras about one place, along a line, in a plane or in space.

    They look at one point, or turn less than that: a point moves with them by up to a half.
    """
    middle, target = anywhere(1, uniform)
    low, high = (math.log(end) for end in SPREAD)
    spread = uniform(1, low=low, high=high).exp()
    axes = torch.linalg.qr(uniform(3, 3, low=-1, high=1))[0]
    # one axis has the whole spread
    extent = spread * torch.cat([torch.ones(1), uniform(2).square()])
    offset = (uniform(t, 3, low=-1, high=1) * extent) @ axes.T
    return middle + offset, target + uniform(1, high=0.5) * offset


def span(share: Tensor, ends: tuple[float, float]) -> Tensor:
    """Shares of 0 to 1 as numbers between two ends."""
    return ends[0] + (ends[1] - ends[0]) * share

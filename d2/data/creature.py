"""Creatures of world4d: sampled from a seed, fitted into the ball the cameras see, and posed in
time.

A creature is a tree of at most `MAX_PARTS` ellipsoids (body_plans.py). Every joint angle is
rest + swing · sin(2π (frequency · time + start + phase)), time running from 0 to 1 over the clip.

Axes: b creatures, p parts, t times. Lengths are in world units.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from d2.data.body_plans import PLANS, draw_palette
from d2.errors import InputError

WORLD_VERSION = "1"  # any change of a picture changes this; it goes into weights and results
MAX_PARTS = 18
# of the plans' own swings: a creature then changes over half a clip about as much as over a turn of
# 30°
MOTION = 0.55
REACH = 0.495  # no creature leaves the ball of this radius during its clip; the cameras promise 0.5

Split = Literal["train", "validation", "test"]


class Creatures(NamedTuple):
    """A batch of creatures, float64. Absent parts have radii 0."""

    parent: Tensor  # b p, int64
    joint: Tensor  # b p 3
    centre: Tensor  # b p 3
    radii: Tensor  # b p 3
    colours: Tensor  # b p 2 3, upper and lower
    rest: Tensor  # b p 3
    swing: Tensor  # b p 3
    phase: Tensor  # b p 3, cycles
    split: Tensor  # b p 4
    slide: Tensor  # b 3, amplitude of the root's translation
    frequency: Tensor  # b, cycles per clip
    start: Tensor  # b, cycles
    yaw: Tensor  # b, heading against the input camera
    origin: Tensor  # b 3, where the root rests
    still_time: Tensor  # b, the moment at which the static orbit is taken
    elevation: Tensor  # b 3: mean, amplitude (0 in four fifths of the scenes), phase; radians


class Pose(NamedTuple):
    """Ellipsoids in the world."""

    centre: Tensor  # b t p 3
    rotation: Tensor  # b t p 3 3, columns are the axes


def sample_creatures(split: Split, indices: Sequence[int]) -> Creatures:
    """Creature `index` of a split; a function of (WORLD_VERSION, split, index) alone."""
    if split not in ("train", "validation", "test"):
        raise InputError(f"split={split!r}: choose train, validation or test")
    sampled = [_sample(split, int(i)) for i in indices]
    parts = torch.tensor([row for row, _ in sampled], dtype=torch.float64)
    facts = torch.tensor([row for _, row in sampled], dtype=torch.float64)
    parent, joint, centre, radii, colours, rest, swing, phase, cut = parts.split(
        [1, 3, 3, 3, 6, 3, 3, 3, 4], dim=-1
    )
    slide, frequency, start, yaw, fill, still, elevation = facts.split(
        [3, 1, 1, 1, 1, 1, 3], dim=-1
    )
    creatures = Creatures(
        parent[..., 0].long(), joint, centre, radii, colours.unflatten(-1, (2, 3)), rest,
        MOTION * swing, phase, cut, MOTION * slide, frequency[:, 0], start[:, 0], yaw[:, 0],
        torch.zeros_like(slide), still[:, 0], elevation,
    )  # fmt: skip
    return _fit(creatures, REACH * fill)


def pose(
    creatures: Creatures,
    time: Tensor,  # b t, in clips
) -> Pose:
    """Forward kinematics."""
    cycles = (creatures.frequency[:, None] * time + creatures.start[:, None])[:, :, None, None]
    wave = torch.sin(2 * math.pi * (cycles + creatures.phase[:, None]))
    turn = euler(creatures.rest[:, None] + creatures.swing[:, None] * wave)  # b t p 3 3
    slide = creatures.slide[:, None] * torch.sin(2 * math.pi * cycles[..., 0])
    heading = euler(
        torch.stack([zero := torch.zeros_like(creatures.yaw), zero, creatures.yaw], dim=-1)
    )[:, None]
    position, rotation = torch.empty_like(wave), torch.empty_like(turn)  # of the joints
    position[:, :, 0] = creatures.origin[:, None] + _matvec(heading, slide)
    rotation[:, :, 0] = _matmul(heading, turn[:, :, 0])
    batch = torch.arange(len(time), device=time.device)
    for p in range(1, MAX_PARTS):
        parent = creatures.parent[:, p]
        carrier = rotation[batch, :, parent]  # b t 3 3
        position[:, :, p] = position[batch, :, parent] + _matvec(
            carrier, creatures.joint[:, None, p]
        )
        rotation[:, :, p] = _matmul(carrier, turn[:, :, p])
    return Pose(position + _matvec(rotation, creatures.centre[:, None]), rotation)


def elevation_at(
    creatures: Creatures,
    azimuth_rad: Tensor,  # v
) -> Tensor:  # b v
    """Elevation of each camera; a smooth function of the azimuth, constant in four fifths of the
    scenes."""
    mean, amplitude, phase = creatures.elevation[:, :, None].unbind(1)
    return mean + amplitude * torch.sin(azimuth_rad + phase)


def euler(
    angles: Tensor,  # ... 3: roll, pitch, yaw
) -> Tensor:  # ... 3 3
    """Rz(yaw) Ry(pitch) Rx(roll); a positive pitch lowers the nose."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


# --- sampling -------------------------------------------------------------------------------------


def _sample(split: str, index: int) -> tuple[list[list[float]], list[float]]:
    """The rows of one creature: its parts, padded, and its own facts."""
    digest = hashlib.sha256(f"world4d {WORLD_VERSION} {split} {index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    numbers = iter(torch.rand(256, generator=generator, dtype=torch.float64).tolist())

    def draw(low: float, high: float) -> float:
        return low + (high - low) * next(numbers)

    facts = [draw(0.6, 1.4), draw(0, 1), draw(0, 2 * math.pi), draw(0.96, 1.0), draw(0, 1)]
    degrees = math.pi / 180
    amplitude = draw(10, 25) * degrees if draw(0, 1) < 0.2 else 0.0
    elevation = [
        draw(-10 * degrees + amplitude, 40 * degrees - amplitude),
        amplitude,
        draw(0, 2 * math.pi),
    ]
    plan = PLANS[int(draw(0, len(PLANS)))]
    parts, slide = plan(draw, draw_palette(draw))
    assert len(parts) <= MAX_PARTS
    rows = [
        [
            p.parent,
            *p.joint,
            *p.centre,
            *p.radii,
            *p.upper,
            *p.lower,
            *p.rest,
            *p.swing,
            *p.phase,
            *p.split,
        ]
        for p in parts
    ]
    rows += [[0.0] * len(rows[0])] * (MAX_PARTS - len(parts))
    return rows, [*slide, *facts, *elevation]


def _fit(creatures: Creatures, reach: Tensor) -> Creatures:
    """Centre the space swept over the clip, and scale it to `reach`."""
    time = torch.linspace(0, 1, 33, dtype=torch.float64).expand(len(reach), -1)
    present = creatures.radii.amax(-1)[:, None, :, None] > 0
    centre, rotation = pose(creatures, time)
    axes = rotation * creatures.radii[:, None, :, None, :]
    half = axes.square().sum(-1).sqrt()  # of the bounding box
    low = torch.where(present, centre - half, math.inf).amin((1, 2))
    high = torch.where(present, centre + half, -math.inf).amax((1, 2))
    middle = (low + high) / 2
    centre = centre - middle[:, None, None]
    # the farthest point c + A u, |u| = 1, of an ellipsoid: u ~ Aᵀ (c + A u) climbs, for |c + A u|
    # is convex in u
    u = torch.zeros_like(centre)
    for _ in range(12):
        u = torch.nn.functional.normalize(_matvec(axes.mT, centre + _matvec(axes, u)), dim=-1)
    farthest = (centre + _matvec(axes, u)).norm(dim=-1, keepdim=True)
    scale = reach / torch.where(present, farthest, 0.0).amax((1, 2))
    part = scale[:, :, None]
    return creatures._replace(
        joint=creatures.joint * part,
        centre=creatures.centre * part,
        radii=creatures.radii * part,
        slide=creatures.slide * scale,
        origin=-middle * scale,
    )


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Written out, so that a result does not depend on the size of the batch."""
    return torch.stack([_matvec(a, column) for column in b.unbind(-1)], dim=-1)


def _matvec(a: Tensor, x: Tensor) -> Tensor:
    return a[..., 0] * x[..., 0, None] + a[..., 1] * x[..., 1, None] + a[..., 2] * x[..., 2, None]

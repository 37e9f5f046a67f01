"""How a Gaussian moves: a motion is a function from times to the shares of its control points.

Position and quaternion at a time are those of rest plus the shares times the Gaussian's control
points, so every instant is plain 3D Gaussians.

Axes: t times, k control points. Time is in frames: the matrix's are at 0, 1, …, F − 1, and any
number between is as good.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Motion = Callable[[Tensor, int], Tensor]  # times t, num_frames -> shares t k


def rest(
    times: Tensor,  # t
    num_frames: int,
) -> Tensor:  # t 0
    """Nothing moves: there are no control points."""
    return times.new_zeros(len(times), 0)


def cubic_bspline(
    times: Tensor,  # t
    num_frames: int,
    *,
    frames_per_segment: float = 2.25,
) -> Tensor:  # t k
    """The uniform cubic B-spline: curves of continuous acceleration, each time told by four control
    points.

    8 frames have 6 control points, 25 have 14, a single frame 4.
    """
    segments = max(1, round((num_frames - 1) / frames_per_segment))
    place = (times / max(1, num_frames - 1) * segments).clamp(0, segments)
    segment = place.floor().clamp(max=segments - 1)
    u = place - segment
    four = (
        torch.stack(
            [(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], dim=-1
        )
        / 6
    )
    shares = times.new_zeros(len(times), segments + 3)
    return shares.scatter(1, segment.long()[:, None] + torch.arange(4, device=times.device), four)

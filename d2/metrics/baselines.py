"""Matrices that need no joint sampling: what a composition has to beat, and one oracle.

Axes: v views, f frames, c h w.
"""

from __future__ import annotations

from einops import repeat
from torch import Tensor

from d2.scene import Truth


def repeat_orbit(
    orbit: Tensor,  # v 3 h w, of the anchor frame
    num_frames: int,
) -> Tensor:  # v f 3 h w
    """The orbit at every frame: right views that never move."""
    return repeat(orbit, "v c h w -> v f c h w", f=num_frames)


def show_input(
    clip: Tensor,  # f 3 h w
    num_views: int,
) -> Tensor:  # v f 3 h w
    """The input clip at every view: right motion that never turns."""
    return repeat(clip, "f c h w -> v f c h w", v=num_views)


def true_orbit_repeated(
    truth: Truth,
    anchor_frame: int,
) -> Tensor:  # v f 3 h w
    """The oracle of `repeat_orbit`: the most that a perfect multi-view prior reaches without
    motion."""
    return repeat_orbit(truth.pixels[:, anchor_frame], truth.pixels.shape[1])

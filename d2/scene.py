"""A scene: one input clip with its cameras, and, beside it, the truth where truth is known.

Axes: v views, f frames, c h w. Pixels are in [0, 1], composited on white.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from d2.matrix import Cameras


class Truth(NamedTuple):
    """What the world really looks like: for metrics only, never shown to a prior."""

    pixels: Tensor  # v f 3 h w
    masks: Tensor  # v f 1 h w, coverage in [0, 1]
    depth: Tensor  # v f 1 h w, distance along the optical axis; inf where nothing is


class Known(NamedTuple):
    """Views beside the input's of which the clip is known too, at the same times."""

    views: tuple[int, ...]  # their rows
    pixels: Tensor  # k f 3 h w


class Scene(NamedTuple):
    """One input of the job."""

    name: str
    seed: int  # seeds every noise stream of this scene
    pixels: Tensor  # f 3 h w, the input clip
    masks: Tensor  # f 1 h w
    cameras: Cameras
    fps: float
    truth: Truth | None = None
    others: Known | None = None

    def observed(self) -> Scene:
        """The scene as the sampler may see it: the input alone."""
        return self._replace(truth=None)

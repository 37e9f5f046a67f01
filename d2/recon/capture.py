"""What a scene of Gaussians is made from: pictures with their cameras and times.

Axes: p pictures, v views, f frames, c h w. Pixels are in [0, 1], on white.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2.errors import InputError
from d2.matrix import ImageMatrix
from d2.metrics.reference import VISIBLE
from d2.recon.gaussians import Pinholes, ring_pinholes

MIN_VIEWS = 3  # two cameras leave the depth of a plain surface open


class Capture(NamedTuple):
    """Pictures of one scene, in the order of its matrix where they are one."""

    pixels: Tensor  # p 3 h w
    masks: Tensor  # p 1 h w, what is object
    cameras: Pinholes  # p
    view: Tensor  # p, which of the v cameras
    frame: Tensor  # p, which of the f times; times are in frames
    num_views: int
    num_frames: int
    fps: float
    input_view: int | None = None

    def of(self, where: Tensor) -> Capture:
        """Some of the pictures."""
        return self._replace(
            pixels=self.pixels[where],
            masks=self.masks[where],
            cameras=self.cameras.of(where),
            view=self.view[where],
            frame=self.frame[where],
        )

    def to(self, device: torch.device) -> Capture:
        return self._replace(
            pixels=self.pixels.to(device),
            masks=self.masks.to(device),
            cameras=self.cameras.to(device),
            view=self.view.to(device),
            frame=self.frame.to(device),
        )


def capture_matrix(matrix: ImageMatrix) -> Capture:
    """The cells of a matrix, view by view. ValueError for a matrix that no scene can be made
    from."""
    num_views, num_frames, _, height, width = matrix.pixels.shape
    assert height == width, f"the cameras are square, the pixels {height}×{width}"
    view, frame = (
        index.flatten()
        for index in torch.meshgrid(
            torch.arange(num_views), torch.arange(num_frames), indexing="ij"
        )
    )
    pixels = matrix.pixels.flatten(0, 1).float()
    return checked(
        Capture(
            pixels=pixels,
            masks=not_white(pixels),
            cameras=ring_pinholes(matrix.cameras, height).of(view),
            view=view,
            frame=frame,
            num_views=num_views,
            num_frames=num_frames,
            fps=matrix.fps,
            input_view=matrix.cameras.input_view,
        )
    )


def not_white(pixels: Tensor) -> Tensor:  # p 3 h w -> p 1 h w, 0 or 1
    """Where a picture shows anything on its white background."""
    return (pixels < 1 - VISIBLE).any(dim=1, keepdim=True).to(pixels)


def checked(capture: Capture) -> Capture:
    """The capture; ValueError where no scene can be made from it."""
    places = capture.cameras.positions.round(decimals=4).unique(dim=0)
    if len(places) < MIN_VIEWS:
        raise InputError(
            f"scenes: pictures from {len(places)} places; a scene needs at least {MIN_VIEWS} views"
        )
    if not capture.masks.any():
        raise InputError(
            "scenes: the pictures show nothing but background; give pictures of an object on white"
        )
    return capture


def held_cells(hold: Any, capture: Capture) -> Tensor:  # p, bool
    """Which pictures `recon.hold` keeps from the fit: null, diagonal, views:[…] or frames:[…]."""
    view, frame = capture.view, capture.frame
    if hold is None:
        return torch.zeros_like(view, dtype=torch.bool)
    if hold == "diagonal":  # the cells (v, v mod F)
        return frame == view % capture.num_frames
    axis, chosen = _named(hold)
    index, count = (view, capture.num_views) if axis == "views" else (frame, capture.num_frames)
    if axis not in ("views", "frames") or not chosen or not all(0 <= i < count for i in chosen):
        raise InputError(
            f"recon.hold={hold}: give diagonal, views:[…] or frames:[…] with numbers below their"
            " count"
        )
    held = torch.isin(index, torch.tensor(chosen, device=index.device))
    left = len(capture.view[~held].unique())
    if left < MIN_VIEWS:
        raise InputError(
            f"recon.hold={hold}: leaves {left} views to fit; a scene needs at least {MIN_VIEWS}"
        )
    return held


def _named(hold: Any) -> tuple[str, list[int]]:
    """views:[1, 3], as text or as YAML reads it."""
    if isinstance(hold, dict) and len(hold) == 1:
        axis, chosen = next(iter(hold.items()))
        return str(axis), (
            [i for i in chosen if isinstance(i, int)] if isinstance(chosen, list) else []
        )
    match = re.fullmatch(r"(views|frames):\s*\[([\d,\s]*)\]", str(hold))
    return (match[1], [int(i) for i in match[2].split(",") if i.strip()]) if match else ("", [])

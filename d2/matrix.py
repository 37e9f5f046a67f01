"""The image matrix and how terms see it.

Axes: v views, f frames, b sequences, t along a sequence, c h w. `matrix` means v f c h w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from d2.cameras import Rig, from_axes, lens, on_sphere, opengl
from d2.errors import InputError

RADIUS = 2.0  # distance of every camera from the origin; objects lie within 0.5 of it
FOV_Y_DEG = 33.8  # vertical field of view, that of SV3D's training renders (Voleti et al. 2024)


class MatrixSize(NamedTuple):
    """The size of a matrix of square pictures."""

    num_views: int
    num_frames: int
    picture: int  # pixels of a side


class Cameras(NamedTuple):
    """V cameras: without a rig they stand on a sphere of `RADIUS` and look at the origin, z up.

    Azimuth grows as the camera moves counter-clockwise seen from above; it is relative to the input
    view, whose own azimuth is written 2π, as SV3D embeds it. Of a rig both angles are those of its
    positions about the origin.
    """

    azimuth_rad: Tensor  # v, float64
    elevation_rad: Tensor  # v, float64
    input_view: int
    rig: Rig | None = None  # v poses and intrinsics of any cameras

    @property
    def num_views(self) -> int:
        return len(self.azimuth_rad)


def camera_ring(num_views: int, elevation_rad: float | Tensor = 0.0) -> Cameras:
    """An even ring of `num_views` cameras in the published order: the input view comes last, at
    azimuth 2π."""
    if num_views < 1:
        raise InputError(f"matrix.num_views={num_views}: there must be at least one view")
    azimuth = 2 * math.pi * torch.arange(1, num_views + 1, dtype=torch.float64) / num_views
    elevation = torch.as_tensor(elevation_rad, dtype=torch.float64).expand(num_views).clone()
    return Cameras(azimuth, elevation, num_views - 1)


def camera_positions(cameras: Cameras) -> Tensor:
    """Camera centres in world coordinates: v 3."""
    if cameras.rig is not None:
        return cameras.rig.poses[:, :3, 3]
    return RADIUS * on_sphere(cameras.azimuth_rad, cameras.elevation_rad)


def camera_to_world(cameras: Cameras) -> Tensor:
    """v 4 4: columns right, up, backward and centre, in world coordinates; well defined at the
    poles too."""
    if cameras.rig is not None:
        return opengl(cameras.rig.poses)
    azimuth, centre = cameras.azimuth_rad.double(), camera_positions(cameras).double()
    right = torch.stack([-azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)], dim=-1)
    backward = F.normalize(centre, dim=-1)
    up = torch.linalg.cross(backward, right)
    return from_axes(torch.stack([right, up, backward], dim=-1), centre)


def rig_of(cameras: Cameras) -> Rig:
    """Poses and intrinsics of cameras on the sphere too."""
    if cameras.rig is not None:
        return cameras.rig
    fov = torch.full((cameras.num_views,), math.radians(FOV_Y_DEG), dtype=torch.float64)
    return Rig(opengl(camera_to_world(cameras)), lens(fov))


def cameras_of(rig: Rig, input_view: int) -> Cameras:
    """Any cameras, with the angles of their positions about the origin."""
    x, y, z = rig.poses[:, :3, 3].unbind(dim=-1)
    azimuth = torch.atan2(y, x)
    azimuth = (azimuth - azimuth[input_view]).remainder(2 * math.pi)
    azimuth[input_view] = 2 * math.pi
    return Cameras(azimuth, torch.atan2(z, torch.hypot(x, y)), input_view, rig)


class ImageMatrix(NamedTuple):
    """One scene's V × F result."""

    pixels: Tensor  # v f 3 h w, in [0, 1], on white
    cameras: Cameras
    fps: float
    latents: Tensor | None = None  # v f c h w


class Cut(NamedTuple):
    """How a term sees the matrix: its sequences as lists of cells. Rows, columns and windows are
    values of it."""

    cells: Tensor  # b t 2: the (view, frame) of every element; no cell twice in one sequence
    blend: Tensor  # b t: its share where sequences overlap; shares of a covered cell sum to 1


def rows(num_views: int, num_frames: int) -> Cut:
    """One sequence a view, along the frames."""
    return _full_cut(_grid(num_views, num_frames))


def columns(num_views: int, num_frames: int) -> Cut:
    """One sequence a frame, along the views."""
    return _full_cut(rearrange(_grid(num_views, num_frames), "v f i -> f v i"))


def single_cells(num_views: int, num_frames: int) -> Cut:
    """One sequence of length one a cell, in raster order."""
    return _full_cut(_grid(num_views, num_frames).reshape(-1, 1, 2))


def row_windows(num_views: int, num_frames: int, length: int, starts: Sequence[int]) -> Cut:
    """Rows in windows of `length` frames that fade into each other, all views of the first window
    first."""
    if (
        sorted(starts) != list(starts)
        or not starts
        or min(starts) < 0
        or max(starts) + length > num_frames
    ):
        raise InputError(
            f"scenes.anchor_frames={list(starts)}: windows of {length} of {num_frames} frames start"
            f" at them; give growing numbers from 0 to {num_frames - length}"
        )
    frame = torch.tensor(starts)[:, None] + torch.arange(length)
    cells = _grid(num_views, num_frames)[:, frame]
    missing = set(range(num_frames)) - set(frame.flatten().tolist())
    if missing:
        raise InputError(
            f"scenes.anchor_frames={list(starts)}: no window of {length} frames covers frame"
            f" {min(missing)}; add one"
        )
    return _faded(rearrange(cells, "v w t i -> (w v) t i"), num_views, num_frames)


def column_windows(num_views: int, num_frames: int, length: int, dilation: int = 1) -> Cut:
    """Columns in windows of `length` views around the ring, all frames of the first window first.

    Neighbouring windows share half of their views. With a `dilation` of d a window takes every d-th
    view; where that closes the ring, there are d windows and none overlap.
    """
    if length * dilation > num_views:
        raise InputError(
            f"multiview.dilation={dilation}: {length} views of a window do not fit on a ring of"
            f" {num_views}; give at most {num_views // length}"
        )
    closed = length * dilation == num_views
    starts = torch.arange(dilation) if closed else torch.arange(0, num_views, max(1, length // 2))
    view = (starts[:, None] + dilation * torch.arange(length)) % num_views
    cells = _grid(num_views, num_frames)[view]
    if len(view.unique()) < num_views:
        raise InputError(
            f"multiview.dilation={dilation}: windows of {length} miss some of the {num_views}"
            " views; give another"
        )
    return _faded(rearrange(cells, "w t f i -> (w f) t i"), num_views, num_frames)


def diagonals(num_views: int, num_frames: int) -> Cut:
    """One sequence a starting view, which moves on by one view a frame and wraps around."""
    frame = torch.arange(num_frames).expand(num_views, -1)
    view = (torch.arange(num_views)[:, None] + frame) % num_views
    return _full_cut(torch.stack([view, frame], dim=-1))


def raster(num_views: int, num_frames: int) -> Cut:
    """All cells as one sequence, view by view, every other row backwards, so that neighbours differ
    by one step."""
    grid = _grid(num_views, num_frames)
    grid[1::2] = grid[1::2].flip(1)
    return _full_cut(grid.reshape(1, -1, 2))


def take(
    matrix: Tensor,  # v f ...
    cut: Cut,
) -> Tensor:
    """The sequences of a cut: b t ..."""
    return matrix[cut.cells[..., 0], cut.cells[..., 1]]


def put(
    sequences: Tensor,  # b t ...
    cut: Cut,
    num_views: int,
    num_frames: int,
) -> Tensor:
    """The matrix v f ... that a cut's sequences blend to, added in the order of b; zero where
    nothing covers."""
    out = sequences.new_zeros(num_views, num_frames, *sequences.shape[2:])
    for cells, share, sequence in zip(cut.cells, cut.blend.to(sequences), sequences, strict=True):
        out[cells[:, 0], cells[:, 1]] += share.reshape(-1, *[1] * (sequence.dim() - 1)) * sequence
    return out


def coverage(cut: Cut, num_views: int, num_frames: int) -> Tensor:
    """Which cells a cut covers: v f, bool."""
    return put(torch.ones_like(cut.blend), cut, num_views, num_frames) > 0


def _grid(num_views: int, num_frames: int) -> Tensor:
    v, f = torch.meshgrid(torch.arange(num_views), torch.arange(num_frames), indexing="ij")
    return torch.stack([v, f], dim=-1)


def _faded(cells: Tensor, num_views: int, num_frames: int) -> Cut:
    """Shares that grow from a window's ends to its middle, and sum to 1 in a cell."""
    length = cells.shape[1]
    position = torch.arange(length)
    tent = torch.minimum(position + 1, length - position).float().expand(cells.shape[:2])
    return Cut(
        cells,
        tent
        / take(
            put(torch.ones_like(tent), Cut(cells, tent), num_views, num_frames), Cut(cells, tent)
        ),
    )


def _full_cut(cells: Tensor) -> Cut:
    return Cut(cells, torch.ones(cells.shape[:2]))

"""The lens of a picture, as a table of cameras (nerfstudio's, D-NeRF's transforms.json) says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from d2.errors import InputError

# models, as nerfstudio names them, whose straight lines are straight where nothing bends them
PINHOLES = ("OPENCV", "PERSPECTIVE", "PINHOLE", "SIMPLE_PINHOLE")
BENT = ("k1", "k2", "k3", "k4", "p1", "p2")  # nerfstudio's distortions


class Lens(NamedTuple):
    """A pinhole, in pixels of a picture of width × height."""

    across: float  # focal lengths
    down: float
    x: float  # of the centre
    y: float
    width: float
    height: float


def lens_of(
    facts: Mapping[str, Any],  # of a frame, the table's over its own
    path: Path,  # of the table, for errors
    size: tuple[int, int] | None = None,  # width and height of the picture itself, where it is read
) -> Lens:
    """A pinhole that fits its pictures; an InputError for one that bends, or lacks a number.

    A picture may be smaller than the table says: the lens is in pixels of the picture itself. Where
    neither says a size, pictures are squares of one pixel, and the angle is enough.
    """
    model = facts.get("camera_model", PINHOLES[0])
    if model not in PINHOLES:
        raise InputError(
            f"{path}: camera_model={model} is no pinhole; undistort the pictures, and take one of"
            f" {', '.join(PINHOLES)}"
        )
    if bent := [name for name in BENT if facts.get(name)]:
        raise InputError(
            f"{path}: {bent[0]}={facts[bent[0]]}: only pinhole cameras are modelled; undistort the"
            " pictures and leave it out"
        )
    try:
        lens = _said(facts, path, size)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: a lens is not in numbers ({error}); mend it") from error
    across, down, x, y, width, height = lens
    if not (across > 0 and down > 0 and 0 < x < width and 0 < y < height):
        raise InputError(
            f"{path}: fl_x={across:g}, fl_y={down:g}, cx={x:g}, cy={y:g} do not fit pictures of "
            f"{width:g} × {height:g}; all are in pixels of these"
        )
    return lens


def _said(facts: Mapping[str, Any], path: Path, size: tuple[int, int] | None) -> Lens:
    width = float(facts.get("w", size[0] if size else 1.0))
    height = float(facts.get("h", width * size[1] / size[0] if size else width))
    if "fl_x" in facts:
        if size is None and ("w" not in facts or "h" not in facts):
            raise InputError(f"{path}: fl_x is in pixels, and w and h are not there; add them")
        across = float(facts["fl_x"])
    elif "camera_angle_x" in facts:
        across = 0.5 * width / math.tan(float(facts["camera_angle_x"]) / 2)
    else:
        raise InputError(f"{path}: neither fl_x nor camera_angle_x; add one")
    down = float(facts.get("fl_y", across))
    x, y = float(facts.get("cx", width / 2)), float(facts.get("cy", height / 2))
    scale = size[0] / width if size else 1.0
    return Lens(*(scale * value for value in (across, down, x, y, width, height)))

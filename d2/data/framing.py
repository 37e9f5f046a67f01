"""Pictures of a wanted size, and the intrinsics that go with what was cut, padded and scaled.

Pictures with a background keep their frame: the whole is resized by area and cut to size about its
middle, as Stable Virtual Camera's published program does it (arXiv 2503.14489). Axes: n pictures, c
h w.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Framed(NamedTuple):
    """Pictures and their intrinsics."""

    pictures: Tensor  # n c h w
    intrinsics: Tensor  # 3 3, in pixels of the result


def by_short_side(
    short: int,  # pixels, of the shorter side of the result
    height: int,  # of the picture
    width: int,
    stride: int = 64,  # both sides of the result are multiples of it
) -> tuple[int, int]:
    """Width and height of a result that keeps the picture's aspect."""
    longer = int(short * max(height, width) / min(height, width))
    sides = (longer, short) if width >= height else (short, longer)
    across, down = (math.floor(side / stride + 0.5) * stride for side in sides)
    return across, down


def frame(
    pictures: Tensor,  # n c h w
    # 3 3, in pixels, or normalised: both coordinates of the principal point within 1
    intrinsics: Tensor,
    size: tuple[int, int],  # width and height
    *,
    mode: Literal["crop", "pad", "stretch"] = "crop",
    scale: float = 1.0,  # below 1 looks nearer
) -> Framed:
    """Pictures of the size, the middle kept; what is padded is zero."""
    (width, height), (h, w) = size, pictures.shape[-2:]
    new_w, new_h = size
    if mode != "stretch":
        ratios = width / w, height / h
        factor = max(ratios) if mode == "crop" else min(ratios)
        new_w, new_h = math.ceil(factor * w), math.ceil(factor * h)
    new_w, new_h = int(new_w / scale), int(new_h / scale)
    resized = F.interpolate(pictures, (new_h, new_w), mode="area")
    left, top = offset(new_w, width), offset(new_h, height)
    cut = resized[..., max(top, 0) :, max(left, 0) :][..., :height, :width]
    before, above = max(-left, 0), max(-top, 0)
    behind, below = width - before - cut.shape[-1], height - above - cut.shape[-2]
    matrix, centre = intrinsics.double().clone(), intrinsics[:2, 2]
    normal = bool(((centre >= 0) & (centre <= 1)).all())
    matrix[0] *= new_w if normal else new_w / w
    matrix[1] *= new_h if normal else new_h / h
    matrix[:2, 2] -= torch.tensor([left, top], dtype=matrix.dtype)
    return Framed(F.pad(cut, (before, behind, above, below)), matrix)


def offset(have: int, want: int) -> int:
    """Where the result begins along a side, in pixels of the resized picture; negative where it is
    padded."""
    start = int(0.5 * have) - want // 2
    return min(max(start, 0), have - want) if have >= want else min(start, 0)

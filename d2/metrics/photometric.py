"""Whether neighbouring views show one thing: what they show is carried from one to the other by the
true depth.

Every solid pixel of a view goes out to its point in the world and from there into the neighbouring
view; where that view sees the same point, by its own depth, the two colours are compared. Shading
that turns with the camera, texture finer than a pixel and depth averaged over one leave a floor,
which the truth itself shows.

Axes: v views, f frames, n four neighbouring pixels, c h w. Pixels are in [0, 1], on white. Lengths
are in world units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from d2.matrix import FOV_Y_DEG, RADIUS, Cameras, camera_positions
from d2.scene import Truth

SOLID = 0.999  # coverage of a pixel that shows the object alone
# of the depth test, in pixels' widths at the ring's centre: a surface is seen at a slant
TOLERANCE = 2.0
PSNR_CAP = 100.0  # dB, as in reference.py
FEATURE_NAMES = ("feature_error", "feature_ratio")
NAMES = ("photometric_error", "photometric_psnr", "photometric_ratio", "photometric_seen")


class Seen(NamedTuple):
    """The pixels of one view, at all frames, that another view sees too, and where they lie in
    it."""

    view: int
    other: int
    solid: int  # how many pixels of the view could be seen
    frame: Tensor  # m
    pixel: Tensor  # m, flat index in the view
    corners: Tensor  # m n, flat indices of the pixels around in the other
    shares: Tensor  # m n: what each has in the colour there


def photometric_metrics(
    sample: Tensor,  # v f 3 h w
    truth: Truth,
    pairs: Sequence[Seen],  # `neighbours` of the truth
) -> dict[str, float]:
    """Over all pairs of neighbours on the ring, both ways, and all pixels of the one that the other
    sees too:

    photometric_error: mean absolute difference of colours.
    photometric_psnr: of their mean squared difference, in dB, at most 100.
    photometric_ratio: photometric_error over that of the truth; 1 is ideal.
    photometric_seen: share of the solid pixels that are compared; it depends on the truth alone.
    NaN for a single view, or where nothing is compared.
    """
    assert sample.shape == truth.pixels.shape, f"sample {sample.shape}, truth {truth.pixels.shape}"
    absolute = squared = true_absolute = 0.0
    compared = solid = 0
    for seen in pairs:
        change = colour_change(sample, seen)
        absolute, squared = (
            absolute + float(change.abs().sum()),
            squared + float(change.square().sum()),
        )
        true_absolute += float(colour_change(truth.pixels, seen).abs().sum())
        compared += len(seen.frame)
        solid += seen.solid
    if not compared:
        return dict.fromkeys(NAMES, math.nan)
    mean_square = squared / (3 * compared)
    psnr = PSNR_CAP if mean_square == 0 else min(-10 * math.log10(mean_square), PSNR_CAP)
    ratio = absolute / true_absolute if true_absolute > 0 else math.nan
    return dict(zip(NAMES, (absolute / (3 * compared), psnr, ratio, compared / solid), strict=True))


def colour_change(
    pixels: Tensor,  # v f 3 h w
    seen: Seen,
) -> Tensor:  # 3 m, float64, over the m pixels that are visible
    """Colours of the pixels of `view`, less those that `other` has of the same points."""
    own, carried = carried_over(pixels.double(), seen)
    return own - carried


def feature_metrics(
    sample: Tensor,  # v f c h w, features at every pixel
    true: Tensor,  # v f c h w, of the true pictures
    pairs: Sequence[Seen],  # `neighbours` of the truth
) -> dict[str, float]:
    """Over the same pixels, 1 − cosine of the features that neighbouring views have of a point (as
    MEt3R, Asim et al. 2025, there with points from a network): its mean, and that over the truth's.
    NaN where nothing is compared.
    """
    total, of_truth, compared = 0.0, 0.0, 0
    for seen in pairs:
        total, of_truth = (
            total + feature_change(sample, seen),
            of_truth + feature_change(true, seen),
        )
        compared += len(seen.frame)
    if not compared:
        return dict.fromkeys(FEATURE_NAMES, math.nan)
    ratio = total / of_truth if of_truth > 0 else math.nan
    return dict(zip(FEATURE_NAMES, (total / compared, ratio), strict=True))


def feature_change(
    features: Tensor,  # v f c h w
    seen: Seen,
) -> float:
    """1 − cosine of what both views have of a point, summed over the pixels that are visible."""
    return float((1 - F.cosine_similarity(*carried_over(features, seen), dim=0)).double().sum())


def carried_over(
    pixels: Tensor,  # v f c h w
    seen: Seen,
) -> tuple[Tensor, Tensor]:  # c m each, over the m pixels that are visible
    """What `view` has at its pixels, and what `other` has at the same points."""
    own = pixels[seen.view].flatten(-2)[seen.frame, :, seen.pixel]  # m c
    around = pixels[seen.other].flatten(-2)[seen.frame[:, None], :, seen.corners]  # m n c
    return own.mT, (seen.shares.to(pixels)[..., None] * around).sum(dim=1).mT


def neighbours(truth: Truth, cameras: Cameras) -> list[Seen]:
    """Every view in the one before and the one behind it on the ring: all that depends on the truth
    alone."""
    count = len(truth.depth)
    pairs = [(i, j % count) for i in range(count) for j in (i - 1, i + 1) if j % count != i]
    return [seen_from(truth, cameras, view, other) for view, other in pairs]


def seen_from(truth: Truth, cameras: Cameras, view: int, other: int) -> Seen:
    """Carry every pixel of `view` into `other`; visible is what all four pixels there show, solid
    and as far away."""
    depth, solid = truth.depth.double().squeeze(2), truth.masks.squeeze(2) > SOLID  # v f h w
    frames, height, width = depth.shape[1:]
    # of a pixel, on the plane at distance 1
    step = 2 * math.tan(math.radians(FOV_Y_DEG) / 2) / height
    axes, position = camera_axes(cameras).to(depth), camera_positions(cameras).to(depth)
    y, x = torch.meshgrid(_centres(height), _centres(width), indexing="ij")
    rays = torch.stack([x * step, y * step, torch.ones_like(x)], dim=-1).to(depth)  # h w 3
    points = torch.where(solid[view], depth[view], 1.0)[..., None] * rays
    there = (points @ axes[view] + position[view] - position[other]) @ axes[other].mT  # f h w 3
    column = there[..., 0] / there[..., 2] / step + (width - 1) / 2
    row = there[..., 1] / there[..., 2] / step + (height - 1) / 2
    left, top = column.floor(), row.floor()
    inside = (left >= 0) & (left < width - 1) & (top >= 0) & (top < height - 1)
    left, top = left.clamp(0, width - 2), top.clamp(0, height - 2)
    a, b = column - left, row - top
    shares = torch.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b], dim=-1)
    corner = (top * width + left).long()
    corners = torch.stack([corner, corner + 1, corner + width, corner + width + 1], dim=-1)
    frame = torch.arange(frames, device=depth.device)[:, None, None, None]
    far = depth[other].flatten(1)[frame, corners]  # f h w n
    same = (far - there[..., 2:]).abs() < TOLERANCE * step * RADIUS
    agrees = (same & solid[other].flatten(1)[frame, corners]).all(dim=-1)
    visible = solid[view] & inside & agrees
    at, *place = visible.nonzero(as_tuple=True)
    return Seen(
        view,
        other,
        int(solid[view].sum()),
        at,
        place[0] * width + place[1],
        corners[visible],
        shares[visible],
    )


def camera_axes(cameras: Cameras) -> Tensor:  # v 3 3, float64
    """World to camera: its rows point to the right, down and along the optical axis."""
    if cameras.rig is not None:
        return cameras.rig.poses[:, :3, :3].mT
    a, e = cameras.azimuth_rad, cameras.elevation_rad
    right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)], dim=-1)
    ahead = -camera_positions(cameras) / RADIUS
    down = torch.stack([e.sin() * a.cos(), e.sin() * a.sin(), -e.cos()], dim=-1)
    return torch.stack([right, down, ahead], dim=-2)


def _centres(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) - (count - 1) / 2

"""Cameras as a camera prior is told them: positions of one scale, and a ray for every pixel of the
latents.

As Stable Virtual Camera was trained (arXiv 2503.14489; the published program, which differs from
the paper's text). Poses are camera-to-world, OpenCV (x right, y down, z forward); intrinsics are
normalised by the picture's size.

Axes: v all cameras of a scene, t those of a forward, whose first one is the reference.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from d2.errors import InputError

CAMERA_SCALE = 2.0  # distance of the first camera from the mean of all, after normalisation
FAR = 1e6  # cameras farther than this from the median do not count
OUTLYING = (10.0, 0.97)  # nor such beyond 10 times the 0.97 quantile of the distances
TINY = 1e-5  # a reference nearer than this to the mean sets no unit
# a cell turned and moved by less than this from known ones needs little guidance
CLOSE_DEG, CLOSE = 10.0, 1e-5


def normalised(
    scene: Tensor,  # v 4 4, every camera of the scene
    poses: Tensor,  # t 4 4, those of the forward
    camera_scale: float = CAMERA_SCALE,
) -> Tensor:
    """Poses about the mean of the scene's positions, the first one `camera_scale` away from it: t 4
    4, float64.

    Cameras that lie far outside do not count for the mean.
    """
    positions = scene[:, :3, 3].double()
    distance = (positions - positions.median(dim=0).values).norm(dim=1)
    factor, quantile = OUTLYING
    kept = distance <= min(factor * float(distance.quantile(quantile)), FAR)
    if not kept.any():
        raise InputError(
            f"cameras: all {len(scene)} lie farther than {FAR:g} from their median; give other"
            " units"
        )
    out = poses.double().clone()
    out[:, :3, 3] -= positions[kept].mean(dim=0)
    reach = float(out[0, :3, 3].norm())
    out[:, :3, 3] *= camera_scale / reach if reach > TINY else camera_scale
    return out


def pluecker(
    poses: Tensor,  # t 4 4, normalised
    intrinsics: Tensor,  # t 3 3
    height: int,  # of the latents
    width: int,
) -> Tensor:
    """Unit direction and moment (origin × direction) of every pixel's ray, as the first camera sees
    them: t 6 h w."""
    # takes points of a camera to the first one
    relative = torch.linalg.inv(poses[0].double()) @ poses.double()
    size = torch.tensor([width, height, 1.0], dtype=torch.float64, device=poses.device)
    inverse = torch.linalg.inv(intrinsics.double() * size[:, None])
    v, u = (
        torch.arange(n, dtype=torch.float64, device=poses.device) + 0.5 for n in (height, width)
    )
    grid = torch.stack(
        [*torch.meshgrid(u, v, indexing="xy"), torch.ones(height, width).to(u)], dim=-1
    )
    points = torch.einsum("t i j, h w j -> t h w i", relative[:, :3, :3] @ inverse, grid)
    direction = points / points.norm(dim=-1, keepdim=True)
    origin = relative[:, None, None, :3, 3].expand_as(direction)
    return rearrange(
        torch.cat([direction, torch.cross(origin, direction, dim=-1)], dim=-1), "t h w c -> t c h w"
    )


def close_to_known(
    poses: Tensor,  # t 4 4, normalised
    intrinsics: Tensor,  # t 3 3
    known: Tensor,  # t, bool
) -> Tensor:
    """Cells that are known, or as good as known: t, bool. Turn, shift and lens may be those of
    different known ones."""
    poses = poses.double()
    rotation, position = poses[:, :3, :3], poses[:, :3, 3]
    cosine = (torch.einsum("i a b, j a b -> i j", rotation, rotation[known]) - 1) / 2
    turn = cosine.clamp(-1, 1).arccos().rad2deg().amin(dim=1)
    shift = (position[:, None] - position[known]).norm(dim=-1).amin(dim=1)
    same_lens = (intrinsics[:, None] == intrinsics[known]).all(dim=(-1, -2)).any(dim=1)
    return (turn < CLOSE_DEG) & (shift < CLOSE) & same_lens


def scale_by_camera(
    poses: Tensor,  # t 4 4, normalised
    intrinsics: Tensor,  # t 3 3
    known: Tensor,  # t, bool
    *,
    scale: float,
    low: float = 1.2,
) -> Tensor:
    """Guidance of each cell, `low` where it is close to a known one: t, float64 (published as
    MultiviewCFG)."""
    scales = torch.full((len(poses),), scale, dtype=torch.float64)
    return torch.where(close_to_known(poses, intrinsics, known).to(scales.device), low, scales)


def scale_by_order(
    poses: Tensor,  # t 4 4, normalised
    intrinsics: Tensor,  # t 3 3
    known: Tensor,  # t, bool
    *,
    scale: float,
    low: float = 1.2,
) -> Tensor:
    """Guidance that grows with the number of cells to the nearest known one: t, float64
    (MultiviewTemporalCFG)."""
    place = torch.arange(len(poses))
    away = (place[:, None] - place[known.cpu()]).abs().amin(dim=1).double()
    scales = low + away / away.max().clamp(min=1) * (scale - low)
    return torch.where(close_to_known(poses, intrinsics, known).to(scales.device), low, scales)

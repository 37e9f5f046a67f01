"""Where the Gaussians start: on the visual hull of one frame's masks.

Axes: p pictures, n points, c h w.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2.errors import InputError
from d2.recon.capture import Capture
from d2.recon.gaussians import NEAR, Pinholes


def common_ball(cameras: Pinholes) -> tuple[Tensor, float]:
    """Centre (3) and radius of a ball that all cameras see: around the point nearest to their
    optical axes.

    ValueError where it lies behind a camera or outside a picture.
    """
    position, ahead = cameras.positions.double(), cameras.world_to_camera[:, 2, :3].double()
    across = (
        torch.eye(3, dtype=torch.float64, device=position.device)
        - ahead[:, :, None] * ahead[:, None]
    )
    centre = torch.linalg.lstsq(across.sum(0), (across @ position[..., None]).sum(0)).solution[:, 0]
    distance = ((centre - position) * ahead).sum(-1)
    at = centre_in(centre, cameras)
    size = torch.tensor([cameras.width, cameras.height], device=at.device)
    # tangent of the angle
    margin = torch.minimum(at, size - at).amin(dim=-1) / cameras.focal.double().amax(dim=-1)
    if not ((distance > NEAR) & (margin > 0)).all():
        raise InputError(
            "scenes: the cameras do not see a common volume; give pictures that look at one object"
        )
    return centre.float(), float((distance * margin / (1 + margin.square()).sqrt()).min())


def centre_in(point: Tensor, cameras: Pinholes) -> Tensor:  # 3 -> p 2, pixels
    """Where every camera sees one point."""
    matrix = cameras.world_to_camera.double()
    there = matrix[:, :3, :3] @ point + matrix[:, :3, 3]
    return there[:, :2] / there[:, 2:] * cameras.focal + cameras.centre


def hull_points(
    capture: Capture,  # the pictures of one frame
    resolution: int,
    centre: Tensor,  # 3
    radius: float,
) -> tuple[Tensor, Tensor]:  # n 3 twice
    """Boundary voxels of the visual hull, and their mean colours in the pictures.

    A voxel is kept where every picture shows the object; if silhouettes disagree so much that
    nothing is left, where the most of them do.
    """
    axis = (torch.arange(resolution, device=centre.device) + 0.5) / resolution * 2 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1) * radius + centre
    votes = torch.zeros(grid.shape[:3], device=centre.device)
    colour = torch.zeros_like(grid)
    matrix = capture.cameras.world_to_camera
    size = torch.tensor([capture.cameras.width, capture.cameras.height], device=centre.device)
    for i, (pixels, mask) in enumerate(zip(capture.pixels, capture.masks, strict=True)):
        there = grid @ matrix[i, :3, :3].mT + matrix[i, :3, 3]
        at = (
            there[..., :2] / there[..., 2:].clamp(min=NEAR) * capture.cameras.focal[i]
            + capture.cameras.centre[i]
        )
        at = (at / size * 2 - 1)[None].flatten(2, 3)  # grid_sample's coordinates
        shown = torch.cat([mask, pixels * mask])[None]
        found = F.grid_sample(shown, at, mode="nearest", align_corners=False)[0]
        found = found.unflatten(-1, (resolution, resolution))
        votes += found[0]
        colour += found[1:].permute(1, 2, 3, 0)
    inside = votes >= votes.max()
    outside = F.pad(~inside, (1,) * 6, value=True)[None, None].float()
    boundary = inside & (F.max_pool3d(outside, 3, stride=1)[0, 0] > 0)
    return grid[boundary], colour[boundary] / votes[boundary][:, None]

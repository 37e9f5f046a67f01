"""3D Gaussians at one instant, pinhole cameras, and how the ones look from the others.

Axes: b pictures, n Gaussians, k spherical harmonics, h w. Lengths are in world units, a picture's
in pixels from its top left corner, so that the first pixel's centre is (0.5, 0.5). The projection
is that of Kerbl et al. 2023 (EWA splatting), with the constants of gsplat.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from d2.cameras import on_sphere
from d2.matrix import FOV_Y_DEG, RADIUS, Cameras

BLUR = 0.3  # pixels², of every 3D Gaussian renderer since Kerbl et al.
NEAR = 0.01  # world units, what is nearer to a camera is not drawn
# the real spherical harmonics of degrees 0 and 1
SH_0, SH_1 = 0.5 / math.sqrt(math.pi), 0.5 * math.sqrt(3 / math.pi)


class Gaussians(NamedTuple):
    """Sets of n Gaussians, one set a picture."""

    means: Tensor  # b n 3
    quats: Tensor  # b n 4, (w, x, y, z), of any length but zero
    scales: Tensor  # b n 3, standard deviations along the axes
    opacities: Tensor  # b n, in (0, 1)
    # b n k 3, k = 1 or 4: colour is 0.5 + the harmonics in the direction from the camera
    sh: Tensor


class Pinholes(NamedTuple):
    """Cameras that look along their z, x to the right, y down (as OpenCV and COLMAP have it)."""

    world_to_camera: Tensor  # b 4 4
    focal: Tensor  # b 2, pixels, across and down
    centre: Tensor  # b 2, pixels
    height: int
    width: int
    # pixels², added to the variance of every projected Gaussian: none is thinner than a pixel
    blur: float = BLUR

    def of(self, index: Tensor) -> Pinholes:
        """The cameras of some pictures."""
        return self._replace(
            world_to_camera=self.world_to_camera[index],
            focal=self.focal[index],
            centre=self.centre[index],
        )

    def to(self, device: torch.device) -> Pinholes:
        return self._replace(
            world_to_camera=self.world_to_camera.to(device),
            focal=self.focal.to(device),
            centre=self.centre.to(device),
        )

    @property
    def positions(self) -> Tensor:  # b 3
        turn, shift = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        return -(turn.mT @ shift[..., None])[..., 0]


class Projected(NamedTuple):
    """Gaussians as pictures see them."""

    centre: Tensor  # b n 2, pixels
    conic: Tensor  # b n 3: xx, xy, yy of the inverse covariance
    reach: Tensor  # b n 2, one standard deviation across and down
    depth: Tensor  # b n, along the optical axis
    colour: Tensor  # b n 3


def ring_pinholes(cameras: Cameras, size: int) -> Pinholes:
    """The cameras of a square matrix of `size` pixels, float32."""
    if cameras.rig is not None:
        poses, lens = cameras.rig.poses, (size * cameras.rig.intrinsics).float()
        focal, centre = torch.stack([lens[:, 0, 0], lens[:, 1, 1]], dim=-1), lens[:, :2, 2]
        return Pinholes(torch.linalg.inv(poses).float(), focal, centre, size, size)
    focal = size / 2 / math.tan(math.radians(FOV_Y_DEG) / 2)
    origin = torch.zeros(3, dtype=torch.float64)
    return orbit_pinholes(
        cameras.azimuth_rad, cameras.elevation_rad, origin, RADIUS, (focal, focal), (size, size)
    )


def orbit_pinholes(
    azimuth_rad: Tensor,  # b
    elevation_rad: Tensor,  # b
    around: Tensor,  # 3, world units: what they look at
    distance: float,  # world units
    focal: tuple[float, float],  # pixels, across and down
    size: tuple[int, int],  # pixels, height and width
) -> Pinholes:
    """Cameras on a sphere, z up, that look at its centre in the middle of their pictures;
    float32."""
    a, e = azimuth_rad.double(), elevation_rad.double()
    outward = on_sphere(a, e)
    right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)], dim=-1)
    down = torch.stack([e.sin() * a.cos(), e.sin() * a.sin(), -e.cos()], dim=-1)
    turn = torch.stack([right, down, -outward], dim=-2)
    position = around.to(a) + distance * outward
    matrix = torch.eye(4, dtype=torch.float64, device=a.device).repeat(len(a), 1, 1)
    matrix[:, :3, :3], matrix[:, :3, 3] = turn, -(turn @ position[..., None])[..., 0]
    height, width = size
    lengths, centre = (
        torch.tensor(x, device=a.device).expand(len(a), 2) for x in (focal, (width / 2, height / 2))
    )
    return Pinholes(matrix.float(), lengths, centre, height, width)


def project(gaussians: Gaussians, cameras: Pinholes) -> Projected:
    """The pictures of Gaussians: 2D Gaussians by the Jacobian of the projection at their
    centres."""
    turn, shift = cameras.world_to_camera[:, None, :3, :3], cameras.world_to_camera[:, None, :3, 3]
    at = (turn @ gaussians.means[..., None])[..., 0] + shift
    x, y, depth = at.unbind(-1)
    z = depth.clamp(min=NEAR)
    f, c = cameras.focal[:, None], cameras.centre[:, None]
    centre = at[..., :2] / z[..., None] * f + c
    # far outside the picture the Jacobian is taken at a margin of 0.15 of its side, as gsplat has
    # it
    size = c.new_tensor([cameras.width, cameras.height])
    slope = torch.stack([x / z, y / z], dim=-1)
    slope = torch.minimum(torch.maximum(slope, -(c + 0.15 * size) / f), (1.15 * size - c) / f)
    # b n 3 3, columns the axes
    axes = turn @ (rotations(gaussians.quats) * gaussians.scales[..., None, :])
    # b n 2 3
    across = (
        f[..., None] / z[..., None, None] * (axes[..., :2, :] - slope[..., None] * axes[..., 2:, :])
    )
    xx, yy = (across.square().sum(-1) + cameras.blur).unbind(-1)
    xy = across.prod(dim=-2).sum(-1)
    determinant = xx * yy - xy.square()
    conic = torch.stack([yy, -xy, xx], dim=-1) / determinant[..., None]
    reach = torch.stack([xx, yy], dim=-1).detach().sqrt()
    return Projected(centre, conic, reach, depth, _colour(gaussians, cameras))


def rotations(quats: Tensor) -> Tensor:  # ... 4 -> ... 3 3
    """Rotation matrices of quaternions (w, x, y, z), which are brought to length 1."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _colour(gaussians: Gaussians, cameras: Pinholes) -> Tensor:  # b n 3, not negative
    """The harmonics with the signs of Kerbl et al.: of degree 1, −y, z, −x."""
    sh = gaussians.sh
    colour = SH_0 * sh[..., 0, :]
    if sh.shape[-2] > 1:
        x, y, z = F.normalize(gaussians.means - cameras.positions[:, None], dim=-1)[
            ..., None
        ].unbind(-2)
        colour = colour + SH_1 * (-y * sh[..., 1, :] + z * sh[..., 2, :] - x * sh[..., 3, :])
    return (colour + 0.5).clamp(min=0)

"""Poses and intrinsics of any cameras: looking, lenses, paths, a scene's frame, and the axes of
files.

A pose is camera-to-world, 4 × 4, float64, OpenCV's axes: x right, y down, z forward, columns in
world coordinates. Intrinsics are normalised by the picture's size: the first row by its width, the
second by its height.

Axes: v cameras.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from d2.errors import InputError

FOV_RAD = math.radians(54)  # of the longer side, where a path of Stable Virtual Camera's gives none
Z_UP = torch.tensor([0.0, 0, 1], dtype=torch.float64)


class Rig(NamedTuple):
    """Some cameras of a scene."""

    poses: Tensor  # v 4 4
    intrinsics: Tensor  # v 3 3

    def take(self, index: Sequence[int]) -> Rig:
        """Those of these numbers, in their order."""
        return Rig(self.poses[list(index)], self.intrinsics[list(index)])


def looking_at(
    positions: Tensor,  # v 3
    target: Tensor,  # 3
    up: Tensor,  # 3, or v 3
) -> Tensor:
    """Poses at the positions, the target in the middle of the picture, `up` upwards in it: v 4
    4."""
    forward = F.normalize(target - positions, dim=-1)
    right = F.normalize(torch.linalg.cross(forward, up.expand_as(forward)), dim=-1)
    down = F.normalize(torch.linalg.cross(forward, right), dim=-1)
    return from_axes(torch.stack([right, down, forward], dim=-1), positions)


def on_sphere(
    azimuth_rad: Tensor,  # v
    elevation_rad: Tensor,  # v
) -> Tensor:
    """Unit vectors from the origin to the cameras, z up: v 3."""
    a, e = azimuth_rad, elevation_rad
    return torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], dim=-1)


def from_axes(
    axes: Tensor,  # v 3 3, in columns
    positions: Tensor,  # v 3
) -> Tensor:
    """v 4 4."""
    poses = torch.eye(4, dtype=torch.float64).repeat(len(positions), 1, 1)
    poses[:, :3, :3], poses[:, :3, 3] = axes, positions
    return poses


def lens(
    fov_rad: Tensor,  # v, of the longer side
    aspect: float = 1.0,  # width over height
) -> Tensor:
    """Normalised intrinsics of a field of view, square pixels, the principal point in the middle: v
    3 3."""
    focal = 0.5 / (fov_rad.double() / 2).tan()
    matrix = torch.zeros(len(fov_rad), 3, 3, dtype=torch.float64)
    matrix[:, 0, 0] = focal if aspect >= 1 else focal / aspect
    matrix[:, 1, 1] = focal * aspect if aspect >= 1 else focal
    matrix[:, :2, 2], matrix[:, 2, 2] = 0.5, 1
    return matrix


def opengl(poses: Tensor) -> Tensor:
    """OpenCV's axes to those of OpenGL and of transforms.json (y up, z backward), and back: v 4
    4."""
    return poses * poses.new_tensor([1.0, -1, -1, 1])


def frusta(
    rig: Rig,
    depth: float,  # along the optical axes
) -> Tensor:
    """Where cameras stand and the corners of their pictures at that depth, clockwise from the upper
    left: v 5 3, in world coordinates."""
    corners = torch.tensor([[0.0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
    inverse = torch.linalg.inv(rig.intrinsics.double())
    seen = depth * torch.einsum("v i j, c j -> v c i", inverse, corners)
    offset = torch.einsum("v i j, v c j -> v c i", rig.poses[:, :3, :3].double(), seen)
    position = rig.poses[:, None, :3, 3].double()
    return torch.cat([position, position + offset], dim=1)


# --- paths ----------------------------------------------------------------------------------------


class Path(NamedTuple):
    """Cameras along a path."""

    poses: Tensor  # v 4 4
    fov_rad: Tensor  # v, of the longer side


class Start(NamedTuple):
    """What a path starts from."""

    pose: Tensor  # 4 4
    target: Tensor  # 3, the point looked at
    up: Tensor  # 3
    fov_rad: float

    @property
    def position(self) -> Tensor:
        return self.pose[:3, 3]

    @property
    def forward(self) -> Tensor:
        return F.normalize(self.target - self.position, dim=0)

    @property
    def right(self) -> Tensor:
        return torch.linalg.cross(self.forward, self.up)


def turned(
    vectors: Tensor,  # 3
    axis: Tensor,  # 3, of unit length
    angle_rad: Tensor,  # v
) -> Tensor:
    """A vector turned about an axis, right-handed (Rodrigues): v 3."""
    cos, sin = angle_rad.cos()[:, None], angle_rad.sin()[:, None]
    along = axis * (axis @ vectors)
    return vectors * cos + torch.linalg.cross(axis, vectors) * sin + along * (1 - cos)


def orbit(start: Start, count: int) -> Path:
    """Once around the target."""
    angles = round_once(count)
    around = turned(start.position - start.target, F.normalize(start.up, dim=0), angles)
    return Path(looking_at(start.target + around, start.target, start.up), same_lens(start, count))


def spiral(
    start: Start, count: int, *, radii: tuple[float, float, float] = (0.5, 0.5, 0.2)
) -> Path:
    """Two small turns before the target's plane, of these radii in the camera's axes, starting at
    the camera."""
    c = opengl(start.pose[None])[0]
    theta = 2 * round_once(count)
    across, upward, forward = radii
    offsets = torch.stack(
        [across * theta.cos(), -upward * theta.sin(), -forward * (theta / 2).sin()], dim=-1
    )
    positions = offsets @ c[:3, :3].T + c[:3, 3]
    focus = c[:3, 3] - c[:3, 2] / (0.25 / 0.9 + 0.75 / 25)
    z = F.normalize(positions - focus, dim=-1)
    x = F.normalize(torch.linalg.cross(c[:3, 1].expand_as(z), z), dim=-1)
    y = F.normalize(torch.linalg.cross(z, x), dim=-1)
    poses = opengl(from_axes(torch.stack([x, y, z], dim=-1), positions))
    return Path(start.pose @ torch.linalg.inv(poses[0]) @ poses, same_lens(start, count))


def lemniscate(start: Start, count: int) -> Path:
    """A lying eight in the camera's plane, the target in view."""
    theta = round_once(count) + math.pi / 2
    reach = (start.position - start.target).norm() * math.tan(math.radians(30))
    wide = reach * theta.cos() / (1 + theta.sin().square())
    offsets = torch.stack([wide, wide * theta.sin(), torch.zeros_like(theta)], dim=-1)
    positions = offsets @ start.pose[:3, :3].T + start.position
    return Path(looking_at(positions, start.target, start.up), same_lens(start, count))


def roll(start: Start, count: int) -> Path:
    """The picture turns about its middle; the axis is the way from the origin to the target, as
    published.

    Where the target is the origin it is the way that the camera looks.
    """
    axis = F.normalize(start.target, dim=0) if start.target.any() else start.forward
    up = turned(-start.pose[:3, 1], axis, round_once(count))
    return Path(
        looking_at(start.position.expand(count, 3), start.target, up), same_lens(start, count)
    )


def moved(start: Start, count: int, *, direction: str, distance: float = 0.99) -> Path:
    """Along a straight line, the target in view."""
    ways = {"forward": start.forward, "right": start.right, "up": start.up}
    opposite = {"backward": "forward", "left": "right", "down": "up"}
    way = ways[direction] if direction in ways else -ways[opposite[direction]]
    steps = torch.linspace(0, distance, count, dtype=torch.float64)[:, None]
    positions = start.position + steps * F.normalize(way, dim=0)
    return Path(looking_at(positions, start.target, start.up), same_lens(start, count))


def zoom(start: Start, count: int, *, factor: float) -> Path:
    """The camera stays, and its field of view becomes `factor` times what it was."""
    fov = torch.linspace(start.fov_rad, factor * start.fov_rad, count, dtype=torch.float64)
    return Path(start.pose.expand(count, 4, 4), fov)


def dolly_zoom(start: Start, count: int, *, factor: float, direction: str) -> Path:
    """The camera moves against the change of its field of view."""
    return Path(
        moved(start, count, direction=direction).poses, zoom(start, count, factor=factor).fov_rad
    )


def same_lens(start: Start, count: int) -> Tensor:
    return torch.full((count,), start.fov_rad, dtype=torch.float64)


def round_once(count: int) -> Tensor:
    return 2 * math.pi * torch.arange(count, dtype=torch.float64) / count


DIRECTIONS = ("forward", "backward", "up", "down", "left", "right")


def preset_path(name: str, start: Start, count: int) -> Path:
    """The cameras of a named path; an InputError lists the names."""
    paths: dict[str, Callable[[], Path]] = {
        "orbit": lambda: orbit(start, count),
        "spiral": lambda: spiral(start, count),
        "lemniscate": lambda: lemniscate(start, count),
        "roll": lambda: roll(start, count),
        "zoom-in": lambda: zoom(start, count, factor=0.28),
        "zoom-out": lambda: zoom(start, count, factor=1.5),
        "dolly-zoom-in": lambda: dolly_zoom(start, count, factor=0.28, direction="backward"),
        "dolly-zoom-out": lambda: dolly_zoom(start, count, factor=1.5, direction="forward"),
        **{f"move-{way}": lambda way=way: moved(start, count, direction=way) for way in DIRECTIONS},
    }
    if name not in paths:
        raise InputError(f"cameras.preset={name}: choose ring, {', '.join(paths)}")
    return paths[name]()


# --- the frame of a scene -------------------------------------------------------------------------


def scene_frame(
    poses: Tensor,  # v 4 4
    *,
    # focus: of the points of the optical axes nearest the origin; poses: of the positions
    middle: str = "focus",
    up: Tensor = Z_UP,  # 3, where the cameras' mean up axis goes
) -> Tensor:
    """A similarity that stands a scene upright, brings its middle to the origin and its cameras to
    distance 1: 4 4.

    Middle and distance are medians. An InputError says that the cameras are all in one place.
    """
    poses = poses.double()
    if (poses[:, :3, 3] - poses[0, :3, 3]).norm(dim=1).max() < 1e-9 * (1 + poses[0, :3, 3].norm()):
        raise InputError(
            "cameras: all stand in one place, so the scene has no size; give cameras that move"
        )
    mean_up = F.normalize(-poses[:, :3, 1].mean(dim=0), dim=0)
    v, c = torch.linalg.cross(mean_up, up), float(mean_up @ up)
    cross = torch.tensor(
        [[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]], dtype=torch.float64
    )
    if c > -1 + 1e-9:
        rotation = torch.eye(3, dtype=torch.float64) + cross + cross @ cross / (1 + c)
    else:
        rotation = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))
    positions, forward = poses[:, :3, 3] @ rotation.T, poses[:, :3, 2] @ rotation.T
    points = positions
    if middle == "focus":
        points = positions - (positions * forward).sum(dim=-1, keepdim=True) * forward
    centre = points.quantile(0.5, dim=0)
    distance = float((positions - centre).norm(dim=-1).quantile(0.5))
    if distance == 0:
        raise InputError(
            "cameras: most stand in the middle of what they look at; give cameras around the scene"
        )
    frame = torch.eye(4, dtype=torch.float64)
    frame[:3, :3], frame[:3, 3] = rotation, -centre
    frame[:3] /= distance
    return frame


def in_frame(
    poses: Tensor,  # v 4 4
    frame: Tensor,  # 4 4, a similarity
) -> Tensor:
    """Poses in another frame, their axes of unit length: v 4 4."""
    out = frame @ poses.double()
    out[:, :3, :3] /= torch.linalg.det(frame[:3, :3]) ** (1 / 3)
    return out

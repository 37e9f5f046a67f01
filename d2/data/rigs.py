"""The cameras of a user's scene: from a file, along a named path, or around the scene."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2.cameras import Z_UP, Rig, Start, lens, opengl, preset_path
from d2.data.camera_file import path_cameras
from d2.errors import InputError
from d2.matrix import FOV_Y_DEG, RADIUS, Cameras, camera_ring, camera_to_world, cameras_of

FOLDER_ELEVATION_DEG = 10.0  # of a user's own camera when not given, as in the published program


class Wanted(NamedTuple):
    """What `cameras.*` says; None is the default."""

    elevation_deg: Any = None  # one number or one a view
    azimuth_deg: list[float] | None = None
    radius: Any = None  # one number or one a view
    fov_deg: Any = None  # one number or one a view
    preset: str = "ring"
    path: Path | None = None
    input_view: int = 0  # of the path


def make_cameras(wanted: Wanted, num_views: int) -> Cameras:
    """Make the cameras; an InputError names the key with too few, impossible or contradicting
    values."""
    if wanted.path is not None:
        cameras = path_cameras(wanted.path, wanted.input_view)[0]
        if cameras.num_views != num_views:
            raise InputError(
                f"matrix.num_views={num_views}: {wanted.path} has {cameras.num_views} cameras;"
                " leave it null"
            )
        return cameras
    elevation = per_view(
        "elevation_deg", wanted.elevation_deg, FOLDER_ELEVATION_DEG, num_views, (-90, 90)
    )
    if wanted.preset != "ring":
        return along_preset(wanted, float(elevation[0]), num_views)
    around = camera_ring(num_views, torch.deg2rad(elevation))
    azimuth = wanted.azimuth_deg
    if azimuth is not None:
        if len(azimuth) != num_views or not math.isclose(azimuth[-1], 360):
            raise InputError(
                f"cameras.azimuth_deg={azimuth}: give one number a view ({num_views}), the last,"
                " the input view's, 360"
            )
        around = around._replace(
            azimuth_rad=torch.deg2rad(torch.tensor(azimuth, dtype=torch.float64))
        )
    if wanted.radius is None and wanted.fov_deg is None:
        return around
    poses = opengl(camera_to_world(around))
    poses[:, :3, 3] *= (per_view("radius", wanted.radius, RADIUS, num_views, (0.5, 1e3)) / RADIUS)[
        :, None
    ]
    fov = per_view("fov_deg", wanted.fov_deg, FOV_Y_DEG, num_views, (1, 170))
    return around._replace(rig=Rig(poses, lens(torch.deg2rad(fov))))


def along_preset(wanted: Wanted, elevation_deg: float, num_views: int) -> Cameras:
    """A named path that starts at the input's camera, which looks at the origin."""
    listed = [
        key
        for key in ("elevation_deg", "radius", "fov_deg")
        if isinstance(getattr(wanted, key), list)
    ]
    if listed or wanted.azimuth_deg is not None:
        key = [*listed, "azimuth_deg"][0]
        raise InputError(
            f"cameras.{key}: one a view, and cameras.preset={wanted.preset} makes the views; take"
            " ring"
        )
    radius = float(per_view("radius", wanted.radius, RADIUS, 1, (0.5, 1e3)))
    fov = float(per_view("fov_deg", wanted.fov_deg, FOV_Y_DEG, 1, (1, 170)))
    pose = opengl(camera_to_world(camera_ring(1, math.radians(elevation_deg))))[0]
    pose[:3, 3] *= radius / RADIUS
    start = Start(pose, torch.zeros(3, dtype=torch.float64), Z_UP, math.radians(fov))
    path = preset_path(wanted.preset, start, num_views)
    return cameras_of(Rig(path.poses, lens(path.fov_rad)), 0)


def per_view(
    key: str, given: object, default: float, num_views: int, between: tuple[float, float]
) -> Tensor:
    """One number, or one a view, each between two others: v, float64."""
    value = default if given is None else given
    listed = value if isinstance(value, list) else [value] * num_views
    low, high = between
    if len(listed) != num_views or not all(
        isinstance(x, (int, float)) and low < x < high for x in listed
    ):
        raise InputError(
            f"cameras.{key}={value}: give one number, or one a view ({num_views}), between {low:g}"
            f" and {high:g}"
        )
    return torch.tensor(listed, dtype=torch.float64)

"""Any cameras from files: a path of them in a transforms.json, and several synchronised clips with
theirs.

The format is nerfstudio's and D-NeRF's. A table's cameras are brought into d2's frame (z up, the
middle of what they look at in the origin, at distance 2), and pictures are square: of others the
middle square counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2.cameras import Rig, in_frame, opengl, scene_frame
from d2.data.folder import Clip, read_clip
from d2.data.framing import frame as framed
from d2.errors import InputError
from d2.lens import lens_of
from d2.matrix import RADIUS, Cameras, cameras_of
from d2.scene import Known

TABLE = "transforms.json"


class CameraTable(NamedTuple):
    """The cameras of a file, each once, in their order."""

    rig: Rig
    names: list[str | None]  # of a camera's picture or clip, as the file has it
    aspects: list[float]  # width over height of a camera's pictures; where not said, of squares
    path: Path


def read_table(path: Path) -> CameraTable:
    """The cameras of a transforms.json; an InputError names what is missing or does not fit."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        frames: list[dict[str, Any]] = table["frames"]
        poses = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64)
        applied = torch.tensor(
            table.get("applied_transform", torch.eye(4)[:3].tolist()), dtype=torch.float64
        )
        intrinsics = torch.stack([intrinsics_of(frame | table, path) for frame in frames])
    except OSError as error:
        raise InputError(
            f"cameras.path={path}: cannot be read ({error.strerror}); give a transforms.json"
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: not a table of cameras ({type(error).__name__}: {error}); see nerfstudio's"
        ) from error
    if poses.shape[1:] != (4, 4) or not poses.isfinite().all():
        raise InputError(
            f"{path}: its transform_matrix are no finite 4 × 4 matrices; write them again"
        )
    undo = torch.linalg.inv(
        torch.cat([applied[:3], torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)])
    )
    poses, first = opengl(undo @ poses), {}
    for index, (pose, lens) in enumerate(zip(poses, intrinsics, strict=True)):
        key = tuple(torch.cat([pose.flatten(), lens.flatten()]).mul(1e6).round().tolist())
        first.setdefault(key, index)
    kept = list(first.values())
    frame = scene_frame(poses[kept])
    frame[:3] *= RADIUS
    facts = [frames[index] | table for index in kept]
    aspects = [f["w"] / f["h"] if "w" in f and "h" in f else 1.0 for f in facts]
    names = [frames[index].get("file_path") for index in kept]
    return CameraTable(Rig(in_frame(poses[kept], frame), intrinsics[kept]), names, aspects, path)


def intrinsics_of(facts: dict[str, Any], path: Path) -> Tensor:
    """Normalised, of the middle square of the pictures: 3 3."""
    across, down, x, y, width, height = lens_of(facts, path)
    side = min(width, height)
    centre = (x - (width - side) / 2) / side, (y - (height - side) / 2) / side
    return torch.tensor(
        [[across / side, 0, centre[0]], [0, down / side, centre[1]], [0, 0, 1]], dtype=torch.float64
    )


def square_clip(clip: Clip, size: int, table: CameraTable, view: int) -> tuple[Tensor, Tensor]:
    """The middle square of every frame of a view's clip, on white, and its masks: pixels f 3 size
    size, masks f 1 size size."""
    height, width = clip.rgba.shape[-2:]
    aspect = table.aspects[view]
    if abs(width / height / aspect - 1) > 0.01:
        raise InputError(
            f"{clip.name}: {width} × {height} pixels, and camera {view} of {table.path} is of"
            f" pictures {aspect:.3g} times as wide as high; give the cameras of this clip"
        )
    rgba = clip.rgba.double() / 255
    on_white = torch.cat([rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:], rgba[:, 3:]], dim=1)
    pictures = framed(on_white, torch.eye(3), (size, size)).pictures.float()
    return pictures[:, :3], pictures[:, 3:]


def path_cameras(path: Path, input_view: int) -> tuple[Cameras, CameraTable]:
    """The cameras of a file, the input's among them."""
    table = read_table(path)
    if not 0 <= input_view < len(table.names):
        raise InputError(
            f"cameras.input_view={input_view}: {path} has the cameras 0 to {len(table.names) - 1}, "
            "and the input's must be one of them"
        )
    return cameras_of(table.rig, input_view), table


class Views(NamedTuple):
    """Several synchronised clips of one scene, and all cameras wanted of it."""

    pixels: Tensor  # f 3 h w, of the input view: the first that is known
    masks: Tensor  # f 1 h w
    cameras: Cameras
    others: Known | None


def read_views(folder: Path, *, num_frames: int, start: int, stride: int, size: int) -> Views:
    """A folder with a transforms.json, in which `file_path` of a known view names its clip beside
    it.

    A camera without a file_path is one that is wanted. An InputError names a known view whose clip
    is not there.
    """
    table = read_table(folder / TABLE)
    known = [view for view, name in enumerate(table.names) if name]
    if not known:
        raise InputError(
            f"scenes.views={folder}: no frame of {TABLE} has a file_path, so no view is known; name"
            " clips"
        )
    clips = []
    for view in known:
        place = folder / str(table.names[view])
        if not place.exists():
            raise InputError(
                f"{place}: no such clip; {TABLE} names it as view {view}'s; put it there, or leave"
                " it out"
            )
        clips.append(
            square_clip(
                read_clip(place, num_frames=num_frames, start=start, stride=stride),
                size,
                table,
                view,
            )
        )
    if len({len(pixels) for pixels, _ in clips}) > 1:
        raise InputError(
            f"scenes.views={folder}: some of its known views are clips and some are pictures; give"
            " clips"
        )
    (pixels, masks), *rest = clips
    if rest and len(pixels) < num_frames:
        raise InputError(
            f"scenes.views={folder}: its known views are pictures, and"
            f" matrix.num_frames={num_frames} wants clips; give clips, or matrix.num_frames=1"
        )
    others = Known(tuple(known[1:]), torch.stack([p for p, _ in rest])) if rest else None
    return Views(pixels, masks, cameras_of(table.rig, known[0]), others)

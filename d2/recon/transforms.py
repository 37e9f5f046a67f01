"""Pictures with cameras and times as nerfstudio and D-NeRF keep them: a folder with
transforms.json.

Axes: p pictures, c h w. Pixels are in [0, 1], composited on white.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d2.errors import InputError
from d2.lens import lens_of
from d2.recon.capture import Capture, checked, not_white
from d2.recon.gaussians import Pinholes

TABLE, TABLES = "transforms.json", ("transforms.json", "transforms_train.json")
FPS = 8.0  # where a table gives none


def capture_folders(root: Path) -> list[Path]:
    """The folder itself, or those in it, that hold a table of cameras; ValueError where none
    does."""
    folders = (
        [root]
        if table_of(root)
        else [folder for folder in sorted(root.glob("[!.]*")) if table_of(folder)]
    )
    if not folders:
        raise InputError(
            f"scenes.path={root}: no cameras; a folder of pictures needs {TABLE} (nerfstudio's,"
            " D-NeRF's)"
        )
    return folders


def table_of(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def read_capture(folder: Path) -> Capture:
    """All pictures of a table. ValueError names the picture or the key that is missing."""
    path = table_of(folder)
    assert path is not None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        frames = table["frames"]
        poses = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64)
        times = [float(frame.get("time", 0.0)) for frame in frames]
        files = [picture_file(folder, frame["file_path"]) for frame in frames]
        fps = float(table.get("fps", FPS))
        if poses.shape != (len(frames), 4, 4):
            raise TypeError("a transform_matrix is not 4 × 4")
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not a table of cameras ({error}); see docs of nerfstudio"
        ) from error
    pictures = [read_picture(file) for file in files]
    if len({picture.shape for picture in pictures}) != 1:
        raise InputError(f"{path}: its pictures have several sizes; give one")
    pixels = torch.stack([picture[:3] for picture in pictures])
    alpha = torch.stack([picture[3:] for picture in pictures])
    masks = (alpha > 0.5).float() if (alpha < 1).any() else not_white(pixels)
    moments = sorted(set(times))
    _, view = poses.float().round(decimals=4).flatten(1).unique(dim=0, return_inverse=True)
    return checked(
        Capture(
            pixels=pixels,
            masks=masks,
            cameras=pinholes([frame | table for frame in frames], path, poses, pixels.shape),
            view=view,
            frame=torch.tensor([moments.index(time) for time in times]),
            num_views=int(view.max()) + 1,
            num_frames=len(moments),
            fps=fps,
        )
    )


def pinholes(
    lenses: list[dict[str, Any]],  # p, the table's keys over a picture's own
    path: Path,
    poses: Tensor,  # p 4 4, camera to world, x right, y up, looking along −z
    shape: tuple[int, ...],  # p 3 h w
) -> Pinholes:
    """The cameras of a table; ValueError for lenses that bend straight lines."""
    height, width = shape[-2:]
    lens = torch.tensor([lens_of(keys, path, (width, height))[:4] for keys in lenses])
    flip = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    return Pinholes(torch.linalg.inv(poses @ flip).float(), lens[:, :2], lens[:, 2:], height, width)


def picture_file(folder: Path, name: str) -> Path:
    """D-NeRF's tables leave the suffix out."""
    for file in (folder / name, folder / f"{name}.png", folder / f"{name}.jpg"):
        if file.is_file():
            return file
    raise InputError(f"{folder / name}: no such picture; the table of cameras names it")


def read_picture(path: Path) -> Tensor:  # 4 h w, on white, with its alpha
    with Image.open(path) as image:
        rgba = torch.from_numpy(np.asarray(image.convert("RGBA"), dtype=np.float32) / 255).permute(
            2, 0, 1
        )
    return torch.cat([rgba[:3] * rgba[3:] + 1 - rgba[3:], rgba[3:]])

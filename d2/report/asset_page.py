"""The page of a scene of moving Gaussians: any angle by drag, any time by slider, in one file that
asks no network.

The page projects and sorts the Gaussians itself, by the formulas of d2/recon, and WebGL2 blends
them back to front; a few thousand take a millisecond, so there is no library to carry along.

Axes: n Gaussians, k control points, t sampled times, s spherical harmonics, v views, f frames, c h
w.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from d2.files import write_text
from d2.report.markup import data_uri, render

# at which the page knows a motion's shares; between them it takes the straight line
TIMES_PER_FRAME = 32
MAX_CELL = 160  # pixels of the longer side of an embedded cell


class AssetScene(NamedTuple):
    """A scene in plain tensors, as the page draws it."""

    means: Tensor  # n 3
    quats: Tensor  # n 4, w x y z
    scales: Tensor  # n 3
    opacities: Tensor  # n
    sh: Tensor  # n s 3
    mean_controls: Tensor  # n k 3
    quat_controls: Tensor  # n k 4
    shares: Tensor  # t k, of the control points at times from the first frame to the last


class AssetView(NamedTuple):
    """How the page looks at it."""

    around: tuple[float, float, float]  # what the camera looks at, world units
    distance: float  # world units
    focal: float  # over the picture's height
    blur: float  # variance added to a projected Gaussian, over the square of the picture's height
    azimuth_rad: float  # where it starts
    elevation_rad: float


def write_asset_page(
    path: Path,
    *,
    title: str,
    scene: AssetScene,
    view: AssetView,
    fps: float,
    num_frames: int,
    figures: Sequence[Mapping[str, Any]],  # rows, of which the first key names each
    matrix: Tensor | None,  # v f 3 h w, in [0, 1], shown beside the scene
    azimuth_rad: list[float],  # v
    elevation_rad: list[float],  # v
) -> None:
    """Write the page. It takes the angles and the time in its address too:
    `#azimuth=…&elevation=…&time=…`, in radians and frames. The file is replaced at once or not at
    all."""
    data = {
        "scene": {name: _packed(tensor) for name, tensor in scene._asdict().items()},
        "count": len(scene.means),
        "controls": scene.shares.shape[1],
        "harmonics": scene.sh.shape[1],
        "times": len(scene.shares),
        "frames": num_frames,
        "fps": fps,
        "view": view._asdict(),
        "matrix": None if matrix is None else _cells(matrix),
        "azimuth_rad": azimuth_rad,
        "elevation_rad": elevation_rad,
    }
    facts = f"{len(scene.means)} moving Gaussians · {num_frames} frames · {fps:g} fps"
    write_text(path, render("asset.html", title=title, facts=facts, figures=figures, data=data))


def show_asset(page: Path, asset: str) -> None:
    """Above a scene's matrix, its asset in motion and a way to the asset's page; `asset` is that
    folder, as seen from the page. Nothing where there is no page; what an earlier asset left is
    replaced."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    film = (page.parent / asset / "spiral.mp4").read_bytes()
    shown = render(
        "asset_beside.html",
        href=f"{asset}/index.html",
        film="data:video/mp4;base64," + base64.b64encode(film).decode(),
    )
    bare = re.sub(r'\n<section id="asset".*?</section>', "", text, flags=re.DOTALL)
    if text:
        write_text(page, bare.replace("</header>", f"</header>\n{shown}", 1))


def _packed(tensor: Tensor) -> str:
    """float32, little-endian, base64."""
    return base64.b64encode(
        tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()
    ).decode()


def _cells(matrix: Tensor) -> dict[str, object]:
    """All cells as one picture, views down, frames across."""
    num_views, num_frames, _, height, width = matrix.shape
    shrink = min(1.0, MAX_CELL / max(height, width))
    height, width = round(height * shrink), round(width * shrink)
    cells = matrix.detach().cpu().float().flatten(0, 1)
    cells = (
        cells
        if shrink == 1
        else F.interpolate(cells, (height, width), mode="bilinear", antialias=True)
    )
    sheet = rearrange(
        (cells.clamp(0, 1) * 255).round().to(torch.uint8),
        "(v f) c h w -> (v h) (f w) c",
        f=num_frames,
    )
    return {
        "image": data_uri(Image.fromarray(sheet.numpy()), "PNG"),
        "width": width,
        "height": height,
    }

"""What the page of a scene needs to know, from a fit and its pictures."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from d2.recon.capture import Capture
from d2.recon.hull import common_ball
from d2.recon.scene import MovingGaussians
from d2.report.asset_page import TIMES_PER_FRAME, AssetScene, AssetView, write_asset_page

SHOWN = {  # figures -> what they are of
    "train": "fitted cells, against the matrix",
    "held": "held cells, against the matrix",
    "angle": "half-way angles, against the truth",
    "angle_neighbours": "mean of the two neighbouring views",
    "time": "half-way times, against the truth",
    "time_neighbours": "mean of the two neighbouring frames",
}


@torch.no_grad()
def write_page(
    path: Path, name: str, scene: MovingGaussians, capture: Capture, figures: dict[str, float]
) -> None:
    """index.html of a reconstruction."""
    last = capture.num_frames - 1
    times = torch.linspace(0, last, last * TIMES_PER_FRAME + 1, device=scene.means.device)
    asset = AssetScene(
        means=scene.means,
        quats=scene.quats,
        scales=scene.log_scales.exp(),
        opacities=scene.opacity_logits.sigmoid(),
        sh=scene.sh,
        mean_controls=scene.mean_controls,
        quat_controls=scene.quat_controls,
        shares=scene.motion(times, scene.num_frames),
    )
    centre, _ = common_ball(capture.cameras)
    azimuth, elevation = view_angles(capture, centre)
    first = capture.input_view or 0
    height = capture.cameras.height
    view = AssetView(
        around=tuple(centre.tolist()),  # type: ignore[arg-type]
        distance=float((capture.cameras.positions - centre).norm(dim=-1).mean()),
        focal=float(capture.cameras.focal[:, 1].mean()) / height,
        blur=capture.cameras.blur / height**2,
        azimuth_rad=azimuth[first],
        elevation_rad=elevation[first],
    )
    whole = len(capture.view) == capture.num_views * capture.num_frames
    write_asset_page(
        path,
        title=f"d2: the scene of {name}",
        scene=asset,
        view=view,
        fps=capture.fps,
        num_frames=capture.num_frames,
        figures=shown(figures),
        matrix=in_order(capture) if whole else None,
        azimuth_rad=azimuth,
        elevation_rad=elevation,
    )


def view_angles(capture: Capture, centre: Tensor) -> tuple[list[float], list[float]]:
    """Azimuth and elevation of every view, seen from the centre; of one that moves, at its first
    picture."""
    first = torch.stack([(capture.view == v).nonzero()[0, 0] for v in range(capture.num_views)])
    away = (capture.cameras.positions[first] - centre).tolist()
    return [math.atan2(y, x) for x, y, _ in away], [
        math.atan2(z, math.hypot(x, y)) for x, y, z in away
    ]


def in_order(capture: Capture) -> Tensor:  # v f 3 h w
    """The pictures as a matrix."""
    order = (capture.view * capture.num_frames + capture.frame).argsort()
    return capture.pixels[order].unflatten(0, (capture.num_views, capture.num_frames))


def shown(figures: dict[str, float]) -> list[dict[str, str | float]]:
    """The figures people read, with their units: PSNR never without its masked twin and
    sharpness."""
    return [
        {
            "pictures": said,
            "PSNR, dB": figures[f"{name}_psnr"],
            "of the object, dB": figures[f"{name}_psnr_masked"],
            "sharpness": figures[f"{name}_sharpness"],
        }
        for name, said in SHOWN.items()
        if f"{name}_psnr" in figures
    ]

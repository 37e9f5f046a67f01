"""`d2 view`: a scene of moving Gaussians on a local page of viser, with the cameras of its matrix.

Axes: n Gaussians, v views, f frames, c h w.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2.errors import InputError
from d2.io import read_matrix
from d2.recon.capture import Capture, capture_matrix
from d2.recon.files import read_scene
from d2.recon.gaussians import SH_0, Gaussians, rotations
from d2.recon.page import in_order
from d2.recon.rasterize import rasterize
from d2.recon.scene import MovingGaussians

SCENE, MATRIX = "scene.safetensors", "matrix.safetensors"
FRUSTUM = 0.12  # world units
PANEL = 320  # pixels, the width of viser's panel


@dataclass(frozen=True)
class ViewJob:
    """All that decides `d2 view`."""

    scene: Path
    matrix: Path | None
    host: str
    port: int


def view_command(job: ViewJob) -> int:
    """Serve the page until a signal comes."""
    server = serve(job)
    print(f"http://{server.get_host()}:{server.get_port()}", flush=True)
    server.sleep_forever()
    return 0


def find_scene(run: Path, matrix: Path | None) -> tuple[Path, Path | None]:
    """The one scene under a folder, and the matrix that it is of: the one given, else one beside or
    above it."""
    found = sorted(path for path in run.rglob(SCENE) if not path.parent.name.startswith("."))
    if not found:
        raise InputError(f"run={run}: holds no {SCENE}; make one with d2 reconstruct run=…")
    if len(found) > 1:
        names = ", ".join(str(path.parent) for path in found[:8])
        raise InputError(
            f"run={run}: holds {len(found)} scenes; give the folder of one, as {names}"
        )
    beside = [found[0].parent / MATRIX, found[0].parent.parent / MATRIX]
    return found[0], matrix or next((path for path in beside if path.is_file()), None)


def serve(job: ViewJob) -> Any:
    """A viser server that shows the scene at a time of choice, the cameras of the matrix's cells,
    and a cell beside what the scene looks like from its camera. InputError where viser is not
    installed."""
    try:
        import viser
    except ImportError as error:
        raise InputError(
            "d2 view: viser is not installed; pip install 'diffusion-squared[view]'"
        ) from error
    scene, _ = read_scene(job.scene)
    capture = None if job.matrix is None else capture_matrix(read_matrix(job.matrix))
    server = viser.ViserServer(host=job.host, port=job.port, verbose=False)
    server.scene.set_up_direction("+z")
    splats = server.scene.add_gaussian_splats("/scene", **splat_arrays(at(scene, 0.0)))
    time = server.gui.add_slider("Time, frames", 0.0, max(1, scene.num_frames - 1), 0.05, 0.0)

    @time.on_update
    def follow(event: Any) -> None:
        splats.set_gaussians(**splat_arrays(at(scene, time.value)))

    if capture is not None:
        show_cells(server, scene, capture, time)
    return server


def show_cells(server: Any, scene: MovingGaussians, capture: Capture, time: Any) -> None:
    """Frusta with the cells of the slider's frame, and one view's cell beside the render from its
    camera."""
    matrix = in_order(capture)
    first = [int((capture.view == view).nonzero()[0]) for view in range(capture.num_views)]
    pose = torch.linalg.inv(capture.cameras.world_to_camera[first])
    fov = float(2 * torch.atan(capture.cameras.height / 2 / capture.cameras.focal[0, 1]))
    turns = [viser_quaternion(turn) for turn in pose[:, :3, :3]]
    frusta = [
        server.scene.add_camera_frustum(
            f"/cells/view_{view:02}",
            fov,
            capture.cameras.width / capture.cameras.height,
            scale=FRUSTUM,
            image=bytes_of(matrix[view, 0]),
            wxyz=turns[view],
            position=pose[view, :3, 3].numpy(),
        )
        for view in range(capture.num_views)
    ]
    view = server.gui.add_slider("View", 0, capture.num_views - 1, 1, capture.input_view or 0)
    cell = server.gui.add_image(
        enlarged(matrix[int(view.value), 0]), label="The matrix's cell, nearest frame"
    )
    drawn = server.gui.add_image(
        enlarged(cell_of(scene, capture, first[int(view.value)], 0.0)),
        label="The scene, from the cell's camera",
    )

    def update(_: Any) -> None:
        frame, chosen = min(round(time.value), capture.num_frames - 1), int(view.value)
        cell.image = enlarged(matrix[chosen, frame])
        drawn.image = enlarged(cell_of(scene, capture, first[chosen], time.value))
        for frustum, row in zip(frusta, matrix, strict=True):
            frustum.image = bytes_of(row[frame])

    time.on_update(update)
    view.on_update(update)


@torch.no_grad()
def at(scene: MovingGaussians, time: float) -> Gaussians:
    """The scene at one time, in frames."""
    return scene(torch.tensor([time]))


@torch.no_grad()
def cell_of(scene: MovingGaussians, capture: Capture, picture: int, time: float) -> Tensor:  # 3 h w
    """The scene at a time, from the camera of a picture of the matrix."""
    cameras = capture.cameras.of(torch.tensor([picture]))
    return rasterize(at(scene, time), cameras, torch.ones(3)).colour[0]


def splat_arrays(gaussians: Gaussians) -> dict[str, Any]:
    """What viser's splats are made of; they have one colour from everywhere, so harmonics of degree
    0 alone."""
    means, quats, scales, opacities, sh = (part[0].detach() for part in gaussians)
    axes = rotations(quats) * scales[:, None]
    return {
        "centers": means.numpy(),
        "covariances": (axes @ axes.mT).numpy(),
        "rgbs": (sh[:, 0] * SH_0 + 0.5).clamp(0, 1).numpy(),
        "opacities": opacities[:, None].numpy(),
    }


def viser_quaternion(turn: Tensor) -> np.ndarray:
    """(w, x, y, z) of a rotation."""
    import viser.transforms

    return viser.transforms.SO3.from_matrix(turn.double().numpy()).wxyz


def enlarged(pixels: Tensor) -> np.ndarray:  # 3 h w in [0, 1] -> h w 3
    """A picture as wide as viser's panel, which shows smaller ones in their own size."""
    factor = max(1.0, PANEL / pixels.shape[-1])
    grown = F.interpolate(pixels.detach()[None], scale_factor=factor, mode="bicubic")
    return bytes_of(grown[0])


def bytes_of(pixels: Tensor) -> np.ndarray:  # c h w in [0, 1] -> h w c
    return (pixels.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

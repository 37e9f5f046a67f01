"""Matrices for other people's stage 2: each folder is read back by the convention that its readers
document."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData
from torch import Tensor

from d2.data import world4d
from d2.io import write_matrix
from d2.matrix import ImageMatrix, camera_ring
from d2.recon.capture import capture_matrix
from d2.recon.files import read_ply, write_ply_sequence
from d2.recon.gaussians import ring_pinholes
from d2.recon.motion import cubic_bspline
from d2.recon.multiview import write_multiview
from d2.recon.rasterize import rasterize
from d2.recon.scene import MovingGaussians

VIEWS, FRAMES, SIZE = 5, 3, 32


@pytest.fixture(scope="module")
def matrix() -> ImageMatrix:
    scene = world4d.scene("test", 0, num_views=VIEWS, num_frames=FRAMES, size=SIZE)
    assert scene.truth is not None
    return ImageMatrix(scene.truth.pixels, scene.cameras, scene.fps)


@pytest.fixture(scope="module")
def points() -> (
    Tensor
):  # v n 3, world4d's points that each view sees at frame 0: its pixels, carried out by their depth
    """Known 3D points of the world, those that each view sees at frame 0, and the pixels where it
    does."""
    scene = world4d.scene("test", 0, num_views=VIEWS, num_frames=FRAMES, size=SIZE)
    assert scene.truth is not None
    found = []
    pinholes = ring_pinholes(scene.cameras, SIZE)
    for view in range(VIEWS):
        solid = (scene.truth.masks[view, 0, 0] > 0.999).nonzero()[:40]
        depth = scene.truth.depth[view, 0, 0][solid[:, 0], solid[:, 1]]
        at = solid.flip(-1) + 0.5
        there = torch.cat(
            [(at - pinholes.centre[view]) / pinholes.focal[view], torch.ones(len(at), 1)], dim=-1
        )
        turn, shift = pinholes.world_to_camera[view, :3, :3], pinholes.world_to_camera[view, :3, 3]
        found.append(torch.cat([(there * depth[:, None] - shift) @ turn, at], dim=-1))
    return torch.stack([each[: min(map(len, found))] for each in found])  # v n 5


def scene() -> MovingGaussians:
    torch.manual_seed(0)
    made = MovingGaussians(cubic_bspline, FRAMES, 40, 1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        made.log_scales.add_(-3)
    return made


def assert_seen(
    camera_to_world: np.ndarray, focal: float, points: Tensor, scale: float = 1.0
) -> None:
    """Points (n 5) land within half a pixel of where the view shows them: axes x right, y up,
    looking along −z."""
    x, y, z = (
        (points[:, :3].double().numpy() * scale - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]
    ).T
    landed = np.stack([SIZE / 2 + focal * x / -z, SIZE / 2 - focal * y / -z], axis=-1)
    assert np.abs(landed - points[:, 3:].numpy()).max() < 0.5


@pytest.mark.parametrize(
    ("table", "suffix", "scale"), [("transforms", "", 1.0), ("transforms_train", ".png", 2.0)]
)
def test_nerfstudio_and_dnerf_see_the_points_of_the_world(
    tmp_path: Path, matrix: ImageMatrix, points: Tensor, table: str, suffix: str, scale: float
) -> None:
    """transforms.json as nerfstudio documents it; transforms_train.json as D-NeRF's load_blender
    reads it."""
    write_matrix(tmp_path / "scene", matrix, None, {})
    data = json.loads((tmp_path / f"scene/{table}.json").read_text())
    focal = data.get("fl_x") or 0.5 * SIZE / math.tan(0.5 * data["camera_angle_x"])
    assert len(data["frames"]) == VIEWS * FRAMES and data["frames"][0]["time"] == 0
    for index, frame in enumerate(data["frames"]):
        view, moment = divmod(index, FRAMES)
        assert frame["time"] == pytest.approx(moment / (FRAMES - 1))
        assert_seen(np.array(frame["transform_matrix"]), focal, points[view], scale)
        picture = np.asarray(
            Image.open(tmp_path / "scene" / f"{frame['file_path']}{suffix}").convert("RGB")
        )
        shown = torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close(shown, matrix.pixels[view, moment], atol=1 / 255, rtol=0)


def test_4dgaussians_reads_its_multi_view_folder(
    tmp_path: Path, matrix: ImageMatrix, points: Tensor
) -> None:
    """Read as its multipleview_dataset does, and COLMAP's binary files as COLMAP documents them."""
    write_multiview(tmp_path / "scene", capture_matrix(matrix), scene())
    folder = tmp_path / "scene"
    cameras = (folder / "sparse_/cameras.bin").read_bytes()
    count, camera, model, width, height = struct.unpack_from("<QiiQQ", cameras)
    assert (count, camera, model, width, height) == (1, 1, 1, SIZE, SIZE)
    focal, _, cx, cy = struct.unpack_from("<4d", cameras, 32)
    assert (cx, cy) == (SIZE / 2, SIZE / 2)
    images, place = (folder / "sparse_/images.bin").read_bytes(), 8
    assert struct.unpack_from("<Q", images) == (VIEWS,)
    llff = np.load(folder / "poses_bounds_multipleview.npy")
    frames = len(list((folder / "cam01").iterdir()))
    for index in range(VIEWS):
        _, w, x, y, z, *shift, camera = struct.unpack_from("<i7di", images, place)
        end = images.index(b"\0", place + 64)
        name, place = images[place + 64 : end].decode(), end + 1 + 8
        view = int(name[5:-4]) - 1
        assert camera == 1 and view == index
        turn = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        camera_to_world = np.eye(4)
        camera_to_world[:3, :3] = turn.T @ np.diag([1, -1, -1])
        camera_to_world[:3, 3] = -turn.T @ np.array(shift)
        assert_seen(camera_to_world, focal, points[view])
        pose = llff[view, :15].reshape(3, 5)
        as_read = np.concatenate([pose[:, 1:2], -pose[:, :1], pose[:, 2:4]], axis=1)
        np.testing.assert_allclose(as_read, camera_to_world[:3], atol=1e-6)
        assert llff[view, 15] < 2 < llff[view, 16]
        for frame in range(frames):
            path = folder / f"cam{str(view + 1).zfill(2)}" / f"frame_{str(frame + 1).zfill(5)}.jpg"
            shown = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255
            assert (shown - matrix.pixels[view, frame]).abs().mean() < 0.02
    assert place == len(images) and frames == FRAMES
    start = PlyData.read(folder / "points3D_multipleview.ply")["vertex"]
    means = scene()(torch.zeros(1)).means[0].detach().numpy()
    np.testing.assert_allclose(np.stack([start[axis] for axis in "xyz"], axis=-1), means, atol=1e-6)
    assert {p.name for p in start.properties} >= {"nx", "ny", "nz", "red", "green", "blue"}


def test_a_matrix_with_a_hole_is_refused(tmp_path: Path, matrix: ImageMatrix) -> None:
    capture = capture_matrix(matrix).of(torch.arange(1, VIEWS * FRAMES))
    with pytest.raises(ValueError, match=r"exports=\[multiview\]: wants every view at every frame"):
        write_multiview(tmp_path / "scene", capture, scene())


def splat_transform() -> str | None:
    """The program of @playcanvas/splat-transform, where npm has installed it."""
    return shutil.which("splat-transform")


@pytest.mark.skipif(splat_transform() is None, reason="npm install -g @playcanvas/splat-transform")
def test_splat_transform_reads_the_sequence_and_writes_the_same_scene(tmp_path: Path) -> None:
    moving = scene()
    write_ply_sequence(tmp_path / "ply", moving)
    pinholes = ring_pinholes(camera_ring(4, 0.2), 24).of(torch.tensor([0]))
    for frame, path in enumerate(sorted((tmp_path / "ply").iterdir())):
        program, back = splat_transform(), tmp_path / f"{frame}.ply"
        assert program is not None
        done = subprocess.run(
            [program, str(path), str(back)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        slice_ = moving(torch.tensor([float(frame)]))
        with torch.no_grad():
            ours, theirs = (
                rasterize(each, pinholes, torch.ones(3)).colour for each in (slice_, read_ply(back))
            )
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)

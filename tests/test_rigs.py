"""Laws of any cameras: from files, along named paths, into files again, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d2.cameras import frusta, in_frame, scene_frame
from d2.data.camera_file import path_cameras, read_table, read_views, square_clip
from d2.data.folder import Clip, read_clip
from d2.data.rigs import Wanted, make_cameras
from d2.errors import InputError
from d2.io import read_matrix, write_matrix, write_png, write_transforms
from d2.matrix import Cameras, ImageMatrix, camera_ring, cameras_of, rig_of
from d2.priors.rays import normalised, pluecker
from d2.recon.capture import capture_matrix
from d2.recon.gaussians import ring_pinholes


def written(path: Path, cameras: Cameras, **changes: Any) -> Path:
    """A transforms.json of these cameras, one frame each, with other values."""
    names = [[f"view_{view}"] for view in range(cameras.num_views)]
    write_transforms(path, cameras, 1, 8.0, 64, names)
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | changes))
    return path


def refusal(call: Any) -> str:
    with pytest.raises(InputError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_ring_comes_back_from_a_file_as_it_was(tmp_path: Path) -> None:
    ring = camera_ring(6, 0.3)
    again, table = path_cameras(written(tmp_path / "t.json", ring), 5)
    for ours, theirs in zip(rig_of(ring), again.rig, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
    torch.testing.assert_close(again.azimuth_rad, ring.azimuth_rad)
    torch.testing.assert_close(again.elevation_rad, ring.elevation_rad)
    assert table.aspects == [1] * 6 and table.names[0] == "view_0"


def test_a_scenes_frame_does_not_change_what_a_prior_is_told(tmp_path: Path) -> None:
    rig = rig_of(make_cameras(Wanted(preset="spiral", fov_deg=50), 5))
    turn = scene_frame(
        torch.randn(7, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    moved = in_frame(rig.poses, turn)
    told = [
        pluecker(normalised(poses, poses), rig.intrinsics, 4, 4) for poses in (rig.poses, moved)
    ]
    torch.testing.assert_close(told[0], told[1], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "preset", ["orbit", "spiral", "lemniscate", "roll", "zoom-in", "dolly-zoom-out", "move-up"]
)
def test_a_named_path_begins_at_the_inputs_camera_and_has_proper_poses(preset: str) -> None:
    cameras = make_cameras(Wanted(preset=preset, elevation_deg=20.0, radius=3.0), 7)
    rig = rig_of(cameras)
    rotation = rig.poses[:, :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.mT, torch.eye(3).double().expand(7, 3, 3), atol=1e-9, rtol=0
    )
    assert (torch.linalg.det(rotation) > 0).all() and cameras.input_view == 0
    ahead = -rig.poses[0, :3, 3] / rig.poses[0, :3, 3].norm()
    torch.testing.assert_close(
        rig.poses[0, :3, 3].norm(), torch.tensor(3.0).double(), atol=0.6, rtol=0
    )
    assert ahead @ rig.poses[0, :3, 2] > 0.9
    assert (
        len(
            {
                tuple(p.flatten().tolist()) + tuple(k.flatten().tolist())
                for p, k in zip(*rig, strict=True)
            }
        )
        == 7
    )


def test_radius_and_lens_are_per_view() -> None:
    cameras = make_cameras(Wanted(radius=[1.5, 2.0, 2.5], fov_deg=[30, 40, 50]), 3)
    rig = rig_of(cameras)
    assert rig.poses[:, :3, 3].norm(dim=1).tolist() == pytest.approx([1.5, 2.0, 2.5])
    focal = [0.5 / math.tan(math.radians(a) / 2) for a in (30, 40, 50)]
    assert rig.intrinsics[:, 0, 0].tolist() == pytest.approx(focal) and cameras.input_view == 2


def test_a_matrix_of_any_cameras_keeps_them_and_can_be_reconstructed(tmp_path: Path) -> None:
    cameras = make_cameras(Wanted(preset="move-left", fov_deg=45), 3)
    pixels = torch.rand(3, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    write_matrix(tmp_path / "m", ImageMatrix(pixels, cameras, 8.0), None, {})
    again = read_matrix(tmp_path / "m")
    assert again.cameras.rig is not None and cameras.rig is not None
    assert all(torch.equal(a, b) for a, b in zip(again.cameras.rig, cameras.rig, strict=True))
    capture = capture_matrix(again)
    torch.testing.assert_close(
        capture.cameras.positions[::2].double(), cameras.rig.poses[:, :3, 3], atol=1e-5, rtol=0
    )
    table = read_table(tmp_path / "m" / "transforms.json")
    told = [
        pluecker(normalised(r.poses, r.poses), r.intrinsics, 4, 4) for r in (table.rig, cameras.rig)
    ]
    torch.testing.assert_close(told[0], told[1], atol=1e-7, rtol=0)


def test_a_frustums_corners_are_those_of_the_picture() -> None:
    rig = make_cameras(Wanted(preset="spiral", fov_deg=50), 4).rig
    assert rig is not None
    corners = frusta(rig, 0.3)[:, 1:]
    seen = (corners - rig.poses[:, None, :3, 3]) @ rig.poses[:, :3, :3]  # in the cameras' axes
    pixels = torch.einsum("v i j, v c j -> v c i", rig.intrinsics, seen / seen[..., 2:])
    torch.testing.assert_close(seen[..., 2], torch.full((4, 4), 0.3).double())
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]]).double()
    torch.testing.assert_close(pixels[..., :2], square.expand(4, 4, 2))


def test_a_ring_and_its_rig_make_the_same_pinholes() -> None:
    ring = camera_ring(4, 0.2)
    for a, b in zip(
        ring_pinholes(ring, 32), ring_pinholes(cameras_of(rig_of(ring), 3), 32), strict=True
    ):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def clip_folder(folder: Path, value: int, size: tuple[int, int] = (20, 20)) -> None:
    folder.mkdir(parents=True)
    for frame in range(2):
        write_png(folder / f"{frame}.png", torch.full((3, *size), value / 255))


def test_synchronised_clips_are_known_views(tmp_path: Path) -> None:
    table = json.loads(written(tmp_path / "transforms.json", camera_ring(4, 0.1)).read_text())
    for view in (0, 3):
        del table["frames"][view]["file_path"]
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    clip_folder(tmp_path / "view_1", 10)
    said = refusal(lambda: read_views(tmp_path, num_frames=2, start=0, stride=1, size=16))
    assert said.endswith(
        "view_2: no such clip; transforms.json names it as view 2's; put it there, or leave it out"
    )
    clip_folder(tmp_path / "view_2", 200)
    views = read_views(tmp_path, num_frames=2, start=0, stride=1, size=16)
    assert views.others is not None and views.others.views == (2,) and views.cameras.input_view == 1
    assert views.others.pixels.shape == (1, 2, 3, 16, 16)
    assert views.pixels.mean() == pytest.approx(10 / 255, abs=1e-3)
    assert views.others.pixels.mean() == pytest.approx(200 / 255, abs=1e-3)
    pictures = json.loads((tmp_path / "transforms.json").read_text())
    for view in (1, 2):
        pictures["frames"][view]["file_path"] = "picture.png"
    write_png(tmp_path / "picture.png", torch.full((3, 20, 20), 0.1))
    (tmp_path / "transforms.json").write_text(json.dumps(pictures))
    assert "wants clips; give clips, or matrix.num_frames=1" in refusal(
        lambda: read_views(tmp_path, num_frames=2, start=0, stride=1, size=16)
    )
    assert read_views(tmp_path, num_frames=1, start=0, stride=1, size=16).others is not None
    (tmp_path / "transforms.json").write_text(
        json.dumps(
            table
            | {
                "frames": [
                    {k: v for k, v in f.items() if k != "file_path"} for f in table["frames"]
                ]
            }
        )
    )
    assert "no view is known" in refusal(
        lambda: read_views(tmp_path, num_frames=2, start=0, stride=1, size=16)
    )


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    ring, path = camera_ring(4, 0.1), tmp_path / "t.json"
    written(path, ring)
    assert "cameras.input_view=7" in refusal(lambda: path_cameras(path, 7))
    assert "leave it null" in refusal(lambda: make_cameras(Wanted(path=path), 5))
    assert "do not fit pictures of 64 × 64" in refusal(
        lambda: read_table(written(path, ring, cx=640.0))
    )
    table = json.loads(written(path, ring).read_text())
    for key in ("fl_x", "camera_angle_x"):
        del table[key]
    path.write_text(json.dumps(table))
    assert "neither fl_x nor camera_angle_x" in refusal(lambda: read_table(path))
    same = [
        dict(frame, transform_matrix=table["frames"][0]["transform_matrix"])
        for frame in table["frames"]
    ]
    one_place = written(path, ring, frames=same)
    assert "all stand in one place" in refusal(lambda: read_table(one_place))
    path.write_text("{}")
    assert "not a table of cameras" in refusal(lambda: read_table(path))
    assert "cannot be read" in refusal(lambda: read_table(tmp_path / "absent.json"))
    clip_folder(tmp_path / "wide", 9, (20, 40))
    clip: Clip = read_clip(tmp_path / "wide", num_frames=2)
    table_of_squares = json.loads(written(path, ring).read_text())
    assert "40 × 20 pixels" in refusal(lambda: square_clip(clip, 16, read_table(path), 2))
    size = table_of_squares.pop("w"), table_of_squares.pop("h")
    for view, frame in enumerate(table_of_squares["frames"]):  # one camera takes wider pictures
        frame |= {"w": size[0] * (2 if view == 2 else 1), "h": size[1], "cx": size[0] / 2}
    path.write_text(json.dumps(table_of_squares))
    assert square_clip(clip, 16, read_table(path), 2)[0].shape == (2, 3, 16, 16)
    assert "camera 1 of" in refusal(lambda: square_clip(clip, 16, read_table(path), 1))
    assert "choose ring, orbit" in refusal(lambda: make_cameras(Wanted(preset="looping"), 4))
    assert "cameras.fov_deg=[30]" in refusal(lambda: make_cameras(Wanted(fov_deg=[30]), 4))
    assert "makes the views" in refusal(
        lambda: make_cameras(Wanted(preset="orbit", fov_deg=[30] * 4), 4)
    )

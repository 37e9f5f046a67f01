"""What is written can be read back, says what it should, and is never half there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import d2.io
from d2.files import ensure_writable, staged, staged_folder, write_json, write_tensors, write_text
from d2.io import (
    preview_cells,
    preview_frames,
    read_matrix,
    read_truth,
    write_grid,
    write_matrix,
    write_png,
    write_transforms,
    write_video,
)
from d2.matrix import RADIUS, Cameras, ImageMatrix, camera_positions, camera_ring, camera_to_world
from d2.scene import Truth

# views, frames
SIZES = [(1, 1), (1, 5), (5, 1), (2, 2), (8, 8), (21, 25), (4, 25), (25, 3), (21, 1)]


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def example_matrix(num_views: int = 3, num_frames: int = 2, size: int = 16) -> ImageMatrix:
    cameras = camera_ring(num_views, torch.linspace(-0.1, 0.5, num_views))
    return ImageMatrix(
        random(num_views, num_frames, 3, size, size),
        cameras,
        7.5,
        random(num_views, num_frames, 4, 2, 2),
    )


def example_truth(matrix: ImageMatrix) -> Truth:
    depth = 2 + matrix.pixels[:, :, :1]
    depth[0, 0, 0, 0, 0] = math.inf
    return Truth(1 - matrix.pixels, matrix.pixels[:, :, 1:2], depth)


def write_example(folder: Path, matrix: ImageMatrix, truth: Truth | None = None) -> None:
    write_matrix(folder, matrix, truth, {"seed": "5", "world_version": "1"})


def read_film(path: Path) -> tuple[Tensor, float]:  # t h w 3 in [0, 1]; frames a second
    film = imageio_ffmpeg.read_frames(str(path))
    meta = next(film)
    width, height = meta["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in film]
    return torch.from_numpy(np.stack(frames)).float() / 255, float(meta["fps"])


# --- one file -------------------------------------------------------------------------------------


def test_png_holds_the_nearest_grey_levels(tmp_path: Path) -> None:
    pixels = random(3, 5, 7)
    write_png(tmp_path / "deep" / "a.png", pixels)
    with Image.open(tmp_path / "deep" / "a.png") as image:
        stored = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert stored.shape == (3, 5, 7) and (stored - pixels).abs().max() <= 0.5 / 255 + 1e-6


def test_values_beyond_the_range_are_clipped(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", torch.tensor([-0.5, 0.0, 1.7]).view(1, 1, 3).expand(3, 1, 3))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array(image)[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (256, 256)),
        ((576, 576), (576, 576)),
        ((300, 257), (300, 258)),
        ((9, 5), (262, 146)),
    ],
)
def test_video_has_the_frames_the_rate_and_an_even_watchable_size(
    tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    levels = torch.tensor([0.1, 0.5, 0.9, 0.3, 0.7])
    write_video(tmp_path / "a.mp4", levels.view(5, 1, 1, 1).expand(5, 3, *size), fps=7.5)
    film, fps = read_film(tmp_path / "a.mp4")
    assert film.shape == (5, *shown, 3) and fps == pytest.approx(7.5, abs=0.01)
    assert (film.mean(dim=(1, 2, 3)) - levels).abs().max() < 0.02


def test_video_keeps_every_pixel_in_its_place(tmp_path: Path) -> None:
    """A coloured block in one corner stays there: no flip, no swapped axes or channels."""
    frames = torch.ones(2, 3, 64, 32)
    frames[:, :, :16, 16:] = torch.tensor([0.9, 0.2, 0.1]).view(3, 1, 1)
    write_video(tmp_path / "a.mp4", frames, fps=8)
    film, _ = read_film(tmp_path / "a.mp4")
    assert film.shape == (2, 256, 128, 3)
    assert (film[0, :60, 68:].mean(dim=(0, 1)) - torch.tensor([0.9, 0.2, 0.1])).abs().max() < 0.03
    assert film[0, 68:].min() > 0.95 and film[0, :, :60].min() > 0.95


def test_grid_has_views_down_frames_across_and_the_truth_beside(tmp_path: Path) -> None:
    levels = torch.arange(6).view(2, 3) / 10  # view, frame
    pixels = levels.view(2, 3, 1, 1, 1).expand(2, 3, 3, 8, 8)
    write_grid(tmp_path / "a.png", pixels)
    write_grid(tmp_path / "b.png", pixels, 1 - pixels)
    with Image.open(tmp_path / "a.png") as image:
        alone = torch.from_numpy(np.array(image)) / 255
    with Image.open(tmp_path / "b.png") as image:
        beside = torch.from_numpy(np.array(image)) / 255
    gutter = d2.io.GUTTER
    assert alone.shape == (2 * 8 + 3 * gutter, 3 * 8 + 4 * gutter, 3)
    centres = [[gutter + 4 + i * (8 + gutter) for i in range(n)] for n in (2, 3)]
    read = alone[centres[0]][:, centres[1]][..., 0]
    assert torch.allclose(read, levels, atol=1 / 255)
    assert torch.equal(beside[:, : alone.shape[1]], alone)
    right = beside[:, -alone.shape[1] :]
    assert torch.allclose(right[centres[0]][:, centres[1]][..., 0], 1 - levels, atol=1 / 255)
    lines = torch.cat([alone[:, :gutter].flatten(), alone[8 + gutter : 8 + 2 * gutter].flatten()])
    assert (lines - d2.io.GUTTER_GREY).abs().max() < 1 / 255


def test_a_huge_grid_is_averaged_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d2.io, "GRID_LIMIT", 40)
    write_grid(tmp_path / "a.png", random(2, 3, 3, 32, 32))
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (3 * 10 + 4 * d2.io.GUTTER, 2 * 10 + 3 * d2.io.GUTTER)


def test_files_have_the_rights_that_the_system_gives_them(tmp_path: Path) -> None:
    """The writer of safetensors gives its files to their owner alone."""
    (tmp_path / "usual").touch()
    write_tensors(tmp_path / "tensors", {"x": torch.zeros(1)}, {})
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_knows_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"psnr": math.nan, "views": [1.5, math.inf, 2], "name": "Ω"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {
        "psnr": None,
        "views": [1.5, None, 2],
        "name": "Ω",
    }


# --- cameras --------------------------------------------------------------------------------------


def awkward_cameras() -> Cameras:
    azimuth = torch.tensor([0.3, 1.0, 2.5, 4.0, 2 * math.pi], dtype=torch.float64)
    # one from straight above
    elevation = torch.tensor([-0.2, 0.0, 0.7, math.pi / 2, 0.1], dtype=torch.float64)
    return Cameras(azimuth, elevation, 4)


@pytest.mark.parametrize(
    "cameras", [camera_ring(8, 0.3), awkward_cameras()], ids=["ring", "awkward"]
)
def test_transforms_are_the_cameras(tmp_path: Path, cameras: Cameras) -> None:
    paths = [[f"rows/view_{v:02}/{f:02}.png" for f in range(3)] for v in range(cameras.num_views)]
    write_transforms(tmp_path / "transforms.json", cameras, 3, 7.0, 64, paths)
    data = json.loads((tmp_path / "transforms.json").read_text())
    assert [frame["file_path"] for frame in data["frames"]] == [
        path for row in paths for path in row
    ]
    assert [frame["time"] for frame in data["frames"]] == [0, 0.5, 1] * cameras.num_views
    matrices = torch.tensor(
        [frame["transform_matrix"] for frame in data["frames"][::3]], dtype=torch.float64
    )
    same = torch.tensor(
        [frame["transform_matrix"] for frame in data["frames"][2::3]], dtype=torch.float64
    )
    assert torch.equal(matrices, same)  # a view stands still while time runs

    rotation, centre = matrices[:, :3, :3], matrices[:, :3, 3]
    assert torch.allclose(centre, camera_positions(cameras), atol=1e-12)
    # −z looks at the origin
    assert torch.allclose(-rotation[:, :, 2] * RADIUS, -centre, atol=1e-12)
    assert torch.allclose(
        rotation.mT @ rotation, torch.eye(3, dtype=torch.float64).expand_as(rotation), atol=1e-12
    )
    assert torch.allclose(
        torch.linalg.det(rotation), torch.ones(len(rotation), dtype=torch.float64)
    )
    # level, and z is up
    assert rotation[:, 2, 0].abs().max() < 1e-12 and rotation[:, 2, 1].min() > -1e-12


def project(data: dict, matrix: Tensor, point: Tensor) -> Tensor:
    """Pixel position (right, down) of a world point, by the pinhole numbers of the file."""
    x, y, z = torch.linalg.inv(matrix)[:3] @ torch.cat([point, torch.ones(1, dtype=torch.float64)])
    return torch.stack([data["cx"] + data["fl_x"] * x / -z, data["cy"] - data["fl_y"] * y / -z])


def test_points_project_where_they_should(tmp_path: Path) -> None:
    cameras = camera_ring(4)  # azimuths 90°, 180°, 270°, 360°: the last one stands on +x
    write_transforms(tmp_path / "transforms.json", cameras, 1, 7.0, 64, [["a.png"]] * 4)
    data = json.loads((tmp_path / "transforms.json").read_text())
    matrices = torch.tensor(
        [frame["transform_matrix"] for frame in data["frames"]], dtype=torch.float64
    )
    for matrix in matrices:
        assert torch.allclose(
            project(data, matrix, torch.zeros(3, dtype=torch.float64)), torch.tensor(32.0).double()
        )
    # half the height that the frustum has at the origin
    edge = 2 * math.tan(math.radians(33.8) / 2)
    up, left = torch.tensor([0, 0, edge]).double(), torch.tensor([0, edge, 0]).double()
    assert project(data, matrices[3], up).tolist() == pytest.approx([32, 0], abs=1e-5)
    # +y is to the right, from +x
    assert project(data, matrices[3], left).tolist() == pytest.approx([64, 32], abs=1e-5)
    assert data["camera_angle_x"] == pytest.approx(2 * math.atan(data["w"] / 2 / data["fl_x"]))


def test_a_camera_that_moves_counter_clockwise_sees_the_scene_turn_the_other_way() -> None:
    """From an azimuth a little larger, a point in front of the origin moves to the left of the
    picture."""
    before, after = camera_to_world(
        Cameras(torch.tensor([0.0, 0.1]).double(), torch.zeros(2).double(), 0)
    )
    point = torch.tensor([0.3, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert (torch.linalg.inv(before) @ point)[0] == pytest.approx(0)
    assert (torch.linalg.inv(after) @ point)[0] < -0.02


# --- the preview ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_views", "num_frames"), SIZES)
def test_the_preview_is_a_smooth_closed_round_over_all_views_and_frames(
    num_views: int, num_frames: int
) -> None:
    cells = preview_cells(num_views, num_frames, num_views - 1)
    assert cells[0] == (num_views - 1, 0)
    assert {view for view, _ in cells} == set(range(num_views))
    assert {frame for _, frame in cells} == set(range(num_frames))
    for (view, frame), (next_view, next_frame) in zip(cells, cells[1:] + cells[:1], strict=True):
        assert (next_view - view) % num_views in (0, 1 % num_views) and abs(next_frame - frame) <= 1


def test_the_preview_first_turns_at_frozen_time_then_turns_while_time_runs() -> None:
    cells = preview_cells(8, 8, 7)
    assert cells[:8] == [(view % 8, 0) for view in range(7, 15)]
    assert [frame for _, frame in cells[8:]] == [0, 1, 2, 3, 4, 5, 6, 7, 6, 5, 4, 3, 2, 1]
    assert {view for view, _ in cells[8:]} == set(range(8))


def test_preview_frames_are_those_cells() -> None:
    pixels = random(4, 3, 3, 2, 2)
    film = preview_frames(pixels)
    for shown, (view, frame) in zip(film, preview_cells(4, 3, 3), strict=True):
        assert torch.equal(shown, pixels[view, frame])


# --- a scene's folder -----------------------------------------------------------------------------


def test_a_matrix_comes_back(tmp_path: Path) -> None:
    matrix = example_matrix()
    truth = example_truth(matrix)
    write_example(tmp_path / "scene", matrix, truth)
    again, again_truth = read_matrix(tmp_path / "scene"), read_truth(tmp_path / "scene")
    assert (again.pixels - matrix.pixels).abs().max() <= 0.5 / 255 + 1e-6 and again.fps == 7.5
    assert torch.equal(again.cameras.azimuth_rad, matrix.cameras.azimuth_rad)
    assert torch.equal(again.cameras.elevation_rad, matrix.cameras.elevation_rad)
    assert (
        again.cameras.input_view == 2 and again.latents is not None and matrix.latents is not None
    )
    assert (again.latents - matrix.latents).abs().max() < 1e-3
    assert again_truth is not None and torch.equal(again_truth.depth, truth.depth)
    assert (again_truth.pixels - truth.pixels).abs().max() <= 0.5 / 255 + 1e-6
    assert (again_truth.masks - truth.masks).abs().max() <= 0.5 / 255 + 1e-6


def test_a_scene_without_latents_and_truth_comes_back_so(tmp_path: Path) -> None:
    write_example(tmp_path / "scene", example_matrix()._replace(latents=None))
    assert (
        read_matrix(tmp_path / "scene").latents is None and read_truth(tmp_path / "scene") is None
    )


def test_a_scene_has_its_outputs_and_no_others(tmp_path: Path) -> None:
    matrix = example_matrix()
    write_example(tmp_path / "scene", matrix, example_truth(matrix))
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    rows = {f"rows/view_0{v}.mp4" for v in range(3)} | {
        f"rows/view_0{v}/0{f}.png" for v in range(3) for f in range(2)
    }
    names = {
        "matrix.safetensors",
        "truth.safetensors",
        "grid.png",
        "preview.mp4",
        "transforms.json",
    } | rows
    names |= {f"transforms_{split}.json" for split in ("train", "val", "test")}
    assert found == {f"scene/{name}" for name in names}
    assert len(read_film(tmp_path / "scene" / "rows" / "view_01.mp4")[0]) == 2
    assert len(read_film(tmp_path / "scene" / "preview.mp4")[0]) == len(preview_cells(3, 2, 2))


def test_readers_of_dnerf_find_their_pictures_in_front_of_the_camera(tmp_path: Path) -> None:
    """What D-NeRF's loader does: suffixes are its own, the last of four channels is alpha, it looks
    from 2 to 6."""
    matrix = example_matrix()
    write_example(tmp_path, matrix)
    for split in ("train", "val", "test"):
        table = json.loads((tmp_path / f"transforms_{split}.json").read_text())
        assert table["camera_angle_x"] == pytest.approx(math.radians(33.8))
        assert table["frames"][0]["time"] == 0 and len(table["frames"]) == 6
        for cell, frame in zip(matrix.pixels.flatten(0, 1), table["frames"], strict=True):
            rgba = (
                np.asarray(Image.open(tmp_path / f"{frame['file_path']}.png"), dtype=np.float64)
                / 255
            )
            on_white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
            assert np.abs(on_white.transpose(2, 0, 1) - cell.numpy()).max() < 1 / 255
            distance = np.linalg.norm(np.array(frame["transform_matrix"])[:3, 3])
            assert distance - 1 > 2 and distance + 1 < 6  # the object's radius is twice 0.5


def test_transforms_name_the_picture_of_their_cell(tmp_path: Path) -> None:
    matrix = example_matrix()
    write_example(tmp_path / "scene", matrix)
    frames = json.loads((tmp_path / "scene" / "transforms.json").read_text())["frames"]
    for cell, frame in zip(matrix.pixels.flatten(0, 1), frames, strict=True):
        with Image.open(tmp_path / "scene" / frame["file_path"]) as image:
            rgb = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            assert (rgb / 255 - cell).abs().max() < 1 / 255


def test_metadata_travel_in_the_header(tmp_path: Path) -> None:
    write_example(tmp_path / "scene", example_matrix())
    raw = (tmp_path / "scene" / "matrix.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert {"seed": "5", "world_version": "1", "fps": "7.5"}.items() <= header[
        "__metadata__"
    ].items()
    kinds = {"pixels": "U8", "latents": "F16", "azimuth_rad": "F64", "elevation_rad": "F64"}
    assert {name: header[name]["dtype"] for name in kinds} == kinds


def test_a_scene_replaces_the_one_before(tmp_path: Path) -> None:
    write_example(tmp_path / "scene", example_matrix(num_views=4))
    (tmp_path / "scene" / "index.html").write_text("old")
    write_example(tmp_path / "scene", example_matrix(num_views=2))
    assert (
        not (tmp_path / "scene" / "index.html").exists()
        and len(list((tmp_path / "scene" / "rows").glob("*.mp4"))) == 2
    )
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_a_matrix_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "matrix.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*matrix\.safetensors: cannot be read[^\n]*$"):
        read_matrix(tmp_path)


# --- nothing half-written -------------------------------------------------------------------------


def test_after_an_error_the_old_file_stands(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), staged(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (
        tmp_path / "a.txt"
    ).read_text() == "old"


def test_no_writer_leaves_a_partial_file(tmp_path: Path) -> None:
    unknown = object()
    for write in (
        lambda: write_json(tmp_path / "a.json", {"x": unknown}),
        # pyright: ignore
        lambda: write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {"seed": unknown}),
        lambda: write_png(tmp_path / "a.png", torch.zeros(5, 4, 4)),
    ):
        with pytest.raises((TypeError, ValueError)):
            write()
    assert list(tmp_path.iterdir()) == []


def test_after_an_error_the_old_scene_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = example_matrix()
    write_example(tmp_path / "scene", matrix)
    monkeypatch.setattr(d2.io, "write_transforms", lambda *_: 1 / 0)
    for name in ("scene", "other"):
        with pytest.raises(ZeroDivisionError):
            write_example(tmp_path / name, example_matrix(num_views=1))
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]
    assert read_matrix(tmp_path / "scene").pixels.shape == matrix.pixels.shape


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ({"scene.old": "old"}, "old"),
        ({"scene.old": "old", "scene.partial": "new"}, "new"),  # killed between the two renames
        ({"scene": "old", "scene.partial": "half"}, "old"),
        ({"scene": "new", "scene.old": "old"}, "new"),
    ],
)
def test_what_a_killed_run_left_is_cleared(left: dict[str, str], kept: str, tmp_path: Path) -> None:
    for name, content in left.items():
        folder = tmp_path / (name if name == "scene" else f".{name}")
        folder.mkdir()
        (folder / content).touch()
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "scene"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]
    assert [path.name for path in (tmp_path / "scene").iterdir()] == [kept]


def test_an_output_folder_is_made(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "a" / "b")
    ensure_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("below", ["x", "", "x/y"])
def test_a_path_below_or_on_a_file_is_no_output_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / below
    with pytest.raises(ValueError) as caught:
        ensure_writable(folder)
    message = str(caught.value)
    assert (
        message.startswith(f"output_dir={folder}: cannot be written")
        and "choose" in message
        and "\n" not in message
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
def test_a_file_system_that_takes_no_folder_is_no_output_folder() -> None:
    with pytest.raises(
        ValueError, match=r"^output_dir=/proc/d2: cannot be written[^\n]*choose[^\n]*$"
    ):
        ensure_writable(Path("/proc/d2"))

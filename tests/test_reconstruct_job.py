"""`d2 reconstruct` from the command line: what it takes, what it writes, what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from d2 import cli
from d2.data import world4d
from d2.errors import InputError
from d2.io import write_matrix
from d2.matrix import ImageMatrix
from d2.metrics.figures import read_figures
from d2.recon import job, run
from d2.recon.capture import capture_matrix
from d2.recon.transforms import read_capture

QUICK = ["trainer=cpu", "recon.max_steps=3", "recon.num_gaussians=40", "recon.hull_resolution=16"]


@pytest.fixture(autouse=True)
def short_films(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "FILM_PICTURES", 2)
    monkeypatch.setattr(run, "FILM_SIDE", 16)


def write_world(folder: Path, index: int = 0) -> ImageMatrix:
    scene = world4d.scene("test", index, num_views=4, num_frames=3, size=16)
    assert scene.truth is not None
    matrix = ImageMatrix(scene.truth.pixels, scene.cameras, scene.fps)
    write_matrix(folder, matrix, scene.truth, {})
    return matrix


def written(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "log" not in path.parts
    }


def test_one_matrix_lies_in_the_output_folder_itself(tmp_path: Path) -> None:
    write_world(tmp_path / "test_0000")
    out, file = tmp_path / "out", tmp_path / "test_0000/matrix.safetensors"
    own = ["recon.hold=views:[1]", "exports=[multiview]", f"output_dir={out}"]
    assert cli.run(["reconstruct", f"matrix={file}", *own, *QUICK]) == 0
    assert {"multiview/cam04/frame_00003.jpg", "multiview/sparse_/images.bin"} <= written(out)
    assert {
        "scene.safetensors",
        "ply/frame_0002.ply",
        "held/01_02.png",
        "orbit.mp4",
        "metrics.json",
    } <= written(out)
    figures = json.loads((out / "metrics.json").read_text())
    assert {
        "train_psnr",
        "held_psnr",
        "held_psnr_masked",
        "self_psnr",
        "angle_psnr",
        "time_psnr",
    } <= figures.keys()


def test_a_study_gets_an_asset_for_every_matrix(tmp_path: Path) -> None:
    for place, index in (("a/seed_0/test_0000", 0), ("b/seed_3/test_0001", 1)):
        write_world(tmp_path / "study" / place, index)
    out = tmp_path / "out"
    assert (
        cli.run(
            ["reconstruct", f"run={tmp_path / 'study'}", f"output_dir={out}", "recon=rest", *QUICK]
        )
        == 0
    )
    made = {"a/seed_0/test_0000/scene.safetensors", "b/seed_3/test_0001/spiral.mp4"}
    assert made <= written(out)
    figures = read_figures(out / "results.csv")  # as d2 report does
    assert {(f.variant, f.sample, f.scene) for f in figures} == {
        ("a", "0", "test_0000"),
        ("b", "3", "test_0001"),
    }


def test_a_folder_with_cameras_is_the_matrix_it_was_written_from(tmp_path: Path) -> None:
    """Points, through transforms.json by nerfstudio's convention, land where the matrix's cameras
    see them."""
    ours, theirs = capture_matrix(write_world(tmp_path / "scene")), read_capture(tmp_path / "scene")
    torch.testing.assert_close(theirs.pixels, ours.pixels, atol=0.5 / 255 + 1e-6, rtol=0)
    assert (
        torch.equal(theirs.frame, ours.frame) and theirs.num_views == 4 and theirs.num_frames == 3
    )
    points = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    points[:, 3] = 1
    places = []
    for cameras in (ours.cameras, theirs.cameras):
        there = points @ cameras.world_to_camera.mT
        places.append(
            there[..., :2] / there[..., 2:3] * cameras.focal[:, None] + cameras.centre[:, None]
        )
    torch.testing.assert_close(places[0], places[1], atol=1e-3, rtol=0)  # pixels


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "run, matrix, scenes.path: none is given"),
        (["run=a", "matrix=b"], "run and matrix are given"),
        (
            ["matrix=absent.safetensors"],
            "absent.safetensors: no such file; give a matrix.safetensors",
        ),
        (["run=."], "holds no matrix.safetensors; give the output_dir of d2 sample"),
        (["scenes.path=."], ": no cameras; a folder of pictures"),
        (["run=a", "recon.sh_degree=3"], "recon.sh_degree=3: out of range"),
        (["run=a", "metrics=[lips]"], "metrics=['lips']: choose from"),
        (["matrix=seen/matrix.safetensors", "metrics=[lpips_alex]"], "alexnet-owt-7be5be79.pth"),
        (["run=a", "recon=wobble"], "recon=wobble: no such choice"),
        (["matrix=seen/matrix.safetensors", "recon.hold=rows"], "recon.hold=rows: give diagonal"),
        (
            ["matrix=seen/matrix.safetensors", "recon.rasterizer=gsplat"],
            "recon.rasterizer=gsplat: it draws on CUDA",
        ),
        (["matrix=seen/truth.safetensors"], "not a matrix, it lacks azimuth_rad"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    if any("seen/" in argument for argument in arguments):
        write_world(tmp_path / "seen")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["reconstruct", *arguments, "trainer=cpu"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and not list(tmp_path.rglob("scene.safetensors"))


def two_views(folder: Path) -> str:
    matrix = write_world(folder)
    cameras = matrix.cameras._replace(
        azimuth_rad=matrix.cameras.azimuth_rad[:2],
        elevation_rad=matrix.cameras.elevation_rad[:2],
        input_view=1,
    )
    write_matrix(folder / "two", ImageMatrix(matrix.pixels[:2], cameras, 8.0), None, {})
    return f"matrix={folder / 'two/matrix.safetensors'}"


def all_white(folder: Path) -> str:
    matrix = write_world(folder)
    blank = matrix._replace(pixels=torch.ones_like(matrix.pixels))
    write_matrix(folder / "white", blank, None, {})
    return f"matrix={folder / 'white/matrix.safetensors'}"


def a_camera_turned_away(folder: Path) -> str:
    """One view, in every frame, looks out of the ring."""
    write_world(folder)
    path = folder / "transforms.json"
    table = json.loads(path.read_text())
    first = table["frames"][0]["transform_matrix"]
    away = [[-row[0], row[1], -row[2], row[3]] for row in first]  # half a turn about its y axis
    for frame in table["frames"]:
        if frame["transform_matrix"] == first:
            frame["transform_matrix"] = away
    path.write_text(json.dumps(table))
    return f"scenes.path={folder}"


def no_table(folder: Path) -> str:
    write_world(folder)
    for path in folder.glob("transforms*.json"):
        path.unlink()
    return f"scenes.path={folder}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (two_views, "pictures from 2 places; a scene needs at least 3 views"),
        (all_white, "nothing but background; give pictures of an object"),
        (a_camera_turned_away, "the cameras do not see a common volume; give pictures"),
        (no_table, "no cameras; a folder of pictures needs transforms.json"),
    ],
)
def test_what_no_scene_can_be_made_of_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: Callable[[Path], str],
    said: str,
) -> None:
    given = source(tmp_path / "test_0000")
    assert cli.run(["reconstruct", given, f"output_dir={tmp_path / 'out'}", *QUICK]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("d2: ")]
    assert len(lines) == 1 and said in lines[0]
    assert not {"scene.safetensors", "metrics.json"} & written(tmp_path / "out")


def test_a_table_with_a_lens_a_picture_is_read_and_what_is_no_camera_is_named(
    tmp_path: Path,
) -> None:
    """nerfstudio lets a picture have its own lens; distorted ones are not modelled."""
    write_world(tmp_path)
    path = tmp_path / "transforms.json"
    table, whole = json.loads(path.read_text()), read_capture(tmp_path)
    lens = {key: table.pop(key) for key in ("fl_x", "fl_y", "cx", "cy")}
    table["frames"] = [frame | lens for frame in table["frames"]]
    table["frames"][0]["fl_x"] *= 2
    path.write_text(json.dumps(table))
    own = read_capture(tmp_path).cameras
    assert torch.equal(own.focal[1:], whole.cameras.focal[1:])
    assert own.focal[0, 0] == 2 * whole.cameras.focal[0, 0]
    bad = {
        "k1=0.1: only pinhole cameras": {"k1": 0.1},
        "a lens is not in numbers": {"fl_x": "wide"},
        "is not 4 × 4": {"transform_matrix": [[1.0, 0, 0, 0]] * 3},
        "not a table of cameras": {"time": "noon"},
        "cameras (expected sequence": {"transform_matrix": [[1.0], [1.0, 2.0]]},
    }
    for said, change in bad.items():
        frames = [frame | change for frame in table["frames"]]
        path.write_text(json.dumps({**table, "frames": frames}))
        with pytest.raises(InputError, match=re.escape(said)):
            read_capture(tmp_path)
    path.write_text(json.dumps({**table, "frames": []}))
    with pytest.raises(InputError, match="not a table of cameras"):
        read_capture(tmp_path)


def test_pictures_of_other_sizes_and_missing_ones_are_named(tmp_path: Path) -> None:
    write_world(tmp_path / "scene")
    picture = tmp_path / "scene/rows/view_00/00.png"
    Image.new("RGB", (8, 8)).save(picture)
    with pytest.raises(ValueError, match="several sizes"):
        read_capture(tmp_path / "scene")
    picture.unlink()
    with pytest.raises(ValueError, match=r"view_00/00\.png: no such picture"):
        read_capture(tmp_path / "scene")


@pytest.mark.parametrize(
    ("reconstruct", "pages", "made"),
    [("auto", True, True), ("auto", False, False), (False, True, False)],
)
def test_a_run_ends_with_its_assets_where_they_are_asked_for(
    tmp_path: Path, reconstruct: object, pages: bool, made: bool
) -> None:
    from d2.config import command_line
    from d2.resolve import resolve

    write_world(tmp_path / "out/test_0000")
    page = tmp_path / "out/test_0000/index.html"
    page.write_text("<header>the matrix</header>")
    overrides = [
        f"output_dir={tmp_path / 'out'}",
        *QUICK,
        f"reconstruct={str(reconstruct).lower()}",
        f"pages={pages}",
    ]
    composed = command_line.composed("sample", overrides)
    run = resolve(composed.config, composed.text, composed.name, composed.label)
    assert (run.assets is not None) == made
    if run.assets is not None:
        job.after_sampling(run.folder, **run.assets._asdict(), accelerator="cpu")
    assert (tmp_path / "out/test_0000/asset/scene.safetensors").exists() == made
    assert ('href="asset/index.html"' in page.read_text()) == made and made == (
        page.parent / "asset/index.html"
    ).exists()


def test_a_study_that_is_asked_for_scenes_says_who_makes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["reconstruct=true", "seeds=[0,1]", f"output_dir={tmp_path / 'out'}", "trainer=cpu"]
    assert cli.run(["sample", *own]) == 2
    assert "run d2 reconstruct run=DIR" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()

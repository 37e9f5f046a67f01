"""`d2 view`: a server that gives its page, with the cameras of the matrix; what is not one scene is
refused."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from d2 import cli
from d2.data import world4d
from d2.io import write_matrix
from d2.matrix import ImageMatrix
from d2.recon.files import write_scene
from d2.recon.gaussians import Gaussians, rotations
from d2.recon.motion import cubic_bspline
from d2.recon.scene import MovingGaussians
from d2.recon.view import (
    PANEL,
    ViewJob,
    at,
    bytes_of,
    enlarged,
    find_scene,
    serve,
    splat_arrays,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one scene, with its asset."""
    torch.manual_seed(0)
    scene = world4d.scene("test", 0, num_views=4, num_frames=3, size=16)
    assert scene.truth is not None
    write_matrix(
        tmp_path / "run/test_0000",
        ImageMatrix(scene.truth.pixels, scene.cameras, scene.fps),
        None,
        {},
    )
    moving = MovingGaussians(cubic_bspline, 3, 20, 1)
    for parameter in moving.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    (tmp_path / "run/test_0000/asset").mkdir()
    write_scene(tmp_path / "run/test_0000/asset/scene.safetensors", moving, 8.0)
    return tmp_path / "run"


def test_the_server_gives_its_page_and_follows_the_slider(run: Path) -> None:
    pytest.importorskip("viser")
    scene, matrix = find_scene(run, None)
    assert matrix == run / "test_0000/matrix.safetensors"
    server = serve(ViewJob(scene=scene, matrix=matrix, host="127.0.0.1", port=8917))
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.get_port()}", timeout=30) as answer:
            assert answer.status == 200 and b"<html" in answer.read().lower()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.get_port()}", timeout=30) as answer:
            assert "text/html" in answer.headers["Content-Type"]
    finally:
        server.stop()


def test_splats_are_the_gaussians_of_the_moment() -> None:
    torch.manual_seed(0)
    moving = MovingGaussians(cubic_bspline, 3, 5, 1)
    for parameter in moving.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    now, later = (splat_arrays(at(moving, time)) for time in (0.0, 1.5))
    gaussians = Gaussians(*(part.detach() for part in at(moving, 1.5)))
    turn = rotations(gaussians.quats[0]).double()
    covariance = turn @ torch.diag_embed(gaussians.scales[0].double() ** 2) @ turn.mT
    torch.testing.assert_close(
        torch.from_numpy(later["covariances"]).double(), covariance, atol=1e-5, rtol=1e-4
    )
    assert abs(now["centers"] - later["centers"]).max() > 0.01


def test_a_picture_of_the_panel_is_as_wide_as_it() -> None:
    small, large = torch.rand(3, 32, 64), torch.rand(3, 640, 640)
    assert enlarged(small).shape == (PANEL // 2, PANEL, 3)
    assert (enlarged(large) == bytes_of(large)).all()


def test_viser_is_imported_by_the_server_alone() -> None:
    code = "import sys, d2.recon.view; assert 'viser' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


def test_what_is_not_one_scene_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "other/scene.safetensors")
    (tmp_path / "two/b").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "two" / name).mkdir(exist_ok=True)
        save_file({"x": torch.zeros(1)}, tmp_path / f"two/{name}/scene.safetensors")
    lines = {
        "run=null": "run: none is given; give one, run=",
        f"run={tmp_path / 'empty'}": "holds no scene.safetensors",
        f"run={tmp_path / 'two'}": "holds 2 scenes; give the folder of one",
        f"run={tmp_path / 'other'}": "its format is None",
    }
    for argument, said in lines.items():
        assert cli.run(["view", argument]) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]

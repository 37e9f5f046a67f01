"""A scene from pictures: fitted, held out, interrupted, written and read back."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from moving_gaussians import WHITE
from plyfile import PlyData
from torch import Tensor

from d2 import signals
from d2.config.recipe import Recipe
from d2.data import world4d
from d2.matrix import Cameras, ImageMatrix, camera_ring
from d2.metrics.image import ImageDistance
from d2.recon import run
from d2.recon.capture import Capture, capture_matrix, held_cells
from d2.recon.files import read_ply, read_scene, write_ply, write_scene
from d2.recon.fit import SceneFit, ssim
from d2.recon.gaussians import Gaussians, ring_pinholes
from d2.recon.hull import common_ball, hull_points
from d2.recon.measure import fit_figures, render_pictures
from d2.recon.motion import cubic_bspline, rest
from d2.recon.rasterize import rasterize
from d2.recon.run import reconstruct
from d2.recon.scene import MovingGaussians
from d2.recon.world import world_figures, world_scene

# a step knows its pictures itself
pytestmark = pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")
SMALL = Recipe(num_gaussians=120, max_steps=30, hull_resolution=24, cells_per_step=2)


def world_matrix(size: int = 24, views: int = 5, frames: int = 4) -> ImageMatrix:
    scene = world4d.scene("test", 0, num_views=views, num_frames=frames, size=size)
    assert scene.truth is not None
    return ImageMatrix(scene.truth.pixels, scene.cameras, scene.fps)


@pytest.fixture(scope="module")
def capture() -> Capture:
    return capture_matrix(world_matrix())


@pytest.fixture(autouse=True)
def short_films(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "FILM_PICTURES", 3)
    monkeypatch.setattr(run, "FILM_SIDE", 24)


def random_scene(count: int = 50, sh_degree: int = 1) -> MovingGaussians:
    torch.manual_seed(0)
    scene = MovingGaussians(cubic_bspline, 4, count, sh_degree)
    for parameter in scene.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        scene.log_scales.add_(-3)
    return scene


def fit(capture: Capture, folder: Path, recipe: Recipe = SMALL) -> dict[str, Tensor]:
    return reconstruct(
        capture, recipe, cubic_bspline, folder, name="x", accelerator="cpu"
    ).scene.state_dict()


# --- the fit --------------------------------------------------------------------------------------


def test_a_fit_sees_its_pictures_and_what_was_held(tmp_path: Path) -> None:
    matrix = world_matrix()
    recipe = Recipe(num_gaussians=300, max_steps=120, hull_resolution=32, hold="diagonal")
    which = world_scene("test_0000", matrix.cameras)
    assert which is not None
    done = reconstruct(
        capture_matrix(matrix),
        recipe,
        cubic_bspline,
        tmp_path,
        name="test_0000",
        accelerator="cpu",
        more_figures=lambda render, device: world_figures(render, matrix, *which, device),
    )
    figures = done.figures
    assert figures["train_psnr"] > 20 and figures["held_psnr"] > 19  # measured: 22.1 and 20.5
    assert figures["angle_psnr"] > figures["angle_neighbours_psnr"]  # a scene, not a blend
    assert {
        "self_psnr",
        "held_psnr_masked",
        "time_psnr",
        "held_sharpness",
        "train_own_view",
    } <= figures.keys()
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    held = {f"held/{view:02}_{view % 4:02}.png" for view in range(5)}
    plys = {f"ply/frame_{frame:04}.ply" for frame in range(4)}
    assert (
        names
        == {
            "scene.safetensors",
            "metrics.json",
            "index.html",
            "orbit.mp4",
            "spiral.mp4",
        }
        | held
        | plys
    )


@pytest.mark.parametrize("hold", ["diagonal", "views:[1]", {"frames": [1]}])
def test_what_is_held_is_never_looked_at(capture: Capture, hold: object) -> None:
    held = held_cells(hold, capture)
    assert held.any() and not held.all()
    pixels, masks = capture.pixels.clone(), capture.masks.clone()
    pixels[held], masks[held] = torch.nan, torch.nan
    scenes = []
    for each in (capture, capture._replace(pixels=pixels, masks=masks)):
        module = SceneFit(
            each, Recipe(**{**vars(SMALL), "hold": hold}), cubic_bspline, rasterize, seed=0
        )
        losses = [
            module.loss(module.render(c.cameras, c.frame.float()), c) for c in [module.capture]
        ]
        scenes.append((torch.stack(losses), *module.scene.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*scenes, strict=True))


def test_every_picture_comes_once_before_any_comes_again(capture: Capture) -> None:
    module = SceneFit(capture, SMALL, rest, rasterize, seed=3)
    seen = torch.cat([module.cells(step) for step in range(10)])
    assert seen.sort().values.equal(torch.arange(20))


def test_a_world_of_another_scale_has_the_same_pictures(capture: Capture) -> None:
    shown = []
    for scale in (1.0, 8.0):
        moved = capture.cameras.world_to_camera.clone()
        moved[:, :3, 3] *= scale
        cameras = capture.cameras._replace(world_to_camera=moved)
        fit = SceneFit(capture._replace(cameras=cameras), SMALL, cubic_bspline, rasterize, seed=0)
        optimizer = fit.configure_optimizers()["optimizer"]
        for step in range(15):
            optimizer.zero_grad()
            fit.step_loss(step)[0].backward()
            optimizer.step()
        shown.append(render_pictures(fit.render, cameras, capture.frame.float()))
    error = float((shown[0] - shown[1]).square().mean())
    assert error < 1e-5  # measured: 3e-8, and 3e-3 with rates that know no scale


def test_interrupted_and_started_again_it_is_the_same_scene(
    capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = fit(capture, tmp_path / "straight")
    training_step = SceneFit.training_step
    steps: list[int] = []

    def signalled(self: SceneFit, *batch: Any) -> Tensor:
        steps.append(self.global_step)
        if len(steps) == 12:
            signal.raise_signal(signal.SIGTERM)
        return training_step(self, *batch)

    monkeypatch.setattr(SceneFit, "training_step", signalled)
    again = tmp_path / "again"
    before = {signum: signal.getsignal(signum) for signum in signals.SIGNALS}
    signals.install()
    try:
        with pytest.raises(signals.Stopped):
            fit(capture, again)
    finally:
        signals.forget()
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert list(again.glob(".fit_*.ckpt")) and not (again / "metrics.json").exists()
    scene = fit(capture, again)
    assert steps == [*range(SMALL.max_steps)]  # the step that was signalled was done to its end
    assert all(torch.equal(straight[name], scene[name]) for name in straight)
    assert not list(again.glob(".fit_*"))
    written = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    kept = fit(capture, again)  # finished: nothing is fitted or written again
    assert len(steps) == SMALL.max_steps and all(
        torch.equal(straight[name], kept[name]) for name in straight
    )
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*")} == written


def test_states_are_kept_now_and_then(
    capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(
        Trainer, "save_checkpoint", lambda self, path: (kept.append(self.global_step), path.touch())
    )
    fit(capture, tmp_path, Recipe(**{**vars(SMALL), "max_steps": 3, "save_every_seconds": 0.0}))
    assert kept == [1, 2, 3]


def test_distances_are_means_over_held_and_fitted_pictures(capture: Capture) -> None:
    held = held_cells("diagonal", capture)
    offset = torch.where(held, 0.3, 0.1)[:, None, None, None]
    distance = ImageDistance(
        "lpips_x", "file", "hash", lambda a, b: (a - b).abs().mean(dim=(1, 2, 3))
    )
    figures = fit_figures(capture.pixels + offset, capture, held, [distance])
    assert figures["held_lpips_x"] == pytest.approx(0.3) and figures[
        "train_lpips_x"
    ] == pytest.approx(0.1)


def test_ssim_is_torchmetrics_inside_the_border() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    y = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    # outside, both are black: similarity 1
    wide_x, wide_y = (torch.nn.functional.pad(z, (30,) * 4) for z in (x, y))
    ours = (1 - ssim(wide_x, wide_y)) * 100**2
    theirs = structural_similarity_index_measure(wide_x, wide_y, data_range=1.0, reduction="none")
    assert isinstance(theirs, Tensor)
    torch.testing.assert_close(ours, (1 - theirs) * 100**2, rtol=1e-3, atol=0)


# --- where it starts ------------------------------------------------------------------------------


def test_the_visual_hull_of_a_ball_is_the_ball() -> None:
    size, radius = 64, 0.3
    ring = camera_ring(8, 0.4)
    pinholes = ring_pinholes(ring, size)
    axis = torch.arange(size) + 0.5 - size / 2
    # the outline's cone has sine r / 2
    limit = float(pinholes.focal[0, 0]) * radius / (4 - radius**2) ** 0.5
    disc = (axis[:, None] ** 2 + axis[None] ** 2 < limit**2).float().expand(8, 1, -1, -1)
    still = torch.zeros(8, dtype=torch.long)
    capture = Capture(
        1 - 0.5 * disc.expand(-1, 3, -1, -1), disc, pinholes, torch.arange(8), still, 8, 1, 8.0
    )
    centre, reach = common_ball(pinholes)
    torch.testing.assert_close(centre, torch.zeros(3), atol=1e-5, rtol=0)
    assert reach == pytest.approx(2 * 0.2907, abs=1e-3)  # 2 sin 16.9°
    points, colours = hull_points(capture, 64, centre, reach)
    distance = points.norm(dim=-1)
    assert distance.min() > radius - 0.04 and distance.median() < radius + 0.03
    assert points[:, 2].max() < radius + 0.1  # eight cameras around leave a cap above
    torch.testing.assert_close(colours, torch.full_like(colours, 0.5))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda m: m._replace(
                pixels=m.pixels[:2], cameras=Cameras(*(a[:2] for a in m.cameras[:2]), 1)
            ),
            "2 places",
        ),
        (lambda m: m._replace(pixels=torch.ones_like(m.pixels)), "nothing but background"),
    ],
)
def test_no_scene_is_made_from_too_little(change: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        capture_matrix(change(world_matrix()))  # type: ignore[operator]


def test_cameras_that_look_away_from_each_other_are_refused() -> None:
    pinholes = ring_pinholes(camera_ring(4), 16)
    turned = pinholes.world_to_camera.clone()
    turned[0] = torch.diag(torch.tensor([-1.0, 1, -1, 1])) @ turned[0]
    with pytest.raises(ValueError, match="common volume"):
        common_ball(pinholes._replace(world_to_camera=turned))


@pytest.mark.parametrize(
    "hold", ["row", "views:[]", "views:[9]", "views:[0,1,2]", {"views": [1], "frames": [1]}]
)
def test_a_hold_that_names_no_cells_is_refused(capture: Capture, hold: object) -> None:
    with pytest.raises(ValueError, match=r"recon\.hold="):
        held_cells(hold, capture)


# --- on disk --------------------------------------------------------------------------------------


def test_a_scene_comes_back_as_it_was(tmp_path: Path) -> None:
    scene = random_scene()
    write_scene(tmp_path / "scene.safetensors", scene, 12.0)
    back, fps = read_scene(tmp_path / "scene.safetensors")
    assert fps == 12.0 and back.num_frames == 4
    for time in (0.0, 1.7):
        ours, theirs = scene(torch.tensor([time])), back(torch.tensor([time]))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_files_that_are_no_scene_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "a").write_bytes(b"no tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "b")
    for name, said in (("a", "cannot be read"), ("b", "its format is None")):
        with pytest.raises(ValueError, match=said):
            read_scene(tmp_path / name)


@pytest.mark.parametrize("sh_degree", [0, 1])
def test_a_ply_has_the_standard_names_and_draws_the_same(tmp_path: Path, sh_degree: int) -> None:
    """Names, order and units of Kerbl et al.'s save_ply, read by plyfile."""
    gaussians = random_scene(sh_degree=sh_degree)(torch.tensor([1.3]))
    write_ply(tmp_path / "frame_0000.ply", gaussians)
    vertex = PlyData.read(tmp_path / "frame_0000.ply")["vertex"]
    rest = [f"f_rest_{i}" for i in range(9 * sh_degree)]
    assert [p.name for p in vertex.properties] == [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"),
        *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]

    def columns(*names: str) -> Tensor:
        return torch.stack([torch.tensor(vertex[name]) for name in names], dim=-1)

    sh = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    if sh_degree:
        sh = torch.cat([sh, columns(*rest).reshape(-1, 3, 3).transpose(1, 2)], dim=1)
    read = Gaussians(
        columns("x", "y", "z")[None],
        columns("rot_0", "rot_1", "rot_2", "rot_3")[None],
        columns("scale_0", "scale_1", "scale_2").exp()[None],
        columns("opacity")[:, 0].sigmoid()[None],
        sh[None],
    )
    pinholes = ring_pinholes(camera_ring(4, 0.2), 24).of(torch.tensor([0]))
    true = rasterize(gaussians, pinholes, WHITE)
    for slice_ in (read, read_ply(tmp_path / "frame_0000.ply")):
        for ours, theirs in zip(rasterize(slice_, pinholes, WHITE), true, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_ply_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mesh.ply").write_text("ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
    with pytest.raises(ValueError, match="not a .ply of 3D Gaussians"):
        read_ply(tmp_path / "mesh.ply")

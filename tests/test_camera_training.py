"""Laws of the tiny prior of any cameras: its data, a few steps of its training, and a job with
it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from small_camera_prior import small_camera_prior
from test_conf import picture  # noqa: F401  a fixture

from d2.cameras import Rig
from d2.data import world4d
from d2.data.walks import NEAREST, draw_walk
from d2.errors import InputError
from d2.matrix import Cameras, camera_ring, cameras_of, rig_of
from d2.priors import tiny
from d2.priors.camera_prior import CameraCondition
from d2.settings import LossConfig, OptimizerConfig
from d2.train.data import rendered
from d2.train.job import TrainJob, build_camera, train

pytestmark = pytest.mark.usefixtures("small_networks")


def test_any_cameras_that_stand_on_the_ring_see_what_the_ring_sees() -> None:
    sphere = world4d.Ellipsoids(
        torch.tensor([[[0.1, 0.2, 0.0]]]).double().expand(3, 1, 3),
        torch.eye(3).double().expand(3, 1, 3, 3),
        torch.tensor([[[0.3, 0.2, 0.1]]]).double().expand(3, 1, 3),
        torch.tensor([[[[0.9, 0.1, 0.2], [0.1, 0.5, 0.9]]]]).double().expand(3, 1, 2, 3),
        torch.tensor([[[0.0, 0.0, 1.0, 0.0]]]).double().expand(3, 1, 4),
    )
    ring = camera_ring(3, 0.4)
    poses = rig_of(ring).poses
    ours = world4d.render_from(sphere, poses[:, :3, :3].mT, poses[:, :3, 3], 32)
    for a, b in zip(
        ours, world4d.render(sphere, ring.azimuth_rad, ring.elevation_rad, 32), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_path_that_is_the_ring_shows_its_truth() -> None:
    truth = world4d.full_matrix("test", [3], num_views=3, num_frames=2, size=32)
    ring = Cameras(truth.azimuth_rad[0], truth.elevation_rad[0], 2)
    along = world4d.scene(
        "test", 3, num_views=3, num_frames=2, size=32, cameras=cameras_of(rig_of(ring), 2)
    )
    assert along.truth is not None
    for ours, theirs in zip(along.truth, (truth.pixels, truth.masks, truth.depth), strict=True):
        torch.testing.assert_close(ours, theirs[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(along.pixels, along.truth.pixels[2])
    with pytest.raises(InputError, match="for evaluation only"):
        world4d.seen_from("train", 0, rig_of(ring), num_frames=1, size=16)


def test_a_longer_lens_off_its_middle_sees_a_part_of_the_picture() -> None:
    rig = rig_of(camera_ring(1, 0.3))
    whole = world4d.seen_from("test", 1, rig, num_frames=1, size=64)
    lens = rig.intrinsics.clone()
    lens[:, 0, 0] *= 2  # 32 of 64 columns, from the eighth on
    lens[:, 0, 2] = (32 - 8) / 32
    lens[:, 1, 1] *= 2  # and the rows from the sixteenth on
    part = world4d.seen_from("test", 1, Rig(rig.poses, lens), num_frames=1, size=32)
    for ours, theirs in zip(part, whole, strict=True):
        torch.testing.assert_close(ours, theirs[..., 16:48, 8:40], atol=1e-4, rtol=1e-4)


def test_walks_are_rings_neighbours_and_strangers_that_stand_upright_outside_the_scene() -> None:
    walks = torch.stack([draw_walk(index, 8) for index in range(200)])
    assert torch.equal(walks[7], draw_walk(7, 8))
    axes, positions = walks[..., :3, :3], walks[..., :3, 3]
    torch.testing.assert_close(axes.mT @ axes, torch.eye(3).double().expand_as(axes))
    assert (axes[..., 2, 1] < 0).all() and axes[..., 2, 0].abs().max() < 1e-9  # level, not on heads
    distance = positions.norm(dim=-1)
    assert distance.min() > NEAREST - 1e-9 and distance.max() < 4.2
    reach = (positions - positions.mean(dim=1, keepdim=True)).norm(dim=-1).mean(dim=1)
    alike = distance.std(dim=1) < 1e-9  # on one sphere: rings
    for kind in (alike, reach < 1, ~alike & (reach > 1.5)):
        assert 0.2 < kind.double().mean() < 0.5


def test_a_known_cell_is_clean_at_every_level_and_is_seen_by_the_others_at_full_strength() -> None:
    prior = small_camera_prior(levels="any")
    draw = torch.Generator().manual_seed(0)
    x, known = torch.randn(2, 1, 3, prior.config.unet.out_channels, 4, 4, generator=draw)
    mask = torch.zeros(1, 3, 1, 4, 4)
    mask[:, 0] = 1
    rays = torch.randn(1, 3, 6, 4, 4, generator=draw)
    told = CameraCondition(torch.zeros(1, 3, 1, 6), known * mask, mask, rays)

    def effect(level: float) -> float:  # on the other cells, of another picture in the known one
        sigma = torch.full((1, 3), level, dtype=torch.float64)
        said = prior(level * x, sigma, told)
        torch.testing.assert_close(said[:, 0], known[:, 0], atol=0.02, rtol=0)
        other = prior(level * x, sigma, told._replace(known=-told.known))
        return float((said - other)[:, 1:].abs().mean())

    assert effect(700.0) > 0.2 * effect(1.0)  # as faint as the noisy ones: 1 / 500 of it


def test_it_trains_and_a_job_samples_with_it_along_any_path(
    tmp_path: Path,
    small_weights: list[str],
    d2_sample: Callable[..., int],
    picture: Path,  # noqa: F811
) -> None:
    job = TrainJob(
        "camera",
        output_dir=tmp_path / "trained",
        cache_dir=tmp_path / "cache",
        autoencoder=Path(small_weights[-1].partition("=")[2]),
        optimizer=OptimizerConfig(lr=1e-3, max_steps=2, warmup_steps=1, decay_steps=1),
        loss=LossConfig(singles=0),
        num_scenes=2,
        num_validation_scenes=1,
        batch_size=2,
        validate_every=2,
        accelerator="cpu",
    )
    walks = rendered(job.cache_dir, "walks", "train", 2)
    assert walks.poses is not None and walks.poses.shape == (2, 8, 4, 4)
    start = build_camera(job)[0].network.state_dict()
    weights = train(job, lambda step: [CSVLogger(tmp_path / "log")], [])
    assert weights.name == "tiny_camera.safetensors"
    prior = tiny.load_camera_prior(weights)
    assert any(
        not torch.equal(p, start[name].half().float()) for name, p in prior.state_dict().items()
    )
    told = [
        "multiview=tiny_camera",
        f"multiview.checkpoint={weights}",
        "matrix.num_views=3",
        "matrix.num_frames=2",
    ]
    path = [
        "scenes=folder",
        f"scenes.path={picture}",
        "cameras.preset=spiral",
        "cameras.fov_deg=40",
    ]
    assert d2_sample(*told, *path, "sampler.num_steps=2") == 0
    matrix = load_file(tmp_path / "out" / "disc" / "matrix.safetensors")
    world = ["scenes=world4d", "cameras.preset=spiral", "sampler.num_steps=2", "overwrite=true"]
    assert d2_sample(*told, *world) == 0
    folder = tmp_path / "out" / "test_0000"
    own = math.radians(world4d.own_elevation_deg("test", 0))
    truth, made = (load_file(folder / f"{name}.safetensors") for name in ("truth", "matrix"))
    assert float(made["elevation_rad"][0]) == pytest.approx(own, abs=1e-6)
    assert len(truth["pixels"].flatten(1).unique(dim=0)) == 3  # the camera moves
    assert "own_view" in json.loads((folder / "metrics.json").read_text())["joint"]
    assert matrix["poses"].shape == (3, 4, 4) and matrix["pixels"].float().std() > 0

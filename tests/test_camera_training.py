"""Laws of the tiny prior of any cameras: its data, a few steps of its training, and a job with
it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from test_conf import picture  # noqa: F401  a fixture

from d2.data import world4d
from d2.matrix import camera_ring, rig_of
from d2.priors import tiny
from d2.train.data import rendered
from d2.train.job import TrainJob, build_camera, train
from d2.train.prior_trainer import LossConfig, OptimizerConfig

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
    assert matrix["poses"].shape == (3, 4, 4) and matrix["pixels"].float().std() > 0

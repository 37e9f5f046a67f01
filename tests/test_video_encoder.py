"""The video encoder's training: what is done to its videos, what is read off them, and the file
that ships."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from d2 import cli
from d2.data import world4d
from d2.data.creature import sample_creatures
from d2.files import asset
from d2.metrics.features import load_video_encoder
from d2.nn.video_encoder import VideoEncoder, VideoEncoderConfig
from d2.priors import tiny
from d2.settings import LossConfig, OptimizerConfig
from d2.train import encoder_trainer
from d2.train.data import rendered
from d2.train.encoder_trainer import (
    BLOCKS,
    RIDGE,
    WEIGHTS,
    Drawn,
    EncoderTrainer,
    Reader,
    Videos,
    block_means,
    blurred,
    corrupted,
    displaced,
    draw,
    ridged_roots,
    targets,
)
from d2.train.job import TrainJob, build_video_encoder, train

SHIPPED = asset("checkpoints") / "tiny_video_encoder.safetensors"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def videos(cache: Path) -> Videos:
    """Orbits and clips of four training scenes."""
    return Videos(
        rendered(cache, "orbits", "train", 4), rendered(cache, "clips", "train", 4), "train"
    )


@pytest.fixture(scope="module")
def batch(videos: Videos) -> dict[str, Tensor]:
    return torch.utils.data.default_collate([videos[i] for i in range(8)])


@pytest.fixture
def job(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainJob]:
    """A training run of a few steps of an encoder with few channels."""
    small = VideoEncoderConfig(stem=(8, 8), widths=(16,), dim=12, groups=4)
    monkeypatch.setattr("d2.train.job.VideoEncoder", lambda: VideoEncoder(small))

    def make(**changes: Any) -> TrainJob:
        usual = TrainJob(
            "video_encoder",
            output_dir=tmp_path / "out",
            cache_dir=cache,
            autoencoder=tmp_path / "none",
            optimizer=OptimizerConfig(
                lr=2e-3, muon=True, max_steps=4, warmup_steps=1, decay_steps=2
            ),
            loss=LossConfig(),
            num_scenes=4,
            num_validation_scenes=2,
            batch_size=4,
            validate_every=2,
            accelerator="cpu",
        )
        return replace(usual, **changes)

    return make


def trained(job: TrainJob, *callbacks: L.Callback) -> dict[str, Tensor]:
    path = train(job, lambda _: [CSVLogger(job.output_dir, "log")], list(callbacks))
    return tiny.read_weights(path, "video_encoder").state


# --- corruption -----------------------------------------------------------------------------------


@pytest.mark.parametrize("blur", [0.7, 1.0, 2.0])
def test_a_blurred_point_has_the_blurs_variance(blur: float) -> None:
    point = torch.zeros(2, 1, 3, 33, 33)
    point[..., 16, 16] = 1
    out = blurred(point, torch.tensor([0.0, blur]))
    assert torch.equal(out[0], point[0])  # by a Gaussian of its own, here none
    assert out[1].sum(dim=(-2, -1)) == pytest.approx(1, abs=1e-5)
    offset = torch.arange(33.0) - 16
    for axis in (-1, -2):
        variance = (out[1].sum(dim=axis) * offset.square()).sum(dim=-1)
        assert variance == pytest.approx(blur**2, rel=0.06)  # sampled, and cut at three deviations


def test_a_blur_leaves_what_is_flat() -> None:
    flat = torch.full((1, 2, 3, 16, 16), 0.3)
    torch.testing.assert_close(blurred(flat, torch.tensor([2.0])), flat)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_displaced_frames_are_the_same_frames(share: float) -> None:
    order, moved = torch.arange(3, 19), []
    for seed in range(20):
        torch.manual_seed(seed)
        out = displaced(order, share)
        assert sorted(out.tolist()) == order.tolist()
        moved.append((out != order).sum().item())
    assert max(moved) <= round(16 * share) and (share == 0 or max(moved) > 8 * share)


def test_half_of_the_videos_suffer_each_damage() -> None:
    torch.manual_seed(0)
    drawn = draw(4000, 8, shortest=8)
    steps = drawn.order.diff(dim=1)
    for share in (drawn.blur > 0, drawn.noise > 0, ~((steps == 1).all(1) | (steps == -1).all(1))):
        assert 0.35 < share.float().mean() < 0.55  # of few displaced frames none may move
    assert (
        drawn.blur.max() <= encoder_trainer.MAX_BLUR
        and drawn.noise.max() <= encoder_trainer.MAX_NOISE
    )
    backwards = (steps == -1).all(1).sum() / (
        (steps == 1).all(1).sum() + (steps == -1).all(1).sum()
    )
    assert backwards == pytest.approx(0.5, abs=0.05)
    lengths = {draw(2, 8, shortest=4).order.shape[1] for _ in range(60)}
    assert lengths == {4, 5, 6, 7, 8}


def test_a_corruption_is_the_seeds_alone(batch: dict[str, Tensor]) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(corrupted(batch))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][0].shape != found[2][0].shape or not torch.equal(found[0][0], found[2][0])
    for seed in range(8):  # a batch in which nothing, or everything, is blurred
        torch.manual_seed(seed)
        videos, wanted = corrupted({name: part[:1] for name, part in batch.items()})
        assert videos.isfinite().all() and wanted.shape == (
            1,
            videos.shape[1],
            sum(BLOCKS.values()),
        )


# --- what is read off -----------------------------------------------------------------------------


def read(batch: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """The targets b t k of undamaged videos whose frames come in this order."""
    n = len(batch["pixels"])
    drawn = Drawn(torch.tensor(order).expand(n, -1), torch.zeros(n), torch.zeros(n))
    parts = targets(batch, drawn, batch["pixels"].shape[1]).split(list(BLOCKS.values()), dim=-1)
    return dict(zip(BLOCKS, parts, strict=True))


@pytest.mark.parametrize(
    ("order", "around", "along"),
    [
        ([0, 1, 2, 3, 4], [(1, 0)] * 5, [(1, 0)] * 5),
        ([4, 3, 2], [(-1, 0)] * 3, [(-1, 0)] * 3),
        # the ring closes, a clip does not
        ([6, 7, 0, 1], [(1, 0)] * 4, [(1, 0), (-3, 3), (-3, 3), (1, 0)]),
        ([0, 2, 1, 2], [(2, 1), (0.5, 0.5), (0, 0), (1, 0)], [(2, 1), (0.5, 0.5), (0, 0), (1, 0)]),
        ([5, 5, 5], [(0, -1)] * 3, [(0, -1)] * 3),
    ],
)
def test_order_is_the_way_and_its_detours(
    batch: dict[str, Tensor],
    order: list[int],
    around: list[tuple[float, float]],
    along: list[tuple[float, float]],
) -> None:
    """Every frame's steps to it and from it on, their mean and their size."""
    found = read(batch, order)["order"]
    for orbit, video in zip(batch["orbit"], found, strict=True):
        wanted = torch.tensor(around if orbit else along)
        own, other = (video[:, :2], video[:, 2:]) if orbit else (video[:, 2:], video[:, :2])
        assert torch.equal(own, wanted) and not other.any()


def test_the_facts_are_the_creatures(videos: Videos, batch: dict[str, Tensor]) -> None:
    creatures = sample_creatures("train", range(4))
    assert batch["orbit"].tolist() == [True] * 4 + [False] * 4
    for kind in (slice(0, 4), slice(4, 8)):
        torch.testing.assert_close(
            batch["colour"][kind], creatures.colours[:, 0].flatten(1).float()
        )
    heading = torch.atan2(batch["angle"][..., 0], batch["angle"][..., 1])  # 8 t, against the camera
    turned = (heading[4:] - creatures.yaw[:, None].float()).remainder(2 * torch.pi)
    assert turned.minimum(2 * torch.pi - turned).max() < 1e-4  # a clip's camera stands at no angle
    step = heading[:4].diff(dim=1).remainder(2 * torch.pi)
    # and an orbit's goes on by an eighth
    torch.testing.assert_close(step, torch.full_like(step, 2 * torch.pi * 7 / 8))
    for kind, times in (
        (slice(0, 4), creatures.still_time[:, None]),
        (slice(4, 8), torch.arange(8) / 8),
    ):
        cycles = creatures.start[:, None] + creatures.frequency[:, None] * times
        torch.testing.assert_close(
            batch["gait"][kind, :, 0], (2 * torch.pi * cycles).sin().expand(-1, 8).float()
        )
    assert torch.equal(videos.facts, Videos(*videos.sets, "train").facts)


def test_every_frame_tells_of_itself(batch: dict[str, Tensor]) -> None:
    found = read(batch, [3, 1, 2])
    assert torch.equal(found["angle"], batch["angle"][:, [3, 1, 2]])
    assert torch.equal(found["gait"], batch["gait"][:, [3, 1, 2]])
    assert torch.equal(found["colour"][:, 0], found["colour"][:, 2])


def test_strengths_are_told_by_their_root(batch: dict[str, Tensor]) -> None:
    n = len(batch["pixels"])
    drawn = Drawn(torch.arange(8).expand(n, -1), torch.full((n,), 0.5), torch.full((n,), 0.25))
    blur, noise = targets(batch, drawn, 8)[0, 0, :2].tolist()
    # a quarter and all of the largest
    assert blur == pytest.approx(2 * 0.5) and noise == pytest.approx(2)


# --- a run ----------------------------------------------------------------------------------------


def test_steps_on_one_batch_make_its_loss_smaller(job: Callable[..., TrainJob]) -> None:
    module, data = build_video_encoder(
        job(optimizer=OptimizerConfig(lr=5e-3, muon=True, warmup_steps=1))
    )
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    one = torch.utils.data.default_collate([data.train[i] for i in range(8)])  # type: ignore[index]
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(25):
        torch.manual_seed(3)  # the same corruption
        loss = module.training_step(one, 0)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.75 * losses[0]


def test_a_run_goes_on_alike_and_sees_no_matrix(
    job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    class StopAt(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 2

    whole = trained(job(output_dir=tmp_path / "whole"))
    half = trained(job(), StopAt())
    assert any(not torch.equal(whole[k], half[k]) for k in whole)
    again = trained(job())
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    names = {
        folder.name for folder in (job().cache_dir / f"world4d-{world4d.WORLD_VERSION}").iterdir()
    }
    assert names == {"train_orbits_4", "train_clips_4", "validation_orbits_2", "validation_clips_2"}


def test_what_a_run_writes_is_what_the_metrics_read(job: Callable[..., TrainJob]) -> None:
    own = job()
    trained(own)
    path = own.output_dir / "tiny_video_encoder.safetensors"
    network, meta = load_video_encoder(path), tiny.read_weights(path, "video_encoder").meta
    assert network.dim == 12 and network.name == "world4d-encoder"
    assert meta["world"] == world4d.WORLD_VERSION and meta["steps"] == 4
    assert meta["training"]["optimizer"]["max_steps"] == 4 and meta["training"]["num_scenes"] == 4
    assert (
        meta["validation"].keys() == {f"val/{name}" for name in BLOCKS}
        and BLOCKS.keys() == WEIGHTS.keys()
    )


def test_the_command_trains_it(job: Callable[..., TrainJob], tmp_path: Path) -> None:
    short = [
        "prior.max_steps=2",
        "prior.batch_size=3",
        "num_scenes=4",
        "num_validation_scenes=2",
        "trainer=cpu",
    ]
    places = [f"output_dir={tmp_path / 'out'}", f"cache_dir={job().cache_dir}"]
    assert cli.run(["train", "prior=tiny_video_encoder", *short, *places]) == 0
    assert load_video_encoder(tmp_path / "out" / "tiny_video_encoder.safetensors").dim == 12


def test_whitened_features_tell_the_same(videos: Videos, batch: dict[str, Tensor]) -> None:
    """Another basis of the embeddings leaves alone what is read off them."""
    torch.manual_seed(0)
    encoder = VideoEncoder(VideoEncoderConfig(stem=(8, 8), widths=(16,), dim=12))
    module = EncoderTrainer(Reader(encoder), OptimizerConfig())
    pixels = batch["pixels"].float() / 255
    with torch.no_grad():
        before = module.ema(pixels)
        module.whiten(videos, 64)
        torch.testing.assert_close(module.ema(pixels), before, rtol=1e-3, atol=1e-4)
        state = torch.random.get_rng_state()
        module.whiten(videos, 64)  # of what is white: no change but the ridge's
        assert torch.equal(state, torch.random.get_rng_state())
        torch.testing.assert_close(module.ema(pixels), before, rtol=1e-3, atol=1e-4)


def test_the_roots_are_those_of_the_covariance() -> None:
    members = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.logspace(-3, 1, 6)
    )
    root, inverse = ridged_roots(members.mT.cov())
    torch.testing.assert_close(root @ inverse, torch.eye(6), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        root @ root, members.mT.cov() + RIDGE * members.var(dim=0).mean() * torch.eye(6)
    )
    white = (members @ inverse).var(dim=0)
    # what is nearly nothing stays nearly nothing
    assert white.max() < 1.001 and white[-1] > 0.9 and white[0] < 0.01


def test_blocks_are_averaged_each() -> None:
    width = sum(BLOCKS.values())
    found = block_means(torch.arange(float(width)).expand(3, -1))
    assert (
        found["blur"] == 0
        and found["noise"] == 1
        and found["order"] == 3.5
        and found["gait"] == width - 1.5
    )


# --- the shipped file -----------------------------------------------------------------------------


def test_the_shipped_encoder_reads_what_it_is_for() -> None:
    """Its header says of each kind how much of the variance is read off validation scenes."""
    file = tiny.read_weights(SHIPPED, "video_encoder")
    assert SHIPPED.stat().st_size < 2e6 and sum(t.numel() for t in file.state.values()) == 790_944
    told = file.meta["validation"]
    assert file.meta["world"] == world4d.WORLD_VERSION
    assert (
        min(told["val/blur"], told["val/noise"]) > 0.8
        and told["val/order"] > 0.3
        and told["val/colour"] > 0.4
    )

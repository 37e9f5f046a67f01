"""Training of the tiny tier: its loss, its noise and conditions, what it may see, and how it goes
on."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors import safe_open
from torch import Tensor
from wandb_files import read_runs

from d2 import cli, signals
from d2.data import world4d
from d2.priors import tiny
from d2.priors.first_stage import FirstStage
from d2.priors.prior import Condition
from d2.settings import Kind, LossConfig, OptimizerConfig
from d2.train import data as datamodule
from d2.train.data import RandomBatches, rendered
from d2.train.going_on import read_past
from d2.train.job import TrainJob, build_autoencoder, build_prior, train
from d2.train.latent_basis import orient, pixel_metric
from d2.train.prior_trainer import PriorTrainer, draw_sigma, lr_factor

pytestmark = pytest.mark.usefixtures("small_networks")
MakeJob = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def job(cache: Path, tmp_path: Path, small_weights: list[str]) -> MakeJob:
    """A training run of a few steps over four scenes."""

    def make(kind: Kind = "video", **changes: Any) -> TrainJob:
        usual = TrainJob(
            kind,
            output_dir=tmp_path / "out",
            cache_dir=cache,
            autoencoder=Path(small_weights[-1].partition("=")[2]),
            optimizer=OptimizerConfig(lr=1e-3, max_steps=4, warmup_steps=1, decay_steps=2),
            loss=LossConfig(singles=2),
            num_scenes=4,
            num_validation_scenes=2,
            batch_size=4,
            validate_every=2,
            accelerator="cpu",
        )
        return replace(usual, **changes)

    return make


@pytest.fixture
def prior(job: MakeJob) -> Callable[..., tuple[PriorTrainer, dict[str, Tensor]]]:
    """A prior's trainer with no run around it, and a batch of all four scenes."""

    def make(kind: Kind = "video", **changes: Any) -> tuple[PriorTrainer, dict[str, Tensor]]:
        own = job(kind, **changes)
        module, data = build_prior(own)
        module.network.load_state_dict(randomly(module.network.state_dict()))
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        return module, torch.utils.data.default_collate(
            [data.train[i] for i in range(own.num_scenes)]
        )  # type: ignore[index]

    return make


def randomly(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random weights, none of them zero."""
    g = torch.Generator().manual_seed(0)
    return {
        k: torch.randn(v.shape, generator=g) * (v[0].numel() ** -0.5 if v.ndim > 1 else 0.2)
        for k, v in state.items()
    }


def quietly(job: TrainJob, *callbacks: L.Callback) -> dict[str, Tensor]:
    """Train, and read the weights written."""
    return tiny.read_weights(
        train(job, lambda _: [CSVLogger(job.output_dir, "log")], list(callbacks)), job.kind
    ).state


# --- the loss -------------------------------------------------------------------------------------


def test_the_loss_is_the_error_of_v(
    prior: Callable[..., tuple[PriorTrainer, dict[str, Tensor]]],
) -> None:
    """With x = x0 + σ n the network's own target is v = (n − σ x0) / sqrt(1 + σ²)."""
    module, batch = prior()
    g = torch.Generator().manual_seed(1)
    x0 = torch.randn(batch["latents"].shape, generator=g)
    noise, levels = torch.randn(x0.shape, generator=g), torch.tensor([0.01, 0.7, 9.0, 500.0])
    sigma = levels[:, None].expand(x0.shape[:2])
    condition = module.condition(
        module.network, batch, torch.zeros(4), torch.zeros(batch["reference"].shape)
    )
    outputs: list[Tensor] = []
    module.network.unet.register_forward_hook(lambda _, __, out: outputs.append(out))
    with torch.no_grad():
        loss = module.v_loss(x0, condition, sigma, torch.zeros(sigma.shape), noise=noise)
    s = sigma[:, :, None, None, None]
    error = outputs[0].reshape(x0.shape) - (noise - s * x0) / (1 + s**2).sqrt()
    assert torch.allclose(loss, error.square().mean(dim=(2, 3, 4)), rtol=1e-3)


def test_the_noise_levels_are_those_of_the_recipe(
    prior: Callable[..., tuple[PriorTrainer, dict[str, Tensor]]],
) -> None:
    module, _ = prior()
    torch.manual_seed(0)
    sigma = draw_sigma(module.loss, 40_000)
    assert sigma.min() >= 0.002
    # the normal share has nearly nothing there
    high = 0.1 * math.log(700 / 188) / math.log(700 / 20)
    assert (sigma > 188).float().mean() == pytest.approx(high, rel=0.1)
    # a tenth lies above: quantile 5/9
    assert sigma.log().median() == pytest.approx(0.3 + 1.4 * 0.1397, abs=0.05)

    aug = module.draw_cond_aug(40_000)
    assert (aug == 0).float().mean() == pytest.approx(0.3, abs=0.02)
    assert aug[aug > 0].log().median() == pytest.approx(-3.0, abs=0.05) and aug.max() <= 1


def told(
    module: PriorTrainer, batch: dict[str, Tensor], seed: int = 0
) -> list[tuple[Condition, Tensor, Tensor]]:
    """Condition, flags and x of every call of the network in one training step."""
    calls: list[tuple[Condition, Tensor, Tensor]] = []
    own = module.network.forward

    def forward(x: Tensor, sigma: Tensor, condition: Condition, image_only: Tensor) -> Tensor:
        calls.append((condition, image_only, x))
        return own(x, sigma, condition, image_only)

    module.network.forward = forward  # type: ignore[method-assign]
    torch.manual_seed(seed)
    module.training_step(batch, 0)
    return calls


def test_conditions_are_dropped_whole(
    prior: Callable[..., tuple[PriorTrainer, dict[str, Tensor]]],
) -> None:
    for drop, gone in ((0.0, [False]), (1.0, [True]), (0.5, [False, True])):
        seen = set()
        for seed in range(5):
            module, batch = prior(loss=LossConfig(singles=2, drop=drop))
            for condition, _, _ in told(module, batch, seed):
                picture = (condition.crossattn == 0).flatten(2).all(2).flatten()
                # both or none
                assert torch.equal(picture, (condition.concat == 0).flatten(2).all(2).flatten())
                assert torch.equal(picture, (condition.crossattn == 0).flatten(2).any(2).flatten())
                assert (condition.vector != 0).flatten(2).any(2).all()  # the numbers stay
                seen |= set(picture.tolist())
            if drop in (0.0, 1.0):
                break
        assert sorted(seen) == gone


def test_single_images_leave_the_temporal_branch_alone(
    prior: Callable[..., tuple[PriorTrainer, dict[str, Tensor]]],
) -> None:
    module, batch = prior()
    ((_, flags, x),) = told(module, batch)  # two sequences, and a row that holds two images
    assert x.shape[:2] == (3, 8) and flags.tolist() == [[0] * 8, [0] * 8, [1] * 8]

    condition = module.condition(
        module.network, batch, torch.zeros(4), torch.zeros(batch["reference"].shape)
    )
    first = Condition(*(part[:, :1].detach() for part in condition))
    temporal = [p for name, p in module.network.unet.named_parameters() if ".time_" in name]
    spatial = [
        p
        for name, p in module.network.unet.named_parameters()
        if "transformer_blocks.0.attn1" in name
    ]
    for image_only in (True, False):
        module.network.zero_grad()
        flags = torch.full((4, 1), float(image_only))
        module.v_loss(batch["latents"][:, :1], first, torch.ones(4, 1), flags).sum().backward()
        moved = [p.grad is not None and bool(p.grad.abs().max() > 0) for p in temporal]
        assert any(moved) is not image_only
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in spatial if p.ndim > 1)


def test_the_reference_is_noised_as_told(
    prior: Callable[..., tuple[PriorTrainer, dict[str, Tensor]]],
) -> None:
    """The encoder sees the noised picture, the tower the clean one, and the vector says how much
    noise there is."""
    module, batch = prior()
    noise = torch.randn(batch["reference"].shape, generator=torch.Generator().manual_seed(0))
    clean, noised = (
        module.condition(module.network, batch, torch.full((4,), a), noise) for a in (0.0, 0.5)
    )
    images = batch["reference"].float() / 127.5 - 1
    assert torch.equal(clean.crossattn, noised.crossattn)
    assert torch.allclose(noised.concat[:, 0], module.first_stage(images + 0.5 * noise), atol=1e-5)
    assert not torch.equal(clean.vector, noised.vector)


def test_the_multiview_prior_is_told_the_cameras(
    prior: Callable[..., tuple[PriorTrainer, dict[str, Tensor]]],
) -> None:
    module, batch = prior("multiview")
    assert batch["azimuth_rad"][:, -1] == pytest.approx([2 * math.pi] * 4)
    torch.testing.assert_close(
        batch["reference"], torch.from_numpy(np.stack([orbit(i)[-1] for i in range(4)]))
    )
    vector = module.condition(
        module.network, batch, torch.zeros(4), torch.zeros(batch["reference"].shape)
    ).vector
    turned = batch | {"azimuth_rad": batch["azimuth_rad"].roll(1, dims=1)}
    again = module.condition(
        module.network, turned, torch.zeros(4), torch.zeros(batch["reference"].shape)
    ).vector
    assert not torch.equal(vector, again)


def orbit(index: int) -> np.ndarray:
    return (world4d.static_orbits("train", [index]).pixels[0] * 255).round().to(torch.uint8).numpy()


def test_steps_on_one_batch_make_its_loss_smaller(
    prior: Callable[..., tuple[PriorTrainer, dict[str, Tensor]]],
) -> None:
    module, batch = prior(optimizer=OptimizerConfig(lr=3e-3, warmup_steps=1))
    optimizer = module.configure_optimizers()["optimizer"]

    def loss() -> Tensor:
        torch.manual_seed(5)  # the same levels and noise
        return module.training_step(batch, 0)

    before = loss().item()
    for _ in range(12):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * before


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    c = OptimizerConfig(warmup_steps=10, max_steps=100, decay_steps=40)
    factors = [lr_factor(step, c) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[9:61] == [1.0] * 52
    assert factors[60:] == pytest.approx([1 - i / 40 for i in range(41)])


# --- a run ----------------------------------------------------------------------------------------


class StopAt(L.Callback):
    def __init__(self, step: int):
        self.step, self.seen = step, []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(trainer.global_step)
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize("kind", ["video", "autoencoder"])
def test_a_run_that_was_stopped_goes_on_alike(kind: Kind, job: MakeJob, tmp_path: Path) -> None:
    whole = quietly(job(kind, output_dir=tmp_path / "whole"))
    stopped, resumed = StopAt(2), StopAt(100)
    half = quietly(job(kind), stopped)
    assert any(not torch.equal(whole[k], half[k]) for k in whole)
    went_on = quietly(job(kind), resumed)
    assert stopped.seen == [1, 2] and resumed.seen == [3, 4]
    for name, value in whole.items():
        assert torch.equal(value, went_on[name]), name
    assert all(
        torch.equal(whole[k], v)
        for k, v in quietly(job(kind, output_dir=tmp_path / "again")).items()
    )
    other = quietly(job(kind, output_dir=tmp_path / "other", seed=1))
    assert any(not torch.equal(whole[k], other[k]) for k in whole)


def test_batch_k_depends_on_seed_k_and_rank_alone() -> None:
    def batches(seed: int, start: int, rank: int = 0) -> list[list[int]]:
        endless = RandomBatches(1000, 8, seed=seed, start=start, rank=rank)
        return [b for b, _ in zip(endless, range(6 - start), strict=False)]

    assert batches(0, 0)[4:] == batches(0, 4) and batches(0, 0) != batches(1, 0)
    assert batches(0, 0, 1)[4:] == batches(0, 4, 1)
    assert len({tuple(b) for b in batches(0, 0) + batches(0, 0, 1)}) == 12


@pytest.mark.slow
def test_two_processes_train_one_network(
    tiny_weights: list[str], cache: Path, tmp_path: Path
) -> None:
    """On batches of their own: as many weights as one of them would write, and what is said, said
    once."""
    script = str(Path(sys.executable).with_name("d2"))
    sizes = [
        "num_scenes=4",
        "num_validation_scenes=2",
        "prior.max_steps=2",
        "prior.batch_size=2",
        "prior.singles=1",
    ]
    line = [
        "prior=tiny_multiview",
        *sizes,
        tiny_weights[-1],
        f"cache_dir={cache}",
        "validate_every=2",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    written = []
    for place, trainer in {
        "one": ["trainer=cpu"],
        "two": ["trainer=ddp", "trainer.accelerator=cpu"],
    }.items():
        command = [script, "train", *line, *trainer, f"output_dir={tmp_path / place}"]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=500
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1
        written.append(
            tiny.read_weights(tmp_path / place / "tiny_multiview.safetensors", "multiview")
        )
    one, two = written
    assert one.meta["steps"] == two.meta["steps"] == 2 and one.state.keys() == two.state.keys()
    assert all(value.isfinite().all() for value in two.state.values())
    assert any(not torch.equal(one.state[name], value) for name, value in two.state.items())


class SignalAt(L.Callback):
    """Sends this process a signal in a training step, or in the validation after it."""

    def __init__(self, step: int, signum: int, *, validating: bool = False):
        self.step, self.signum, self.validating = step, signum, validating

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.validating and trainer.global_step == self.step - 1:
            signal.raise_signal(self.signum)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.validating and trainer.global_step == self.step:
            signal.raise_signal(self.signum)


@pytest.fixture
def handled_signals() -> Iterator[None]:
    """As in a command, and as before afterwards."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    signals.install()
    yield
    signals.forget()
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(
    ("signum", "step", "validating"),
    [(signal.SIGINT, 1, False), (signal.SIGTERM, 3, False), (signal.SIGINT, 2, True)],
)
def test_a_training_that_a_signal_stopped_goes_on_alike(
    signum: int, step: int, validating: bool, job: MakeJob, tmp_path: Path, handled_signals: None
) -> None:
    whole = quietly(job(output_dir=tmp_path / "whole"))
    with pytest.raises(signals.Stopped):
        quietly(job(), SignalAt(step, signum, validating=validating))
    past = read_past(tmp_path / "out" / "checkpoints" / "last.ckpt")
    assert past is not None and past.step == step
    signals.forget()
    went_on = quietly(job())
    assert all(torch.equal(value, went_on[name]) for name, value in whole.items())


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as f:
        return json.loads(f.metadata()["meta"])


def test_another_learning_rate_is_used_and_told(
    job: MakeJob, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also when the optimiser's state goes on; the header lists both phases, and the log is one."""

    def rates(lr: float, steps: int) -> list[float]:
        seen: list[float] = []

        class Rates(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
                seen.extend(group["lr"] for group in trainer.optimizers[0].param_groups)

        quietly(
            job(
                optimizer=OptimizerConfig(
                    lr=lr, max_steps=steps, warmup_steps=1, decay_steps=1, muon=True
                )
            ),
            Rates(),
        )
        return seen

    assert set(rates(1e-3, 2)) == {1e-3}
    capfd.readouterr()
    assert set(rates(5e-4, 4)) == {5e-4}
    said = capfd.readouterr().err
    assert (
        "d2: going on at step 2, optimizer.lr: 0.001 -> 0.0005, optimizer.max_steps: 2 -> 4" in said
    )
    meta = header(tmp_path / "out" / "tiny_video.safetensors")
    assert meta["config"]["optimizer"]["lr"] == 5e-4 and meta["steps"] == 4
    assert [
        (p["first_step"], p["optimizer_state"], p["config"]["optimizer"]["lr"])
        for p in meta["phases"]
    ] == [
        (0, "new", 1e-3),
        (2, "of the phase before", 5e-4),
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "multiview"}, "prior.kind=multiview: the training in output_dir has video"),
        (
            {"optimizer": OptimizerConfig(muon=True)},
            "prior.optimizer=muon: the training in output_dir has adamw",
        ),
        ({"optimizer": OptimizerConfig(max_steps=3)}, "prior.max_steps=3: .*last.ckpt has 4"),
    ],
)
def test_what_cannot_change_on_going_on_is_refused(
    changes: dict[str, Any], says: str, job: MakeJob
) -> None:
    quietly(job())
    with pytest.raises(ValueError, match=says):
        quietly(job(**changes))


def test_a_time_limit_cuts_a_training_and_changes_nothing_else(
    job: MakeJob, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = quietly(job(output_dir=tmp_path / "whole"))
    for steps in (1, 2, 3, 4):
        said = f"d2: stopped at step {steps} of 4; the same command goes on"
        cut = quietly(job(max_minutes=1e-9))
        assert (said in capfd.readouterr().err) == (steps < 4)
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert len(header(tmp_path / "out" / "tiny_video.safetensors")["phases"]) == 1


def test_priors_wait_for_latents_that_will_not_change(job: MakeJob, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(max_steps=4, warmup_steps=1, decay_steps=1)
    own = job("autoencoder", optimizer=optimizer, decoder_steps=2, max_minutes=1e-9)
    weights = tmp_path / "out" / "tiny_autoencoder.safetensors"
    quietly(own)
    with pytest.raises(ValueError, match="stopped at step 1, and its latents settle at 2"):
        build_prior(job("video", autoencoder=weights))
    quietly(own)
    build_prior(job("video", autoencoder=weights))


def test_weights_are_not_replaced_by_those_of_fewer_steps(job: MakeJob, tmp_path: Path) -> None:
    quietly(job())
    weights = tmp_path / "out" / "tiny_video.safetensors"
    before = weights.read_bytes()
    (tmp_path / "out" / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(
        ValueError, match=r"have 4 steps, and a training from step 0 would replace them"
    ):
        quietly(job())
    assert weights.read_bytes() == before


def test_a_checkpoint_that_carries_code_is_refused_and_not_run(
    job: MakeJob, tmp_path: Path
) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "out" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"global_step": 1, "phases": [], "state_dict": Code()}, path)
    with pytest.raises(ValueError, match=r"last.ckpt: no checkpoint of `d2 train` to go on from"):
        quietly(job())
    assert not (tmp_path / "ran").exists()


def train_line(small_weights: list[str], cache: Path, *more: str) -> list[str]:
    """A command line of `d2 train` on four scenes."""
    sizes = ["num_scenes=4", "num_validation_scenes=2", "prior.batch_size=4", "prior.singles=2"]
    return ["train", *sizes, f"cache_dir={cache}", small_weights[-1], "trainer=cpu", *more]


def test_both_parts_of_a_training_are_one_log(
    small_weights: list[str], cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = train_line(small_weights, cache, f"output_dir={tmp_path / 'out'}", "validate_every=2")
    for steps in (4, 8):
        assert cli.run([*line, f"prior.max_steps={steps}"]) == 0
    with (tmp_path / "out" / "log" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    validated = [int(row["step"]) for row in rows if row["val/loss_1_10"]]
    assert validated == sorted(validated) and {1, 3, 5, 7} <= set(validated)
    err = capfd.readouterr().err
    assert (
        "tiny_video: step 2 of 4, " in err
        and "tiny_video: step 6 of 8, " in err
        and "Epoch" not in err
    )


def test_both_parts_of_a_training_are_one_run_of_wandb(
    small_weights: list[str], cache: Path, tmp_path: Path
) -> None:
    line = train_line(small_weights, cache, f"output_dir={tmp_path / 'out'}", "validate_every=2")
    for steps in (2, 4):
        assert cli.run([*line, "logger=wandb", f"prior.max_steps={steps}"]) == 0
    runs = sorted(read_runs(tmp_path / "out"), key=lambda run: run.config["prior"]["max_steps"])
    assert len(runs) == 2 and runs[0].id == runs[1].id and runs[0].name == "out"
    first, second = ([row["_step"] for row in run.history] for run in runs)
    assert max(first) < min(second)


def test_every_point_of_a_sweep_of_training_is_a_run_of_wandb(
    small_weights: list[str], cache: Path, tmp_path: Path
) -> None:
    line = train_line(small_weights, cache, "-m", "prior.max_steps=1", "validate_every=1")
    assert (
        cli.run(
            [*line, "prior.lr=0.001,0.002", "logger=wandb", f"hydra.sweep.dir={tmp_path / 'out'}"]
        )
        == 0
    )
    runs = read_runs(tmp_path / "out")
    assert [run.name for run in runs] == ["prior.lr=0.001", "prior.lr=0.002"]
    assert [run.config["prior"]["lr"] for run in runs] == [0.001, 0.002] and {
        run.group for run in runs
    } == {"out"}


def test_every_band_of_noise_is_validated(job: MakeJob) -> None:
    own = job()
    quietly(own)
    with safe_open(own.output_dir / "tiny_video.safetensors", framework="pt") as f:
        meta = json.loads(f.metadata()["meta"])
    bands = [f"val/loss_{band}" for band in ("0.01_0.1", "0.1_1", "1_10", "10_188", "188_700")]
    assert sorted(meta["validation"]) == sorted(bands) and all(
        math.isfinite(v) for v in meta["validation"].values()
    )
    assert meta["world"] == world4d.WORLD_VERSION and meta["steps"] == 4
    assert meta["config"]["optimizer"]["lr"] == 1e-3 and meta["config"]["num_scenes"] == 4


def test_validation_depends_on_the_weights_alone(
    prior: Callable[..., tuple[PriorTrainer, dict[str, Tensor]]],
) -> None:
    module, batch = prior()
    figures: list[dict[str, float]] = []
    for seed in (0, 1):
        logged: dict[str, float] = {}
        module.log = lambda name, value, logged=logged, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
        torch.manual_seed(seed)
        with torch.no_grad():
            module.validation_step(batch, 0)
        figures.append(logged)
    assert figures[0] == figures[1] and len(figures[0]) == 5


def test_training_starts_from_the_weights_it_is_given(
    job: MakeJob, small_weights: list[str]
) -> None:
    files = [Path(w.partition("=")[2]) for w in small_weights]
    for kind, path in zip(("video", "multiview"), files, strict=False):
        module, _ = build_prior(job(kind, init_from=path))
        given = tiny.read_weights(path, kind).state
        for network in (module.network, module.ema):
            assert all(
                torch.equal(value, given[name]) for name, value in network.state_dict().items()
            )
    with pytest.raises(ValueError, match="wanted 'video'"):
        build_prior(job("video", init_from=files[1]))


def test_an_oriented_autoencoder_is_trained_on_where_it_was(job: MakeJob, tmp_path: Path) -> None:
    """Its pictures do not change by the change of basis that was done to it when it was written."""
    stage = FirstStage(tiny.AUTOENCODER)
    paths = [tmp_path / "plain.safetensors", tmp_path / "oriented.safetensors"]
    tiny.save_weights(paths[0], "autoencoder", stage, {})
    orient(stage, torch.from_numpy(orbit(0)))
    tiny.save_weights(paths[1], "autoencoder", stage, {})
    losses = []
    for path in paths:
        module, _ = build_autoencoder(job("autoencoder", init_from=path))
        module.log = lambda name, value: losses.append(float(value))  # type: ignore[method-assign]
        module.validation_step(torch.from_numpy(orbit(0)), 0)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # half precision


@torch.no_grad()
def test_the_basis_of_latents_is_that_of_pixels() -> None:
    torch.manual_seed(0)
    stage, pictures = (
        FirstStage(tiny.AUTOENCODER),
        torch.from_numpy(np.concatenate([orbit(0), orbit(1)])),
    )
    images = pictures.float() / 127.5 - 1
    old = stage(images)
    before = stage.decode(old)
    change = orient(stage, pictures)
    z = stage(images)
    assert torch.allclose(stage.decode(z), before, atol=1e-4)  # the pictures are the same
    centred = (x - x.mean(dim=(0, 2, 3), keepdim=True) for x in (old, z))
    torch.testing.assert_close(
        torch.einsum("ij,njhw->nihw", change, next(centred)), next(centred), rtol=0, atol=1e-3
    )
    assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert z.var(dim=(0, 2, 3)).mean() == pytest.approx(1, abs=1e-3)
    seen = torch.nn.functional.max_pool2d((pictures < 247).any(dim=1, keepdim=True).float(), 8) > 0
    variance = z.movedim(1, -1)[seen[:, 0]].var(dim=0)
    assert (variance.diff() < 1e-4 * variance[0]).all()  # falling
    assert stage.basis is not None
    back = torch.linalg.inv(stage.basis)
    metric = back.T @ pixel_metric(stage, stage.moments(images)[0], seen) @ back
    torch.testing.assert_close(metric / metric[0, 0], torch.eye(len(metric)), rtol=0, atol=0.05)
    assert (stage.scale == stage.scale[0]).all()


def test_a_decoder_alone_leaves_the_latents_as_they_are(
    job: MakeJob, small_weights: list[str]
) -> None:
    path = Path(small_weights[-1].partition("=")[2])
    trained = quietly(
        job("autoencoder", decoder_steps=4, edge_weight=2.0, latent_noise=0.2, init_from=path)
    )
    changed = {
        name
        for name, given in tiny.read_weights(path, "autoencoder").state.items()
        if not torch.equal(given, trained[name])
    }
    assert changed and all(".decoder." in name for name in changed)


def test_the_weights_written_are_oriented(job: MakeJob) -> None:
    own = job("autoencoder")
    quietly(own)
    stage = tiny.load_first_stage(own.output_dir / "tiny_autoencoder.safetensors")
    pictures = np.concatenate(
        [rendered(own.cache_dir, kind, "train", 4).pixels for kind in ("orbits", "clips")]
    )
    z = stage(torch.from_numpy(pictures).flatten(0, 1).float() / 127.5 - 1)
    assert z.mean(dim=(0, 2, 3)).abs().max() < 0.02  # half precision
    assert z.var(dim=(0, 2, 3)).mean() == pytest.approx(1, abs=0.04)
    assert (stage.scale == stage.scale[0]).all()


# --- what training may see ------------------------------------------------------------------------


def test_training_never_gets_a_whole_matrix(
    job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("training asked for a V × F truth")

    monkeypatch.setattr(world4d, "full_matrix", refuse)
    monkeypatch.setattr(world4d, "scene", refuse)
    own = tmp_path / "cache"
    build_autoencoder(job("autoencoder", cache_dir=own, num_scenes=2))
    for kind in ("video", "multiview"):
        build_prior(job(kind, cache_dir=own, num_scenes=2))
    for path in own.rglob("pixels.npy"):
        clips = np.load(path, mmap_mode="r")
        assert clips.shape[1:] == (8, 3, 64, 64)
        same_moment = (world4d.clips if "clips" in path.parent.name else world4d.static_orbits)(
            "train" if "train" in path.parent.name else "validation", [0]
        )
        assert np.array_equal(
            clips[0], (same_moment.pixels[0] * 255).round().to(torch.uint8).numpy()
        )
    assert {path.parent.name.rpartition("_")[0] for path in own.rglob("pixels.npy")} == {
        "train_orbits", "train_clips", "validation_orbits", "validation_clips",
    }  # fmt: skip


class HerePool:
    """Renders in this process."""

    def __init__(self, *_: Any): ...
    def __enter__(self) -> HerePool:
        return self

    def __exit__(self, *_: object) -> None: ...
    def map(self, work: Callable[[int], int], shards: list[int]) -> Any:
        return map(work, shards)


def test_a_rendering_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datamodule, "SHARD", 2)
    monkeypatch.setattr(datamodule, "ProcessPoolExecutor", HerePool)
    own, shards = datamodule.render_shard, []

    def render_shard(shard: int, **where: Any) -> int:
        shards.append(shard)
        if len(shards) == 2:
            raise KeyboardInterrupt
        return own(shard, **where)

    monkeypatch.setattr(datamodule, "render_shard", render_shard)
    with pytest.raises(KeyboardInterrupt):
        rendered(tmp_path, "clips", "train", 5)
    views = rendered(tmp_path, "clips", "train", 5)
    assert shards == [0, 1, 1, 2]
    assert np.array_equal(
        views.pixels,
        (world4d.clips("train", range(5)).pixels * 255).round().to(torch.uint8).numpy(),
    )
    rendered(tmp_path, "clips", "train", 5)
    assert shards == [0, 1, 1, 2]  # all there

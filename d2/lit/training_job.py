"""`d2 train`: render and encode the world, train one tiny network on it, write its weights."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from torch import nn

from d2.data import world4d
from d2.data.datamodule import Pictures, Sequences, ViewSet, WorldData, encoded, rendered
from d2.lit.prior_trainer import AutoencoderTrainer, LossConfig, OptimizerConfig, PriorTrainer, Trained, whiten
from d2.priors import tiny
from d2.priors.first_stage import FirstStage
from d2.priors.prior import Prior

Kind = Literal["autoencoder", "video", "multiview"]


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """Everything that decides a training run."""

    kind: Kind
    output_dir: Path
    cache_dir: Path
    autoencoder: Path  # weights of the first stage; unused when it is what is trained
    optimizer: OptimizerConfig
    loss: LossConfig
    num_scenes: int = 20_000
    num_validation_scenes: int = 64
    batch_size: int = 24
    seed: int = 0
    init_from: Path | None = None  # shipped weights to start from
    validate_every: int = 500  # steps
    save_every_minutes: float = 5.0
    accelerator: str = "auto"
    precision: Any = "32-true"


class WeightsWriter(L.Callback):
    """Writes the averaged weights to `path` after every validation, and at the end."""

    def __init__(self, path: Path, kind: Kind, meta: dict[str, Any]):
        self.path, self.kind, self.meta, self.started = path, kind, meta, time.monotonic()

    def write(self, trainer: L.Trainer, module: Trained) -> None:
        figures = {k: round(float(v), 5) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        meta = self.meta | {"steps": trainer.global_step, "validation": figures}
        tiny.save_weights(self.path, self.kind, module.ema, meta)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step and trainer.is_global_zero and isinstance(pl_module, Trained):
            self.write(trainer, pl_module)


def train(job: TrainJob, loggers: list[Any], callbacks: list[L.Callback]) -> Path:
    """Run a training job, going on from its last checkpoint when there is one; returns the weights file."""
    L.seed_everything(job.seed)
    build = build_autoencoder if job.kind == "autoencoder" else build_prior
    module, data = build(job)
    weights = job.output_dir / f"tiny_{job.kind}.safetensors"
    meta = {"world": world4d.WORLD_VERSION, "config": dataclasses.asdict(job) | {"config_of": job.kind}}
    meta = {k: _plain(v) for k, v in meta.items()}
    checkpoints = ModelCheckpoint(
        job.output_dir / "checkpoints",
        filename="last",
        train_time_interval=None if job.save_every_minutes <= 0 else _minutes(job.save_every_minutes),
        save_top_k=1,
        enable_version_counter=False,
    )
    trainer = L.Trainer(
        accelerator=job.accelerator,
        devices=1,
        precision=job.precision,
        max_steps=job.optimizer.max_steps,
        val_check_interval=job.validate_every,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        log_every_n_steps=50,
        logger=loggers,
        num_sanity_val_steps=0,
        default_root_dir=job.output_dir,
        callbacks=[checkpoints, LearningRateMonitor("step"), WeightsWriter(weights, job.kind, meta), *callbacks],
    )
    last = job.output_dir / "checkpoints" / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None)
    trainer.save_checkpoint(last)
    if isinstance(module, AutoencoderTrainer):
        finish_autoencoder(module, data)
    trainer.validate(module, data, verbose=False)
    return weights


def build_autoencoder(job: TrainJob) -> tuple[AutoencoderTrainer, WorldData]:
    """The autoencoder's module and its pictures: half of them from orbits, half from clips."""
    stage = FirstStage(tiny.AUTOENCODER)
    _warm_start(stage, job)
    sets = [rendered(job.cache_dir, kind, "train", job.num_scenes) for kind in ("orbits", "clips")]
    held = rendered(job.cache_dir, "clips", "validation", job.num_validation_scenes)
    return AutoencoderTrainer(stage, job.optimizer), WorldData(
        Pictures(*sets), Pictures(held), batch_size=job.batch_size, seed=job.seed
    )


def finish_autoencoder(module: AutoencoderTrainer, data: WorldData) -> None:
    """Whiten the averaged autoencoder's latents per channel."""
    pictures = torch.stack([data.train[i] for i in range(0, len(data.train), max(1, len(data.train) // 4096))])  # type: ignore[arg-type]
    whiten(module.ema, pictures.to(module.device))


def build_prior(job: TrainJob) -> tuple[PriorTrainer, WorldData]:
    """A prior's module and its sequences: clips for the video prior, frozen orbits for the multi-view prior."""
    assert job.kind != "autoencoder"
    stage = tiny.load_first_stage(job.autoencoder)
    prior = Prior(tiny.VIDEO if job.kind == "video" else tiny.MULTIVIEW)
    _warm_start(prior, job)
    name = f"{hash_of(job.autoencoder)}"
    parts: list[Sequences] = []
    for split, count in (("train", job.num_scenes), ("validation", job.num_validation_scenes)):
        views = rendered(job.cache_dir, "clips" if job.kind == "video" else "orbits", split, count)
        latents = encoded(views, stage, name)
        parts.append(Sequences(views, latents, motion_of(views), 0 if job.kind == "video" else -1))
    module = PriorTrainer(prior, stage, job.kind, job.optimizer, job.loss)
    return module, WorldData(*parts, batch_size=job.batch_size, seed=job.seed)


def motion_of(views: ViewSet) -> torch.Tensor:
    """Motion of every sequence of a set, computed once: n."""
    path = views.folder / "motion.pt.npy"
    if not path.exists():
        import numpy as np

        values = [
            tiny.motion_bucket(torch.from_numpy(views.pixels[i : i + 64]).float() / 255).numpy()
            for i in range(0, len(views.pixels), 64)
        ]
        np.save(path, np.concatenate(values))
    import numpy as np

    return torch.from_numpy(np.load(path))


def hash_of(path: Path) -> str:
    """The first twelve digits of a file's SHA-256."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _warm_start(network: nn.Module, job: TrainJob) -> None:
    if job.init_from is not None:
        tiny.load_into(network, tiny.read_weights(job.init_from, job.kind), job.init_from)


def _minutes(minutes: float) -> Any:
    from datetime import timedelta

    return timedelta(minutes=minutes)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value

"""`d2 train`: render and encode the world, train one tiny network on it, write its weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import Dataset

from d2 import signals
from d2.config.names import Label
from d2.data import world4d
from d2.errors import InputError, say
from d2.files import ensure_writable, fingerprint, read_metadata
from d2.loggers import Logging, finish_loggers, start_loggers
from d2.nn.video_encoder import VideoEncoder
from d2.priors import tiny
from d2.priors.camera_prior import CameraPrior
from d2.priors.first_stage import FirstStage
from d2.priors.prior import Prior
from d2.settings import TrainJob
from d2.train.callbacks import Checkpoints, TrainingProgress, WeightsWriter
from d2.train.camera_trainer import CameraTrainer
from d2.train.data import Kind as ViewKind
from d2.train.data import Pictures, Sequences, ViewSet, Walks, WorldData, encoded, kept, rendered
from d2.train.encoder_trainer import EncoderTrainer, Reader, Videos
from d2.train.going_on import Past, differences, next_phases, read_past, refuse_fewer_steps
from d2.train.prior_trainer import AutoencoderTrainer, PriorTrainer, Trained
from d2.train.replay import replay
from d2.trainer import StopsAtOnce, environment, make_trainer, strategy

# what each trains on
VIEWS: dict[str, ViewKind] = {"video": "clips", "multiview": "orbits", "cell": "pairs"}
SPLITS: tuple[world4d.Split, world4d.Split] = ("train", "validation")
Network = TypeVar("Network", bound=nn.Module)


StartLoggers = Callable[[int], list[Any]]  # from the step that a training goes on at


def train(job: TrainJob, loggers: StartLoggers, callbacks: list[L.Callback]) -> Path:
    """Run a training job, going on from its last checkpoint when there is one; returns the weights
    file.

    The loggers are started once all that the job needs is there.
    """
    L.seed_everything(job.seed)
    weights = job.output_dir / f"tiny_{job.kind}.safetensors"
    last = job.output_dir / "checkpoints" / "last.ckpt"
    past = read_past(last)
    refuse_fewer_steps(weights, job.kind, past)
    config = _plain(dataclasses.asdict(job))
    # a training is cut into calls, computed and waited for
    for how in ("max_minutes", "cuda_graphs", "timeout_seconds"):
        del config[how]
    start = start_of(job)
    phases = next_phases(past, config, start and start.meta)
    builders = {
        "autoencoder": build_autoencoder,
        "camera": build_camera,
        "video_encoder": build_video_encoder,
    }
    module, data = builders.get(job.kind, build_prior)(job)
    module.phases = phases
    if job.cuda_graphs:
        replay(module.network.unet)  # type: ignore[arg-type]  checked: a prior
    trainer = make_training_trainer(
        job,
        loggers(past.step if past else 0),
        [
            Checkpoints(last, job.save_every_minutes, job.max_minutes),
            WeightsWriter(weights, job.kind, weights_meta(module, config)),
            TrainingProgress(weights.stem, job.optimizer.max_steps),
            *callbacks,
        ],
    )
    if past and trainer.is_global_zero:
        tell_going_on(past, phases)
    with signals.held_back():
        trainer.fit(module, data, ckpt_path=last if past else None, weights_only=True)
    if isinstance(module, AutoencoderTrainer) and not module.decoder_steps:
        module.settle()
    if isinstance(module, EncoderTrainer):
        module.whiten(data.train)
    trainer.validate(module, data, verbose=False)
    if trainer.global_step < job.optimizer.max_steps:
        steps = f"step {trainer.global_step} of {job.optimizer.max_steps}"
        say(f"d2: stopped at {steps}; the same command goes on")
    finish_loggers(trainer.loggers)
    return weights


def weights_meta(module: Trained, config: dict[str, Any]) -> dict[str, Any]:
    """What the header of a weights file says from the start; steps, phases and validation come when
    it is written."""
    # its file is read without the schema: the network's sizes come with it
    if isinstance(module, EncoderTrainer):
        sizes = dataclasses.asdict(module.network.encoder.config)
        return {"world": world4d.WORLD_VERSION, "config": sizes, "training": config}
    return {"world": world4d.WORLD_VERSION, "config": config}


def tell_going_on(past: Past, phases: Sequence[dict[str, Any]]) -> None:
    """Say on stderr where a training goes on, and what is different from here on."""
    new = len(phases) > len(past.phases)
    changed = differences(past.phases[-1]["config"], phases[-1]["config"]) if new else []
    say(f"d2: going on at step {past.step}{''.join(f', {change}' for change in changed)}")


def make_training_trainer(
    job: TrainJob, loggers: list[Any], callbacks: list[L.Callback]
) -> L.Trainer:
    """Lightning's Trainer of a job, counted in steps.

    On a GPU float32 products are of TF32, as its convolutions are by default.
    """
    if device_of(job).type == "cuda":
        torch.set_float32_matmul_precision("high")
    return L.Trainer(
        accelerator=job.accelerator,
        devices=job.devices,
        num_nodes=job.num_nodes,
        plugins=[environment()],
        # keys and queries of an attention over a single context token get no gradient
        strategy=strategy(job.told, find_unused_parameters=True),
        use_distributed_sampler=False,
        precision=job.precision,
        max_steps=job.optimizer.max_steps,
        val_check_interval=job.validate_every,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        log_every_n_steps=50,
        logger=loggers,
        num_sanity_val_steps=0,
        default_root_dir=job.output_dir,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StopsAtOnce(), LearningRateMonitor("step"), *callbacks],
    )


def train_command(job: TrainJob, logging: Logging, label: Label, told: Mapping[str, Any]) -> int:
    """`d2 train`; `label` and `told` are what loggers call the run and are told of its
    configuration."""
    make_trainer(job.told, job.output_dir, [], [])  # refuses a device before anything is rendered

    def loggers(step: int) -> list[Any]:
        id_file = job.output_dir / "checkpoints" / "wandb_id"
        return start_loggers(logging, job.output_dir, label, told, id_file=id_file, first_step=step)

    weights = train(job, loggers, [])
    if not rank_zero_only.rank:
        print(f"wrote {weights}")
    return 0


def build_autoencoder(job: TrainJob) -> tuple[AutoencoderTrainer, WorldData]:
    """The autoencoder's module and its pictures: half of them from orbits, half from clips."""
    stage = begun(FirstStage(tiny.AUTOENCODER), job)
    sets = [views_of(job, kind, "train") for kind in ("orbits", "clips")]
    held = views_of(job, "clips", "validation")
    module = AutoencoderTrainer(
        stage,
        job.optimizer,
        decoder_steps=job.decoder_steps,
        edge_weight=job.edge_weight,
        latent_noise=job.latent_noise,
    )
    return module, batches(job, [Pictures(*sets), Pictures(held)])


def build_video_encoder(job: TrainJob) -> tuple[EncoderTrainer, WorldData]:
    """The video encoder's module and its videos: half of them orbits, half clips."""
    encoder = begun(VideoEncoder(), job)
    sets = [
        Videos(views_of(job, "orbits", split), views_of(job, "clips", split), split)
        for split in SPLITS
    ]
    return EncoderTrainer(Reader(encoder), job.optimizer), batches(job, sets)


def build_prior(job: TrainJob) -> tuple[PriorTrainer, WorldData]:
    """A prior's module and its sequences: clips for the video prior, frozen orbits for the
    multi-view prior.

    Cells train on pairs, which are 4D data: a ceiling for the unary terms of priors that never saw
    any.
    """
    assert job.kind in ("video", "multiview", "cell")
    stage = settled_first_stage(job.autoencoder)
    prior = begun(Prior(tiny.config_of(job.kind)), job)
    sets = []
    for split in SPLITS:
        views = views_of(job, VIEWS[job.kind], split)
        latents = latents_of(job, views, stage)
        is_clip, reference = job.kind == "video", -1 if job.kind == "multiview" else 0
        motion = motion_of(views, device_of(job)) if is_clip else torch.zeros(len(latents))
        sets.append(Sequences(views, latents, motion, reference))
    return PriorTrainer(prior, stage, job.kind, job.optimizer, job.loss), batches(job, sets)


def build_camera(job: TrainJob) -> tuple[CameraTrainer, WorldData]:
    """The module of the prior of any cameras, and its frozen scenes from anywhere."""
    stage = settled_first_stage(job.autoencoder)
    prior = begun(CameraPrior(tiny.CAMERA), job)
    views = [views_of(job, "walks", split) for split in SPLITS]
    sets = [Walks(each, latents_of(job, each, stage)) for each in views]
    return CameraTrainer(prior, job.optimizer, job.loss), batches(job, sets)


def views_of(job: TrainJob, kind: ViewKind, split: world4d.Split) -> ViewSet:
    """The rendered scenes of a split, as many as the job wants."""
    count = job.num_scenes if split == "train" else job.num_validation_scenes
    return rendered(job.cache_dir, kind, split, count, device=device_of(job))


def latents_of(job: TrainJob, views: ViewSet, stage: FirstStage) -> np.ndarray:
    """Their pictures through the job's first stage, n t c h w."""
    return encoded(views, stage, fingerprint(job.autoencoder), device=device_of(job))


def batches(job: TrainJob, sets: Sequence[Dataset[Any]]) -> WorldData:
    """Batches of what is trained on, and of what validates."""
    return WorldData(*sets, batch_size=job.batch_size, seed=job.seed)


def settled_first_stage(autoencoder: Path) -> FirstStage:
    """The autoencoder of a prior to be trained; an InputError where its latents will change yet, as
    its training stopped before they settled."""
    stage = tiny.load_first_stage(autoencoder)
    meta = json.loads(read_metadata(autoencoder)["meta"])
    training = meta.get("config", {})
    decoder_steps = training.get("decoder_steps", 0)
    if decoder_steps and meta["steps"] < training["optimizer"]["max_steps"] - decoder_steps:
        settled = training["optimizer"]["max_steps"] - decoder_steps
        raise InputError(
            f"autoencoder={autoencoder}: its training stopped at step {meta['steps']}, and its"
            f" latents settle at {settled}; let the `d2 train` of it go on first"
        )
    return stage


def device_of(job: TrainJob) -> torch.device:
    """Where the world is rendered and encoded."""
    cuda = job.accelerator in ("gpu", "cuda") or (
        job.accelerator == "auto" and torch.cuda.is_available()
    )
    return torch.device("cuda" if cuda else "cpu")


def motion_of(views: ViewSet, device: torch.device) -> torch.Tensor:
    """Motion of every sequence of a set, computed once: n."""

    def make() -> np.ndarray:
        parts = (
            torch.from_numpy(views.pixels[i : i + 64].copy()).to(device)
            for i in range(0, len(views.pixels), 64)
        )
        values = [tiny.motion_bucket(part.float() / 255).cpu().numpy() for part in parts]
        return np.concatenate(values)

    return torch.from_numpy(np.load(kept(views.folder / "motion.npy", make)))


def begun(network: Network, job: TrainJob) -> Network:
    """A network with the weights that its training starts from, once there is room for its own."""
    file = start_of(job)
    if file is not None:
        if job.kind == "cell":  # told one scalar more than a column: the frame
            name = "unet.label_emb.0.0.weight"
            told = tiny.CELL.unet.adm_in_channels
            file.state[name] = F.pad(file.state[name], (0, told - file.state[name].shape[1]))
        assert job.init_from is not None
        tiny.load_into(network, file, job.init_from)
    ensure_writable(job.output_dir)
    return network


def start_of(job: TrainJob) -> tiny.WeightsFile | None:
    """The weights that a training starts from."""
    kind = "multiview" if job.kind == "cell" else job.kind
    return None if job.init_from is None else tiny.read_weights(job.init_from, kind)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value.name if isinstance(value, Path) else value  # where it lay is nobody's business

"""`d2 train`: a training job of its configuration, and its run."""

from __future__ import annotations

from dataclasses import asdict

from d2.config.bounds import values
from d2.config.command_line import Composed
from d2.config.schema import TrainConfig
from d2.files import absolute, asset, given_path
from d2.settings import Logging, LossConfig, OptimizerConfig, TrainJob
from d2.train.job import train_command


def run(composed: Composed) -> int:
    """Train; the exit code."""
    config = composed.config
    logging, told = Logging(**vars(config.logger)), asdict(config)
    return train_command(resolve(config), logging, composed.label, told)


def resolve(config: TrainConfig) -> TrainJob:
    """Resolve a configuration."""
    p, shipped = config.prior, asset("checkpoints") / "tiny_autoencoder.safetensors"
    optimizer = OptimizerConfig(
        muon=p.optimizer == "muon",
        **values(p, "lr max_steps warmup_steps decay_steps"),
        ema_decay=0.99 if p.kind == "video_encoder" else OptimizerConfig.ema_decay,  # few steps
    )
    return TrainJob(
        kind=p.kind,  # type: ignore[arg-type]
        output_dir=absolute(config.output_dir),
        cache_dir=absolute(config.cache_dir),
        autoencoder=given_path(config.autoencoder) or shipped,
        init_from=given_path(config.init_from),
        optimizer=optimizer,
        loss=LossConfig(**values(p, "singles log_sigma_mean log_sigma_std drop")),
        decoder_steps=round(p.decoder_share * p.max_steps),
        **values(p, "batch_size edge_weight latent_noise"),
        **values(config, "seed num_scenes num_validation_scenes validate_every cuda_graphs"),
        **values(config, "save_every_minutes max_minutes"),
        **values(config.trainer, "accelerator devices strategy num_nodes timeout_seconds"),
        precision={"fp32": "32-true", "bf16": "bf16-mixed"}[config.precision],
    )

"""Plain values that jobs are told, with the defaults that the configuration's keys have too: the
numbers of sampling and of training; devices, loggers and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple


@dataclass(frozen=True)
class Unary:
    """Cells denoised as single images: by which network, and what it is told of them."""

    # cell: one that saw 4D pairs, a ceiling for the others
    prior: Literal["video", "multiview", "cell"] = "multiview"
    told: Literal["none", "anchor", "column", "row"] = (
        "anchor"  # the input at the anchor, at the cell's frame; its orbit
    )
    # None: the prior's own; more makes it less sure of what it is told
    cond_aug: float | None = None


@dataclass(frozen=True)
class Settings:
    """The plain numbers of sampling."""

    num_steps: int = 20
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    levels: tuple[float, ...] = ()  # the noise levels themselves, num_steps of them; (): by ρ
    # of the joint sampling: noise alone, or added to the orbit
    start: Literal["noise", "multiview"] = "noise"
    # cells whose latents are known and stay: input_row, reference_column
    hold: tuple[str, ...] = ()
    # further passes of orbit and clip, each from noise that remembers the pass before (FreeInit)
    reinit: int = 0
    # a clip made of a picture starts with the picture itself, not with the sampled frame
    keep_picture: bool = True
    # share of a column itself in what its pixels attend to; None: all, and alone
    conv_blend: float | None = None
    # -1 where the multi-view prior's azimuth grows clockwise seen from above
    azimuth_sign: Literal[1, -1] = 1
    # rows or columns of one network call, neighbours; None: all, on one device
    sequences_per_call: int | None = 4
    encode_chunk: int = 8  # pictures of reference encoded at once
    # frames of a clip decoded at once, unseen by the others; None: all
    decode_chunk: int | None = None
    # an orbit is sampled at each, for the window of the rows that starts there
    anchor_frames: tuple[int, ...] = (0,)
    video_window: int | None = None  # frames that a row's prior sees at once; None: all
    multiview_window: int | None = None  # views that a column's prior sees at once; None: all
    multiview_dilation: int = 1  # views from one of a window to its next
    # cells of the nearest orbit that a column is told besides, as far as can be from one another
    told_orbit: int = 0
    unary: Unary | None = None
    video_cond_aug: float = 0.02
    multiview_cond_aug: float = 1e-5
    fps_id: float = 7.0
    motion_bucket_id: float | None = None  # None: measured on the clip

    @property
    def sigmas(self) -> list[float]:
        if self.levels:
            return [*self.levels, 0.0]
        from d2.sampling import karras_sigmas  # PyTorch comes with it

        return karras_sigmas(
            self.num_steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho
        )


@dataclass(frozen=True)
class Devices:
    """What a job runs on, in Lightning's words."""

    accelerator: str = "auto"  # cpu, gpu, …
    devices: Any = 1  # number of processes, or what else Lightning takes
    strategy: str = "auto"  # ddp, ddp_fork, …
    num_nodes: int = 1  # machines, each with so many devices
    timeout_seconds: float = 1800.0  # for which a process waits for another


class Logging(NamedTuple):
    """Which logger a job has, and what W&B files its runs under."""

    kind: str  # csv | wandb | tensorboard
    project: str
    entity: str | None  # user or team of W&B; None: the account's own
    group: str | None  # None: the study's or sweep's name
    tags: Sequence[str]  # beside preset and priors
    offline: bool | None  # None: as WANDB_MODE says, else offline


class Metrics(NamedTuple):
    """What is to be measured, and the files of the networks that it takes."""

    names: tuple[str, ...]  # of METRICS
    traversals: tuple[str, ...]  # of the video sets
    features: str | None  # the network of videos, of FEATURE_FILES; None: no figures of videos
    features_file: Path | None  # None: the one in checkpoints/
    features_resize: str | None  # how pictures come to I3D's size; None: its own way
    clip_file: Path | None
    clip_model: str
    clip_text: str | None


Kind = Literal["autoencoder", "video", "multiview", "camera", "cell", "video_encoder"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Muon or AdamW with a linear warm-up, a plateau and a linear decay to zero over the last
    `decay_steps`."""

    lr: float = 6e-4
    muon: bool = False
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 200
    max_steps: int = 8000
    decay_steps: int = 3000
    ema_decay: float = 0.999


@dataclass(frozen=True)
class LossConfig:
    """The noise levels trained on and the corruption of conditions."""

    log_sigma_mean: float = 0.3
    log_sigma_std: float = 1.4
    high_share: float = 0.1  # log-uniform on [high_min, high_max]
    high_min: float = 20.0
    high_max: float = 700.0
    drop: float = 0.15  # of the conditions, for guidance
    singles: int = 16  # single images a step, drawn from as many other sequences
    cond_aug_log_mean: float = -3.0  # ln of the noise on the reference picture, as SVD
    cond_aug_log_std: float = 1.0
    cond_aug_zero: float = 0.3  # share of clean references


@dataclass(frozen=True)
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
    decoder_steps: int = 0  # of the autoencoder: the last ones, which leave its latents as they are
    edge_weight: float = 0.0
    latent_noise: float = 0.0
    cuda_graphs: bool = False  # of a prior's UNet
    validate_every: int = 500  # steps
    save_every_minutes: float = 5.0
    max_minutes: float | None = None  # of this call
    accelerator: str = Devices.accelerator
    devices: Any = Devices.devices  # each with batches of its own
    strategy: str = Devices.strategy
    num_nodes: int = Devices.num_nodes
    timeout_seconds: float = Devices.timeout_seconds
    precision: Any = "32-true"

    @property
    def told(self) -> Devices:
        """What it runs on."""
        where = (self.accelerator, self.devices, self.strategy, self.num_nodes)
        return Devices(*where, self.timeout_seconds)

"""Typed configuration: every plain number with its unit, range and default.

Files in conf/ name the swappable parts; numbers live here, and checks.py says what they may be. With cli.py the only
user of hydra and omegaconf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from d2.config.recipe import Recipe


@dataclass
class SamplerConfig:
    num_steps: int = 20  # noise levels, ≥ 1
    sigma_min: float = 0.002  # in units of the latents' standard deviation
    sigma_max: float = 80.0  # in the same units
    rho: float = 7.0  # Karras et al. 2022, eq. 5
    start: str = "noise"  # noise | multiview: the joint sampling starts from noise alone, or from the noised orbit
    sequences_per_call: int | None = None  # of one network call; null: all of a process's
    encode_chunk: int = 8  # pictures of reference encoded at once
    decode_chunk: int | None = None  # frames decoded at once, unseen by those of other chunks; null: a whole row
    reinit: int = 0  # further passes of the orbit and the clip of reference, their low frequencies kept (FreeInit)
    hold: list[str] = field(default_factory=list)  # input_row, reference_column: known cells, which stay


@dataclass
class MatrixConfig:
    num_views: int | None = None  # null: the multi-view prior's own
    num_frames: int | None = None  # null: the video prior's own


@dataclass
class CamerasConfig:
    elevation_deg: Any = None  # one number or one a view; null: the scene's own, or 10 for a folder's scenes
    azimuth_deg: list[float] | None = None  # relative to the input view, which comes last with 360; null: an even ring
    radius: Any = None  # distance from the origin, one number or one a view; null: 2
    fov_deg: Any = None  # field of view, one number or one a view; null: 33.8
    preset: str = "ring"  # or a path that starts at the input's camera, as spiral or move-up; docs/priors.md lists them
    path: str | None = None  # transforms.json of nerfstudio or D-NeRF: its cameras in their order
    input_view: int = 0  # which camera of the path took the input


@dataclass
class FramesConfig:
    start: int = 0  # first frame taken
    stride: int = 1  # every n-th after it


@dataclass
class ScenesConfig:
    source: str = MISSING  # world4d | folder
    split: str = "test"  # of world4d: test | validation
    count: int | None = 1  # scenes, ≥ 1; null: all of a folder's
    first: int = 0  # index of the first scene
    path: str | None = None  # of a folder's scenes
    views: str | None = None  # instead of path: a folder of synchronised clips, with a transforms.json of all cameras
    anchor_frame: int = 0  # the frame whose orbit tells the rows what each view looks like
    anchor_frames: list[int] | None = None  # of rows in windows, one a window; null: as many as half overlaps need
    image_frame_ratio: float | None = 0.8  # larger side of the object's box over the frame's; null keeps the scale
    fps: float = 8.0  # of the clips, for the videos written


@dataclass
class PriorConfig:
    network: str = MISSING  # of video: tiny | svd | svd_xt; of multiview: tiny | sv3d_u | sv3d_p | seva | seva_1_0
    checkpoint: str | None = None  # weights file, or random; null: the one in checkpoints/
    cond_aug: float = 0.02  # standard deviation of the noise on the reference pictures, told to the network
    fps_id: float = 7.0  # told to a video prior
    motion_bucket_id: float | None = None  # told to a video prior, 0 to 255; null: measured on the clip
    conv_blend: float | None = None  # of a multi-view prior: own share where columns look at their neighbours; null: 1
    window: int | None = None  # elements of a sequence that it sees at once, in overlapping windows; null: all
    dilation: int = 1  # of a multi-view prior: views from one of a window to its next


@dataclass
class UnaryConfig:
    """A third term: cells denoised as single images."""

    prior: str | None = None  # multiview | video: by whose network; cell: by one that saw 4D pairs; null: no such term
    told: str = "anchor"  # none | anchor | column | row: the input at the anchor, at the cell's frame, or its orbit
    cond_aug: float | None = None  # noise on that picture; null: the prior's own


@dataclass
class MattingConfig:
    kind: str = "none"  # none | rembg: what cuts RGB frames out
    model: str | None = None  # file of rembg's network


@dataclass
class TrainerConfig:
    accelerator: str = "auto"  # as Lightning names it: auto, cpu, gpu, …
    devices: Any = 1  # number of processes, or what else Lightning takes
    strategy: str = "auto"  # as Lightning names it: auto, ddp, ddp_fork, …
    num_nodes: int = 1  # machines, each with so many devices
    timeout_seconds: float = 1800.0  # for which a process waits for another before the job ends
    threads: int | None = None  # of each process on a CPU; null: PyTorch's choice


@dataclass
class LoggerConfig:
    kind: str = "csv"  # csv | wandb | tensorboard
    project: str = "d2"  # of W&B
    entity: str | None = None  # user or team of W&B that the project belongs to; null: the account's own
    group: str | None = None  # under which W&B gathers runs; null: the study's or sweep's name
    tags: list[str] = field(default_factory=list)  # of W&B, beside preset and priors
    offline: bool | None = None  # W&B writes files to be synchronised later; null: as WANDB_MODE says, else true


@dataclass
class ClipConfig:
    file: str | None = None  # weights, safetensors or a plain state dict
    model: str = "ViT-B-32"  # open_clip's name of them
    text: str | None = None  # what every picture is compared with


@dataclass
class SampleConfig:
    """`d2 sample`."""

    seed: int = 0  # shifts every noise stream; a scene's own seed is added to it
    output_dir: str = "outputs/sample"  # one configuration's results; another's are refused
    overwrite: bool = False  # remove what another configuration left in output_dir
    save_every_seconds: float = 60.0  # a state of the scene that is being sampled, to go on from; 0: never
    metrics: list[str] = field(default_factory=lambda: ["reference"])  # reference, self_psnr, video, clip; [] for none
    features: str = "world4d-encoder"  # of metrics=[video]
    features_file: str | None = None  # of that network (of videomae a folder); null: the one in checkpoints/
    clip: ClipConfig = field(default_factory=ClipConfig)  # of metrics=[clip]
    baselines: bool = True  # sample columns alone and rows alone too, for the table
    pages: bool = True  # write the HTML pages
    variants: dict[str, list[str]] = field(default_factory=dict)  # name -> overrides: a study in one process
    seeds: list[int] = field(default_factory=list)  # instead of seed: so many samples of every scene
    compare_to: str | None = None  # the variant or baseline that paired differences are taken from
    objective: str | None = None  # figure whose mean over scenes a point of a sweep hands to a sweeper that tunes
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    matrix: MatrixConfig = field(default_factory=MatrixConfig)
    cameras: CamerasConfig = field(default_factory=CamerasConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    video: PriorConfig = field(default_factory=PriorConfig)
    multiview: PriorConfig = field(default_factory=PriorConfig)
    unary: UnaryConfig = field(default_factory=UnaryConfig)
    autoencoder: str | None = None  # weights file of the tiny tier's first stage; null: the shipped one
    cell: str | None = None  # weights file of unary.prior=cell, from d2 train prior=tiny_cell; none ships
    precision: str = "fp32"  # fp32 | bf16 | fp16: of the priors' weights and activations
    offload: str = "none"  # none | idle | sequential: what of the priors waits in host memory
    reconstruct: Any = "auto"  # a scene of moving Gaussians at the end; auto: of a single run with pages and 3 views
    recon: Recipe = field(default_factory=Recipe)
    plan: bool = False  # print what would be evaluated and what memory it takes, and stop
    matting: MattingConfig = field(default_factory=MattingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    renoise: Any = MISSING  # rules: {_target_: function, its keywords}
    weights: Any = MISSING
    guidance: Any = MISSING
    composition: Any = MISSING
    solver: Any = MISSING


@dataclass
class TrainPriorConfig:
    kind: str = MISSING  # autoencoder | video | multiview | cell | video_encoder
    optimizer: str = "adamw"  # adamw | muon
    lr: float = 6e-4  # at its plateau
    max_steps: int = 8000  # optimiser steps
    warmup_steps: int = 200  # of linear growth from zero
    decay_steps: int = 3000  # of linear decay to zero at the end
    batch_size: int = 24  # of each device; a prior's include its single images
    singles: int = 16  # single images a step
    log_sigma_mean: float = 0.3  # of a prior: ln of the noise levels that nine tenths of the sequences are trained on
    log_sigma_std: float = 1.4  # its spread
    drop: float = 0.15  # of a prior: share of the sequences that are told nothing, for guidance
    decoder_share: float = (
        0.0  # of an autoencoder: share of the steps, the last, for the decoder alone; 1: latents stay
    )
    edge_weight: float = 0.0  # of those steps: weight of the loss on local gradient energy
    latent_noise: float = 0.0  # of those steps: up to which standard deviation latents are noised before decoding


@dataclass
class TrainConfig:
    """`d2 train`."""

    seed: int = 0  # of initial weights, batches and noise
    output_dir: str = "outputs/train"  # weights, checkpoints and log: a folder of its own for each prior
    cache_dir: str = "outputs/cache"  # the rendered world and its latents, shared between runs
    autoencoder: str | None = None  # weights file of the first stage; null: the shipped one
    init_from: str | None = None  # weights to start from
    num_scenes: int = 20_000  # rendered for training
    num_validation_scenes: int = 64  # and for the validation figures
    precision: str = "fp32"  # fp32 | bf16: of the products of a training step; weights and losses stay in fp32
    validate_every: int = 500  # steps
    save_every_minutes: float = 5.0  # checkpoints to go on from
    max_minutes: float | None = None  # of a call; the same command goes on; null: until max_steps
    prior: TrainPriorConfig = field(default_factory=TrainPriorConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class EvaluateConfig:
    """`d2 evaluate`."""

    seed: int = 0  # of the bootstrap
    output_dir: str = "outputs/evaluate"  # table, summary and card; what is finished there is not measured again
    run: Any = None  # output_dir of `d2 sample`; a list: several samples of each scene
    pred: Any = None  # instead of run: a folder of objects, or a list of them
    truth: str | None = None  # folder of the same objects' truth; null: beside a run's matrices
    objects: list[str] | None = None  # names; null: all
    metrics: list[str] = field(default_factory=lambda: ["reference", "consistency", "video"])  # see docs/evaluation.md
    traversals: list[str] = field(default_factory=lambda: ["f", "v", "diag", "4d", "4d_columns"])  # of metrics=[video]
    features: str | None = "world4d-encoder"  # of videos; null: no figures of videos
    features_file: str | None = None  # of that network (of videomae a folder); null: the one in checkpoints/
    features_resize: str | None = None  # stylegan-v | consistent4d: how pictures come to I3D's size; null: stylegan-v
    clip: ClipConfig = field(default_factory=ClipConfig)
    size: int | None = None  # pixels both ways that all pictures are brought to; null: as they are
    input_view: int | None = None  # left out of the figures NAME_unseen; null: as a run says, else no such figures
    compare_to: str | None = None  # output_dir of another evaluation: paired differences from it
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass
class CapturesConfig:
    path: str | None = None  # a folder of pictures with transforms.json, or a folder of such


@dataclass
class ReconstructConfig:
    """`d2 reconstruct`."""

    seed: int = 0  # of where the Gaussians start and of the order of the pictures
    output_dir: str = "outputs/reconstruct"  # a folder for each scene; what is finished there is not fitted again
    run: Any = None  # output_dir of `d2 sample`, a study's too: all its matrices; a list of such
    matrix: str | None = None  # instead of run: one matrix.safetensors, whose scene lies in output_dir itself
    scenes: CapturesConfig = field(default_factory=CapturesConfig)
    recon: Recipe = field(default_factory=Recipe)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class ReportConfig:
    """`d2 report`."""

    seed: int = 0  # of the bootstrap
    runs: list[str] = field(default_factory=list)  # folders that d2 sample wrote: runs, sweeps, studies
    output_dir: str = "outputs/report"  # index.html, one page that needs nothing else
    compare_to: str | None = None  # the variant that paired differences are taken from
    quality: str | None = None  # figure that tells the best and the worst scenes; null: energy, else psnr_masked
    shown_scenes: int = 2  # how many of the best, and of the worst; 0 for none
    logger: LoggerConfig = field(default_factory=LoggerConfig)


def register() -> None:
    """Make the schemas known to Hydra under the names that conf/*.yaml extend."""
    store = ConfigStore.instance()
    store.store("sample_schema", SampleConfig)
    store.store("train_schema", TrainConfig)
    store.store("evaluate_schema", EvaluateConfig)
    store.store("report_schema", ReportConfig)
    store.store("reconstruct_schema", ReconstructConfig)

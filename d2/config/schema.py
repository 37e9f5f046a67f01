"""Typed configuration: every plain number with its unit, range and default.

Files in conf/ name the swappable parts; numbers live here, each with what it may be. With cli.py
the only user of hydra and omegaconf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from d2.config.bounds import MAX_SEED, bounded, chosen, several
from d2.config.recipe import Recipe
from d2.settings import Settings


@dataclass
class SamplerConfig:
    num_steps: int = bounded(Settings.num_steps, 1, 1000)  # noise levels, ≥ 1
    # in units of the latents' standard deviation
    sigma_min: float = bounded(Settings.sigma_min, 1e-6, 1e3)
    sigma_max: float = bounded(Settings.sigma_max, 1e-3, 1e5)  # in the same units
    rho: float = bounded(Settings.rho, 1, 100)  # Karras et al. 2022, eq. 5
    # what joint sampling starts from: noise, or the noised orbit
    start: str = chosen("noise", "multiview")
    # of one network call; null: all of a process's, and last digits that depend on their number
    sequences_per_call: int | None = bounded(None, 1, 1_000_000)
    # pictures of reference encoded at once
    encode_chunk: int = bounded(Settings.encode_chunk, 1, 1_000_000)
    decode_chunk: int | None = bounded(
        None, 1, 1_000_000
    )  # frames decoded at once, unseen by those of other chunks; null: a whole row
    # more passes of orbit and clip, low frequencies kept (FreeInit)
    reinit: int = bounded(Settings.reinit, 0, 100)
    hold: list[str] = several((), "input_row", "reference_column")  # known cells, which stay


@dataclass
class MatrixConfig:
    num_views: int | None = bounded(None, 1, 1024)  # null: the multi-view prior's own
    num_frames: int | None = bounded(None, 1, 1024)  # null: the video prior's own


@dataclass
class CamerasConfig:
    # one number or one a view; null: the scene's own, or 10 for a folder's scenes
    elevation_deg: Any = None
    # relative to the input view, which comes last with 360; null: an even ring
    azimuth_deg: list[float] | None = None
    radius: Any = None  # distance from the origin, one number or one a view; null: 2
    fov_deg: Any = None  # field of view, one number or one a view; null: 33.8
    preset: str = chosen(
        *(
            "ring",
            "orbit",
            "spiral",
            "lemniscate",
            "roll",
            "zoom-in",
            "zoom-out",
            "dolly-zoom-in",
            "dolly-zoom-out",
        ),
        *("move-forward", "move-backward", "move-up", "move-down", "move-left", "move-right"),
        # or a path that starts at the input's camera, as spiral or move-up; docs/priors.md lists
        # them
    )
    path: str | None = None  # transforms.json of nerfstudio or D-NeRF: its cameras in their order
    input_view: int = bounded(0, 0, 1023)  # which camera of the path took the input


@dataclass
class FramesConfig:
    start: int = bounded(0, 0, 1_000_000)  # first frame taken
    stride: int = bounded(1, 1, 100_000)  # every n-th after it


@dataclass
class ScenesConfig:
    source: str = chosen("world4d", "folder", default=MISSING)
    split: str = chosen("test", "validation")  # of world4d
    count: int | None = bounded(1, 1, 1_000_000)  # scenes, ≥ 1; null: all of a folder's
    first: int = bounded(0, 0, 1_000_000_000)  # index of the first scene
    path: str | None = None  # of a folder's scenes
    # instead of path: a folder of synchronised clips, with a transforms.json of all cameras
    views: str | None = None
    # the frame whose orbit tells the rows what each view looks like
    anchor_frame: int = bounded(0, 0, 1023)
    # of rows in windows, one a window; null: as many as half overlaps need
    anchor_frames: list[int] | None = None
    image_frame_ratio: float | None = bounded(
        0.8, 0.1, 1.0
    )  # larger side of the object's box over the frame's; null keeps the scale
    fps: float = bounded(8.0, 0.1, 1000)  # of the clips, for the videos written


@dataclass
class VideoConfig:
    """The video prior."""

    network: str = chosen("tiny", "svd", "svd_xt", default=MISSING)
    checkpoint: str | None = None  # weights file, or random; null: the one in checkpoints/
    cond_aug: float = bounded(
        Settings.video_cond_aug, 0, 10
    )  # standard deviation of the noise on the pictures that it is told
    fps_id: float = bounded(Settings.fps_id, 0, 1000)  # frames per second that it is told
    # how much motion it is told; null: measured on the clip
    motion_bucket_id: float | None = bounded(None, 0, 255)
    # frames that it sees at once, in overlapping windows; null: all
    window: int | None = bounded(None, 1, 1024)


@dataclass
class MultiviewConfig:
    """The multi-view prior."""

    network: str = chosen(
        "tiny", "tiny_camera", "sv3d_u", "sv3d_p", "seva", "seva_1_0", default=MISSING
    )
    checkpoint: str | None = None  # weights file, or random; null: the one in checkpoints/
    cond_aug: float = bounded(
        Settings.multiview_cond_aug, 0, 10
    )  # standard deviation of the noise on the pictures that it is told
    # own share where columns look at their neighbours; null: 1
    conv_blend: float | None = bounded(None, 0, 1)
    # views that it sees at once, in overlapping windows; null: all
    window: int | None = bounded(None, 1, 1024)
    # views from one of a window to its next
    dilation: int = bounded(Settings.multiview_dilation, 1, 1024)


@dataclass
class UnaryConfig:
    """A third term: cells denoised as single images."""

    prior: str | None = chosen(
        "multiview", "video", "cell", default=None
    )  # by whose network; cell: by one that saw 4D pairs; null: no such term
    told: str = chosen(
        "none", "anchor", "column", "row", default="anchor"
    )  # the input at the anchor, at the cell's frame, or its orbit
    cond_aug: float | None = bounded(None, 0, 10)  # noise on that picture; null: the prior's own


@dataclass
class MattingConfig:
    kind: str = chosen("none", "rembg")  # what cuts RGB frames out
    model: str | None = None  # file of rembg's network


@dataclass
class TrainerConfig:
    accelerator: str = "auto"  # as Lightning names it: auto, cpu, gpu, …
    devices: Any = 1  # number of processes, or what else Lightning takes
    strategy: str = "auto"  # as Lightning names it: auto, ddp, ddp_fork, …
    # devices share a matrix, or have scenes of their own
    parallel: str = chosen("auto", "matrix", "scenes")
    num_nodes: int = bounded(1, 1, 100_000)  # machines, each with so many devices
    # for which a process waits for another before the job ends
    timeout_seconds: float = bounded(1800.0, 1, 1_000_000)
    threads: int | None = bounded(None, 1, 1024)  # of each process on a CPU; null: PyTorch's choice


@dataclass
class LoggerConfig:
    kind: str = chosen("csv", "wandb", "tensorboard")
    project: str = "d2"  # of W&B
    # user or team of W&B that the project belongs to; null: the account's own
    entity: str | None = None
    group: str | None = None  # under which W&B gathers runs; null: the study's or sweep's name
    tags: list[str] = field(default_factory=list)  # of W&B, beside preset and priors
    # W&B writes files to be synchronised later; null: as WANDB_MODE says, else true
    offline: bool | None = None


@dataclass
class ClipConfig:
    file: str | None = None  # weights, safetensors or a plain state dict
    model: str = "ViT-B-32"  # open_clip's name of them
    text: str | None = None  # what every picture is compared with


@dataclass
class SampleConfig:
    """`d2 sample`."""

    # shifts every noise stream; a scene's own seed is added to it
    seed: int = bounded(0, 0, MAX_SEED)
    output_dir: str = "outputs/sample"  # one configuration's results; another's are refused
    overwrite: bool = False  # remove what another configuration left in output_dir
    save_every_seconds: float = bounded(
        60.0, 0, 1_000_000
    )  # a state of the scene that is being sampled, to go on from; 0: never
    # [] for none
    metrics: list[str] = several(("reference",), "reference", "self_psnr", "video", "clip")
    # of metrics=[video]
    features: str = chosen("world4d-encoder", "i3d", "i3d_torchscript", "videomae")
    # of that network (of videomae a folder); null: the one in checkpoints/
    features_file: str | None = None
    clip: ClipConfig = field(default_factory=ClipConfig)  # of metrics=[clip]
    # sample columns alone, rows alone and the published rule too, from the same noise; auto: where
    # truth is known, which measures them
    baselines: Any = chosen("auto", True, False)
    pages: bool = True  # write the HTML pages
    # name -> overrides: a study in one process
    variants: dict[str, list[str]] = field(default_factory=dict)
    # instead of seed: so many samples of every scene
    seeds: list[int] = field(default_factory=list)
    compare_to: str | None = None  # the variant or baseline that paired differences are taken from
    particles: int = bounded(
        1,
        1,
        1000,
        # samples of each scene that the best is chosen from, by `choosing`; costs so many times as
        # much
    )
    # figure whose mean over scenes a point of a sweep hands to a sweeper that tunes
    objective: str | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    matrix: MatrixConfig = field(default_factory=MatrixConfig)
    cameras: CamerasConfig = field(default_factory=CamerasConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    multiview: MultiviewConfig = field(default_factory=MultiviewConfig)
    unary: UnaryConfig = field(default_factory=UnaryConfig)
    # weights file of the tiny tier's first stage; null: the shipped one
    autoencoder: str | None = None
    # weights file of unary.prior=cell, from d2 train prior=tiny_cell; none ships
    cell: str | None = None
    precision: str = chosen("fp32", "bf16", "fp16")  # of the priors' weights and activations
    offload: str = chosen("none", "idle", "sequential")  # what of the priors waits in host memory
    compile: bool = False  # the priors' UNets, on a GPU; their first calls take minutes
    # moving Gaussians at the end; auto: with pages and 3 views
    reconstruct: Any = chosen("auto", True, False)
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
    choosing: Any = MISSING


@dataclass
class TrainPriorConfig:
    kind: str = chosen(
        "autoencoder", "video", "multiview", "camera", "cell", "video_encoder", default=MISSING
    )
    optimizer: str = chosen("adamw", "muon")
    lr: float = bounded(6e-4, 0, 1)  # at its plateau
    max_steps: int = bounded(8000, 1, 10_000_000)  # optimiser steps
    warmup_steps: int = bounded(200, 1, 10_000_000)  # of linear growth from zero
    decay_steps: int = bounded(3000, 1, 10_000_000)  # of linear decay to zero at the end
    batch_size: int = bounded(24, 1, 100_000)  # of each device; a prior's include its single images
    singles: int = bounded(16, 0, 100_000)  # single images a step
    # of a prior: mean of ln σ of nine tenths of the sequences
    log_sigma_mean: float = bounded(0.3, -10, 10)
    log_sigma_std: float = bounded(1.4, 0, 10)  # its spread
    # of a prior: share of the sequences that are told nothing, for guidance
    drop: float = bounded(0.15, 0, 1)
    decoder_share: float = bounded(
        0.0, 0, 1
    )  # of an autoencoder: of the steps, the last, for its decoder; 1: latents stay
    edge_weight: float = 0.0  # of those steps: weight of the loss on local gradient energy
    # of those steps: up to which standard deviation latents are noised before decoding
    latent_noise: float = 0.0


@dataclass
class TrainConfig:
    """`d2 train`."""

    seed: int = bounded(0, 0, MAX_SEED)  # of initial weights, batches and noise
    # weights, checkpoints and log: a folder of its own for each prior
    output_dir: str = "outputs/train"
    cache_dir: str = "outputs/cache"  # the rendered world and its latents, shared between runs
    autoencoder: str | None = None  # weights file of the first stage; null: the shipped one
    init_from: str | None = None  # weights to start from
    num_scenes: int = bounded(20_000, 1, 10_000_000)  # rendered for training
    num_validation_scenes: int = bounded(64, 1, 1_000_000)  # and for the validation figures
    precision: str = chosen(
        "fp32", "bf16", "fp16"
    )  # of the products of a training step; weights and losses stay in fp32
    # on a GPU: a prior's UNet captured once and replayed, so that small kernels wait for no launch
    cuda_graphs: bool = False
    validate_every: int = bounded(500, 1, 10_000_000)  # steps
    save_every_minutes: float = bounded(5.0, 0.01, 100_000)  # checkpoints to go on from
    max_minutes: float | None = bounded(
        None, 0.01, 100_000
    )  # of a call; the same command goes on; null: until max_steps
    prior: TrainPriorConfig = field(default_factory=TrainPriorConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class EvaluateConfig:
    """`d2 evaluate`."""

    seed: int = bounded(0, 0, MAX_SEED)  # of the bootstrap
    # table, summary and card; what is finished there is not measured again
    output_dir: str = "outputs/evaluate"
    run: Any = None  # output_dir of `d2 sample`; a list: several samples of each scene
    pred: Any = None  # instead of run: a folder of objects, or a list of them
    truth: str | None = None  # folder of the same objects' truth; null: beside a run's matrices
    objects: list[str] | None = None  # names; null: all
    # see docs/evaluation.md
    metrics: list[str] = field(default_factory=lambda: ["reference", "consistency", "video"])
    # of metrics=[video]
    traversals: list[str] = field(default_factory=lambda: ["f", "v", "diag", "4d", "4d_columns"])
    features: str | None = chosen(
        "world4d-encoder", "i3d", "i3d_torchscript", "videomae"
    )  # of videos; null: no figures of videos
    # of that network (of videomae a folder); null: the one in checkpoints/
    features_file: str | None = None
    features_resize: str | None = chosen(
        "stylegan-v", "consistent4d", default=None
    )  # how pictures come to I3D's size; null: stylegan-v
    clip: ClipConfig = field(default_factory=ClipConfig)
    size: int | None = bounded(None, 8, 4096)  # pixels of a side that pictures come to; null: as is
    # left out of figures NAME_unseen; null: as a run says
    input_view: int | None = bounded(None, 0, 1023)
    compare_to: str | None = None  # output_dir of another evaluation: paired differences from it
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass
class CapturesConfig:
    path: str | None = None  # a folder of pictures with transforms.json, or a folder of such


@dataclass
class ReconstructConfig:
    """`d2 reconstruct`."""

    # of where the Gaussians start and of the order of the pictures
    seed: int = bounded(0, 0, MAX_SEED)
    # a folder for each scene; what is finished there is not fitted again
    output_dir: str = "outputs/reconstruct"
    run: Any = None  # output_dir of `d2 sample`, a study's too: all its matrices; a list of such
    # instead of run: one matrix.safetensors, whose scene lies in output_dir itself
    matrix: str | None = None
    scenes: CapturesConfig = field(default_factory=CapturesConfig)
    metrics: list[str] = several(
        (), "lpips_alex", "lpips_vgg", "st_lpips_alex", "st_lpips_vgg"
    )  # beside PSNR and SSIM, of held and of fitted cells
    exports: list[str] = several((), "multiview")  # of the matrix: 4DGaussians' multi-view folder
    recon: Recipe = field(default_factory=Recipe)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class ViewConfig:
    """`d2 view`."""

    # a folder that holds one scene.safetensors, of d2 reconstruct or of d2 sample
    run: str | None = None
    # matrix.safetensors whose cells are shown; null: the one beside the scene or above it
    matrix: str | None = None
    host: str = "127.0.0.1"  # who may look: this machine alone; 0.0.0.0: whoever can reach it
    port: int = bounded(8080, 1, 65535)  # of the page; where it is taken, the next free one


@dataclass
class ReportConfig:
    """`d2 report`."""

    seed: int = bounded(0, 0, MAX_SEED)  # of the bootstrap
    # folders that d2 sample wrote: runs, sweeps, studies
    runs: list[str] = field(default_factory=list)
    output_dir: str = "outputs/report"  # index.html, one page that needs nothing else
    compare_to: str | None = None  # the variant that paired differences are taken from
    # figure that tells the best and the worst scenes; null: energy, else psnr_masked
    quality: str | None = None
    shown_scenes: int = bounded(2, 0, 1000)  # how many of the best, and of the worst; 0 for none
    logger: LoggerConfig = field(default_factory=LoggerConfig)


def register() -> None:
    """Make the schemas known to Hydra under the names that conf/*.yaml extend."""
    store = ConfigStore.instance()
    store.store("sample_schema", SampleConfig)
    store.store("train_schema", TrainConfig)
    store.store("evaluate_schema", EvaluateConfig)
    store.store("report_schema", ReportConfig)
    store.store("reconstruct_schema", ReconstructConfig)
    store.store("view_schema", ViewConfig)

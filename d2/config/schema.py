"""Typed configuration: every plain number with its unit, range and default.

Files in conf/ name the swappable parts; numbers live here, each with what it may be. With cli.py
the only user of hydra and omegaconf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from d2.config.bounds import MAX_SEED, bounded, chosen, several, verbatim, verbatims
from d2.config.recipe import Recipe
from d2.settings import Devices, Kind, LossConfig, OptimizerConfig, Settings, TrainJob, Unary


@dataclass
class SamplerConfig:
    num_steps: int = bounded(Settings.num_steps, 1, 1000)  # noise levels, ≥ 1
    # in units of the latents' standard deviation
    sigma_min: float = bounded(Settings.sigma_min, 1e-6, 1e3)
    sigma_max: float = bounded(Settings.sigma_max, 1e-3, 1e5)  # in the same units
    rho: float = bounded(Settings.rho, 1, 100)  # Karras et al. 2022, eq. 5
    # the noise levels themselves, falling, in the place of the four above; 0 follows by itself
    levels: list[float] = field(default_factory=list)
    # what joint sampling starts from: noise, or the noised orbit
    start: str = chosen("noise", "multiview", default=Settings.start)
    # rows or columns of one network call, whatever the number of devices; null: all, on one of them
    sequences_per_call: int | None = bounded(Settings.sequences_per_call, 1, 1_000_000)
    # pictures of reference encoded at once
    encode_chunk: int = bounded(Settings.encode_chunk, 1, 1_000_000)
    # frames decoded at once, unseen by those of other chunks; null: a whole row
    decode_chunk: int | None = bounded(None, 1, 1_000_000)
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
    # or a path that starts at the input's camera, as spiral or move-up; docs/priors.md lists them
    preset: str = chosen(
        *("ring", "orbit", "spiral", "lemniscate", "roll", "zoom-in", "zoom-out"),
        *("dolly-zoom-in", "dolly-zoom-out", "move-forward", "move-backward"),
        *("move-up", "move-down", "move-left", "move-right"),
    )
    # transforms.json of nerfstudio or D-NeRF: its cameras in their order
    path: str | None = verbatim()
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
    path: str | None = verbatim()  # of a folder's scenes
    # instead of path: a folder of synchronised clips, with a transforms.json of all cameras
    views: str | None = verbatim()
    # the frame whose orbit tells the rows what each view looks like
    anchor_frame: int = bounded(0, 0, 1023)
    # of rows in windows, one a window; null: as many as half overlaps need
    anchor_frames: list[int] | None = None
    # larger side of the object's box over the frame's; null keeps the scale
    image_frame_ratio: float | None = bounded(0.8, 0.1, 1.0)
    fps: float = bounded(8.0, 0.1, 1000)  # of the clips, for the videos written


@dataclass
class VideoConfig:
    """The video prior."""

    network: str = chosen("tiny", "svd", "svd_xt", default=MISSING)
    checkpoint: str | None = verbatim()  # weights file, or random; null: the one in checkpoints/
    # standard deviation of the noise on the pictures that it is told
    cond_aug: float = bounded(Settings.video_cond_aug, 0, 10)
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
    checkpoint: str | None = verbatim()  # weights file, or random; null: the one in checkpoints/
    # standard deviation of the noise on the pictures that it is told
    cond_aug: float = bounded(Settings.multiview_cond_aug, 0, 10)
    # own share where columns look at their neighbours; null: 1
    conv_blend: float | None = bounded(None, 0, 1)
    # views that it sees at once, in overlapping windows; null: all
    window: int | None = bounded(None, 1, 1024)
    # views from one of a window to its next
    dilation: int = bounded(Settings.multiview_dilation, 1, 1024)
    # cells of the anchor's orbit that a column is told beside its own known ones, farthest first
    told_orbit: int = bounded(Settings.told_orbit, 0, 1024)


@dataclass
class UnaryConfig:
    """A third term: cells denoised as single images."""

    # by whose network; cell: by one that saw 4D pairs; null: no such term
    prior: str | None = chosen("multiview", "video", "cell", default=None)
    # the input at the anchor, at the cell's frame, or its orbit
    told: str = chosen("none", "anchor", "column", "row", default=Unary.told)
    cond_aug: float | None = bounded(None, 0, 10)  # noise on that picture; null: the prior's own


@dataclass
class MattingConfig:
    kind: str = chosen("none", "rembg")  # what cuts RGB frames out
    model: str | None = verbatim()  # file of rembg's network


@dataclass
class TrainerConfig:
    accelerator: str = Devices.accelerator  # as Lightning names it: auto, cpu, gpu, …
    devices: Any = Devices.devices  # number of processes, or what else Lightning takes
    strategy: str = Devices.strategy  # as Lightning names it: auto, ddp, ddp_fork, …
    # devices share a matrix, or have scenes of their own
    parallel: str = chosen("auto", "matrix", "scenes")
    num_nodes: int = bounded(Devices.num_nodes, 1, 100_000)  # machines, each with so many devices
    # for which a process waits for another before the job ends
    timeout_seconds: float = bounded(Devices.timeout_seconds, 1, 1_000_000)
    threads: int | None = bounded(None, 1, 1024)  # of each process on a CPU; null: PyTorch's choice


@dataclass
class LoggerConfig:
    kind: str = chosen("csv", "wandb", "tensorboard")
    project: str = verbatim("d2")  # of W&B
    # user or team of W&B that the project belongs to; null: the account's own
    entity: str | None = verbatim()
    # under which W&B gathers runs; null: the study's or sweep's name
    group: str | None = verbatim()
    tags: list[str] = verbatims(always_list=True)  # of W&B, beside preset and priors
    # W&B writes files to be synchronised later; null: as WANDB_MODE says, else true
    offline: bool | None = None


@dataclass
class ClipConfig:
    file: str | None = verbatim()  # weights, safetensors or a plain state dict
    model: str = "ViT-B-32"  # open_clip's name of them
    text: str | None = verbatim()  # what every picture is compared with


@dataclass
class SampleConfig:
    """`d2 sample`."""

    # shifts every noise stream; a scene's own seed is added to it
    seed: int = bounded(0, 0, MAX_SEED)
    # one configuration's results; another's are refused
    output_dir: str = verbatim("outputs/sample")
    overwrite: bool = False  # remove what another configuration left in output_dir
    # a state of the scene that is being sampled, to go on from; 0: never
    save_every_seconds: float = bounded(60.0, 0, 1_000_000)
    # [] for none
    metrics: list[str] = several(("reference",), "reference", "self_psnr", "video", "clip")
    # of metrics=[video]
    features: str = chosen("world4d-encoder", "i3d", "i3d_torchscript", "videomae")
    # of that network (of videomae a folder); null: the one in checkpoints/
    features_file: str | None = verbatim()
    clip: ClipConfig = field(default_factory=ClipConfig)  # of metrics=[clip]
    # sample columns alone, rows alone and the published rule too, from the same noise; auto: where
    # truth is known, which measures them
    baselines: Any = chosen("auto", True, False)
    pages: bool = True  # write the HTML pages
    # name -> overrides: a study in one process
    variants: dict[str, list[str]] = field(default_factory=dict)
    # instead of seed: so many samples of every scene
    seeds: list[int] = field(default_factory=list)
    # the variant or baseline that paired differences are taken from
    compare_to: str | None = verbatim()
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
    autoencoder: str | None = verbatim()
    # weights file of unary.prior=cell, from d2 train prior=tiny_cell; none ships
    cell: str | None = verbatim()
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
    kind: str = chosen(*get_args(Kind), default=MISSING)
    optimizer: str = chosen("adamw", "muon")
    lr: float = bounded(OptimizerConfig.lr, 0, 1)  # at its plateau
    max_steps: int = bounded(OptimizerConfig.max_steps, 1, 10_000_000)  # optimiser steps
    # of linear growth from zero
    warmup_steps: int = bounded(OptimizerConfig.warmup_steps, 1, 10_000_000)
    # of linear decay to zero at the end
    decay_steps: int = bounded(OptimizerConfig.decay_steps, 1, 10_000_000)
    # of each device; a prior's include its single images
    batch_size: int = bounded(TrainJob.batch_size, 1, 100_000)
    singles: int = bounded(LossConfig.singles, 0, 100_000)  # single images a step
    # of a prior: mean of ln σ of nine tenths of the sequences
    log_sigma_mean: float = bounded(LossConfig.log_sigma_mean, -10, 10)
    log_sigma_std: float = bounded(LossConfig.log_sigma_std, 0, 10)  # its spread
    # of a prior: share of the sequences that are told nothing, for guidance
    drop: float = bounded(LossConfig.drop, 0, 1)
    # of an autoencoder: of the steps, the last, for its decoder; 1: latents stay
    decoder_share: float = bounded(0.0, 0, 1)
    edge_weight: float = (
        TrainJob.edge_weight
    )  # of those steps: weight of the loss on local gradient energy
    # of those steps: up to which standard deviation latents are noised before decoding
    latent_noise: float = TrainJob.latent_noise


@dataclass
class TrainConfig:
    """`d2 train`."""

    seed: int = bounded(0, 0, MAX_SEED)  # of initial weights, batches and noise
    # weights, checkpoints and log: a folder of its own for each prior
    output_dir: str = verbatim("outputs/train")
    # the rendered world and its latents, shared between runs
    cache_dir: str = verbatim("outputs/cache")
    autoencoder: str | None = verbatim()  # weights file of the first stage; null: the shipped one
    init_from: str | None = verbatim()  # weights to start from
    num_scenes: int = bounded(TrainJob.num_scenes, 1, 10_000_000)  # rendered for training
    # and for the validation figures
    num_validation_scenes: int = bounded(TrainJob.num_validation_scenes, 1, 1_000_000)
    # of the products of a training step; weights and losses stay in fp32
    precision: str = chosen("fp32", "bf16", "fp16")
    # on a GPU: a prior's UNet captured once and replayed, so that small kernels wait for no launch
    cuda_graphs: bool = TrainJob.cuda_graphs
    validate_every: int = bounded(TrainJob.validate_every, 1, 10_000_000)  # steps
    # checkpoints to go on from
    save_every_minutes: float = bounded(TrainJob.save_every_minutes, 0.01, 100_000)
    # of a call; the same command goes on; null: until max_steps
    max_minutes: float | None = bounded(None, 0.01, 100_000)
    prior: TrainPriorConfig = field(default_factory=TrainPriorConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class EvaluateConfig:
    """`d2 evaluate`."""

    seed: int = bounded(0, 0, MAX_SEED)  # of the bootstrap
    # table, summary and card; what is finished there is not measured again
    output_dir: str = verbatim("outputs/evaluate")
    run: Any = verbatims()  # output_dir of `d2 sample`; a list: several samples of each scene
    pred: Any = verbatims()  # instead of run: a folder of objects, or a list of them
    # folder of the same objects' truth; null: beside a run's matrices
    truth: str | None = verbatim()
    objects: list[str] | None = verbatims()  # names; null: all
    # see docs/evaluation.md
    metrics: list[str] = field(default_factory=lambda: ["reference", "consistency", "video"])
    # of metrics=[video]
    traversals: list[str] = field(default_factory=lambda: ["f", "v", "diag", "4d", "4d_columns"])
    # of videos; null: no figures of videos
    features: str | None = chosen("world4d-encoder", "i3d", "i3d_torchscript", "videomae")
    # of that network (of videomae a folder); null: the one in checkpoints/
    features_file: str | None = verbatim()
    # how pictures come to I3D's size; null: stylegan-v
    features_resize: str | None = chosen("stylegan-v", "consistent4d", default=None)
    clip: ClipConfig = field(default_factory=ClipConfig)
    size: int | None = bounded(None, 8, 4096)  # pixels of a side that pictures come to; null: as is
    # left out of figures NAME_unseen; null: as a run says
    input_view: int | None = bounded(None, 0, 1023)
    # output_dir of another evaluation: paired differences from it
    compare_to: str | None = verbatim()
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass
class CapturesConfig:
    path: str | None = verbatim()  # a folder of pictures with transforms.json, or a folder of such


@dataclass
class ReconstructConfig:
    """`d2 reconstruct`."""

    # of where the Gaussians start and of the order of the pictures
    seed: int = bounded(0, 0, MAX_SEED)
    # a folder for each scene; what is finished there is not fitted again
    output_dir: str = verbatim("outputs/reconstruct")
    # output_dir of `d2 sample`, a study's too: all its matrices; a list of such
    run: Any = verbatims()
    # instead of run: one matrix.safetensors, whose scene lies in output_dir itself
    matrix: str | None = verbatim()
    scenes: CapturesConfig = field(default_factory=CapturesConfig)
    # beside PSNR and SSIM, of held and of fitted cells
    metrics: list[str] = several((), "lpips_alex", "lpips_vgg", "st_lpips_alex", "st_lpips_vgg")
    exports: list[str] = several((), "multiview")  # of the matrix: 4DGaussians' multi-view folder
    recon: Recipe = field(default_factory=Recipe)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class ViewConfig:
    """`d2 view`."""

    # a folder that holds one scene.safetensors, of d2 reconstruct or of d2 sample
    run: str | None = verbatim()
    # matrix.safetensors whose cells are shown; null: the one beside the scene or above it
    matrix: str | None = verbatim()
    host: str = "127.0.0.1"  # who may look: this machine alone; 0.0.0.0: whoever can reach it
    port: int = bounded(8080, 1, 65535)  # of the page; where it is taken, the next free one


@dataclass
class ReportConfig:
    """`d2 report`."""

    seed: int = bounded(0, 0, MAX_SEED)  # of the bootstrap
    # folders that d2 sample wrote: runs, sweeps, studies
    runs: list[str] = verbatims(always_list=True)
    output_dir: str = verbatim("outputs/report")  # index.html, one page that needs nothing else
    compare_to: str | None = verbatim()  # the variant that paired differences are taken from
    # figure that tells the best and the worst scenes; null: energy, else psnr_masked
    quality: str | None = verbatim()
    shown_scenes: int = bounded(2, 0, 1000)  # how many of the best, and of the worst; 0 for none
    logger: LoggerConfig = field(default_factory=LoggerConfig)


ROOTS = {
    "sample": SampleConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "reconstruct": ReconstructConfig,
    "view": ViewConfig,
}


def register() -> None:
    """Make the schemas known to Hydra under the names that conf/*.yaml extend."""
    for command, root in ROOTS.items():
        ConfigStore.instance().store(f"{command}_schema", root)

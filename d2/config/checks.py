"""What the values of a configuration may be, each by itself and beside the others."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from d2.config.schema import EvaluateConfig, ReconstructConfig, ReportConfig, SampleConfig, TrainConfig
from d2.errors import InputError

RANGES: dict[str, tuple[float, float]] = {  # key -> smallest and largest value allowed
    "seed": (0, 2**31 - 1),
    "sampler.num_steps": (1, 1000),
    "sampler.sigma_min": (1e-6, 1e3),
    "sampler.sigma_max": (1e-3, 1e5),
    "sampler.rho": (1, 100),
    "sampler.sequences_per_call": (1, 1_000_000),
    "sampler.encode_chunk": (1, 1_000_000),
    "sampler.decode_chunk": (1, 1_000_000),
    "sampler.reinit": (0, 100),
    "matrix.num_views": (1, 1024),
    "matrix.num_frames": (1, 1024),
    "cameras.input_view": (0, 1023),
    "frames.start": (0, 1_000_000),
    "frames.stride": (1, 100_000),
    "scenes.count": (1, 1_000_000),
    "scenes.first": (0, 1_000_000_000),
    "scenes.anchor_frame": (0, 1023),
    "scenes.image_frame_ratio": (0.1, 1.0),
    "scenes.fps": (0.1, 1000),
    "video.cond_aug": (0, 10),
    "multiview.cond_aug": (0, 10),
    "video.fps_id": (0, 1000),
    "video.motion_bucket_id": (0, 255),
    "multiview.conv_blend": (0, 1),
    "video.window": (1, 1024),
    "multiview.window": (1, 1024),
    "multiview.dilation": (1, 1024),
    "unary.cond_aug": (0, 10),
    "trainer.threads": (1, 1024),
    "trainer.num_nodes": (1, 100_000),
    "trainer.timeout_seconds": (1, 1_000_000),
    "prior.lr": (0, 1),
    "prior.max_steps": (1, 10_000_000),
    "prior.warmup_steps": (1, 10_000_000),
    "prior.decay_steps": (1, 10_000_000),
    "prior.decoder_share": (0, 1),
    "prior.batch_size": (1, 100_000),
    "prior.singles": (0, 100_000),
    "prior.log_sigma_mean": (-10, 10),
    "prior.log_sigma_std": (0, 10),
    "prior.drop": (0, 1),
    "num_scenes": (1, 10_000_000),
    "num_validation_scenes": (1, 1_000_000),
    "validate_every": (1, 10_000_000),
    "save_every_minutes": (0.01, 100_000),
    "max_minutes": (0.01, 100_000),
    "save_every_seconds": (0, 1_000_000),
    "size": (8, 4096),
    "input_view": (0, 1023),
    "shown_scenes": (0, 1000),
    "recon.num_gaussians": (1, 10_000_000),
    "recon.sh_degree": (0, 1),
    "recon.hull_resolution": (8, 512),
    "recon.max_steps": (1, 1_000_000),
    "recon.cells_per_step": (1, 1024),
    "recon.lr_position": (0, 1),
    "recon.lr_motion": (0, 1),
    "recon.lr_quaternion": (0, 1),
    "recon.lr_log_scale": (0, 1),
    "recon.lr_opacity": (0, 1),
    "recon.lr_colour": (0, 1),
    "recon.lr_end": (1e-6, 1),
    "recon.ssim_weight": (0, 1),
    "recon.mask_weight": (0, 100),
    "recon.motion_weight": (0, 100),
    "recon.num_neighbours": (1, 1000),
    "recon.input_weight": (0, 1000),
    "recon.save_every_seconds": (0, 1_000_000),
}
CHOICES: dict[str, tuple[str | bool, ...]] = {
    "sampler.start": ("noise", "multiview"),
    "scenes.source": ("world4d", "folder"),
    "scenes.split": ("test", "validation"),
    "cameras.preset": (
        *("ring", "orbit", "spiral", "lemniscate", "roll", "zoom-in", "zoom-out", "dolly-zoom-in", "dolly-zoom-out"),
        *("move-forward", "move-backward", "move-up", "move-down", "move-left", "move-right"),
    ),
    "video.network": ("tiny", "svd", "svd_xt"),
    "multiview.network": ("tiny", "sv3d_u", "sv3d_p", "seva", "seva_1_0"),
    "unary.prior": ("multiview", "video", "cell"),
    "unary.told": ("none", "anchor", "column", "row"),
    "precision": ("fp32", "bf16", "fp16"),
    "offload": ("none", "idle", "sequential"),
    "matting.kind": ("none", "rembg"),
    "logger.kind": ("csv", "wandb", "tensorboard"),
    "prior.optimizer": ("adamw", "muon"),
    "prior.kind": ("autoencoder", "video", "multiview", "cell", "video_encoder"),
    "features": ("world4d-encoder", "i3d", "i3d_torchscript", "videomae"),
    "reconstruct": ("auto", True, False),
    "recon.rasterizer": ("auto", "torch", "gsplat"),
    "features_resize": ("stylegan-v", "consistent4d"),
}


def check(config: SampleConfig | TrainConfig | EvaluateConfig | ReportConfig | ReconstructConfig) -> None:
    """Raise a one-line ValueError that names the key, its value and what is allowed."""
    _refuse_added(config, "")
    for key, (low, high) in RANGES.items():
        value = _lookup(config, key)
        if value is not None and not low <= value <= high:
            raise InputError(f"{key}={value}: out of range, give {low:.10g} to {high:.10g}")
    for key, choices in CHOICES.items():
        value = _lookup(config, key)
        if value is not None and value not in choices:
            raise InputError(f"{key}={value}: choose {' or '.join(str(choice).lower() for choice in choices)}")
    if isinstance(config, SampleConfig):
        _check_sample(config)
    if isinstance(config, TrainConfig):
        _check_train(config)
    if isinstance(config, EvaluateConfig):
        _check_evaluate(config)
    if isinstance(config, ReconstructConfig):
        _check_reconstruct(config)


def _refuse_added(config: Any, place: str) -> None:
    """Hydra's +key=value adds keys even to a schema; nobody would ever read them."""
    known = [field.name for field in fields(config)]
    for key, value in vars(config).items():
        if key not in known:
            raise InputError(f"{place}{key}: no such key; there are {', '.join(known)}")
        if is_dataclass(value):
            _refuse_added(value, f"{place}{key}.")


def _check_sample(config: SampleConfig) -> None:
    if config.sampler.sigma_min > config.sampler.sigma_max:
        raise InputError(
            f"sampler.sigma_min={config.sampler.sigma_min}: give at most sampler.sigma_max={config.sampler.sigma_max}"
        )
    if config.scenes.source == "world4d" and config.scenes.count is None:
        raise InputError("scenes.count=null: scenes=world4d has no end; give scenes.count=N")
    if config.scenes.views and (config.scenes.source != "folder" or config.scenes.path or config.cameras.path):
        raise InputError(
            f"scenes.views={config.scenes.views}: take scenes=folder, and neither scenes.path nor cameras.path"
        )
    if config.scenes.source == "folder" and not (config.scenes.path or config.scenes.views):
        raise InputError(
            "scenes.path=null: scenes=folder needs scenes.path=PATH, a folder of frames, a video or a picture"
        )
    unknown = set(config.sampler.hold) - {"input_row", "reference_column"}
    if unknown:
        raise InputError(f"sampler.hold={sorted(unknown)}: choose from [input_row, reference_column]")
    if config.multiview.window is not None and config.multiview.conv_blend is not None:
        raise InputError(
            f"multiview.conv_blend={config.multiview.conv_blend}: columns in windows have no neighbours to look at; "
            "leave multiview.window or multiview.conv_blend null"
        )
    if config.unary.prior == "cell" and config.cell is None:
        raise InputError(
            "cell=null: the network of unary.prior=cell does not ship; train prior=tiny_cell, give cell=FILE"
        )
    if config.unary.prior == "cell" and config.unary.told not in ("none", "anchor"):
        raise InputError(f"unary.told={config.unary.told}: the network of unary.prior=cell was told anchors alone")
    unknown = set(config.metrics) - {"reference", "self_psnr", "video", "clip"}
    if unknown:
        raise InputError(f"metrics={sorted(unknown)}: choose from [reference, self_psnr, video, clip], or [] for none")


def _check_train(config: TrainConfig) -> None:
    p = config.prior
    if p.kind != "autoencoder" and p.batch_size <= p.singles:
        raise InputError(
            f"prior.batch_size={p.batch_size}: must exceed prior.singles={p.singles}, which are part of it"
        )
    if config.precision == "fp16":
        raise InputError("precision=fp16: gradients would vanish in it; take fp32 or bf16")
    if p.decoder_share == 1 and not config.init_from:
        raise InputError("init_from=null: prior.decoder_share=1 freezes the encoder; give init_from=FILE")


def _check_evaluate(config: EvaluateConfig) -> None:
    if (config.run is None) == (config.pred is None):
        given = "neither is given" if config.run is None else f"{config.run} and {config.pred} are both given"
        raise InputError(f"run, pred: {given}; give one, run=OUTPUT_DIR or pred=FOLDER truth=FOLDER")
    for key, value in (("run", config.run), ("pred", config.pred)):
        if not (value is None or isinstance(value, str) or _is_strings(value)):
            raise InputError(f"{key}={value}: give a folder, or a list of folders")


def _check_reconstruct(config: ReconstructConfig) -> None:
    given = [key for key, value in _inputs(config).items() if value is not None]
    if len(given) != 1:
        said = " and ".join(given) + " are given" if given else "none is given"
        raise InputError(f"run, matrix, scenes.path: {said}; give one, run=OUTPUT_DIR or matrix=FILE.safetensors")
    if not (config.run is None or isinstance(config.run, str) or _is_strings(config.run)):
        raise InputError(f"run={config.run}: give a folder, or a list of folders")


def _inputs(config: ReconstructConfig) -> dict[str, Any]:
    return {"run": config.run, "matrix": config.matrix, "scenes.path": config.scenes.path}


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, str) for item in value)


def _lookup(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part, None)
    return config

"""What the values of a configuration may be beside each other; each by itself: bounds.py."""

from __future__ import annotations

from typing import Any

from d2.config.bounds import check_fields
from d2.config.schema import (
    EvaluateConfig,
    ReconstructConfig,
    ReportConfig,
    SampleConfig,
    TrainConfig,
    ViewConfig,
)
from d2.errors import InputError


def check(
    config: (
        SampleConfig | TrainConfig | EvaluateConfig | ReportConfig | ReconstructConfig | ViewConfig
    ),
) -> None:
    """Raise an InputError of one line that names the key, its value and what is allowed."""
    check_fields(config)
    match config:
        case SampleConfig():
            _check_sample(config)
        case TrainConfig(prior=p):
            if p.kind != "autoencoder" and p.batch_size <= p.singles:
                raise InputError(
                    f"prior.batch_size={p.batch_size}: must exceed prior.singles={p.singles}, which"
                    " are part of it"
                )
            if config.precision == "fp16":
                raise InputError("precision=fp16: gradients would vanish in it; take fp32 or bf16")
            if config.cuda_graphs and p.kind in ("autoencoder", "video_encoder"):
                raise InputError(f"cuda_graphs=true: prior.kind={p.kind} has no UNet; leave it out")
            if p.decoder_share == 1 and not config.init_from:
                raise InputError(
                    "init_from=null: prior.decoder_share=1 freezes the encoder; give init_from=FILE"
                )
        case EvaluateConfig():
            _check_inputs(
                "run=OUTPUT_DIR or pred=FOLDER truth=FOLDER", run=config.run, pred=config.pred
            )
        case ReconstructConfig():
            given = {"run": config.run, "matrix": config.matrix, "scenes.path": config.scenes.path}
            _check_inputs("run=OUTPUT_DIR or matrix=FILE.safetensors", **given)
        case ViewConfig():
            _check_inputs("run=FOLDER_OF_A_SCENE", run=config.run)
        case ReportConfig():
            pass


def _check_sample(config: SampleConfig) -> None:
    if config.sampler.sigma_min > config.sampler.sigma_max:
        raise InputError(
            f"sampler.sigma_min={config.sampler.sigma_min}: give at most"
            f" sampler.sigma_max={config.sampler.sigma_max}"
        )
    levels = config.sampler.levels
    if any(not b < a for a, b in zip([1e5, *levels], [*levels, 0.0], strict=True)):
        raise InputError(
            f"sampler.levels={levels}: give falling noise levels below 1e5 and above 0, which"
            " follows by itself"
        )
    if config.scenes.source == "world4d" and config.scenes.count is None:
        raise InputError("scenes.count=null: scenes=world4d has no end; give scenes.count=N")
    if config.scenes.views and (
        config.scenes.source != "folder" or config.scenes.path or config.cameras.path
    ):
        raise InputError(
            f"scenes.views={config.scenes.views}: take scenes=folder, and neither scenes.path nor"
            " cameras.path"
        )
    if config.scenes.source == "folder" and not (config.scenes.path or config.scenes.views):
        raise InputError(
            "scenes.path=null: scenes=folder needs scenes.path=PATH, a folder of frames, a video or"
            " a picture"
        )
    if config.multiview.window is not None and config.multiview.conv_blend is not None:
        raise InputError(
            f"multiview.conv_blend={config.multiview.conv_blend}: columns in windows have no"
            " neighbours to look at; leave multiview.window or multiview.conv_blend null"
        )
    if config.unary.prior == "cell" and config.cell is None:
        raise InputError(
            "cell=null: the network of unary.prior=cell does not ship; train prior=tiny_cell, give"
            " cell=FILE"
        )
    if config.unary.prior == "cell" and config.unary.told not in ("none", "anchor"):
        raise InputError(
            f"unary.told={config.unary.told}: the network of unary.prior=cell was told anchors"
            " alone"
        )


def _check_inputs(way_out: str, **inputs: Any) -> None:
    """Of several inputs one is given, and what may be a list of folders is one."""
    given = [key for key, value in inputs.items() if value is not None]
    if len(given) != 1:
        said = f"{' and '.join(given)} are given" if given else "none is given"
        raise InputError(f"{', '.join(inputs)}: {said}; give one, {way_out}")
    (key,) = given
    folders = inputs[key] if isinstance(inputs[key], list) else [inputs[key]]
    if not folders or not all(isinstance(folder, str) for folder in folders):
        raise InputError(f"{key}={inputs[key]}: give a folder, or a list of folders")

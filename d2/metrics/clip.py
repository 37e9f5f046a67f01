"""CLIP, and what cosines between picture features say: of a sample and its truth, of neighbours, of
a text.

Axes: v views, f frames, n pictures, c h w, d features. Everything but `load_clip` works with any
image feature network, whose name stands beside the number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from d2.errors import InputError
from d2.files import sha256_of
from d2.metrics.features import FeatureNetwork, Resize, encode_images, fit
from d2.metrics.local_files import require


class Clip(NamedTuple):
    """The two towers of one model."""

    images: FeatureNetwork
    texts: Callable[[Sequence[str]], Tensor]  # n texts -> n d


def load_clip(path: Path, model: str = "ViT-B-32", device: torch.device | str = "cpu") -> Clip:
    """An open_clip model from a local file (safetensors or a plain state dict); `model` is
    open_clip's name of it.

    OpenAI's own weights want a model name that ends in -quickgelu: the activation is no part of the
    file.
    """
    import open_clip  # half a second, which only who measures by it waits

    if model not in open_clip.list_models():
        raise InputError(
            f"clip.model={model}: open_clip has no such model; see open_clip.list_models()"
        )
    require(path, f"open_clip's weights of {model}")
    net = open_clip.create_model(model, load_weights=False)
    assert isinstance(net, open_clip.CLIP | open_clip.CustomTextCLIP)
    try:
        open_clip.load_checkpoint(net, str(path), strict=True, weights_only=True)
    except (RuntimeError, OSError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: not weights of {model} as plain tensors ({reason}); name the model it is"
        ) from error
    net.to(device).eval().requires_grad_(False)
    size, *rgb = (open_clip.get_model_preprocess_cfg(net)[key] for key in ("size", "mean", "std"))
    resize = Resize(
        size if isinstance(size, int) else size[0], "bicubic", antialias=True, crop=True
    )
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in rgb)
    tokenizer = open_clip.get_tokenizer(model)

    def encode(images: Tensor) -> Tensor:
        return net.encode_image((fit(images.to(device), resize) - mean) / std)

    def texts(lines: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return net.encode_text(tokenizer(list(lines)).to(device))

    images = FeatureNetwork(
        name=f"clip-{model}",
        file=path.name,
        sha256=sha256_of(path),
        resize=resize,
        values=f"(x - {rgb[0]}) / {rgb[1]}",
        min_frames=1,
        frames=None,
        dim=encode(torch.zeros(1, 3, resize.size, resize.size)).shape[1],
        encode=encode,
        embed=None,
    )
    return Clip(images, texts)


def matrix_embeddings(
    network: FeatureNetwork,
    matrix: Tensor,  # v f 3 h w in [0, 1]
    *,
    chunk: int = 64,  # pictures at a time
) -> Tensor:  # v f d
    """Features of every cell."""
    assert network.embed is None, f"{network.name} sees videos, not pictures"
    features = encode_images(network, rearrange(matrix, "v f c h w -> (v f) c h w"), chunk=chunk)
    return features.unflatten(0, matrix.shape[:2])


def image_similarity(
    sample: Tensor,  # ... d
    truth: Tensor,  # ... d
) -> Tensor:  # ...
    """Cosine of each pair; with CLIP's features this is CLIP-S."""
    return F.cosine_similarity(sample.float(), truth.float(), dim=-1)


def text_similarity(
    images: Tensor,  # ... d
    text: Tensor,  # d
) -> Tensor:  # ...
    """Cosine of each picture with one text."""
    return F.cosine_similarity(images.float(), text.float(), dim=-1)


def neighbour_similarity(
    features: Tensor,  # v f d
) -> dict[str, float]:
    """Mean cosine of neighbours along `frames` and along `views`, the last view being the first
    one's neighbour.

    Needs no truth, and means most beside that of the true matrix: pictures that stand still reach
    1. NaN along an axis of length 1.
    """
    along_frames = image_similarity(features[:, 1:], features[:, :-1])
    along_views = (
        image_similarity(features.roll(-1, dims=0), features)
        if len(features) > 1
        else features[:0, :, 0]
    )
    return {"frames": float(along_frames.mean()), "views": float(along_views.mean())}

"""Cutting frames out (`matting=rembg`): an optional library with a local network gives RGB frames
their alpha.

Axes: f frames, c h w. Nothing is downloaded here. All frames of a clip are cut out before
preprocess.py looks for the one box that they share.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from d2.data.folder import Clip
from d2.data.media import FAINT
from d2.errors import InputError


def cut_out(clip: Clip, *, model: Path | None) -> Clip:
    """The clip with the background of every frame transparent; one that has alpha stays as it is,
    as published.

    ValueError: what `open_model` and `remove_background` find wrong; a frame in which nothing is
    found.
    """
    if clip.has_alpha:
        return clip
    alpha = remove_background(clip.rgba[:, :3], model=model)
    for index in np.flatnonzero(alpha.eq(0).flatten(1).all(1).numpy()):
        raise InputError(
            f"scenes.path: nothing stands out in frame {index} of clip {clip.name}; replace it, or"
            " give RGBA frames"
        )
    return clip._replace(rgba=torch.cat([clip.rgba[:, :3], alpha], dim=1), has_alpha=True)


def remove_background(
    rgb: Tensor,  # f 3 h w, uint8
    *,
    model: Path | None,
) -> Tensor:  # f 1 h w, uint8
    """Alpha of every frame, as rembg's network sees it.

    The published program has rembg refine it by closed-form matting, which on busy backgrounds did
    more harm than good (u2netp, mean over six composites: IoU 0.889 with it, 0.904 without); its
    estimate of the colours under the edges helped one clip and hurt another.
    """
    session = open_model(model)
    remove = import_module("rembg").remove
    pictures = [Image.fromarray(frame) for frame in rearrange(rgb, "f c h w -> f h w c").numpy()]
    try:
        masks = [
            np.asarray(remove(picture, session=session, only_mask=True)) for picture in pictures
        ]
    # of the library or of ONNX Runtime, such as a network of other inputs
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:120]
        raise InputError(
            f"matting.model={model}: rembg failed with it ({reason}); take u2net.onnx"
        ) from error
    alpha = torch.from_numpy(np.stack(masks))[:, None]
    if alpha.shape != (len(rgb), 1, *rgb.shape[2:]):
        raise InputError(
            f"matting.model={model}: makes no single mask of a picture; take u2net.onnx"
        )
    return alpha.masked_fill(alpha < FAINT, 0)


@cache
def open_model(model: Path | None) -> Any:
    """rembg's session on a local ONNX file, which is opened once; call it at start-up to have its
    refusals early.

    The file's name tells its kind, as rembg names them (u2net, u2netp, silueta, isnet-general-use,
    birefnet-general, …); any other name is taken for a U²-Net (Qin et al. 2020). On the CPU, so
    that alpha depends on no device.
    """
    if model is None or not model.is_file():
        raise InputError(
            f"matting.model={'null' if model is None else model}: matting=rembg needs a local"
            " network, none is downloaded; put u2net.onnx of rembg's releases into checkpoints/"
            " and give matting.model=FILE"
        )
    if find_spec("onnxruntime") is None:  # without it `import rembg` would end the program
        raise InputError(
            "matting=rembg: onnxruntime is not installed; in the clone, pip install -e '.[matting]'"
        )
    try:
        runtime, sessions = import_module("onnxruntime"), import_module("rembg.sessions").sessions
    except ImportError as error:
        raise InputError(
            "matting=rembg: rembg is not installed; in the clone, pip install -e '.[matting]'"
        ) from error
    kind = sessions.get(model.stem)
    kind = kind if kind is not None and kind.is_local() else sessions["u2net"]

    class Local(kind):
        """That kind of network with the file given; rembg itself would look for it in a cache, then
        download it."""

        @classmethod
        def download_models(cls, *args: Any, **kwargs: Any) -> str:
            return str(model)

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return Local(model.stem, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class for every reason
        raise InputError(
            f"matting.model={model}: not a readable ONNX file; put another one there"
        ) from error

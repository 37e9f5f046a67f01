"""From a clip on the disk to the prior's square: cut out, centred and scaled with one box, on
white.

Axes: f frames, c h w. The published code crops every frame by its own box, which takes the motion
and the change of scale out of a clip; here one box, the union over the frames, serves them all. For
a single picture the two agree.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from d2.data.folder import Clip
from d2.data.media import FAINT
from d2.errors import InputError

NEAR_WHITE = 240  # of 255, in every channel: what JPEG and video coding leave of white
# of the border's pixels, over all frames, that must be near-white for white to be the background
BORDER_SHARE = 0.9
# pixels around what is seen in which faint alpha is an edge's own softness, and part of the object
FRINGE = 2
# an object smaller than this says nothing to a prior, and its square would not fit the memory
SMALLEST_RATIO = 0.1


class Square(NamedTuple):
    """Part of every frame, in pixels; it may reach beyond the frame."""

    left: int
    top: int
    side: int


def preprocess_clip(
    clip: Clip, *, size: int, image_frame_ratio: float | None
) -> tuple[
    Tensor,  # pixels f 3 size size, in [0, 1], on white
    Tensor,  # masks f 1 size size, coverage in [0, 1]
]:
    """A clip as the priors take it: one square of its frames, resized to `size`.

    `image_frame_ratio` in [0.1, 1]: the larger side of the object's box, over all frames, as a
    share of the square.
    None keeps the scale: a clip is padded to a square as it is; the object of a single picture is
    centred in a square as high as the picture (both as published). Without alpha, near-white
    connected to a near-white border is background; where the border is not white, the largest
    central square is kept whole, with a warning.
    ValueError: the ratio out of range; a frame that shows white alone.
    """
    if image_frame_ratio is not None and not SMALLEST_RATIO <= image_frame_ratio <= 1:
        raise InputError(
            f"scenes.image_frame_ratio={image_frame_ratio}: give {SMALLEST_RATIO} to 1, or null to"
            " keep the scale"
        )
    frames = rearrange(clip.rgba, "f c h w -> f h w c").numpy()
    if not clip.has_alpha and _has_white_border(frames):
        frames = _cut_out(frames, clip.name)
    elif not clip.has_alpha:
        warnings.warn(
            f"{clip.name}: no alpha and no white border, so the background stays and the central"
            " square is taken whole (scenes.image_frame_ratio does nothing here); cut the object"
            " out for a better result",
            stacklevel=2,
        )
        return _resized(frames, _central_square(frames), size)
    return _resized(frames, _object_square(frames, image_frame_ratio, clip.is_picture), size)


def _resized(frames: np.ndarray, square: Square, size: int) -> tuple[Tensor, Tensor]:
    """The square of every frame (f h w 4, uint8) at `size`, on white: pixels and masks."""
    box = (square.left, square.top, square.left + square.side, square.top + square.side)
    # transparent black beyond the frame
    cut = [Image.fromarray(frame).crop(box) for frame in frames]
    # Pillow premultiplies by alpha
    cut = [image.resize((size, size), Image.Resampling.LANCZOS) for image in cut]
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in cut]))
    rgba = rearrange(stacked, "f h w c -> f c h w").double() / 255
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    on_white = rgb * alpha + (1 - alpha)
    # 8 bits, truncated in float64, as published: exactly what a PNG of it holds
    grey_levels = (on_white * 255).floor()
    return (grey_levels / 255).float(), alpha.float()


# --- which square ---------------------------------------------------------------------------------


def _object_square(frames: np.ndarray, image_frame_ratio: float | None, is_picture: bool) -> Square:
    """The square around the union of the frames' boxes."""
    _, height, width, _ = frames.shape
    seen = _seen(frames[..., 3].max(axis=0))  # of the largest alpha over the frames
    columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    keep_frame = not len(rows) or (image_frame_ratio is None and not is_picture)
    left, right = (0, width) if keep_frame else (int(columns[0]), int(columns[-1]) + 1)
    top, bottom = (0, height) if keep_frame else (int(rows[0]), int(rows[-1]) + 1)

    side = max(right - left, bottom - top)
    if image_frame_ratio is not None:
        side = int(side / image_frame_ratio)
    elif is_picture:
        side = max(side, height)
    return Square(
        left + (right - left) // 2 - side // 2, top + (bottom - top) // 2 - side // 2, side
    )


def _seen(alpha: np.ndarray) -> np.ndarray:  # h w -> h w
    """Where the object is, its soft edge with it: faint alpha anywhere else says nothing."""
    solid = torch.from_numpy((alpha >= FAINT).astype(np.float32))[None, None]
    near = F.max_pool2d(solid, 2 * FRINGE + 1, stride=1, padding=FRINGE)[0, 0].numpy()
    return (near > 0) & (alpha > 0)


def _central_square(frames: np.ndarray) -> Square:
    _, height, width, _ = frames.shape
    side = min(height, width)
    return Square((width - side) // 2, (height - side) // 2, side)


# --- a white background ---------------------------------------------------------------------------


def _near_white(frames: np.ndarray) -> np.ndarray:  # f h w 4 -> f h w
    return frames[..., :3].min(axis=-1) >= NEAR_WHITE


def _has_white_border(frames: np.ndarray) -> bool:
    white = _near_white(frames)
    border = [white[:, 0], white[:, -1], white[:, 1:-1, 0], white[:, 1:-1, -1]]
    return bool(np.concatenate(border, axis=1).mean() >= BORDER_SHARE)


def _cut_out(frames: np.ndarray, name: str) -> np.ndarray:
    """Opaque frames on white -> the same with alpha 0 where near-white is connected to the
    border."""
    background = np.stack([_connected_to_border(white) for white in _near_white(frames)])
    for index in np.flatnonzero(background.all(axis=(1, 2))):
        raise InputError(
            f"scenes.path: frame {index} of clip {name} is nothing but white; replace it or leave"
            " it out"
        )
    return np.concatenate(
        [frames[..., :3], np.where(background, 0, 255).astype(np.uint8)[..., None]], axis=-1
    )


def _connected_to_border(white: np.ndarray) -> np.ndarray:  # h w -> h w
    """The part of `white` that 4-neighbour steps inside it reach from the border.

    Whole runs of a row, then of a column, are filled at once, so that the number of passes is that
    of a path's bends.
    """
    reached = np.zeros_like(white)
    reached[[0, -1]], reached[:, [0, -1]] = white[[0, -1]], white[:, [0, -1]]
    while True:
        filled = _fill_runs(_fill_runs(reached, white).T, white.T).T
        if (filled == reached).all():
            return reached
        reached = filled


def _fill_runs(reached: np.ndarray, white: np.ndarray) -> np.ndarray:  # h w, h w -> h w
    """Every horizontal run of `white` that is reached somewhere, whole."""
    walls = ~white
    # a run ends with its row; a row's first pixel may still belong to the run that follows it
    walls[:, 0] = True
    # a wall opens the number that the run behind it carries
    run = np.cumsum(walls).reshape(white.shape)
    hit = np.bincount(run[reached], minlength=run[-1, -1] + 1) > 0
    return white & hit[run]

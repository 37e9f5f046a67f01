"""What the user brings (`scenes=folder`): numbered frames, a video, an animation or one picture,
read as it is.

Axes: f frames, c h w. Nothing is cropped or scaled here: see preprocess.py; files are opened in
media.py. Every mistake in the input is a ValueError of one line that names the file or key, the
value, and the way out.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from d2.data.media import (
    FAINT,
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    Refused,
    is_film,
    is_frame,
    read_film,
    read_picture,
    visible,
)
from d2.errors import InputError

SHOWN = 8  # a message lists so many numbers or files and counts the rest
# of a scene's folder: file systems take 255, and names are lengthened while it is being written
NAME_BYTES = 200
# a clip's pictures, beside its masks
IMAGES = ("images", "image", "imgs", "rgb", "color", "frames", "jpegimages")
MASKS = ("masks", "mask", "alpha", "alphas", "mattes", "annotations")
MASK_ENDINGS = ("_masks", "_mask", "_alpha")  # of walk_mask.mp4, the masks of walk.mp4
# by the run
TAKEN = {
    "log",
    "wandb",
    "metrics.csv",
    "set_metrics.csv",
    "results.csv",
    "config.yaml",
    "index.html",
}


class Clip(NamedTuple):
    """One clip as it lies on the disk."""

    name: str  # of its scene
    rgba: Tensor  # f 4 h w, uint8; opaque throughout, on white, where nothing has been cut out
    has_alpha: bool  # it has been cut out: some alpha of some frame is below FAINT
    is_picture: bool  # one still picture: the video prior makes the clip from it


class Frame(NamedTuple):
    label: str  # how a message names it
    rgba: np.ndarray  # h w 4, uint8


def list_clips(path: Path | str) -> list[Path]:
    """The clips under `scenes.path`, each for `read_clip`, in natural order (a2 before a10).

    A file is one clip, and so is a folder with numbered pictures, or with images/ and masks/. In
    any other folder each sub-folder, video, animation and picture is a clip, but for the masks of
    another (walk_mask beside walk); hidden entries and files of other kinds are passed over.
    """
    with _keyed():
        path = _existing(path)
        if path.is_file():
            return [path]
        entries = visible(path)
        if (
            any(is_frame(entry) and _number(entry) is not None for entry in entries)
            or parts(path)[0] != path
        ):
            return [path]
        clips = list(filter(_may_be_clip, entries))
        masks = {parts(clip)[1] for clip in clips}
        clips = [clip for clip in clips if clip not in masks]
        if not clips:
            raise Refused(
                f"{path}: {_contents(entries)}; put frames (0.png, 1.png, …) or clips there"
            )
        first: dict[str, Path] = {}
        for clip in clips:
            twin = first.setdefault(scene_name(clip).casefold(), clip)
            if twin is not clip:
                raise Refused(
                    f"{path}: {twin.name} and {clip.name} would share a scene name; rename one"
                )
        return clips


def read_clip(path: Path | str, *, num_frames: int, start: int = 0, stride: int = 1) -> Clip:
    """The `num_frames` frames `start, start + stride, …` of one clip; a single picture is one frame
    whatever they say.

    `path`: a folder of numbered pictures (ordered by the last integer in their names), a video, an
    animation or a picture. Frames are counted from the first one, 0, whatever its number. Masks,
    where there are any (`parts`), become alpha.
    """
    if num_frames < 1:
        raise InputError(
            f"matrix.num_frames={num_frames}: no clip is so short; set matrix.num_frames=1 or more"
        )
    if start < 0:
        raise InputError(
            f"frames.start={start}: frames are counted from the first one, 0; set frames.start=0 or"
            " more"
        )
    if stride < 1:
        raise InputError(
            f"frames.stride={stride}: frames are read forwards; set frames.stride=1 (every frame)"
            " or more"
        )
    with _keyed():
        path = _existing(path)
        colour, masks = parts(path)
        wanted = range(start, start + num_frames * stride, stride)
        frames, is_picture = _read(colour, wanted)
        if masks is not None:
            frames = _masked(frames, colour, masks, wanted)
        _require_visible(colour, frames)
    rgba = (
        torch.from_numpy(np.stack([frame.rgba for frame in frames]))
        .permute(0, 3, 1, 2)
        .contiguous()
    )
    has_alpha = bool((rgba[:, 3] < FAINT).any())
    return Clip(scene_name(path), rgba if has_alpha else _on_white(rgba), has_alpha, is_picture)


def parts(path: Path) -> tuple[Path, Path | None]:
    """Where a clip's pictures lie, and its masks.

    They are images/ and masks/ in it, or masks/ among its frames, or of walk.mp4 walk_mask.mp4 (or
    a folder) beside it.
    """
    if path.is_dir():
        inside = {_stem(entry).lower(): entry for entry in visible(path) if _may_be_clip(entry)}
        images = next((inside[name] for name in IMAGES if name in inside), None)
        masks = next(
            (inside[name] for name in MASKS if name in inside and not _is_bare(inside[name])), None
        )
        if masks is not None and any(map(is_frame, inside.values())):
            return (path, masks) if masks.is_dir() else (path, None)
        if masks is not None and images is not None:
            return images, masks
    place = path if path.name not in ("", "..") else path.resolve()
    kinds = ("", place.suffix, *PICTURE_SUFFIXES, *VIDEO_SUFFIXES)
    beside = [
        place.parent / f"{_stem(place)}{ending}{kind}" for ending in MASK_ENDINGS for kind in kinds
    ]
    return path, next((mask for mask in beside if os.path.exists(mask)), None)


def scene_name(path: Path) -> str:
    """What the scene of a clip, and its folder, is called: the clip's name, made fit for a file
    system and a table."""
    name = os.fsencode(_stem(path)).decode("utf-8", "replace")
    name = re.sub(r"[\x00-\x1f\x7f]", "_", name)
    if name.lower() in TAKEN:
        name = f"scene_{name}"
    if len(name.encode()) <= NAME_BYTES:
        return name
    start = name.encode()[: NAME_BYTES - 9].decode("utf-8", "ignore")
    return f"{start}_{zlib.crc32(name.encode()):08x}"


# --- what lies in a folder ------------------------------------------------------------------------


@contextmanager
def _keyed() -> Iterator[None]:
    """Puts the key in front of what is wrong with a path."""
    try:
        yield
    except Refused as error:
        raise InputError(f"scenes.path={error}") from error


def _existing(path: Path | str) -> Path:
    path = Path(path) if Path(path).exists() else Path(os.path.expanduser(path))
    if not path.exists():
        raise Refused(f"{path}: there is no such file or folder; give the path of a clip")
    return path


def _may_be_clip(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in PICTURE_SUFFIXES + VIDEO_SUFFIXES


def _is_bare(path: Path) -> bool:
    return path.is_dir() and not any(map(is_frame, visible(path)))


def _number(path: Path) -> int | None:
    """The last integer in the name: 7 of `shot2_frame_007.png`."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else None


def _stem(path: Path) -> str:
    if not path.is_dir():
        return path.stem
    return path.name if path.name not in ("", "..") else path.resolve().name


def _numbered_files(folder: Path) -> dict[int, Path]:
    """The pictures of a folder in the order of their numbers, which rise by even steps."""
    entries = visible(folder)
    numbered: dict[int, Path] = {}
    for file in filter(is_frame, entries):
        number = _number(file)
        if number is None:
            raise Refused(
                f"{folder}: {file.name} has no number in its name; number it or move it away"
            )
        if number in numbered:
            twins = f"{numbered[number].name} and {file.name}"
            raise Refused(f"{folder}: {twins} are both frame {number}; keep one of them")
        numbered[number] = file
    if not numbered:
        raise Refused(f"{folder}: {_contents(entries)}; put frames (0.png, 1.png, …) there")
    order = sorted(numbered)
    steps = {after - before for before, after in pairwise(order)}
    # 0, 5, 10, … is every fifth frame of a film
    if steps - {1} and (len(steps) > 1 or len(order) == 2):
        _refuse_gaps(folder, order)
    return {number: numbered[number] for number in order}


def _refuse_gaps(folder: Path, order: list[int]) -> None:
    missing: list[int] = []
    # a gap may be huge (dates as numbers): list no more than is shown
    for before, after in pairwise(order):
        missing += range(before + 1, min(after, before + 1 + SHOWN - len(missing)))
    names = _shown([str(number) for number in missing], order[-1] - order[0] + 1 - len(order))
    raise Refused(
        f"{folder}: missing frame {names} of {order[0]} … {order[-1]}; add it or renumber the rest"
    )


def _contents(entries: list[Path]) -> str:
    if not entries:
        return "the folder is empty"
    return f"no picture or clip among {_shown([entry.name for entry in entries], len(entries))}"


def _shown(names: list[str], count: int) -> str:
    names = names[:SHOWN]
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


# --- frames from files ----------------------------------------------------------------------------


def _read(path: Path, wanted: range) -> tuple[list[Frame], bool]:
    """The wanted frames of one size, and whether they are one still picture."""
    if path.is_dir():
        files = list(_numbered_files(path).values())
        frames = [
            Frame(files[index].name, read_picture(files[index]))
            for index in wanted
            if index < len(files)
        ]
        total, is_picture = len(files), False
    elif path.suffix.lower() not in PICTURE_SUFFIXES + VIDEO_SUFFIXES:
        kinds = " ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)
        raise Refused(
            f"{path}: unsupported extension '{path.suffix}'; convert it to one of {kinds}"
        )
    elif is_film(path):
        film = read_film(path, wanted)
        frames = [
            Frame(f"frame {index}", rgba)
            for index, rgba in zip(wanted, film.pictures, strict=False)
        ]
        total, is_picture = film.total, False
    else:
        frames, total, is_picture = [Frame(path.name, read_picture(path))], 1, True
    if not is_picture:
        _require_enough(path, len(frames), total, wanted)
    for label, rgba in frames:
        if rgba.shape != frames[0].rgba.shape:
            sizes = f"{label} is {_size(rgba)} but {frames[0].label} {_size(frames[0].rgba)}"
            raise Refused(f"{path}: mixed sizes: {sizes}; give all frames one size")
    return frames, is_picture


def _masked(frames: list[Frame], colour: Path, masks: Path, wanted: range) -> list[Frame]:
    """Frames with the alpha of their masks, of which black is background and the brightest of all
    pixels is object."""
    if colour.is_dir() and masks.is_dir():
        absent = sorted(_numbered_files(colour).keys() - _numbered_files(masks).keys())
        if absent:
            names = _shown([str(number) for number in absent], len(absent))
            raise Refused(f"{masks}: no mask of frame {names}; add it, or move the masks away")
    found, _ = _read(masks, wanted)
    levels = [mask.rgba[..., :3].max(axis=-1) * (mask.rgba[..., 3] / 255) for mask in found]
    # of labels it may be 1, or a palette's grey
    brightest = max(1.0, *(float(level.max()) for level in levels))
    whole = []
    for (label, rgba), mask, level in zip(frames, found, levels, strict=True):
        if level.shape != rgba.shape[:2]:
            sizes = f"{mask.label} is {_size(mask.rgba)} but {label} {_size(rgba)}"
            raise Refused(f"{masks}: {sizes}; give masks the size of their pictures")
        alpha = (rgba[..., 3] * (level / brightest)).round().astype(np.uint8)
        whole.append(Frame(label, np.concatenate([rgba[..., :3], alpha[..., None]], axis=-1)))
    return whole


def _on_white(rgba: Tensor) -> Tensor:  # f 4 h w -> f 4 h w
    """Opaque throughout, for a clip that nothing has been cut out of."""
    colour, alpha = rgba[:, :3].double(), rgba[:, 3:].double() / 255
    flat = (colour * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    return torch.cat([flat, torch.full_like(rgba[:, 3:], 255)], dim=1)


def _size(rgba: np.ndarray) -> str:
    return f"{rgba.shape[1]}×{rgba.shape[0]}"


# --- checks ---------------------------------------------------------------------------------------


def _require_enough(path: Path, got: int, total: int, wanted: range) -> None:
    if got == len(wanted):
        return
    keys = (
        f"matrix.num_frames={len(wanted)}, frames.start={wanted.start}, frames.stride={wanted.step}"
    )
    way_out = f"set matrix.num_frames={got}" if got else f"set frames.start below {total}"
    raise Refused(
        f"{path}: {total} frames, {wanted[-1] + 1} needed for {keys}; {way_out} or give more"
    )


def _require_visible(path: Path, frames: list[Frame]) -> None:
    for label, rgba in frames:
        if rgba[..., 3].max() < FAINT:
            raise Refused(f"{path}: {label} is all transparent; replace it or choose other frames")

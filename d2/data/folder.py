"""What the user brings (`scenes=folder`): numbered frames, a video, a GIF or one picture, read as it is.

Axes: f frames, c h w. Nothing is cropped, scaled or cut out here: see preprocess.py. Every mistake in the input is a
ValueError of one line that names the file or key, the value, and the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
PICTURE_SUFFIXES = (*FRAME_SUFFIXES, ".gif")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg")
ANIMATED_FORMATS = ("GIF", "WEBP", "PNG")  # a phone's JPEG holds several pictures too, and is no animation
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # ffmpeg's own decoders of these two drop the alpha plane
SHOWN = 8  # a message lists so many numbers or files and counts the rest


class Clip(NamedTuple):
    """One clip as it lies on the disk."""

    name: str  # of the folder, or of the file without its suffix
    rgba: Tensor  # f 4 h w, uint8
    has_alpha: bool  # some pixel of some frame is not opaque
    is_picture: bool  # one still picture: the video prior makes the clip from it


class Frame(NamedTuple):
    label: str  # how a message names it
    rgba: np.ndarray  # h w 4, uint8


def list_clips(path: Path | str) -> list[Path]:
    """The clips under `scenes.path`, each for `read_clip`, in natural order (a2 before a10).

    A file is one clip, and so is a folder with numbered pictures. In any other folder each sub-folder, video, GIF and
    picture is a clip; hidden entries and files of other kinds are passed over.
    """
    path = _existing(path)
    if path.is_file():
        return [path]
    entries = _entries(path)
    if any(_is_frame(entry) and _number(entry) is not None for entry in entries):
        return [path]
    clips = [entry for entry in entries if entry.is_dir() or entry.suffix.lower() in PICTURE_SUFFIXES + VIDEO_SUFFIXES]
    if not clips:
        raise ValueError(f"scenes.path={path}: {_contents(entries)}; put frames (0.png, 1.png, …) or clips there")
    first: dict[str, Path] = {}
    for clip in clips:
        twin = first.setdefault(_clip_name(clip), clip)
        if twin is not clip:
            raise ValueError(f"scenes.path={path}: {twin.name} and {clip.name} would share a scene name; rename one")
    return clips


def read_clip(path: Path | str, *, num_frames: int, start: int = 0, stride: int = 1) -> Clip:
    """The `num_frames` frames `start, start + stride, …` of one clip; a single picture is one frame whatever they say.

    `path`: a folder of numbered pictures (ordered by the last integer in their names), a video, an animation or a
    picture. Frames are counted from the first one, 0, whatever its number.
    """
    path = _existing(path)
    if num_frames < 1:
        raise ValueError(f"matrix.num_frames={num_frames}: no clip is so short; set matrix.num_frames=1 or more")
    if start < 0:
        raise ValueError(f"frames.start={start}: frames are counted from the first one, 0; set frames.start=0 or more")
    if stride < 1:
        raise ValueError(f"frames.stride={stride}: frames are read forwards; set frames.stride=1 (every frame) or more")

    is_picture = False
    wanted = range(start, start + num_frames * stride, stride)
    if path.is_dir():
        files = _numbered_files(path)
        frames = [_load_picture(files[index]) for index in wanted if index < len(files)]
        total = len(files)
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        frames, total = _select(_video_frames(path), wanted)
    elif path.suffix.lower() in PICTURE_SUFFIXES:
        is_picture = _count_pictures(path) == 1
        frames, total = ([_load_picture(path)], 1) if is_picture else _select(_animation_frames(path), wanted)
    else:
        kinds = " ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)
        raise ValueError(f"scenes.path={path}: unsupported extension '{path.suffix}'; convert it to one of {kinds}")

    if not is_picture:
        _require_enough(path, len(frames), total, wanted)
    _require_one_size(path, frames)
    _require_visible(path, frames)
    rgba = torch.from_numpy(np.stack([frame.rgba for frame in frames])).permute(0, 3, 1, 2).contiguous()
    return Clip(_clip_name(path), rgba, has_alpha=bool((rgba[:, 3] < 255).any()), is_picture=is_picture)


# --- what lies in a folder -------------------------------------------------------------------------------------------


def _existing(path: Path | str) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"scenes.path={path}: there is no such file or folder; give the path of a clip")
    return path


def _entries(folder: Path) -> list[Path]:
    def natural(path: Path) -> list[tuple[int, str]]:  # digits compare as numbers
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name) if part]

    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=natural)


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in FRAME_SUFFIXES and path.is_file()


def _number(path: Path) -> int | None:
    """The last integer in the name: 7 of `shot2_frame_007.png`."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else None


def _clip_name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def _numbered_files(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their numbers, of which none may lack or come twice."""
    entries = _entries(folder)
    numbered: dict[int, Path] = {}
    for file in filter(_is_frame, entries):
        number = _number(file)
        if number is None:
            raise ValueError(f"scenes.path={folder}: {file.name} has no number in its name; number it or move it away")
        if number in numbered:
            twins = f"{numbered[number].name} and {file.name}"
            raise ValueError(f"scenes.path={folder}: {twins} are both frame {number}; keep one of them")
        numbered[number] = file
    if not numbered:
        raise ValueError(f"scenes.path={folder}: {_contents(entries)}; put frames (0.png, 1.png, …) there")

    order = sorted(numbered)
    num_missing = order[-1] - order[0] + 1 - len(order)
    if num_missing:
        missing: list[int] = []
        for before, after in pairwise(order):  # a gap may be huge (dates as numbers): list no more than is shown
            missing += range(before + 1, min(after, before + 1 + SHOWN - len(missing)))
        names = _shown([str(number) for number in missing], num_missing)
        span = f"{order[0]} … {order[-1]}"
        raise ValueError(f"scenes.path={folder}: missing frame {names} of {span}; add it or renumber the rest")
    return [numbered[number] for number in order]


def _contents(entries: list[Path]) -> str:
    if not entries:
        return "the folder is empty"
    return f"no picture or clip among {_shown([entry.name for entry in entries], len(entries))}"


def _shown(names: list[str], count: int) -> str:
    names = names[:SHOWN]
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


# --- frames from files -----------------------------------------------------------------------------------------------


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into one line."""
    try:
        yield
    except Exception as error:  # OSError, SyntaxError, struct.error, EOFError, RuntimeError, AssertionError, …
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1][:120]  # ffmpeg's last line, after its banner, is the one that says it
        way_out = "damaged, or not what its name says; replace it"
        raise ValueError(f"scenes.path={path}: cannot be decoded ({reason}): {way_out}") from error


def _to_rgba(image: Image.Image) -> np.ndarray:
    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode}, where 8 bits a channel are needed")
    return np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))


def _load_picture(path: Path) -> Frame:
    with _decoding(path), Image.open(path) as image:
        return Frame(path.name, _to_rgba(image))


def _count_pictures(path: Path) -> int:
    with _decoding(path), Image.open(path) as image:
        return getattr(image, "n_frames", 1) if image.format in ANIMATED_FORMATS else 1


def _animation_frames(path: Path) -> Iterator[Frame]:
    with _decoding(path), Image.open(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            yield Frame(f"frame {index}", _to_rgba(image))


def _video_frames(path: Path) -> Iterator[Frame]:
    with _decoding(path):
        with closing(imageio_ffmpeg.read_frames(str(path))) as header:
            codec = str(next(header)["codec"]).rstrip(",")  # pyright: ignore[reportArgumentType]
            decoder = ALPHA_DECODERS.get(codec)
        params = ["-c:v", decoder] if decoder else []
        with closing(imageio_ffmpeg.read_frames(str(path), "rgba", bits_per_pixel=32, input_params=params)) as raw:
            width, height = next(raw)["size"]  # pyright: ignore[reportArgumentType]
            for index, pixels in enumerate(raw):
                yield Frame(f"frame {index}", np.frombuffer(pixels, np.uint8).reshape(height, width, 4))


def _select(frames: Iterator[Frame], wanted: range) -> tuple[list[Frame], int]:
    """The wanted frames, and how many were seen: all there are, where some wanted one is lacking."""
    chosen, seen = [], 0
    for index, frame in enumerate(frames):
        seen = index + 1
        if index in wanted:
            chosen.append(frame)
        if len(chosen) == len(wanted):
            break
    return chosen, seen


# --- checks ----------------------------------------------------------------------------------------------------------


def _require_enough(path: Path, got: int, total: int, wanted: range) -> None:
    if got == len(wanted):
        return
    keys = f"matrix.num_frames={len(wanted)}, frames.start={wanted.start}, frames.stride={wanted.step}"
    way_out = f"set matrix.num_frames={got}" if got else f"set frames.start below {total}"
    raise ValueError(f"scenes.path={path}: {total} frames, {wanted[-1] + 1} needed for {keys}; {way_out} or give more")


def _require_one_size(path: Path, frames: list[Frame]) -> None:
    height, width, _ = frames[0].rgba.shape
    for label, rgba in frames:
        if rgba.shape != frames[0].rgba.shape:
            sizes = f"{label} is {rgba.shape[1]}×{rgba.shape[0]} but {frames[0].label} {width}×{height}"
            raise ValueError(f"scenes.path={path}: mixed sizes: {sizes}; give all frames one size")


def _require_visible(path: Path, frames: list[Frame]) -> None:
    for label, rgba in frames:
        if not rgba[..., 3].any():
            raise ValueError(f"scenes.path={path}: {label} is all transparent; replace it or choose other frames")

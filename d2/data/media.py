"""Pictures and films as they lie on the disk: the one reader of everything that d2 is given to look
at.

A picture is h w 4, RGBA of 8 bits a channel, upright (Exif and display matrices applied), with
square pixels. A film gives every stored picture once, whatever its clock says. Every fault of a
file is a ValueError of one line that starts with the path and ends with the way out.
"""

from __future__ import annotations

import logging
import re
import subprocess
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
PICTURE_SUFFIXES = (*FRAME_SUFFIXES, ".gif", ".apng")
VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".webm",
    ".mkv",
    ".avi",
    ".mpg",
    ".mpeg",
    ".3gp",
    ".mts",
    ".ogv",
    ".wmv",
)
# a phone's JPEG holds several pictures too, and is no film
ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
# ffmpeg's own decoders of these two drop the alpha plane
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
LITTER = {
    "__macosx",
    "@eadir",
    "__pycache__",
    "thumbs.db",
    "desktop.ini",
    "lost+found",
    "$recycle.bin",
}
# of 255: alpha below a tenth is an encoder's or a network's doubt; nothing is told from it
FAINT = 26
# the longest time between pictures over the shortest, from which a frame rate is called variable
UNEVEN = 1.5
# never smaller
SQUARE_PIXELS = "scale='if(gt(sar,1),round(iw*sar),iw)':'if(lt(sar,1),round(ih/sar),ih)',setsar=1"

# it warns of films that are turned or made square
logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)


class Refused(ValueError):
    """A fault that has been told in full."""


class Film(NamedTuple):
    pictures: list[np.ndarray]  # h w 4, uint8
    total: int  # how many were seen: all there are, where some wanted one is lacking


# --- what lies in a folder ------------------------------------------------------------------------


def natural(text: str) -> list[tuple[int, str]]:
    """A key of sorting under which digits compare as numbers: a2 before a10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, in natural order, without what is hidden or what systems leave
    behind."""
    try:
        entries = [
            path
            for path in folder.iterdir()
            if path.name[0] != "." and path.name.lower() not in LITTER
        ]
    except OSError as error:
        raise Refused(
            f"{folder}: cannot be read ({error.strerror}); mend that or name another folder"
        ) from error
    for path in entries:
        if (
            path.is_symlink()
            and not path.exists()
            and path.suffix.lower() in PICTURE_SUFFIXES + VIDEO_SUFFIXES
        ):
            raise Refused(f"{path}: a link to nothing; mend or remove it")
    return sorted(entries, key=lambda path: natural(path.name))


def is_frame(path: Path) -> bool:
    """Whether a file may be one frame of a folder of frames."""
    return path.suffix.lower() in FRAME_SUFFIXES and path.is_file()


def is_film(path: Path) -> bool:
    """Whether a file is a video or a picture that moves."""
    if not path.is_file():
        return False
    suffix = path.suffix.lower()
    return suffix in VIDEO_SUFFIXES or (suffix in PICTURE_SUFFIXES and count_pictures(path) > 1)


# --- pictures -------------------------------------------------------------------------------------


def read_picture(path: Path) -> np.ndarray:  # h w 4, uint8
    """The only picture of a file."""
    with _decoding(path), _opened(path) as image:
        count = _count(image)
        if count > 1:
            raise Refused(
                f"{path}: holds {count} pictures, where one is wanted; save each as a file of"
                " its own"
            )
        return _rgba(image, path)


def count_pictures(path: Path) -> int:
    """How many pictures a picture file shows one after another: 1 unless it is an animation or a
    stack of pages."""
    with _decoding(path), _opened(path) as image:
        return _count(image)


def _count(image: Image.Image) -> int:
    count = getattr(image, "n_frames", 1) if image.format in ANIMATED_FORMATS else 1
    return count - _first(image)


def _first(image: Image.Image) -> int:
    """1 where the first picture of an APNG is for programs that show no animation, and not part of
    it."""
    return int(image.info.get("default_image", False))


def _rgba(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode in ("I", "F"):
        bits = f"32 bits a channel (mode {image.mode}), of which nobody can tell black and white"
        raise Refused(f"{path}: {bits}; save it with 8 or 16 bits a channel")
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        upright = Image.fromarray(
            (np.asarray(upright).astype(np.float64) / 257).round().astype(np.uint8)
        )
    return np.asarray(upright.convert("RGBA"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        # a large picture is no attack
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path)
    with image:
        yield image


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into one line that says what is so."""
    try:
        yield
    except Refused:
        raise
    except Image.DecompressionBombError as error:
        pixels, limit = (int(number) / 1e6 for number in re.findall(r"\d+", str(error))[:2])
        raise Refused(
            f"{path}: {pixels:.0f} megapixels, where at most {limit:.0f} are read; scale it down"
        ) from error
    except MemoryError as error:
        raise Refused(f"{path}: does not fit into memory; scale it down") from error
    # OSError, SyntaxError, struct.error, EOFError, RuntimeError, AssertionError, …
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise Refused(
                f"{path}: cannot be read ({error.strerror}); mend that or name another file"
            ) from error
        if "does not contain any stream" in str(error):
            raise Refused(f"{path}: holds no picture, sound alone; give another file") from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1][:120]  # ffmpeg's last line, after its banner, is the one that says it
        way_out = "damaged, or not what its name says; replace it"
        raise Refused(f"{path}: cannot be decoded ({reason}): {way_out}") from error


# --- films ----------------------------------------------------------------------------------------


def read_film(path: Path, wanted: range | None = None) -> Film:
    """The wanted pictures of a video or an animation, or all; a variable frame rate gets a warning.

    Every stored picture counts once and for the same time, however long it is shown.
    """
    video = path.suffix.lower() in VIDEO_SUFFIXES
    seconds: list[float] = []
    pictures, total = [], 0
    for picture in _video(path) if video else _animation(path, seconds):
        total += 1
        if wanted is None or total - 1 in wanted:
            pictures.append(picture)
        if wanted is not None and total > wanted[-1]:
            break
    if not total:
        raise Refused(f"{path}: holds no picture; replace it")
    _say_if_uneven(
        path, (_seconds(path, total) if video else seconds[:-1])[wanted.start if wanted else 0 :]
    )
    return Film(pictures, total)


def _say_if_uneven(path: Path, seconds: list[float]) -> None:
    """Of the pictures that were read, how long each lasts but the last."""
    if seconds and max(seconds) > UNEVEN * min(seconds):
        lasting = f"its pictures last {min(seconds):.3g} to {max(seconds):.3g} s"
        warnings.warn(
            f"{path.name}: variable frame rate, {lasting}; each is taken once, at even steps",
            stacklevel=3,
        )


def _animation(path: Path, seconds: list[float]) -> Iterator[np.ndarray]:
    """The pictures, and to `seconds` how long each is shown, where the format says so."""
    with _decoding(path), _opened(path) as image:
        first = _first(image)
        for index in range(first, first + _count(image)):
            image.seek(index)
            rgba = _rgba(image, path)
            if "duration" in image.info:
                seconds.append(image.info["duration"] / 1000)
            yield rgba


def _video(path: Path) -> Iterator[np.ndarray]:
    where = str(path.absolute())  # of "a:b.mp4" ffmpeg would take a for a protocol
    with _decoding(path):
        with closing(imageio_ffmpeg.read_frames(where)) as header:
            codec = str(next(header)["codec"]).rstrip(",")  # pyright: ignore[reportArgumentType]
            decoder = ALPHA_DECODERS.get(codec)
        given = ["-c:v", decoder] if decoder else []
        made = ["-vf", SQUARE_PIXELS, "-fps_mode", "passthrough"]
        reading = imageio_ffmpeg.read_frames(
            where, "rgba", bits_per_pixel=32, input_params=given, output_params=made
        )
        with closing(reading) as raw:
            width, height = next(raw)["size"]  # pyright: ignore[reportArgumentType]
            for pixels in raw:
                yield np.frombuffer(pixels, np.uint8).reshape(height, width, 4)


def _seconds(path: Path, count: int) -> list[float]:
    """How long each of the first pictures of a video is shown, by its container; nothing is
    decoded."""
    # packets lie in the order of decoding: so many behind the last picture may come before it
    ahead = 16
    ask = ["-v", "error", "-nostdin", "-i", str(path.absolute()), "-an", "-sn", "-dn", "-c", "copy"]
    ask += ["-frames:v", str(count + ahead), "-f", "framecrc", "-"]
    said = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *ask], capture_output=True, text=True, errors="replace"
    )
    base = re.search(r"^#tb 0: (\d+)/(\d+)", said.stdout, re.MULTILINE)
    stamps = sorted(set(_stamps(said.stdout.splitlines())))[:count]
    if base is None:
        return []
    return [(after - before) * int(base[1]) / int(base[2]) for before, after in pairwise(stamps)]


def _stamps(lines: Iterable[str]) -> Iterator[int]:
    """Presentation times, in ticks: of `stream, dts, pts, duration, size, checksum` the third."""
    for line in lines:
        fields = [field.strip() for field in line.split(",")]
        if not line.startswith("#") and len(fields) > 2 and re.fullmatch(r"-?\d+", fields[2]):
            yield int(fields[2])

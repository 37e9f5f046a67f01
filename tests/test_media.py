"""One reader: every stored picture once, upright, with square pixels, in eight bits, or one line
that says why not."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from d2.data.media import is_film, read_film, read_picture, visible

RED, WHITE = (200, 20, 30), (255, 255, 255)


def ffmpeg(*arguments: object) -> None:
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)], check=True
    )


def flag(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """White with red in its upper left quarter, so that turned, mirrored or stretched it is
    another."""
    image = Image.new("RGB", size, WHITE)
    image.paste(RED, (0, 0, size[0] // 2, size[1] // 2))
    return image


def red_box(rgba: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    rows, columns = np.nonzero(rgba[..., 1] < 128)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def film(path: Path, levels: list[int], seconds: list[float], *options: object) -> Path:
    """Grey pictures in a video, each shown for its time."""
    lines = []
    for index, (level, duration) in enumerate(zip(levels, seconds, strict=True)):
        Image.new("RGB", (32, 32), (level,) * 3).save(path.parent / f"{path.stem}{index}.png")
        lines += [f"file '{path.stem}{index}.png'", f"duration {duration}"]
    (path.parent / "list.txt").write_text("\n".join(lines))
    shape = [
        "-fps_mode",
        "vfr",
        "-video_track_timescale",
        "1000",
        *(options or ["-pix_fmt", "yuv420p"]),
    ]
    ffmpeg("-f", "concat", "-safe", "0", "-i", path.parent / "list.txt", *shape, path)
    return path


def grey_levels(path: Path, wanted: range | None = None) -> list[int]:
    return [round(float(picture[..., 0].mean())) for picture in read_film(path, wanted).pictures]


# --- the clock ------------------------------------------------------------------------------------

LEVELS, SECONDS = [10, 40, 70, 100, 130, 160], [0.1, 0.1, 1.0, 0.1, 0.1, 0.1]


def test_a_variable_frame_rate_gives_every_picture_once_and_a_line(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", LEVELS, SECONDS)
    with pytest.warns(
        UserWarning,
        match=r"^a\.mp4: variable frame rate, .* 1 s; each is taken once, at even steps$",
    ):
        found = grey_levels(path)
    assert np.allclose(found, LEVELS, atol=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # these last equally long
        assert np.allclose(grey_levels(path, range(3, 6)), LEVELS[3:], atol=3)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_same_of_an_animation(name: str, tmp_path: Path) -> None:
    first, *others = [Image.new("RGB", (8, 8), (level,) * 3) for level in LEVELS]
    times = [round(1000 * each) for each in SECONDS]
    first.save(tmp_path / name, save_all=True, append_images=others, duration=times, lossless=True)
    with pytest.warns(UserWarning, match=f"^{name}: variable frame rate"):
        assert grey_levels(tmp_path / name) == LEVELS


@pytest.mark.parametrize(
    ("name", "rate"), [("a.mp4", "30000/1001"), ("a.webm", "60"), ("a.mkv", "24"), ("a.avi", "30")]
)
def test_an_even_rate_gets_no_line_however_coarse_its_clock(
    name: str, rate: str, tmp_path: Path
) -> None:
    ffmpeg("-f", "lavfi", "-i", f"testsrc=s=32x32:r={rate}", "-frames:v", 24, tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert read_film(tmp_path / name).total == 24
        assert len(read_film(tmp_path / name, range(2, 12, 3)).pictures) == 4


def test_the_picture_for_programs_without_animation_is_no_frame(tmp_path: Path) -> None:
    still, *frames = [Image.new("RGB", (8, 8), (level,) * 3) for level in LEVELS]
    still.save(
        tmp_path / "a.png", save_all=True, append_images=frames, default_image=True, duration=100
    )
    assert grey_levels(tmp_path / "a.png") == LEVELS[1:]


# --- the geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turned", "aspect", "size", "box"),
    [
        (0, "1/1", (60, 40), (0, 0, 30, 20)),
        (90, "1/1", (40, 60), (0, 30, 20, 60)),  # counter-clockwise
        (0, "2/1", (120, 40), (0, 0, 60, 20)),
        (0, "1/2", (60, 80), (0, 0, 30, 40)),
        (90, "2/1", (40, 120), (0, 60, 20, 120)),
    ],
)
def test_a_film_is_upright_with_square_pixels(
    turned: int, aspect: str, size: tuple[int, int], box: tuple[int, int, int, int], tmp_path: Path
) -> None:
    flag().save(tmp_path / "flag.png")
    ffmpeg(
        "-loop",
        1,
        "-i",
        tmp_path / "flag.png",
        "-frames:v",
        3,
        "-pix_fmt",
        "yuv420p",
        tmp_path / "flat.mp4",
    )
    bits = f"h264_metadata=sample_aspect_ratio={aspect}"
    ffmpeg("-i", tmp_path / "flat.mp4", "-c", "copy", "-bsf:v", bits, tmp_path / "wide.mp4")
    ffmpeg(
        "-display_rotation", turned, "-i", tmp_path / "wide.mp4", "-c", "copy", tmp_path / "a.mp4"
    )
    picture = read_film(tmp_path / "a.mp4").pictures[1]
    assert picture.shape == (size[1], size[0], 4)
    assert np.abs(np.subtract(red_box(picture), box)).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_a_picture_is_upright(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned clockwise
    flag().save(tmp_path / f"a.{suffix}", exif=exif)
    picture = read_picture(tmp_path / f"a.{suffix}")
    assert (
        picture.shape == (60, 40, 4)
        and np.abs(np.subtract(red_box(picture), (20, 0, 40, 30))).max() <= 1
    )


# --- bits and channels ----------------------------------------------------------------------------


def test_every_kind_of_picture_is_eight_bits_of_rgba(tmp_path: Path) -> None:
    colour = Image.new("RGB", (7, 5), RED)
    grey = round(0.299 * 200 + 0.587 * 20 + 0.114 * 30)
    kinds = {"CMYK": RED, "YCbCr": RED, "LAB": RED, "L": (grey,) * 3, "LA": (grey,) * 3, "P": None}
    for mode, expected in kinds.items():
        image = colour.quantize() if mode == "P" else colour.convert(mode)
        image.save(tmp_path / f"{mode}.tif")
        pixel = read_picture(tmp_path / f"{mode}.tif")[2, 3]
        assert np.allclose(pixel, (*(expected or RED), 255), atol=3), mode
    deep = np.full((4, 4), 40000, np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        assert (read_picture(tmp_path / name)[..., :3] == round(40000 / 257)).all()


def test_transparency_by_palette_and_by_colour_is_alpha(tmp_path: Path) -> None:
    image = flag((8, 8))
    palette = image.quantize(2)
    index = palette.getpixel((7, 7))
    image.save(tmp_path / "rgb.png", transparency=WHITE)
    image.convert("L").save(tmp_path / "grey.png", transparency=255)
    palette.save(tmp_path / "palette.png", transparency=index)
    palette.save(tmp_path / "a.gif", transparency=index)
    for name in ("rgb.png", "grey.png", "palette.png", "a.gif"):
        alpha = read_picture(tmp_path / name)[..., 3]
        assert alpha[0, 0] == 255 and alpha[7, 7] == 0, name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webm", ("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p")),
        ("b.webm", ("-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", 0)),
        ("a.mov", ("-c:v", "prores_ks", "-pix_fmt", "yuva444p10le")),
        ("b.mov", ("-c:v", "qtrle", "-pix_fmt", "argb")),
    ],
)
def test_a_film_keeps_its_alpha(name: str, options: tuple[object, ...], tmp_path: Path) -> None:
    image = flag((64, 48)).convert("RGBA")
    image.paste((0, 0, 0, 0), (32, 0, 64, 48))
    image.save(tmp_path / "a.png")
    ffmpeg("-loop", 1, "-i", tmp_path / "a.png", "-frames:v", 3, *options, tmp_path / name)
    (first, *_), total = read_film(tmp_path / name)
    assert total == 3 and first[:, :30, 3].min() > 250 and first[:, 34:, 3].max() < 5
    assert np.allclose(first[10, 10, :3], RED, atol=6)


# --- names and refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a:b.mp4", "50% %03d.MP4", "it's [1] {x}, a=b.mp4", "-x.mp4", "café 日本.mp4", "a$b&c;.mp4"],
)
def test_a_film_may_have_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a name is all there is of the path
    film(tmp_path / "a.mp4", [10, 40], [0.1, 0.1]).rename(name)
    assert is_film(Path(name)) and read_film(Path(name)).total == 2


def test_what_systems_leave_in_folders_is_passed_over(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        (tmp_path / name).mkdir()
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "10.png", "2.png"):
        (tmp_path / name).touch()
    assert [path.name for path in visible(tmp_path)] == ["2.png", "10.png"]


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_film(path) if path.suffix == ".mp4" else read_picture(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


def test_a_refusal_says_what_is_so(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    refused(tmp_path / "huge.png", "200 megapixels", "scale it down")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "depth.tif")
    refused(tmp_path / "depth.tif", "32 bits a channel", "save it with 8 or 16")
    frames = [Image.new("RGB", (4, 4), (level,) * 3) for level in (1, 2)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    refused(tmp_path / "moving.webp", "holds 2 pictures", "save each")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "cannot be read (Is a directory)")
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.1", tmp_path / "sound.mp4")
    refused(tmp_path / "sound.mp4", "holds no picture")
    (tmp_path / "text.png").write_text("no picture")
    refused(tmp_path / "text.png", "cannot be decoded", "replace it")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "7.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"7\.png: a link to nothing; mend or remove it$"):
        visible(tmp_path)

"""What a user brings is read as it is, or refused in one line that says which file, what is wrong
and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from d2.data.folder import list_clips, parts, read_clip, scene_name
from d2.data.media import FAINT

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no sample data in {SHARED}")


def picture(grey: int, size: tuple[int, int] = (8, 6), alpha: int = 255) -> Image.Image:
    return Image.new("RGBA", size, (grey, grey, grey, alpha))


def write_frames(folder: Path, names: list[str]) -> Path:
    """A frame's grey level tells its place in `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        image = picture(10 * place + 10)
        (image.convert("RGB") if name.endswith("jpg") else image).save(folder / name)
    return folder


def write_film(
    path: Path, num_frames: int, pix_fmt: str, codec: str, alpha: int = 255, size: int = 32
) -> Path:
    formats = {"pix_fmt_in": "rgba", "pix_fmt_out": pix_fmt, "codec": codec, "macro_block_size": 1}
    params = ["-auto-alt-ref", "0"] if codec == "libvpx" else []  # VP8 refuses alpha without it
    film = imageio_ffmpeg.write_frames(str(path), (size, size), **formats, output_params=params)
    film.send(None)
    for frame in range(num_frames):
        rgba = np.asarray(picture(10 * frame + 10, (size, size), alpha)).copy()
        if alpha < 255:
            rgba[:, : size // 2, 3] = 0  # something has been cut out
        film.send(rgba)
    film.close()
    return path


def levels(rgba: torch.Tensor) -> list[int]:
    return [round(float(frame[0].float().mean())) for frame in rgba]


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(12)],
        [f"frame_{i:02}.png" for i in range(12)],
        [f"take3_{i + 1}.webp" for i in range(12)],
        [f"v2_frame{i}.jpg" for i in range(7, 19)],
    ],
)
def test_frames_come_in_the_order_of_their_last_number(tmp_path: Path, names: list[str]) -> None:
    clip = read_clip(write_frames(tmp_path / "clip", names), num_frames=12)
    assert clip.name == "clip" and not clip.is_picture and not clip.has_alpha
    assert clip.rgba.shape == (12, 4, 6, 8) and clip.rgba.dtype == torch.uint8
    assert np.allclose(levels(clip.rgba), [10 * i + 10 for i in range(12)], atol=3)


def test_start_and_stride_choose_the_frames(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", [f"{i}.png" for i in range(10)])
    assert levels(read_clip(folder, num_frames=3, start=1, stride=4).rgba) == [20, 60, 100]


def test_other_files_beside_the_frames_do_not_matter(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", ["0.png", "1.png"])
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.png").write_text("hello")
    (folder / "masks").mkdir()
    assert levels(read_clip(folder, num_frames=2).rgba) == [10, 20]
    assert list_clips(folder) == [folder]


def test_alpha_is_kept_and_noticed(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", ["0.png", "1.png"])
    image = picture(50)
    image.putpixel((3, 2), (1, 2, 3, 0))
    image.save(folder / "1.png")
    clip = read_clip(folder, num_frames=2)
    assert clip.has_alpha and clip.rgba[1, 3, 2, 3] == 0 and int((clip.rgba[:, 3] == 0).sum()) == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_one_picture_is_one_frame_for_the_video_prior(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"hero.{suffix}"
    picture(100).convert("RGB").save(path)
    clip = read_clip(path, num_frames=25, start=3)
    assert clip.is_picture and clip.name == "hero" and clip.rgba.shape == (1, 4, 6, 8)


def test_grey_and_palette_pictures_are_read(tmp_path: Path) -> None:
    for mode in ("L", "LA", "P", "1"):
        picture(255).convert(mode).save(tmp_path / f"{mode}.png")
        assert (read_clip(tmp_path / f"{mode}.png", num_frames=1).rgba == 255).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_a_clip(tmp_path: Path, suffix: str) -> None:
    frames = [picture(20 * i + 10) for i in range(6)]
    frames[0].save(
        tmp_path / f"a.{suffix}",
        save_all=True,
        append_images=frames[1:],
        duration=100,
        lossless=True,
    )
    clip = read_clip(tmp_path / f"a.{suffix}", num_frames=3, stride=2)
    assert not clip.is_picture and levels(clip.rgba) == [10, 50, 90]


@pytest.mark.parametrize(
    ("name", "pix_fmt", "codec"),
    [
        ("a.mp4", "yuv420p", "libx264"),
        ("a.mov", "yuv444p", "libx264"),
        ("a.webm", "yuv420p", "libvpx-vp9"),
    ],
)
def test_a_video_is_a_clip(tmp_path: Path, name: str, pix_fmt: str, codec: str) -> None:
    clip = read_clip(
        write_film(tmp_path / name, 9, pix_fmt, codec), num_frames=4, start=1, stride=2
    )
    assert clip.rgba.shape == (4, 4, 32, 32) and not clip.has_alpha and not clip.is_picture
    assert np.allclose(levels(clip.rgba), [20, 40, 60, 80], atol=4)


@pytest.mark.parametrize(
    ("name", "pix_fmt", "codec"),
    [
        ("a.webm", "yuva420p", "libvpx-vp9"),
        ("b.webm", "yuva420p", "libvpx"),
        ("a.mov", "argb", "qtrle"),
    ],
)
def test_a_video_keeps_its_alpha(tmp_path: Path, name: str, pix_fmt: str, codec: str) -> None:
    clip = read_clip(write_film(tmp_path / name, 3, pix_fmt, codec, alpha=128), num_frames=3)
    assert clip.has_alpha and levels(clip.rgba[:, 3:, :, :15]) == [0, 0, 0]
    assert np.allclose(levels(clip.rgba[:, 3:, :, 17:]), 128, atol=4)


def test_a_folder_of_clips_is_many_scenes_in_natural_order(tmp_path: Path) -> None:
    for name in ("walk10", "walk2"):
        write_frames(tmp_path / name, ["0.png", "1.png"])
    write_film(tmp_path / "dance.mp4", 2, "yuv420p", "libx264")
    picture(1).save(tmp_path / "hero.png")
    (tmp_path / "README.txt").write_text("hello")
    clips = list_clips(tmp_path)
    assert [clip.name for clip in clips] == ["dance.mp4", "hero.png", "walk2", "walk10"]
    assert [read_clip(clip, num_frames=2).name for clip in clips] == [
        "dance",
        "hero",
        "walk2",
        "walk10",
    ]


def test_every_fifth_frame_of_a_film_is_a_clip(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", [f"frame_{i:04}.png" for i in (1, 6, 11, 16)])
    assert levels(read_clip(folder, num_frames=4).rgba) == [10, 20, 30, 40]


def test_faint_alpha_says_nothing_of_having_been_cut_out(tmp_path: Path) -> None:
    """Nearly opaque everywhere is a picture on white; background is where alpha is below the one
    threshold."""
    image = picture(50)
    image.putpixel((3, 2), (50, 50, 50, 204))
    image.save(tmp_path / "hero.png")
    clip = read_clip(tmp_path / "hero.png", num_frames=1)
    assert (
        not clip.has_alpha
        and (clip.rgba[:, 3] == 255).all()
        and clip.rgba[0, 0, 2, 3] == 0.8 * 50 + 0.2 * 255
    )
    for alpha, is_cut_out in ((FAINT, False), (FAINT - 1, True)):
        image.putpixel((0, 0), (9, 9, 9, alpha))
        image.save(tmp_path / "hero.png")
        assert read_clip(tmp_path / "hero.png", num_frames=1).has_alpha == is_cut_out
    picture(90, alpha=FAINT - 1).save(tmp_path / "ghost.png")
    refused(lambda: read_clip(tmp_path / "ghost.png", num_frames=1), "ghost.png", "all transparent")


# --- masks ----------------------------------------------------------------------------------------


def write_masks(folder: Path, count: int, level: int = 255, suffix: str = "png") -> None:
    """The left half is the object, one column wider each frame."""
    folder.mkdir(parents=True, exist_ok=True)
    for frame in range(count):
        mask = Image.new("L", (8, 6))
        mask.paste(level, (0, 0, 4 + frame, 6))
        mask.save(folder / f"mask_{frame:03}.{suffix}")


@pytest.mark.parametrize("level", [255, 128, 1])  # coverage, a palette's first colour, a label
@pytest.mark.parametrize(
    ("images", "masks", "clip"),
    [
        ("walk/images", "walk/masks", "walk"),
        ("walk/rgb", "walk/mask", "walk"),
        ("walk", "walk/masks", "walk"),
    ],
)
def test_images_and_masks_of_one_clip_are_one_scene(
    images: str, masks: str, clip: str, level: int, tmp_path: Path
) -> None:
    write_frames(tmp_path / images, ["0.png", "1.png", "2.png"])
    write_masks(tmp_path / masks, 3, level)
    (tmp_path / clip / "depth").mkdir()
    for path in (tmp_path, tmp_path / clip):
        assert list_clips(path) == [tmp_path / clip]
    read = read_clip(tmp_path / clip, num_frames=2, start=1)
    assert read.name == "walk" and read.has_alpha and levels(read.rgba) == [20, 30]
    assert [int((alpha == 255).sum()) for alpha in read.rgba[:, 3]] == [6 * 5, 6 * 6]
    assert set(read.rgba[:, 3].unique().tolist()) == {0, 255}


@pytest.mark.parametrize("name", ["walk_mask.gif", "walk_masks"])
def test_masks_beside_a_clip_are_no_scene(name: str, tmp_path: Path) -> None:
    frames = [picture(10 * i + 10) for i in range(3)]
    frames[0].save(tmp_path / "walk.webp", save_all=True, append_images=frames[1:], lossless=True)
    write_masks(tmp_path / "walk_masks", 3)
    if name.endswith("gif"):
        masks = [Image.open(file) for file in sorted((tmp_path / "walk_masks").iterdir())]
        masks[0].save(tmp_path / name, save_all=True, append_images=masks[1:])
        shutil.rmtree(tmp_path / "walk_masks")
    assert list_clips(tmp_path) == [tmp_path / "walk.webp"]
    rgba = read_clip(tmp_path / "walk.webp", num_frames=3).rgba
    assert levels(rgba) == [10, 20, 30] and [int((alpha == 255).sum()) for alpha in rgba[:, 3]] == [
        24,
        30,
        36,
    ]


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "walk" / "images", ["0.png", "1.png", "2.png"])
    write_masks(tmp_path / "walk" / "masks", 2)
    refused(lambda: read_clip(tmp_path / "walk", num_frames=2), "masks: no mask of frame 2")
    picture(255, (9, 9)).save(tmp_path / "walk" / "masks" / "mask_002.png")
    refused(
        lambda: read_clip(tmp_path / "walk", num_frames=3),
        "mask_002.png is 9×9 but mask_000.png 8×6",
    )


# --- names ----------------------------------------------------------------------------------------


def test_a_scene_has_a_name_that_a_file_system_and_a_run_can_take(tmp_path: Path) -> None:
    assert scene_name(Path("clips/walk 1.mp4")) == "walk 1"
    assert {scene_name(Path(f"{name}.mp4")) for name in ("log", "Log", "metrics.csv")} == {
        "scene_log",
        "scene_Log",
        "scene_metrics.csv",
    }
    assert (
        scene_name(Path("a\nb.mp4")) == "a_b"
        and scene_name(Path("caf\udce9.png")).encode() == "caf�".encode()
    )
    long = [scene_name(Path(f"{'日本' * 40}{end}.png")) for end in "ab"]
    assert len(set(long)) == 2 and all(
        len(name.encode()) <= 200 and name.startswith("日本") for name in long
    )


def test_a_link_is_called_as_it_is_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "0001", ["0.png", "1.png"])
    (tmp_path / "clips").mkdir()
    for name in ("walk", "run"):
        (tmp_path / "clips" / name).symlink_to(folder)
    assert [read_clip(clip, num_frames=2).name for clip in list_clips(tmp_path / "clips")] == [
        "run",
        "walk",
    ]


@needs_shared
def test_the_sample_clip_and_picture_are_read() -> None:
    clip = read_clip(SHARED / "flying_ironman", num_frames=25)
    assert clip.rgba.shape == (25, 4, 1080, 1080) and clip.has_alpha and not clip.is_picture
    with Image.open(SHARED / "flying_ironman" / "10.png") as image:
        assert (clip.rgba[10].permute(1, 2, 0).numpy() == np.asarray(image)).all()
    hero = read_clip(SHARED / "csm_luigi_rgba.png", num_frames=25)
    assert hero.rgba.shape == (1, 4, 256, 256) and hero.has_alpha and hero.is_picture


# --- what is refused ------------------------------------------------------------------------------


def refused(read: Callable[[], object], *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


def test_a_missing_path(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    refused(lambda: read_clip(path, num_frames=2), f"scenes.path={path}", "no such file")
    refused(lambda: list_clips(path), f"scenes.path={path}", "no such file")


def test_an_empty_folder(tmp_path: Path) -> None:
    refused(lambda: read_clip(tmp_path, num_frames=2), f"scenes.path={tmp_path}", "empty", "0.png")
    refused(lambda: list_clips(tmp_path), f"scenes.path={tmp_path}", "empty", "0.png")


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    refused(lambda: read_clip(tmp_path, num_frames=2), "no picture", "notes.txt")
    refused(lambda: list_clips(tmp_path), "no picture", "notes.txt")


def test_gaps_in_the_numbering_are_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", [f"{i}.png" for i in (0, 1, 3, 4, 7)])
    refused(
        lambda: read_clip(folder, num_frames=2),
        f"scenes.path={folder}",
        "missing frame 2, 5, 6",
        "renumber",
    )


def test_a_huge_gap_is_told_shortly(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", ["0.png", "3.png", "100000000000000.png"])
    refused(lambda: read_clip(folder, num_frames=2), "1, 2, 4, 5, 6, 7, 8, 9 and", "more")


def test_a_truncated_frame(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", ["0.png"])
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "0.png")
    Image.fromarray(noise).save(folder / "1.png")
    data = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(data[: len(data) // 2])
    refused(
        lambda: read_clip(folder, num_frames=2),
        f"scenes.path={folder / '1.png'}",
        "cannot be decoded",
        "replace",
    )


def test_a_corrupt_frame(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", ["0.png", "1.png"])
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "1.png")
    data = bytearray((folder / "1.png").read_bytes())
    data[100:140] = bytes(40)
    (folder / "1.png").write_bytes(data)
    refused(
        lambda: read_clip(folder, num_frames=2),
        f"scenes.path={folder / '1.png'}",
        "cannot be decoded",
        "replace",
    )


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.mp4", "a.webm"])
def test_a_text_file_with_another_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is no picture\n" * 5)
    refused(
        lambda: read_clip(tmp_path / name, num_frames=2),
        f"scenes.path={tmp_path / name}",
        "replace",
    )


def test_a_text_file_among_the_frames(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", ["0.png"])
    (folder / "1.png").write_text("this is no picture")
    refused(
        lambda: read_clip(folder, num_frames=2),
        f"scenes.path={folder / '1.png'}",
        "cannot be decoded",
        "replace",
    )


def test_a_truncated_video(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", 9, "yuv420p", "libx264")
    path.write_bytes(path.read_bytes()[:300])
    refused(
        lambda: read_clip(path, num_frames=2), f"scenes.path={path}", "cannot be decoded", "replace"
    )


def test_mixed_sizes(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", ["0.png", "1.png"])
    picture(9, (9, 6)).save(folder / "2.png")
    refused(
        lambda: read_clip(folder, num_frames=3),
        "mixed sizes",
        "2.png is 9×6 but 0.png 8×6",
        "one size",
    )


@pytest.mark.parametrize("kind", ["folder", "gif", "mp4"])
def test_too_few_frames(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        path = write_frames(tmp_path / "clip", [f"{i}.png" for i in range(7)])
    elif kind == "gif":
        path, frames = tmp_path / "a.gif", [picture(20 * i + 10) for i in range(7)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    else:
        path = write_film(tmp_path / "a.mp4", 7, "yuv420p", "libx264")
    words = ["7 frames", "10 needed", "matrix.num_frames=4", "frames.start=0", "frames.stride=3"]
    refused(lambda: read_clip(path, num_frames=4, stride=3), *words, "set matrix.num_frames=3")
    refused(
        lambda: read_clip(path, num_frames=4, start=9),
        "7 frames",
        "13 needed",
        "set frames.start below 7",
    )
    assert len(read_clip(path, num_frames=3, stride=3).rgba) == 3


def test_an_all_transparent_picture(tmp_path: Path) -> None:
    picture(90, alpha=0).save(tmp_path / "hero.png")
    refused(
        lambda: read_clip(tmp_path / "hero.png", num_frames=2),
        "hero.png",
        "all transparent",
        "replace",
    )


def test_an_all_transparent_frame_is_named_if_it_is_used(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", [f"{i}.png" for i in range(4)])
    picture(90, alpha=0).save(folder / "2.png")
    refused(
        lambda: read_clip(folder, num_frames=4),
        f"scenes.path={folder}",
        "2.png",
        "all transparent",
        "replace",
    )
    assert len(read_clip(folder, num_frames=2, stride=3).rgba) == 2


def test_two_frames_of_one_number(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", ["0.png", "1.png", "01.jpg"])
    refused(
        lambda: read_clip(folder, num_frames=2),
        f"scenes.path={folder}",
        "1.png",
        "01.jpg",
        "both frame 1",
        "keep",
    )


def test_a_picture_without_number_among_the_frames(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", ["0.png", "1.png", "thumb.png"])
    refused(
        lambda: read_clip(folder, num_frames=2), f"scenes.path={folder}", "thumb.png", "no number"
    )


def test_an_unsupported_extension(tmp_path: Path) -> None:
    (tmp_path / "model.obj").write_text("v 0 0 0")
    refused(
        lambda: read_clip(tmp_path / "model.obj", num_frames=2),
        "model.obj",
        "unsupported",
        "'.obj'",
        ".mp4",
    )


def test_two_clips_of_one_name(tmp_path: Path) -> None:
    write_frames(tmp_path / "walk", ["0.png"])
    (tmp_path / "walk.mp4").write_bytes(b"")
    refused(lambda: list_clips(tmp_path), f"scenes.path={tmp_path}", "walk.mp4", "rename")


def test_numbers_out_of_range(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", ["0.png", "1.png"])
    refused(
        lambda: read_clip(folder, num_frames=2, start=-1), "frames.start=-1", "set frames.start=0"
    )
    refused(
        lambda: read_clip(folder, num_frames=2, stride=0), "frames.stride=0", "set frames.stride=1"
    )
    refused(
        lambda: read_clip(folder, num_frames=0), "matrix.num_frames=0", "set matrix.num_frames=1"
    )


def test_a_name_near_the_limit_of_the_file_system_has_no_mask_beside_it(tmp_path: Path) -> None:
    clip = tmp_path / f"{'a' * 246}.png"  # with `_masks` it would be longer than a name may be
    Image.new("RGB", (8, 8)).save(clip)
    assert parts(clip) == (clip, None)

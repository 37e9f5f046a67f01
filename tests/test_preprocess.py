"""A clip keeps its motion and scale in the square; a picture is placed as published; white is what
lies behind."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from golden.case import FOLDER, read_case
from golden.preprocess import check_preprocess
from torch import Tensor

from d2.data.folder import Clip, read_clip
from d2.data.media import FAINT
from d2.data.preprocess import preprocess_clip

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no sample data in {SHARED}")
RED = (200, 20, 30)


def clip_of(
    boxes: list[tuple[int, int, int, int]],  # left, top, width, height of a red block in each frame
    size: tuple[int, int],  # height, width
    background: tuple[int, int, int, int] = (0, 0, 0, 0),
    is_picture: bool = False,
) -> Clip:
    rgba = torch.tensor(background, dtype=torch.uint8).view(1, 4, 1, 1).repeat(len(boxes), 1, *size)
    for frame, (left, top, width, height) in zip(rgba, boxes, strict=True):
        frame[:, top : top + height, left : left + width] = torch.tensor(
            [*RED, 255], dtype=torch.uint8
        ).view(4, 1, 1)
    return Clip("clip", rgba, has_alpha=background[3] < 255, is_picture=is_picture)


def measure(mask: Tensor) -> tuple[float, float, float, float]:
    """Centre (x, y) and extent (width, height) of a block, from a mask 1 h w: moments and sums, not
    a box."""
    mask = mask[0].double()
    across, down = mask.sum(dim=0), mask.sum(dim=1)
    centres = torch.arange(len(across)) + 0.5
    x, y = (
        float((across * centres).sum() / across.sum()),
        float((down * centres).sum() / down.sum()),
    )
    return (
        x,
        y,
        float(mask.sum() / mask.max(dim=1).values.sum()),
        float(mask.sum() / mask.max(dim=0).values.sum()),
    )


# --- one box for the clip -------------------------------------------------------------------------


def test_motion_and_size_are_scaled_by_one_number() -> None:
    """A block moves by (30, 10) and grows from 20 to 40: in the square all lengths are those times
    96 / side."""
    clip = clip_of([(50, 60, 20, 20), (80, 70, 40, 40)], (200, 160))
    _, masks = preprocess_clip(clip, size=96, image_frame_ratio=0.8)
    scale = 96 / int(70 / 0.8)  # the union is 70 wide (50 … 120) and 50 high (60 … 110)
    first, second = measure(masks[0]), measure(masks[1])
    assert second[0] - first[0] == pytest.approx((100 - 60) * scale, abs=0.1)
    assert second[1] - first[1] == pytest.approx((90 - 70) * scale, abs=0.1)
    assert first[2:] == pytest.approx((20 * scale, 20 * scale), rel=0.03)
    assert second[2:] == pytest.approx((40 * scale, 40 * scale), rel=0.03)


def test_the_union_box_is_centred_and_takes_its_share() -> None:
    clip = clip_of([(10, 20, 20, 30), (70, 20, 20, 30)], (100, 100))
    _, masks = preprocess_clip(clip, size=100, image_frame_ratio=0.5)
    columns = torch.nonzero(masks.amax(dim=(0, 1, 2)) > 0.5)
    rows = torch.nonzero(masks.amax(dim=(0, 1, 3)) > 0.5)
    assert columns[-1] - columns[0] + 1 == pytest.approx(50, abs=1)
    assert columns[-1] + columns[0] + 1 == pytest.approx(100, abs=2)
    assert rows[-1] + rows[0] + 1 == pytest.approx(100, abs=2)


def test_a_still_clip_is_the_picture_at_every_frame() -> None:
    box = (13, 5, 31, 44)
    pixels, masks = preprocess_clip(clip_of([box] * 3, (60, 80)), size=48, image_frame_ratio=0.7)
    picture, mask = preprocess_clip(
        clip_of([box], (60, 80), is_picture=True), size=48, image_frame_ratio=0.7
    )
    assert torch.equal(pixels, picture.expand_as(pixels)) and torch.equal(
        masks, mask.expand_as(masks)
    )


@pytest.mark.parametrize("size", [(60, 100), (100, 60)])
def test_without_a_ratio_the_frame_is_padded_to_a_square(size: tuple[int, int]) -> None:
    _, masks = preprocess_clip(
        clip_of([(5, 7, 11, 13), (40, 30, 11, 13)], size), size=100, image_frame_ratio=None
    )
    down, right = (100 - size[0]) // 2, (100 - size[1]) // 2
    assert (
        masks[0, 0, down + 7 : down + 20, right + 5 : right + 16].all()
        and masks[0].sum() == 11 * 13
    )
    assert (
        masks[1, 0, down + 30 : down + 43, right + 40 : right + 51].all()
        and masks[1].sum() == 11 * 13
    )


def test_without_a_ratio_a_picture_is_centred_at_its_scale() -> None:
    picture = clip_of([(5, 7, 20, 30)], (100, 140), is_picture=True)
    _, masks = preprocess_clip(picture, size=100, image_frame_ratio=None)
    assert masks[0, 0, 35:65, 40:60].all() and masks.sum() == 20 * 30


def test_pixels_are_the_object_on_white() -> None:
    pixels, masks = preprocess_clip(
        clip_of([(4, 4, 24, 24)], (32, 32)), size=64, image_frame_ratio=None
    )
    assert pixels.shape == (1, 3, 64, 64) and masks.shape == (1, 1, 64, 64)
    assert all(values.min() >= 0 and values.max() <= 1 for values in (pixels, masks))
    core = pixels[0, :, 16:48, 16:48] * 255  # away from the edge, where Lanczos overshoots
    assert torch.allclose(core, torch.tensor(RED).float().view(3, 1, 1), atol=0.01)
    outside = masks.expand_as(pixels) == 0
    assert outside.any() and (pixels[outside] == 1).all()


def test_the_colour_under_transparent_pixels_does_not_bleed() -> None:
    clip = clip_of([(10, 10, 20, 20)], (40, 40))
    green = clip.rgba.clone()
    green[:, 1] = torch.where(clip.rgba[:, 3] == 0, 255, clip.rgba[:, 1])
    black_based, _ = preprocess_clip(clip, size=53, image_frame_ratio=0.9)
    green_based, _ = preprocess_clip(clip._replace(rgba=green), size=53, image_frame_ratio=0.9)
    assert torch.equal(black_based, green_based)


@pytest.mark.parametrize("haze", [1, FAINT - 1])
def test_faint_alpha_far_from_the_object_does_not_move_the_box(haze: int) -> None:
    """What a network or a codec leaves, in a corner or everywhere, widens the box by an edge's
    softness at most."""
    clean = clip_of([(40, 40, 20, 20), (44, 40, 20, 20)], (128, 128))
    _, expected = preprocess_clip(clean, size=64, image_frame_ratio=0.8)
    dusty = clean.rgba.clone()
    dusty[1, 3, 0, 0] = dusty[1, 3, -1, -1] = haze
    hazy = torch.cat([clean.rgba[:, :3], clean.rgba[:, 3:].clamp(min=haze)], dim=1)
    _, masks = preprocess_clip(clean._replace(rgba=dusty), size=64, image_frame_ratio=0.8)
    assert torch.equal(masks, expected)
    _, masks = preprocess_clip(clean._replace(rgba=hazy), size=64, image_frame_ratio=0.8)
    assert measure((masks[0] > 0.5).double())[2] > 0.8 * measure((expected[0] > 0.5).double())[2]


# --- without alpha --------------------------------------------------------------------------------


def test_a_white_border_is_background() -> None:
    boxes = [(20, 30, 40, 30), (50, 30, 40, 30)]
    with_alpha = preprocess_clip(clip_of(boxes, (120, 120)), size=64, image_frame_ratio=0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_white = preprocess_clip(
            clip_of(boxes, (120, 120), (247, 250, 245, 255)), size=64, image_frame_ratio=0.8
        )
    assert torch.allclose(on_white[1], with_alpha[1], atol=1e-6)
    # off-white meets the block where alpha would
    assert (on_white[0] - with_alpha[0]).abs().max() <= 0.05
    assert (on_white[0][on_white[1].expand(-1, 3, -1, -1) == 0] == 1).all()


def test_white_that_the_border_does_not_reach_belongs_to_the_object() -> None:
    """A ring around a white hole keeps it; a ring with a winding way in loses it."""
    closed = clip_of([(20, 20, 40, 40)], (80, 80), (255, 255, 255, 255))
    closed.rgba[:, :3, 30:50, 30:50] = 255
    opened = closed._replace(rgba=closed.rgba.clone())
    opened.rgba[:, :3, 24:26, 24:40] = 255  # in from the hole's top, along, and out at the left
    opened.rgba[:, :3, 24:31, 38:40] = 255
    opened.rgba[:, :3, 24:26, 20:25] = 255
    _, whole = preprocess_clip(closed, size=80, image_frame_ratio=None)
    _, holed = preprocess_clip(opened, size=80, image_frame_ratio=None)
    assert whole.sum() == 40 * 40
    assert holed.sum() == 40 * 40 - 20 * 20 - (2 * 20 + 4 * 2)


def test_without_alpha_and_white_the_central_square_is_kept_with_one_warning() -> None:
    clip = clip_of([(0, 0, 30, 40), (5, 0, 30, 40)], (40, 100), (90, 140, 60, 255))
    with pytest.warns(UserWarning, match="clip: no alpha and no white border") as caught:
        pixels, masks = preprocess_clip(clip, size=40, image_frame_ratio=0.5)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert (masks == 1).all()
    assert torch.equal((pixels * 255).round().byte(), clip.rgba[:, :3, :, 30:70])


def test_a_frame_of_white_alone_is_refused_by_its_number() -> None:
    clip = clip_of([(20, 20, 20, 20), (0, 0, 0, 0)], (60, 60), (255, 255, 255, 255))
    with pytest.raises(
        ValueError, match=r"^scenes\.path: frame 1 of clip clip is nothing but white; [^\n]*$"
    ):
        preprocess_clip(clip, size=32, image_frame_ratio=0.8)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 0.01, 1.2, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"^scenes\.image_frame_ratio={ratio}: [^\n]*null[^\n]*$"):
        preprocess_clip(clip_of([(20, 20, 20, 20)], (60, 60)), size=32, image_frame_ratio=ratio)


# --- against the published pictures, and on the sample data ---------------------------------------


@pytest.mark.skipif(
    not (FOLDER / "preprocess.json").is_file(), reason=f"no preprocess.json in {FOLDER}"
)
def test_the_published_pictures_are_reproduced() -> None:
    check_preprocess(read_case("preprocess", FOLDER))


@needs_shared
def test_the_sample_clip_keeps_its_motion() -> None:
    """The centroid path of the raw alpha, times one scale, is the path in the square."""
    clip = read_clip(SHARED / "flying_ironman", num_frames=5, stride=6)
    pixels, masks = preprocess_clip(clip, size=128, image_frame_ratio=0.9)
    assert pixels.shape == (5, 3, 128, 128)
    visible = (clip.rgba[:, 3] > 0).any(dim=0)
    extent = [
        int(torch.nonzero(visible.any(dim=dim)).flatten()[[0, -1]].diff()) + 1 for dim in (0, 1)
    ]
    scale = 128 / int(max(extent) / 0.9)
    for axis in (0, 1):
        raw = torch.tensor([measure(alpha[None])[axis] for alpha in clip.rgba[:, 3]])
        ours = torch.tensor([measure(mask)[axis] for mask in masks])
        assert torch.allclose(ours - ours[0], (raw - raw[0]) * scale, atol=0.05)

"""What lies in folders of matrices: every layout gives the same pixels, and every fault is told in
one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluation_files import LAYOUTS, pictures_of, write_frames, write_object, write_run
from PIL import Image
from small_encoder import random_matrix

from d2.evaluate.folders import find_objects, layout_of, read_sample, read_true
from d2.io import write_video


def only_failure(
    sampled: Path | list[Path], truth: Path | None, *, needs_truth: bool = True
) -> str:
    """The one line of a set whose other objects are fine."""
    found = find_objects(
        sampled if isinstance(sampled, list) else [sampled],
        truth,
        needs_truth=needs_truth,
    )
    (line,) = found.failures
    assert "\n" not in line and all(each.name not in line for each in found.objects)
    return line


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pixels_in_the_same_order(layout: str, tmp_path: Path) -> None:
    matrix = random_matrix(0, 11, 12)  # so that 10 and 2 come in the order of numbers
    write_object(tmp_path / "lion", matrix, layout)
    assert layout_of(tmp_path / "lion") == layout
    read = read_sample(tmp_path / "lion")
    assert torch.equal(read.pixels, pictures_of(matrix)) and read.masks is None
    assert read.input_view == (10 if layout == "ours" else None)


def test_a_video_a_view(tmp_path: Path) -> None:
    matrix = random_matrix(0, 3, 4, size=256)  # so large that none is enlarged to be watchable
    for view in range(3):
        write_video(tmp_path / "lion" / f"view_{view}.mp4", matrix[view], 8)
    read = read_sample(tmp_path / "lion")
    assert layout_of(tmp_path / "lion") == "videos" and read.pixels.shape == matrix.shape
    error = (read.pixels - matrix).abs().mean(dim=(2, 3, 4))
    # a codec, and no other view
    assert error.max() < 0.03 < (read.pixels.roll(1, 0) - matrix).abs().mean()


def test_transparent_pictures_come_on_white_with_their_coverage(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 51))
    picture.paste((0, 255, 0, 0), (2, 0, 4, 4))
    view = tmp_path / "lion" / "view_0"
    view.mkdir(parents=True)
    picture.save(view / "0.png")
    read = read_true(tmp_path / "lion")
    assert read.masks is not None and torch.allclose(
        read.masks[0, 0, 0, 0], torch.tensor([0.2, 0.2, 0, 0])
    )
    assert torch.allclose(read.pixels[0, 0, :, 0, 0], torch.tensor([1.0, 0.8, 0.8]))
    assert (read.pixels[..., 2:] == 1).all()


def test_what_lies_beside_the_views_is_passed_over(tmp_path: Path) -> None:
    matrix = random_matrix(0, 2, 3)
    for layout in LAYOUTS:
        write_object(tmp_path / layout / "lion", matrix, layout)
        # as Consistent4D's input lies there, and our preview
        write_frames(tmp_path / layout / "lion", matrix[0])
        (tmp_path / layout / "log").mkdir()
        (found,) = find_objects([tmp_path / layout], None, needs_truth=False).objects
        assert found.name == "lion" and torch.equal(
            read_sample(found.samples[0]).pixels, pictures_of(matrix)
        )


def test_single_objects_are_a_pair_whatever_they_are_called(tmp_path: Path) -> None:
    for name in ("pred", "truth"):
        write_object(tmp_path / name, random_matrix(0, 2, 3), "frames")
    (found,) = find_objects([tmp_path / "pred"], tmp_path / "truth", needs_truth=True).objects
    assert found == ("truth", (tmp_path / "pred",), tmp_path / "truth")
    write_object(tmp_path / "a" / "lion", random_matrix(0, 2, 3), "frames")
    write_object(tmp_path / "b" / "cat", random_matrix(0, 2, 3), "frames")
    # sets of one are not
    assert len(find_objects([tmp_path / "a"], tmp_path / "b", needs_truth=True).failures) == 2


# --- faults ---------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of two objects of 3 × 4; the faults are made in the lion."""
    for root in ("pred", "truth"):
        for seed, name in enumerate(("lion", "ox")):
            write_object(tmp_path / root / name, random_matrix(seed, 3, 4), "consistent4d")
    return tmp_path / "pred", tmp_path / "truth"


def test_missing_frames_are_listed(pair: tuple[Path, Path]) -> None:
    pred, truth = pair
    for place in ("eval_0/1.png", "eval_0/2.png", "eval_2/0.png"):
        (pred / "lion" / place).unlink()
    line = "lion: the sample: view 0 lacks frame 1, 2; the sample: view 2 lacks frame 0"
    assert only_failure(pred, truth) == line
    # the other views tell what there should be
    assert only_failure(pred, None, needs_truth=False) == line
    assert only_failure(truth, pred).startswith("lion: the truth: view 0 lacks frame 1, 2; ")


def test_a_view_too_many_and_one_too_few(pair: tuple[Path, Path]) -> None:
    pred, truth = pair
    (pred / "lion" / "eval_1").rename(pred / "lion" / "eval_7")
    assert (
        only_failure(pred, truth)
        == "lion: the sample: lacks view 1; the sample: has too many: view 7"
    )


def test_a_matrix_of_ours_is_counted_before_it_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"ox": random_matrix(0, 3, 4)})
    write_object(tmp_path / "run" / "lion", random_matrix(0, 4, 3), "ours", random_matrix(0, 3, 4))
    line = only_failure(tmp_path / "run", tmp_path / "run")
    assert "lion: the sample: has too many: view 3" in line and "view 0 lacks frame 3" in line


def test_an_object_without_truth(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pred, truth = pair
    (truth / "lion").rename(tmp_path / "elsewhere")
    assert only_failure(pred, truth).startswith("lion: no truth; add it")
    assert not find_objects([pred], truth, needs_truth=False).failures
    assert (
        only_failure(truth, pred)
        == f"lion: not in {truth}; sample it, or choose others with objects=[…]"
    )
    assert only_failure([pred, truth], pred).startswith(f"lion: not in {truth};")
    run = tmp_path / "run"
    write_run(run, {"ox": random_matrix(0, 3, 4)})
    write_object(run / "lion", random_matrix(0, 3, 4), "ours")
    assert only_failure(run, run).startswith("lion: no truth")


def test_frames_of_two_sizes(pair: tuple[Path, Path]) -> None:
    pred, _ = pair
    Image.new("RGB", (8, 9)).save(pred / "lion" / "eval_1" / "2.png")
    with pytest.raises(
        ValueError, match=r"^frames of two sizes: eval_1/2.png is 8×9, eval_0/0.png 16×16; .*size$"
    ):
        read_sample(pred / "lion")
    (pred / "lion" / "eval_1" / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"eval_1/2.png: cannot be decoded \("):
        read_sample(pred / "lion")


def test_what_holds_nothing_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty" / "lion").mkdir(parents=True)
    for root, says in (
        (tmp_path / "empty", "holds no object"),
        (tmp_path / "gone", "no such folder"),
    ):
        with pytest.raises(ValueError, match=says):
            find_objects([root], None, needs_truth=False)
    with pytest.raises(ValueError, match=r"objects=\['cat'\]: not found; there are lion, ox"):
        find_objects([pair[0]], None, needs_truth=False, names=["ox", "cat"])

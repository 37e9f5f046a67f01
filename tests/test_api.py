"""The small door in Python: the command's results in three lines, and rules as functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SHORT

import d2
from d2.data import world4d
from d2.io import read_matrix, write_video

HERE = [word for word in SHORT if not word.startswith(("baselines", "pages"))]


@pytest.fixture
def words(small_networks: None, small_weights: list[str]) -> list[str]:
    return [*small_weights, *HERE, "trainer=cpu"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of a creature."""
    path = tmp_path / "my clip.mp4"
    write_video(path, world4d.scene("test", 0, num_views=1, num_frames=4, size=64).pixels, 8.0)
    return path


def test_three_lines_give_what_the_command_gives(
    words: list[str], clip: Path, d2_sample: Callable[..., int], tmp_path: Path
) -> None:
    sampler = d2.load(*words)
    matrix = sampler(clip, seed=3)
    matrix.save(tmp_path / "mine")
    assert d2_sample("scenes=folder", f"scenes.path='{clip}'", "seed=3") == 0
    (command,) = (path.parent for path in (tmp_path / "out").glob("*/matrix.safetensors"))
    for folder in (tmp_path / "mine", command):
        saved = read_matrix(folder)
        assert torch.equal((matrix.pixels * 255).round(), (saved.pixels * 255).round())
        assert torch.equal(matrix.cameras.azimuth_rad, saved.cameras.azimuth_rad)
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    cameras = {
        "transforms.json",
        *(f"transforms_{split}.json" for split in ("train", "val", "test")),
    }
    assert names == {"matrix.safetensors", "rows", "grid.png", "preview.mp4"} | cameras


def test_a_scene_of_the_world_and_no_scene_at_all(words: list[str]) -> None:
    """The configured scene is the command's; a sampler does not see a scene's truth; seeds matter,
    order does not."""
    sampler = d2.load(*words)
    scene = world4d.scene("test", 0, num_views=3, num_frames=3, size=64)
    assert scene.truth is not None
    blind = scene._replace(truth=scene.truth._replace(pixels=scene.truth.pixels * torch.nan))
    first, other = sampler(scene), sampler(scene, seed=1)
    assert not torch.equal(first.pixels, other.pixels)
    assert torch.equal(first.pixels, sampler().pixels) and torch.equal(
        first.pixels, sampler(blind).pixels
    )


def test_choices_by_name_and_rules_as_functions(words: list[str]) -> None:
    scene = world4d.scene("test", 1, num_views=3, num_frames=3, size=64)
    seen = []

    def columns_alone(step, cameras, num_frames, *, share=1.0):
        columns = torch.full((cameras.num_views, num_frames), share, dtype=torch.float64)
        return {"multiview": columns, "video": 1 - columns}

    mine = d2.load(*words, weights=columns_alone)(
        scene, on_step=lambda state: seen.append(state.step.index)
    )
    assert torch.equal(mine.pixels, d2.load(*words, weights="multiview")(scene).pixels)
    assert not torch.equal(mine.pixels, d2.load(*words)(scene).pixels)
    assert seen and sorted(set(seen)) == [0, 1]


@pytest.mark.parametrize(
    ("given", "choices", "says"),
    [
        ((), {"weights": "nosuch"}, "nosuch"),
        (("sampler.num_step=3",), {}, "sampler.num_step: no such key"),
        (("sampler.num_steps=0",), {}, "sampler.num_steps=0"),
        (
            (),
            {"curve": torch.cos},
            "curve: no rule of that name; functions are taken as renoise, weights",
        ),
    ],
)
def test_what_is_wrong_is_a_line(
    given: tuple[str, ...], choices: dict[str, object], says: str, words: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        d2.load(*words, *given, **choices)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_several_clips_are_told_apart(words: list[str], tmp_path: Path, clip: Path) -> None:
    clip.with_name("another.mp4").write_bytes(clip.read_bytes())
    with pytest.raises(ValueError, match=r"holds 2 scenes \(another, my clip\); give one of them"):
        d2.load(*words)(tmp_path)

"""CLIP from a local file through open_clip, and the cosines of picture features."""

from __future__ import annotations

import json
import math
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2.metrics.clip import (
    Clip,
    image_similarity,
    load_clip,
    matrix_embeddings,
    neighbour_similarity,
    text_similarity,
)

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small model that open_clip knows as d2-small."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "d2-small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder / "d2-small.json")
    torch.manual_seed(0)
    torch.save(
        open_clip.create_model("d2-small", load_weights=False).state_dict(), folder / "clip.pt"
    )
    return folder


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(folder / "clip.pt", "d2-small")


def random_features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_both_towers_are_open_clips(folder: Path, clip: Clip):
    net = open_clip.create_model("d2-small", pretrained=str(folder / "clip.pt")).eval()
    pixels = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(rgb)[:, None, None]
        for rgb in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    lines = ["a dog", "a creature with four legs"]
    with torch.no_grad():
        want = net.encode_image((pixels.flatten(0, 1) - mean) / std).unflatten(0, (2, 3))
        torch.testing.assert_close(
            matrix_embeddings(clip.images, pixels), want, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            clip.texts(lines), net.encode_text(open_clip.get_tokenizer("d2-small")(lines))
        )
    assert (clip.images.name, clip.images.file, clip.images.dim) == ("clip-d2-small", "clip.pt", 16)


def test_a_wrong_name_and_a_wrong_file_are_one_line_each(folder: Path, tmp_path: Path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    for path, model, said in [
        (folder / "clip.pt", "ViT-Z", "open_clip has no such model"),
        (
            folder / "absent.pt",
            "d2-small",
            "no such file; put open_clip's weights of d2-small there",
        ),
        (tmp_path / "other.pt", "d2-small", "not weights of d2-small"),
    ]:
        with pytest.raises(ValueError, match=said) as error:
            load_clip(path, model)
        assert "\n" not in str(error.value)


def test_similarity_is_the_cosine_of_each_pair():
    a, b = random_features(2, 3, 8), random_features(2, 3, 8).flip(0)
    unit = F.normalize(a, dim=-1) * F.normalize(b, dim=-1)
    torch.testing.assert_close(image_similarity(a, b), unit.sum(dim=-1))
    torch.testing.assert_close(image_similarity(a, 7 * a), torch.ones(2, 3))
    torch.testing.assert_close(
        text_similarity(a, b[0, 0]), image_similarity(a, b[0, 0].expand_as(a))
    )


def test_neighbours_along_the_axis_that_stands_still_agree():
    still = neighbour_similarity(random_features(4, 1, 8).expand(4, 5, 8))
    assert still["frames"] == pytest.approx(1) and still["views"] < 0.9
    assert neighbour_similarity(random_features(1, 5, 8).expand(4, 5, 8))["views"] == pytest.approx(
        1
    )


def test_the_ring_of_views_closes_and_time_does_not():
    """Features turn by a quarter from view to view, and by an eighth from frame to frame."""
    view, frame = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    angle = math.pi / 2 * view + math.pi / 4 * frame
    figures = neighbour_similarity(torch.stack([angle.cos(), angle.sin()], dim=-1))
    assert figures["views"] == pytest.approx((0 + 0 + math.cos(math.pi)) / 3, abs=1e-6)
    assert figures["frames"] == pytest.approx(math.cos(math.pi / 4))


def test_an_axis_of_one_has_no_neighbours():
    assert all(
        math.isnan(value) for value in neighbour_similarity(random_features(1, 1, 8)).values()
    )

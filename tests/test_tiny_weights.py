"""Weights files of the tiny tier: what is written is read, any other file is refused on one line
with its path."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from d2.data import world4d
from d2.files import asset
from d2.priors.tiny import (
    AUTOENCODER,
    FirstStage,
    load_first_stage,
    load_into,
    load_prior,
    motion_bucket,
    polar_rad,
    read_weights,
    save_weights,
)

META = {"steps": 3, "validation": {"loss": 0.25}}


class Network(nn.Module):
    """Some weights and a buffer."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
        self.register_buffer("scale", torch.rand(2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file of kind "video"."""
    save_weights(tmp_path / "tiny.safetensors", "video", Network(), META)
    return tmp_path / "tiny.safetensors"


def refusal(work: Callable[[], object], path: Path) -> str:
    """The one line with which something is refused."""
    with pytest.raises(ValueError) as error:
        work()
    said = str(error.value)
    assert str(path) in said and "\n" not in said
    return said


def test_weights_come_back_as_half_precision_keeps_them(tmp_path: Path) -> None:
    saved, loaded = Network(), Network()
    path = tmp_path / "tiny.safetensors"
    save_weights(path, "video", saved, META)
    file = read_weights(path, "video")
    load_into(loaded, file, path)
    assert file.meta == META
    for name, tensor in saved.state_dict().items():
        got = loaded.state_dict()[name]
        assert got.dtype == torch.float32 and torch.equal(got, tensor.half().float())
    assert all(tensor.dtype == torch.float16 for tensor in load_file(path).values())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing half-written is left


def test_saving_again_replaces_the_file(path: Path) -> None:
    save_weights(path, "multiview", Network(8), {"steps": 4})
    assert read_weights(path, "multiview").meta == {"steps": 4}
    load_into(Network(8), read_weights(path, "multiview"), path)


def test_the_tiny_first_stage_travels(tmp_path: Path) -> None:
    path = tmp_path / "tiny_autoencoder.safetensors"
    torch.manual_seed(0)
    stage = FirstStage(AUTOENCODER)
    stage.scale.fill_(0.5)
    save_weights(path, "autoencoder", stage, {})
    loaded = load_first_stage(path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(loaded.encode(images), stage.encode(images), rtol=0.02, atol=0.02)
    assert "'autoencoder'" in refusal(lambda: load_prior(path, "video"), path)


def test_another_kind_is_refused(path: Path) -> None:
    said = refusal(lambda: read_weights(path, "multiview"), path)
    assert "'video'" in said and "'multiview'" in said


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "svd.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "pt", "kind": "video"}):
        save_file({"a": torch.zeros(2)}, path, metadata)
        refusal(lambda: read_weights(path, "video"), path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "tiny.safetensors"
    for write in (lambda f: pickle.dump(Bomb(), f), lambda f: torch.save({"a": Bomb()}, f)):
        with path.open("wb") as f:
            write(f)
        assert "pickle" in refusal(lambda: read_weights(path, "video"), path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file_is_refused(path: Path, keep: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    refusal(lambda: read_weights(path, "video"), path)


def test_weights_that_are_not_finite_are_refused(path: Path) -> None:
    network = Network(8)
    name = next(iter(network.state_dict()))
    network.state_dict()[name].view(-1)[0] = math.nan
    save_weights(path, "video", network, {})
    assert f"{name} is not finite" in refusal(
        lambda: load_into(Network(8), read_weights(path, "video"), path), path
    )


def test_noise_is_refused(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(1000))
    refusal(lambda: read_weights(path, "video"), path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "absent.safetensors"
    assert "no such" in refusal(lambda: read_weights(path, "video"), path)
    refusal(lambda: read_weights(tmp_path, "video"), tmp_path)  # a folder


def test_another_shape_is_refused_by_name_and_nothing_is_loaded(path: Path) -> None:
    network = Network(5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    said = refusal(lambda: load_into(network, read_weights(path, "video"), path), path)
    # the first in the alphabet, always
    assert "layers.0.bias" in said and "(4,)" in said and "(5,)" in said
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("lacking", [True, False])
def test_a_missing_or_unknown_tensor_is_refused_by_name(tmp_path: Path, lacking: bool) -> None:
    path, more = tmp_path / "tiny.safetensors", Network()
    more.register_buffer("extra", torch.zeros(1))
    saved, wanted = (Network(), more) if lacking else (more, Network())
    save_weights(path, "video", saved, {})
    said = refusal(lambda: load_into(wanted, read_weights(path, "video"), path), path)
    assert "extra" in said and "absent" in said


# ------------------------------------------------------------------------------- told to the priors


def test_motion_is_the_change_of_what_is_there() -> None:
    """A grey square that brightens by 0.1 a frame moves by 40, whatever its size, the length, or a
    dirty white."""
    for side, frames in ((2, 2), (8, 2), (4, 5)):
        clip = torch.ones(frames, 3, 16, 16)
        clip[1::2] = 0.98
        clip[:, :, 3 : 3 + side, 3 : 3 + side] = (0.1 + 0.1 * torch.arange(frames))[
            :, None, None, None
        ]
        assert motion_bucket(clip).item() == pytest.approx(40, rel=1e-4)


def test_motion_of_still_empty_and_single_pictures_is_none() -> None:
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for clip in (picture, picture.expand(4, -1, -1, -1), torch.ones(4, 3, 8, 8)):
        assert motion_bucket(clip).item() == 0


def test_motion_is_measured_clip_by_clip_and_never_beyond_a_byte() -> None:
    clips = torch.rand(2, 3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    # black and nearly white in turn
    clips[1, 2] = torch.arange(4).remainder(2)[:, None, None, None] * 0.96
    told = motion_bucket(clips)
    assert told.shape == (2, 3) and told[1, 2] == 255
    assert told[0, 1].item() == pytest.approx(motion_bucket(clips[0, 1]).item())
    # and backwards alike
    assert motion_bucket(clips[0, 1].flip(0)).item() == pytest.approx(told[0, 1].item())


def test_polar_angles_are_measured_from_the_pole() -> None:
    quarter = torch.pi / 2
    assert polar_rad(torch.tensor([quarter, 0.0, -quarter])).tolist() == pytest.approx(
        [0, quarter, 2 * quarter]
    )


@torch.no_grad()
def test_the_shipped_latents_keep_the_edges() -> None:
    """As docs/training.md says of them: pictures come back at 28 dB and more over the creature."""
    pictures = world4d.clips("validation", [0]).pixels[0]
    there = (pictures < 0.97).any(dim=1, keepdim=True)
    stage = load_first_stage(asset("checkpoints") / "tiny_autoencoder.safetensors")
    decoded = (stage.decode(stage(2 * pictures - 1)).clamp(-1, 1) + 1) / 2
    error = (decoded - pictures).square().masked_select(there).mean()
    assert -10 * torch.log10(error) > 28


@pytest.mark.parametrize("kind", ["video", "multiview"])
def test_a_prior_says_which_latents_it_was_trained_on(kind: str) -> None:
    shipped = asset("checkpoints")
    told = read_weights(shipped / f"tiny_{kind}.safetensors", kind).meta["config"]
    assert told["autoencoder"] == "tiny_autoencoder.safetensors"
    load_prior(shipped / f"tiny_{kind}.safetensors", kind)

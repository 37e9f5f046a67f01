"""RGB frames are cut out by rembg with a local network: near the true alpha, without a download, or
refused plainly."""

from __future__ import annotations

import builtins
import importlib
import os
import socket
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from d2.data import matting
from d2.data.folder import Clip, read_clip
from d2.data.matting import FAINT, cut_out, open_model, remove_background
from d2.data.preprocess import preprocess_clip

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("D2_SHARED_DATA", ROOT.parent / "shared" / "data"))
MODEL = Path(os.environ.get("D2_MATTING_MODEL", ROOT / "checkpoints" / "u2netp.onnx"))
PICTURE = SHARED / "csm_luigi_rgba.png"
real = [
    pytest.mark.skipif(
        find_spec("rembg") is None or find_spec("onnxruntime") is None,
        reason="needs pip install -e '.[matting]'",
    ),
    pytest.mark.skipif(not MODEL.is_file(), reason=f"no network {MODEL}; set D2_MATTING_MODEL"),
    pytest.mark.skipif(
        not PICTURE.is_file(), reason=f"no sample picture {PICTURE}; set D2_SHARED_DATA"
    ),
    # the first import of rembg on a machine compiles its matting library for minutes
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No session outlives a test, and whatever asks the network fails."""
    open_model.cache_clear()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("matting asked the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def clip_of(rgb: Tensor) -> Clip:
    opaque = torch.full_like(rgb[:, :1], 255)
    return Clip("clip", torch.cat([rgb, opaque], dim=1), has_alpha=False, is_picture=len(rgb) == 1)


# --- the real network -----------------------------------------------------------------------------


def busy_background(size: int, noise: float) -> np.ndarray:
    """Waves of colour under pixel noise: h w 3."""
    y, x = np.mgrid[0:size, 0:size] * (256 / size)
    waves = [
        127 + 80 * np.sin(x / 37 + y / 53),
        110 + 70 * np.sin(y / 29 - x / 91),
        100 + 60 * np.cos((x + y) / 61),
    ]
    grain = np.random.default_rng(0).normal(0, 1, (size, size, 3))
    return np.stack(waves, axis=-1) + noise * grain


def composite(rgba: np.ndarray, background: np.ndarray) -> Tensor:
    """A picture on a background: 3 h w, uint8."""
    alpha = rgba[..., 3:] / 255
    mixed = rgba[..., :3] * alpha + background * (1 - alpha)
    return torch.from_numpy(mixed.clip(0, 255).round().astype(np.uint8)).permute(2, 0, 1)


def iou(alpha: Tensor, true: Tensor) -> float:
    a, b = alpha > 127, true > 127
    return float((a & b).sum() / (a | b).sum())


class TestReal:
    pytestmark = real

    def test_alpha_is_near_the_true_one(self) -> None:
        """Measured with u2netp: IoU 0.966 on waves, 0.937 under noise of 12 grey levels."""
        rgba = np.asarray(Image.open(PICTURE).convert("RGBA"))
        true = torch.from_numpy(rgba[..., 3].copy())
        frames = torch.stack(
            [composite(rgba, busy_background(len(rgba), noise)) for noise in (0.0, 12.0)]
        )
        found = remove_background(frames, model=MODEL)
        assert iou(found[0, 0], true) > 0.94 and iou(found[1, 0], true) > 0.91
        assert not ((found > 0) & (found < FAINT)).any()

    def test_frames_are_cut_out_alike_alone_and_together_and_share_one_box(self) -> None:
        """A clip whose object moves by 40 pixels: the box is the union's, so the object moves in
        the square too."""
        rgba = np.asarray(Image.open(PICTURE).convert("RGBA"))
        background = busy_background(len(rgba), 0.0)
        frames = torch.stack(
            [composite(np.roll(rgba, shift, axis=1), background) for shift in (-20, 20)]
        )
        together = remove_background(frames, model=MODEL)
        assert torch.equal(together[1:], remove_background(frames[1:], model=MODEL))
        pixels, masks = preprocess_clip(
            cut_out(clip_of(frames), model=MODEL), size=128, image_frame_ratio=0.9
        )
        across = torch.arange(128.0)
        first, second = ((mask[0].sum(0) * across).sum() / mask.sum() for mask in masks)
        width = np.flatnonzero((rgba[..., 3] > 0).any(0))
        side = (width[-1] - width[0] + 1 + 40) / 0.9  # its arms are wider than it is high
        assert float(second - first) == pytest.approx(40 * 128 / side, abs=3)
        assert pixels[:, :, 0].min() > 0.99  # white above the object

    def test_a_user_s_picture_is_read_cut_out_and_squared(self, tmp_path: Path) -> None:
        rgba = np.asarray(Image.open(PICTURE).convert("RGBA"))
        picture = composite(rgba, busy_background(len(rgba), 0.0)).permute(1, 2, 0).numpy()
        Image.fromarray(picture).save(tmp_path / "mine.png")
        clip = cut_out(read_clip(tmp_path / "mine.png", num_frames=1), model=MODEL)
        assert clip.has_alpha and clip.is_picture and clip.name == "mine"
        _, masks = preprocess_clip(clip, size=64, image_frame_ratio=0.8)
        extents = [int(masks[0, 0].gt(0.5).any(axis).sum()) for axis in (0, 1)]
        assert max(extents) == pytest.approx(0.8 * 64, abs=2)

    def test_a_file_that_is_no_network_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "u2net.onnx").write_text("not a network")
        with pytest.raises(
            ValueError, match=r"^matting\.model=.*u2net\.onnx: not a readable ONNX file[^\n]*$"
        ):
            open_model(tmp_path / "u2net.onnx")

    def test_a_network_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        """Named isnet, it is fed pictures of 1024²: the file given wants 320²."""
        (tmp_path / "isnet-general-use.onnx").write_bytes(MODEL.read_bytes())
        frames = torch.randint(
            0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        with pytest.raises(
            ValueError, match=r"^matting\.model=.*isnet-general-use\.onnx: rembg failed[^\n]*$"
        ):
            remove_background(frames, model=tmp_path / "isnet-general-use.onnx")


# --- without the library --------------------------------------------------------------------------


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rembg whose alpha is the red channel."""

    def remove(picture: Image.Image, *, session: str, only_mask: bool) -> Image.Image:
        assert session == "session" and only_mask
        return picture.getchannel("R")

    fake = SimpleNamespace(remove=remove)
    monkeypatch.setattr(matting, "open_model", lambda model: "session")
    monkeypatch.setattr(
        matting,
        "import_module",
        lambda name: fake if name == "rembg" else importlib.import_module(name),
    )


def test_faint_alpha_is_cleared_the_rest_and_the_colours_are_kept(faked: None) -> None:
    rgb = torch.randint(
        0, 256, (3, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    rgb[0, 0, 0, :2] = torch.tensor([FAINT - 1, FAINT])
    alpha, red = remove_background(rgb, model=None), rgb[:, :1]
    assert torch.equal(alpha, torch.where(red < FAINT, torch.zeros_like(red), red))
    assert alpha[0, 0, 0, :2].tolist() == [0, FAINT]
    clip = cut_out(clip_of(rgb), model=None)
    assert clip.has_alpha and torch.equal(clip.rgba, torch.cat([rgb, alpha], dim=1))


def test_a_clip_with_alpha_stays_as_it_is() -> None:
    clip = Clip(
        "clip", torch.zeros(2, 4, 8, 8, dtype=torch.uint8), has_alpha=True, is_picture=False
    )
    assert cut_out(clip, model=None) is clip  # no network is asked for either


def test_a_frame_in_which_nothing_is_found_is_named(faked: None) -> None:
    rgb = torch.full((3, 3, 4, 4), 200, dtype=torch.uint8)
    rgb[1, 0] = FAINT - 1
    with pytest.raises(
        ValueError, match=r"^scenes\.path: nothing stands out in frame 1 of clip clip;[^\n]*$"
    ):
        cut_out(clip_of(rgb), model=None)


@pytest.mark.parametrize("given", [None, "nowhere/u2net.onnx"])
def test_a_missing_network_is_named_with_the_way_out(given: str | None) -> None:
    said = (
        rf"^matting\.model={given or 'null'}: [^\n]*none is downloaded; put u2net\.onnx"
        r" [^\n]*checkpoints/[^\n]*$"
    )
    with pytest.raises(ValueError, match=said):
        cut_out(
            clip_of(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)),
            model=Path(given) if given else None,
        )


@pytest.mark.parametrize("package", ["rembg", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ONNX Runtime, importing rembg would end the whole program: it is not imported
    then."""
    (tmp_path / "u2net.onnx").touch()

    def import_module(name: str) -> Any:
        assert package == "rembg"
        if name.startswith("rembg"):
            raise ModuleNotFoundError(name)
        return builtins.object()

    monkeypatch.setattr(matting, "find_spec", lambda name: None if name == package else object())
    monkeypatch.setattr(matting, "import_module", import_module)
    with pytest.raises(
        ValueError,
        match=(
            rf"^matting=rembg: {package} is not installed; in the clone, pip install -e"
            r" '\.\[matting\]'$"
        ),
    ):
        open_model(tmp_path / "u2net.onnx")

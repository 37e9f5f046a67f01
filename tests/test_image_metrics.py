"""Figures of single pictures agree with torchmetrics called by hand, and perceptual distances with
their originals."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as tm_lpips
import torchvision
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from d2.metrics.image import ImageDistance, image_figures, load_lpips, load_shift_tolerant_lpips
from d2.nn.perceptual import Backbone


def pictures() -> tuple[Tensor, Tensor]:
    """Two pictures 64 × 64 and what they are compared with, by a formula: the published values
    below are of these."""
    i = torch.arange(64.0)
    ramp = (i[:, None] * i).remainder(37) / 36
    a = torch.stack([ramp, ramp.flip(0), ramp.T.roll(5, 0)])[None]
    b = torch.stack([ramp.roll(3, 1), ramp, ramp.flip(1)])[None]
    a = torch.cat([a, b.roll(1, 1)])
    return a, torch.cat([b, a[:1].roll(2, 3)])


def test_psnr_and_ssim_are_torchmetrics_picture_by_picture():
    a, b = pictures()
    figures = image_figures(a, b, chunk=1)
    for i in range(2):
        pair = a[i : i + 1], b[i : i + 1]
        assert float(figures["psnr"][i]) == pytest.approx(
            float(PeakSignalNoiseRatio(1.0)(*pair)), rel=1e-6
        )
        assert float(figures["ssim"][i]) == pytest.approx(
            float(StructuralSimilarityIndexMeasure(data_range=1.0)(*pair)), rel=1e-6
        )
    assert image_figures(a, a)["psnr"].tolist() == [100, 100]
    assert figures["psnr"].shape == (2,) and figures["psnr"].dtype == torch.float64


def test_further_distances_come_under_their_names():
    distance = ImageDistance("mean_error", "", "", lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    a, b = pictures()
    assert set(image_figures(a, b, (distance,))) == {"psnr", "ssim", "mean_error"}


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_lpips_is_torchmetrics_with_the_backbone_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: Backbone
):
    """The class that downloads, given a random backbone in the place of the download, and that
    backbone as a file."""
    torch.manual_seed(0)
    build = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[backbone]
    with torch.device("meta"):
        features = build(weights=None).features
    features = features.to_empty(device="cpu")
    for p in features.parameters():
        torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state | {"classifier.1.bias": torch.zeros(3)}, tmp_path / "backbone.pth")
    distance = load_lpips(backbone, tmp_path / "backbone.pth")
    monkeypatch.setattr(tm_lpips, "_get_tv_model_features", lambda net, pretrained: features)
    by_hand = LearnedPerceptualImagePatchSimilarity(net_type=backbone, normalize=True)
    a, b = pictures()
    got = image_figures(a, b, (distance,))[f"lpips_{backbone}"]
    assert got.mean().item() == pytest.approx(float(by_hand(a, b)), rel=1e-5) and got.min() > 0
    assert distance.call(a, a).tolist() == [0, 0]


def test_a_missing_backbone_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"put torchvision's vgg16-397923af\.pth there"):
        load_lpips("vgg", tmp_path / "vgg16-397923af.pth")


@pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="the extra is not installed"
)
@pytest.mark.parametrize(
    ("backbone", "published"), [("alex", [0.1290945, 0.1223096]), ("vgg", [0.0733433, 0.0727268])]
)
def test_shift_tolerant_lpips_gives_what_its_own_package_gives(
    backbone: Backbone, published: list[float]
):
    """Values of stlpips-pytorch 0.0.2 on these pictures."""
    distance = load_shift_tolerant_lpips(backbone)
    a, b = pictures()
    with torch.no_grad():
        assert distance.call(a, b).tolist() == pytest.approx(published, rel=1e-4)
        assert distance.call(a, a).tolist() == [0, 0]
    assert distance.name == f"st_lpips_{backbone}"

"""Picture by picture against the truth: PSNR, SSIM and the perceptual distances LPIPS and ST-LPIPS.

Axes: n pictures, c h w. Pixels are in [0, 1].

One value a picture, so that the caller chooses what is averaged first; `reference_metrics` pools
errors before it takes the logarithm, published tables mostly average over pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    lpips,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from d2.files import sha256_of
from d2.metrics.local_files import load_strictly, packaged_file, read_state
from d2.metrics.reference import PSNR_CAP
from d2.nn.perceptual import Backbone, ShiftTolerantLPIPS

# torchvision's, of ImageNet
LPIPS_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


class ImageDistance(NamedTuple):
    """A perceptual distance and what a reader of its numbers must know."""

    name: str
    file: str
    sha256: str
    call: Callable[[Tensor, Tensor], Tensor]  # n 3 h w twice -> n


@torch.no_grad()
def image_figures(
    sample: Tensor,  # n 3 h w
    truth: Tensor,  # n 3 h w
    distances: tuple[ImageDistance, ...] = (),
    *,
    chunk: int = 64,  # pictures at a time
) -> dict[str, Tensor]:
    """psnr (dB, at most 100), ssim, and each distance under its name: n each, float64, on the
    CPU."""
    parts = [
        _figures(x, y, distances)
        for x, y in zip(sample.split(chunk), truth.split(chunk), strict=True)
    ]
    return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}


def picture_psnr(
    sample: Tensor,  # n 3 h w
    truth: Tensor,  # n 3 h w
) -> Tensor:  # n
    """Every picture's own PSNR in dB, at most 100."""
    x, y = sample.float(), truth.float().to(sample.device)
    return peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3)).clamp(
        max=PSNR_CAP
    )


def load_lpips(
    backbone: Backbone,
    path: Path,  # of the backbone; the heads come with torchmetrics
    device: torch.device | str = "cpu",
) -> ImageDistance:
    """torchmetrics' LPIPS (Zhang et al. 2018, version 0.1) with torchvision's ImageNet backbone
    from a local file.

    torchmetrics' public class would download the backbone, hence the private one.
    """
    state = read_state(path, f"torchvision's {LPIPS_FILES[backbone]}")
    with torch.device("meta"):  # torchvision would draw the classifier too, 124 M random numbers
        net = lpips._NoTrainLpips(net=backbone, pretrained=False, pnet_rand=True).to_empty(
            device="cpu"
        )
    net.scaling_layer = lpips.ScalingLayer()  # its constants are no part of a state dict
    assert isinstance(net.lins, torch.nn.Module)
    heads_file = Path(lpips.__file__).parent / "lpips_models" / f"{backbone}.pth"
    heads = read_state(heads_file, "the heads that torchmetrics brings")
    load_strictly(
        net.lins, {key.removeprefix("lin"): value for key, value in heads.items()}, heads_file
    )
    # "0.weight" -> "slice1.0.weight"
    trunk = {key.partition(".")[2]: key for key in net.net.state_dict()}
    features = {
        key.removeprefix("features."): value
        for key, value in state.items()
        if key.startswith("features.")
    }
    load_strictly(net.net, {trunk.get(key, key): value for key, value in features.items()}, path)
    return _distance(f"lpips_{backbone}", path, net.to(device), device)


def load_shift_tolerant_lpips(
    backbone: Backbone, device: torch.device | str = "cpu"
) -> ImageDistance:
    """ST-LPIPS, whose weights come inside a Python package, backbone and all; its numbers are not
    LPIPS's."""
    path = packaged_file("stlpips_pytorch", f"weights/vST0.0/{backbone}_shift_tolerant.pth")
    net = ShiftTolerantLPIPS(backbone)
    load_strictly(net, read_state(path, "the weights of ST-LPIPS"), path)
    return _distance(
        f"st_lpips_{backbone}", path, net.to(device).eval().requires_grad_(False), device
    )


def _distance(
    name: str, path: Path, net: torch.nn.Module, device: torch.device | str
) -> ImageDistance:
    def call(a: Tensor, b: Tensor) -> Tensor:
        return net(2 * a.to(device) - 1, 2 * b.to(device) - 1).reshape(len(a))

    return ImageDistance(name, path.name, sha256_of(path), call)


def _figures(
    x: Tensor,  # n 3 h w
    y: Tensor,  # n 3 h w
    distances: tuple[ImageDistance, ...],
) -> dict[str, Tensor]:  # n each
    x, y = x.float(), y.float().to(x.device)
    ssim = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return {"psnr": picture_psnr(x, y), "ssim": ssim.reshape(len(x))} | {
        distance.name: distance.call(x, y) for distance in distances
    }

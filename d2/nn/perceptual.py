"""The shift-tolerant perceptual distance ST-LPIPS (Ghildyal and Liu 2022; LPIPS: Zhang et al.
2018).

Axes: n images, c h w. AlexNet and VGG-16 in which everything that strides is a step-1 operation,
then a blur that takes every other value (Zhang 2019). Parameter names are those of the published
state dicts.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Backbone = Literal["alex", "vgg"]
# of the five maps that are compared
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
VGG_DEPTHS = (2, 2, 3, 3, 3)  # convolutions of each stage (Simonyan and Zisserman 2015, D)


class BlurHalf(nn.Module):
    """Blur with a fixed 3×3 filter and keep every other pixel; mirrored by two pixels at the
    border."""

    filt: Tensor

    def __init__(self, channels: int):
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filt", (taps[:, None] * taps).expand(channels, 1, 3, 3).clone())

    def forward(
        self,
        x: Tensor,  # n c h w
    ) -> Tensor:
        return F.conv2d(
            F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1]
        )


class Trunk(nn.Module):
    """The five stages; a stage's layers are numbered on from those before it."""

    def __init__(self, stages: list[list[nn.Module]]):
        super().__init__()
        number = 0
        for i, layers in enumerate(stages, start=1):
            stage = nn.Sequential()
            for layer in layers:
                stage.add_module(str(number), layer)
                number += 1
            self.add_module(f"slice{i}", stage)

    def forward(
        self,
        x: Tensor,  # n 3 h w
    ) -> list[Tensor]:
        maps = []
        for stage in self.children():
            x = stage(x)
            maps.append(x)
        return maps


class Scaling(nn.Module):
    """From [-1, 1] to ImageNet's statistics."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class Head(nn.Module):
    """A weight for each channel of one map."""

    def __init__(self, channels: int):
        super().__init__()
        # the published numbering
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class ShiftTolerantLPIPS(nn.Module):
    """The distance of pairs of images; 0 for two equal ones."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.scaling_layer = Scaling()
        self.net = Trunk(_alex_stages() if backbone == "alex" else _vgg_stages())
        for i, channels in enumerate(CHANNELS[backbone]):
            self.add_module(f"lin{i}", Head(channels))

    def forward(
        self,
        a: Tensor,  # n 3 h w in [-1, 1]
        b: Tensor,  # n 3 h w in [-1, 1]
    ) -> Tensor:  # n
        total = a.new_zeros(len(a))
        maps = zip(self.net(self.scaling_layer(a)), self.net(self.scaling_layer(b)), strict=True)
        for i, (x, y) in enumerate(maps):
            difference = (_unit_length(x) - _unit_length(y)).square()
            total = total + self.get_submodule(f"lin{i}")(difference).mean(dim=(1, 2, 3))
        return total


def _unit_length(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _alex_stages() -> list[list[nn.Module]]:
    def halve(channels: int) -> list[nn.Module]:
        return [nn.MaxPool2d(3, stride=1), BlurHalf(channels)]

    return [
        [nn.Conv2d(3, 64, 11, padding=2), BlurHalf(64), nn.ReLU()],
        [*halve(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
        [*halve(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
        [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
        [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
    ]


def _vgg_stages() -> list[list[nn.Module]]:
    stages: list[list[nn.Module]] = []
    before = 3
    for depth, channels in zip(VGG_DEPTHS, CHANNELS["vgg"], strict=True):
        layers: list[nn.Module] = [nn.MaxPool2d(2, stride=1), BlurHalf(before)] if stages else []
        for _ in range(depth):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        stages.append(layers)
    return stages

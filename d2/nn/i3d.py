"""The Inception I3D video network (Carreira and Zisserman 2017), whose Kinetics-400 logits FVD is
defined on.

Axes: b videos, t frames, c h w; volumes are b c t h w. Parameter names are those of the published
state dict, `i3d_pretrained_400.pt`. Padding is TensorFlow's "same": what a stride needs, the odd
one behind.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SIZE = 224  # pixels, both ways
MIN_FRAMES = 9  # three halvings in time must leave the two steps that the last pooling takes
NUM_CLASSES = 400
BATCH_NORM_EPS = 1e-3


class I3D(nn.Module):
    """Videos to the class logits of Kinetics-400, averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, kernel=7, stride=2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, kernel=3)
        # Channels of 1×1×1; 1×1×1 then 3×3×3; 1×1×1 then 3×3×3; pooling then 1×1×1 (Szegedy et al.
        # 2015, table 1).
        self.Mixed_3b = Mixed(192, (64, 96, 128, 16, 32, 32))
        self.Mixed_3c = Mixed(256, (128, 128, 192, 32, 96, 64))
        self.Mixed_4b = Mixed(480, (192, 96, 208, 16, 48, 64))
        self.Mixed_4c = Mixed(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d = Mixed(512, (128, 128, 256, 24, 64, 64))
        self.Mixed_4e = Mixed(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = Mixed(528, (256, 160, 320, 32, 128, 128))
        self.Mixed_5b = Mixed(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = Mixed(832, (384, 192, 384, 48, 128, 128))
        self.logits = Logits(1024, NUM_CLASSES)

    def forward(
        self,
        videos: Tensor,  # b t 3 224 224 in [-1, 1], t >= 9
    ) -> Tensor:  # b 400
        x = self.Conv3d_1a_7x7(rearrange(videos, "b t c h w -> b c t h w"))
        x = pool(x, (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        x = pool(x, (1, 3, 3), (1, 2, 2))
        x = self.Mixed_3c(self.Mixed_3b(x))
        x = pool(x, (3, 3, 3), (2, 2, 2))
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        x = pool(x, (2, 2, 2), (2, 2, 2))
        x = self.Mixed_5c(self.Mixed_5b(x))
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.logits(x).mean(dim=(2, 3, 4))


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out_channels, eps=BATCH_NORM_EPS)

    def forward(
        self,
        x: Tensor,  # b c t h w
    ) -> Tensor:
        x = pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(x)))


class Mixed(nn.Module):
    """The four branches of an Inception block, side by side."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int]):
        super().__init__()
        self.b0 = Unit(in_channels, widths[0])
        self.b1a = Unit(in_channels, widths[1])
        self.b1b = Unit(widths[1], widths[2], kernel=3)
        self.b2a = Unit(in_channels, widths[3])
        self.b2b = Unit(widths[3], widths[4], kernel=3)
        self.b3b = Unit(in_channels, widths[5])

    def forward(
        self,
        x: Tensor,  # b c t h w
    ) -> Tensor:
        pooled = pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat(
            (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)), dim=1
        )


class Logits(nn.Module):
    """The classifier, as a 1×1×1 convolution."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


def pool(
    x: Tensor,  # b c t h w, nowhere negative: padding with zero is padding with nothing
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
) -> Tensor:
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


def pad_same(
    x: Tensor,  # b c ...
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
) -> Tensor:
    """Zeros so that a kernel gives ⌈size / stride⌉ values along each of the last axes, the odd zero
    behind."""
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads = [total // 2, total - total // 2, *pads]  # F.pad begins with the last axis
    return F.pad(x, pads)

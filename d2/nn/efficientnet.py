"""EfficientNet-lite0 (Tan and Le 2019, without squeeze-and-excitation and with ReLU6), as an image
feature network.

Axes: n images, c h w. Parameter names are those of the published PyTorch state dict. Its weights
come from TensorFlow: padding is "same", the odd zero behind, and batch norm's epsilon is 1e-3.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 224  # pixels, both ways
DIM = 1280  # features before the classifier
NUM_CLASSES = 1000
BATCH_NORM_EPS = 1e-3

STEM = 32
STAGES = (  # repeats, kernel, stride of the first, expansion, channels (Tan and Le 2019, table 1)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Images to the pooled features before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, STEM, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, eps=BATCH_NORM_EPS)
        self._blocks = nn.ModuleList()
        channels = STEM
        for repeats, kernel, stride, expansion, width in STAGES:
            for i in range(repeats):
                self._blocks.append(
                    Block(channels, width, kernel, stride if i == 0 else 1, expansion)
                )
                channels = width
        self._conv_head = nn.Conv2d(channels, DIM, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(DIM, eps=BATCH_NORM_EPS)
        self._fc = nn.Linear(DIM, NUM_CLASSES)

    def forward(
        self,
        images: Tensor,  # n 3 224 224 in [-1, 1], as `normalize` has it
    ) -> Tensor:  # n 1280
        x = self._stages(images, len(self._blocks))
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))

    def maps(
        self,
        images: Tensor,  # n 3 224 224 in [-1, 1], as `normalize` has it
    ) -> Tensor:  # n 40 28 28
        """Features with their places, from before the third halving: parts, not yet whole
        things."""
        return self._stages(images, sum(repeats for repeats, *_ in STAGES[:3]))

    def _stages(self, images: Tensor, count: int) -> Tensor:
        x = F.relu6(self._bn0(conv_same(images, self._conv_stem)))
        for block in self._blocks[:count]:
            x = block(x)
        return x

    def classify(
        self,
        features: Tensor,  # n 1280
    ) -> Tensor:  # n 1000, logits of ImageNet's classes
        return self._fc(features)


class Block(nn.Module):
    """An inverted bottleneck: 1×1 to more channels, k×k channel by channel, 1×1 to fewer."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ):
        super().__init__()
        wide = in_channels * expansion
        self._expand_conv = nn.Conv2d(in_channels, wide, 1, bias=False) if expansion > 1 else None
        self._bn0 = nn.BatchNorm2d(wide, eps=BATCH_NORM_EPS) if expansion > 1 else None
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=BATCH_NORM_EPS)
        self._project_conv = nn.Conv2d(wide, out_channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS)
        self.skip = stride == 1 and in_channels == out_channels

    def forward(
        self,
        x: Tensor,  # n c h w
    ) -> Tensor:
        y = x
        if self._expand_conv is not None and self._bn0 is not None:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(conv_same(y, self._depthwise_conv)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skip else y


def normalize(
    images: Tensor,  # ... in [0, 1]
) -> Tensor:
    """(255 x - 127) / 128: what the lite networks were trained on."""
    return (255 * images - 127) / 128


def conv_same(
    x: Tensor,  # n c h w
    conv: nn.Conv2d,
) -> Tensor:
    """The convolution with zeros so that it gives ⌈size / stride⌉ values both ways."""
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], conv.kernel_size, conv.stride, strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads = [total // 2, total - total // 2, *pads]  # F.pad begins with the last axis
    return conv(F.pad(x, pads))

"""The frame that the UNets of all families share: levels down, a middle, levels up with skips.

Parameter names are those of the published checkpoints. What a layer looks at besides x is its
family's own; here it is handed through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2.nn.linear import Linear

GROUPS = 32  # of every GroupNorm in the published networks


class Levels(Protocol):
    """What a configuration says of the frame."""

    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def model_channels(self) -> int: ...
    @property
    def channel_mult(self) -> tuple[int, ...]: ...
    @property
    def num_res_blocks(self) -> int: ...
    @property
    def groups(self) -> int: ...


# channels, channels of the output, level, input | output -> the layers of a block
Stage = Callable[[int, int, int, str], list[nn.Module]]


class UNet(nn.Module):
    """Blocks of layers, each called with x and what its family gives to every layer."""

    def build(self, config: Levels, stage: Stage, middle: Callable[[int], list[nn.Module]]) -> None:
        """Make the blocks; `middle` gives the layers between the ways down and up."""
        width = config.model_channels
        channels, skips = width, [width]
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(config.in_channels, width, 3, padding=1)])]
        )
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                layers = stage(channels, mult * width, level, "input")
                self.input_blocks.append(nn.ModuleList(layers))
                channels = mult * width
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)

        self.middle_block = nn.ModuleList(middle(channels))

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for block in range(config.num_res_blocks + 1):
                layers = stage(channels + skips.pop(), mult * width, level, "output")
                channels = mult * width
                if level > 0 and block == config.num_res_blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(nn.ModuleList(layers))
        assert not skips
        last = zeroed(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(config.groups, channels), nn.SiLU(inplace=True), last)

    def through(
        self,
        x: Tensor,  # n c h w; h and w multiples of 2^(levels - 1)
        given: Any,  # what every layer may look at besides
    ) -> Tensor:  # n c_out h w
        first, *down = self.input_blocks
        (conv_in,) = first.children()
        x = conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for layers in down:
            x = run(layers, x, given)
            skips.append(x)
        x = run(self.middle_block, x, given)
        for layers in self.output_blocks:
            x = run(layers, torch.cat((x, skips.pop()), dim=1), given)
        return self.out(x)


N = TypeVar("N", bound=UNet)


def compiled(network: N) -> N:
    """The network, its layers compiled at their first call of every shape: kernels fused, and
    launched as one CUDA graph.

    The result of a call is overwritten by the next one (torch.compile's mode "reduce-overhead").
    """
    through = torch.compile(network.through, mode="reduce-overhead", dynamic=False)
    network.through = through  # type: ignore[method-assign]
    return network


def run(layers: nn.Module, x: Tensor, given: Any) -> Tensor:
    for layer in layers.children():
        x = layer(x, given)
    return x


class Downsample(nn.Module):
    """Half the size, by a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, given: Any) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the size: every pixel repeated, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, given: Any) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def mlp(channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(Linear(channels, hidden), nn.SiLU(), Linear(hidden, out_channels))


def zeroed(layer: nn.Module) -> nn.Module:
    """A branch that ends in such a layer starts as nothing, so an untrained block is the
    identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

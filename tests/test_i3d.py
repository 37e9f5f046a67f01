"""The I3D network has the published tensors and shapes, and TensorFlow's padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2.nn.i3d import I3D, MIN_FRAMES, pad_same

# The published state dict `i3d_pretrained_400.pt`: unit -> (output channels, input channels,
# kernel). A unit is `conv3d.weight` and `bn.{weight, bias, running_mean, running_var,
# num_batches_tracked}`.
UNITS = {
    "Conv3d_1a_7x7": (64, 3, 7),
    "Conv3d_2b_1x1": (64, 64, 1),
    "Conv3d_2c_3x3": (192, 64, 3),
}
# Block -> (input channels, then the output channels of b0, b1a, b1b, b2a, b2b, b3b).
BLOCKS = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def inventory() -> dict[str, tuple[int, ...]]:
    units = dict(UNITS)
    for block, (before, b0, b1a, b1b, b2a, b2b, b3b) in BLOCKS.items():
        units |= {
            f"{block}.b0": (b0, before, 1),
            f"{block}.b1a": (b1a, before, 1),
            f"{block}.b1b": (b1b, b1a, 3),
            f"{block}.b2a": (b2a, before, 1),
            f"{block}.b2b": (b2b, b2a, 3),
            f"{block}.b3b": (b3b, before, 1),
        }
    shapes: dict[str, tuple[int, ...]] = {
        "logits.conv3d.weight": (400, 1024, 1, 1, 1),
        "logits.conv3d.bias": (400,),
    }
    for name, (out, into, kernel) in units.items():
        shapes[f"{name}.conv3d.weight"] = (out, into, kernel, kernel, kernel)
        shapes |= {
            f"{name}.bn.{part}": (out,)
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    return shapes


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.device("meta"):
        return I3D().eval()


def test_keys_and_shapes_are_the_published_ones(net: nn.Module):
    own = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert own == inventory()
    assert len(own) == 344  # 57 units of six, and the logits' two
    assert sum(p.numel() for p in net.parameters()) == 12_697_264
    assert all(m.eps == 1e-3 for m in net.modules() if isinstance(m, nn.BatchNorm3d))


@pytest.mark.parametrize("frames", [MIN_FRAMES, 16, 64])
def test_any_length_from_nine_gives_400_logits(net: nn.Module, frames: int):
    assert net(torch.zeros(2, frames, 3, 224, 224, device="meta")).shape == (2, 400)


def test_eight_frames_are_one_too_few(net: nn.Module):
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, MIN_FRAMES - 1, 3, 224, 224, device="meta"))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [
        (224, 7, 2, 2, 3),
        (225, 7, 2, 3, 3),
        (112, 3, 2, 0, 1),
        (9, 7, 2, 3, 3),
        (28, 3, 1, 1, 1),
        (14, 2, 2, 0, 0),
    ],
)
def test_padding_is_tensorflows(size: int, kernel: int, stride: int, before: int, after: int):
    x = torch.ones(1, 1, size, 1, 1)
    padded = pad_same(x, (kernel, 1, 1), (stride, 1, 1))[0, 0, :, 0, 0]
    assert padded.shape == (before + size + after,)
    assert padded[:before].sum() == padded[before + size :].sum() == 0 and padded.sum() == size


def test_each_axis_is_padded_by_its_own_kernel():
    padded = pad_same(torch.ones(1, 1, 5, 6, 7), (7, 3, 2), (2, 2, 2))
    assert padded.shape == (1, 1, 5 + 6, 6 + 1, 7 + 1)


@pytest.mark.slow
def test_the_forward_pass_is_figure_3_of_the_paper_written_out():
    """Layer after layer by plain functions of the state dict; batch norm has statistics that a
    fresh network lacks."""
    torch.manual_seed(0)
    net = I3D().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm3d):
            for tensor, low, high in (
                (m.running_mean, -0.2, 0.2),
                (m.running_var, 0.3, 2),
                (m.weight, 0.5, 2),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    state = net.state_dict()

    def same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=2):
            size = x.shape[axis]
            total = max(k - (size % s or s), 0)
            x = F.pad(x, [0, 0] * (4 - axis) + [total // 2, (total + 1) // 2])
        return x

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv3d.weight"]
        x = F.conv3d(same(x, tuple(weight.shape[2:]), (stride,) * 3), weight, stride=stride)
        statistics = (
            state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, *statistics, eps=1e-3).relu()

    def pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        return F.max_pool3d(same(x, kernel, stride), kernel, stride)

    def mixed(x: Tensor, name: str) -> Tensor:
        b1, b2 = (unit(unit(x, f"{name}.b{i}a"), f"{name}.b{i}b") for i in (1, 2))
        return torch.cat(
            [unit(x, f"{name}.b0"), b1, b2, unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b")],
            dim=1,
        )

    def reference(x: Tensor) -> Tensor:
        x = pool(unit(x, "Conv3d_1a_7x7", stride=2), (1, 3, 3), (1, 2, 2))
        x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
        for name in BLOCKS:
            if name == "Mixed_4b":
                x = pool(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = pool(x, (2, 2, 2), (2, 2, 2))
            x = mixed(x, name)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return F.conv3d(x, state["logits.conv3d.weight"], state["logits.conv3d.bias"]).mean(
            dim=(2, 3, 4)
        )

    video = torch.rand(1, MIN_FRAMES + 2, 3, 224, 224) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            net(video), reference(video.transpose(1, 2)), rtol=1e-4, atol=1e-5
        )

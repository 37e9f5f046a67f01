"""Linear layers together with what follows them: a sum, a gated GELU.

On a CPU in float32, oneDNN multiplies matrices 15 to 25 % faster than what `F.linear` calls there,
writes the bias with the product, and takes a sum, a product or a GELU along while a block of the
result is in the cache. Elsewhere torch's own functions do the same; results differ in the last
digits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """A linear layer, plus a tensor of the result's shape where there is one."""

    def forward(
        self,
        input: Tensor,  # ... channels
        plus: Tensor | None = None,  # ... out_channels
    ) -> Tensor:  # ... out_channels
        return linear(input, self.weight, self.bias, plus)


def linear(
    x: Tensor,  # ... c
    weight: Tensor,  # d c
    bias: Tensor | None = None,  # d
    plus: Tensor | None = None,  # ... d
) -> Tensor:  # ... d
    """x weightᵀ + bias + plus."""
    if by_onednn(x):
        # pyright: ignore[reportReturnType]  torch leaves it untyped
        return _Linear.apply(x, weight, bias, plus)
    out = F.linear(x, weight, bias)
    return out if plus is None else out.add_(plus)


def gated_gelu(
    x: Tensor,  # ... c
    weight: Tensor,  # (2 d) c
    bias: Tensor,  # (2 d)
) -> Tensor:  # ... d
    """value * gelu(gate) (GEGLU: Shazeer 2020), of the two halves of a projection.

    The halves are multiplied apart, which spares the backward pass a large concatenation. Without a
    backward pass the GELU and the product are taken where the halves are made, and nothing of them
    is kept.
    """
    (value, gate), (value_bias, gate_bias) = weight.chunk(2), bias.chunk(2)
    if torch.is_grad_enabled():
        return linear(x, value, value_bias) * F.gelu(linear(x, gate, gate_bias))
    if not by_onednn(x):
        gelu = torch.ops.aten.gelu_(F.linear(x, gate, gate_bias))
        return F.linear(x, value, value_bias).mul_(gelu)
    gelu = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")
    return torch.ops.mkldnn._linear_pointwise.binary(x, gelu, value, value_bias, "mul")


def by_onednn(x: Tensor) -> bool:
    """Whether oneDNN multiplies x: on a CPU, in float32, outside of autocast."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(Function):
    """oneDNN's product and its derivatives. That of the weight stays with `mm`, which is faster at
    it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # ... c
        weight: Tensor,  # d c
        bias: Tensor | None,
        plus: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        if plus is None:
            return product(x, weight, bias)
        return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # ... d
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, of_plus = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            product(grad, weight.t(), None) if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
            grad if of_plus else None,
        )


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

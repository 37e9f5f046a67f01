"""A network's forward and backward pass as CUDA graphs: kernels of small networks take less time
than the host needs to launch them, and a graph launches thousands at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def replay(network: nn.Module) -> None:
    """From here on a call of the network under gradients is captured when its shapes are seen first
    (`torch.cuda.make_graphed_callables`), and replayed when they come again.

    Whatever is no tensor is part of the graph, and so is every branch taken at the capture. Results
    lie in the graph's own memory until the next call of the same shapes.
    """
    own = network.forward
    graphs: dict[Any, Any] = {}

    def forward(*args: Tensor, **kwargs: Any) -> Tensor:
        if not (torch.is_grad_enabled() and args[0].is_cuda):
            return own(*args, **kwargs)
        names = [name for name, value in kwargs.items() if isinstance(value, Tensor)]
        fixed = {name: value for name, value in kwargs.items() if name not in names}
        tensors = (*args, *(kwargs[name] for name in names))
        key = tuple((t.shape, t.dtype, t.requires_grad) for t in tensors), *sorted(fixed.items())
        if key not in graphs:
            call = _Call(network, own, len(args), names, fixed)
            examples = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
            enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
            # casts that are kept from outside of the graph would not be made again
            with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
                graphs[key] = torch.cuda.make_graphed_callables(
                    call, examples, allow_unused_input=True
                )
        return graphs[key](*tensors)

    network.forward = forward


class _Call(nn.Module):
    """A call of a network whose tensors come in a row."""

    def __init__(
        self, network: nn.Module, own: Callable, first: int, names: list[str], fixed: dict[str, Any]
    ):
        super().__init__()
        self.network, self.own = network, own
        self.first, self.names, self.fixed = first, names, fixed

    def forward(self, *tensors: Tensor) -> Tensor:
        named = dict(zip(self.names, tensors[self.first :], strict=True))
        return self.own(*tensors[: self.first], **named, **self.fixed)

"""What operations on the meta device answer: tensors of the right shape, type and strides.

torch's own answers are functions in Python that import its compiler, which takes a second, and they
are slow beside. These are the same for what the networks do, and for what is done around them; any
other operation is asked of torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# pointwise ones whose results have a type of their own, and clone, which is told a layout
OTHERS = {"eq", "ne", "lt", "le", "gt", "ge", "isfinite", "isnan", "isinf", "logical_not", "clone"}


class Blank(TorchDispatchMode):
    """Operations on the meta device are answered from here where they can be."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # torch's word; if it does, every mode imports it
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return answer(func, args, kwargs or {})


def answer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the meta device without computing anything."""
    given = tensors_in((*args, *kwargs.values()))
    device = kwargs.get("device")
    on_meta = torch.device(device).type == "meta" if device else any(t.is_meta for t in given)
    if on_meta:
        name = func.overloadpacket.__name__
        if name.endswith("_") and torch.Tag.inplace_view not in func.tags:
            return args[0]
        found = NotImplemented
        if func in SHAPES:
            found = SHAPES[func](*args, **kwargs)
        elif torch.Tag.pointwise in func.tags and name not in OTHERS:
            found = pointwise(given)
        if found is not NotImplemented:
            return found
    return func(*args, **kwargs)


def tensors_in(values: Sequence[Any]) -> list[Tensor]:
    """Those among an operation's arguments or results, or in a list among them."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, Tensor)]
    return found


def blank(shape: Sequence[int], dtype: torch.dtype, stride: Sequence[int] | None = None) -> Tensor:
    """A tensor of nothing, contiguous if not told otherwise."""
    return torch.empty_strided(shape, stride or dense(shape), dtype=dtype, device="meta")


def dense(shape: Sequence[int], order: Sequence[int] | None = None) -> list[int]:
    """Strides without gaps, the axes in this order, outermost first; None: as they stand."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order or range(len(shape))):
        strides[axis] = step
        step *= max(1, shape[axis])
    return strides


def axes_of(tensors: Sequence[Tensor]) -> list[int] | None:
    """The order of axes if channels lie innermost in all of them; else None, as they stand."""
    rank = tensors[0].ndim
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(rank)
    if last and all(not t.is_contiguous() and t.is_contiguous(memory_format=last) for t in tensors):
        return [0, *range(2, rank), 1]
    return None


def like(x: Tensor, *rest: Any, dtype: torch.dtype | None = None, **to: Any) -> Tensor:
    """As empty_like: without gaps, the axes in the order of x's strides."""
    return blank(x.shape, dtype or x.dtype, dense(x.shape, order_of(x.stride())))


def order_of(strides: Sequence[int]) -> list[int]:
    """Axes from the outermost stride to the innermost; an axis of stride 0, whose values are
    repeated, goes with its neighbours, as torch sorts."""
    order = list(range(len(strides)))[::-1]
    for last in range(1, len(order)):
        here = last
        for before in reversed(range(last)):
            inner, outer = strides[order[before]], strides[order[here]]
            if inner and inner > outer > 0:
                order[before], order[here], here = order[here], order[before], before
            elif 0 < inner < outer:
                break
    return order[::-1]


def pointwise(given: Sequence[Tensor]) -> Any:
    """Of floating tensors of one type, beside which conditions and numbers may stand."""
    floating = [t for t in given if t.is_floating_point()]
    whole = [t for t in floating if t.ndim] or floating
    shape = broadcast([t.shape for t in given])
    if not whole or any(t.dtype != whole[0].dtype for t in whole):
        return NotImplemented
    same = next((t for t in whole if t.shape == shape), None)
    if same is None:
        return blank(shape, whole[0].dtype)
    return like(same)


def broadcast(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


def convolution(
    x: Tensor,  # b c ...
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    if transposed:
        return NotImplemented
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sides = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
    return blank([x.shape[0], weight.shape[0], *sides], x.dtype)


def group_norm(
    x: Tensor, weight: Any, bias: Any, n: int, channels: int, inner: int, groups: int, eps: float
) -> tuple[Tensor, ...]:
    return blank(x.shape, x.dtype), *(blank((n, groups), x.dtype) for _ in range(2))


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> tuple[Tensor, ...]:
    kept = [*x.shape[: x.ndim - len(shape)], *[1] * len(shape)]
    return like(x), *(blank(kept, x.dtype) for _ in range(2))


def attention(
    query: Tensor,  # b heads m c
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    with_sums: bool,
    **rest: Any,
) -> Any:
    if with_sums:
        return NotImplemented
    b, heads, m, _ = query.shape
    out = blank((b, m, heads, value.shape[-1]), query.dtype).transpose(1, 2)
    return out, blank((b, heads, 0), torch.float), *(blank((), torch.long) for _ in range(2))


def nearest(x: Tensor, size: Sequence[int], *scales: float) -> Any:
    shape = (*x.shape[:2], *size)
    return blank(shape, x.dtype, dense(shape, axes_of([x])))


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    return blank(shape, dtype, dense(shape, axes_of(tensors)))


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return blank(shape, tensors[0].dtype)


def inverse(x: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    order = (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)
    return blank(x.shape, x.dtype, dense(x.shape, order)), blank(x.shape[:-2], torch.int32)


def mean(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, **rest: Any) -> Tensor:
    gone = {dim % x.ndim for dim in dims or range(x.ndim)}
    sizes = [(n, axis in gone) for axis, n in enumerate(x.shape)]
    return blank([1 if lost else n for n, lost in sizes if keepdim or not lost], x.dtype)


def index(x: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """Indices of one block of neighbouring axes, by numbers."""
    axes = [axis for axis, one in enumerate(indices) if one is not None]
    numbers = [one for one in indices if one is not None]
    if axes != list(range(axes[0], axes[0] + len(axes))) or any(
        one.dtype == torch.bool for one in numbers
    ):
        return NotImplemented
    picked = broadcast([one.shape for one in numbers])
    return blank((*x.shape[: axes[0]], *picked, *x.shape[axes[-1] + 1 :]), x.dtype)


def repeat(x: Tensor, times: Sequence[int]) -> Tensor:
    sizes = (*[1] * (len(times) - x.ndim), *x.shape)
    return blank([n * k for n, k in zip(sizes, times, strict=True)], x.dtype)


def shuffled(x: Tensor, factor: int) -> Tensor:
    *rest, c, h, w = x.shape
    return blank((*rest, c // factor**2, h * factor, w * factor), x.dtype)


def unshuffled(x: Tensor, factor: int) -> Tensor:
    *rest, c, h, w = x.shape
    return blank((*rest, c * factor**2, h // factor, w // factor), x.dtype)


def filled(size: Sequence[int], *rest: Any, dtype: torch.dtype | None = None, **to: Any) -> Any:
    if dtype is None and any(isinstance(value, int) for value in rest):
        return NotImplemented
    return blank(size, dtype or torch.get_default_dtype())


def arange(end: int, **to: Any) -> Any:
    whole = isinstance(end, int) and "dtype" not in to
    return filled([math.ceil(end)], **to | ({"dtype": torch.int64} if whole else {}))


def new(x: Tensor, size: Sequence[int], dtype: torch.dtype | None = None, **to: Any) -> Tensor:
    return blank(size, dtype or x.dtype)


SHAPES: dict[Any, Callable[..., Any]] = {
    aten.addmm.default: lambda bias, a, b, **scale: blank((len(a), b.shape[1]), a.dtype),
    aten.mm.default: lambda a, b: blank((len(a), b.shape[1]), a.dtype),
    aten.bmm.default: lambda a, b: blank((len(a), a.shape[1], b.shape[2]), a.dtype),
    aten.convolution.default: convolution,
    aten.native_group_norm.default: group_norm,
    aten.native_layer_norm.default: layer_norm,
    aten._scaled_dot_product_efficient_attention.default: attention,
    aten.upsample_nearest2d.default: nearest,
    aten.cat.default: cat,
    aten.stack.default: stack,
    aten.linalg_inv_ex.default: inverse,
    aten.mean.dim: mean,
    aten._safe_softmax.default: like,
    aten._softmax.default: like,
    aten.empty.memory_format: filled,
    aten.zeros.default: filled,
    aten.ones.default: filled,
    aten.randn.default: filled,
    aten.full.default: filled,
    aten.eye.default: lambda n, **to: filled((n, n), **to),
    aten.scalar_tensor.default: lambda value, **to: filled((), value, **to),
    aten.arange.default: arange,
    aten.zeros_like.default: like,
    aten.ones_like.default: like,
    aten.full_like.default: like,
    aten.empty_like.default: like,
    aten.index.Tensor: index,
    aten.repeat.default: repeat,
    aten.pixel_shuffle.default: shuffled,
    aten.pixel_unshuffle.default: unshuffled,
    aten.new_empty.default: new,
    aten.new_zeros.default: new,
}

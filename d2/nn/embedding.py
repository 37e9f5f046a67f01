"""Sinusoidal embedding of scalars: noise levels, frame numbers, camera angles, frame rates."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_PERIOD = 10000.0  # of the slowest sinusoid, in units of the scalar (Vaswani et al. 2017)


def sinusoidal(
    values: Tensor,  # ...
    dim: int,
) -> Tensor:  # ... dim
    """[cos(v f_0), cos(v f_1), ..., sin(v f_0), ...] with f_i = 10000^(-i / half) and half = dim /
    2.

    Phases are formed in float64: in float32 those of values around 255 are already off by 1e-5. The
    result has the dtype of `values`, float32 for integers. Ho et al. 2020, with cosines first as in
    the published checkpoints.
    """
    assert dim % 2 == 0, (
        f"an embedding is pairs of cosine and sine, so its width is even, not {dim}"
    )
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=values.device) / half
    phases = values.double()[..., None] * MAX_PERIOD**-exponents
    dtype = values.dtype if values.is_floating_point() else torch.float32
    return torch.cat((phases.cos(), phases.sin()), dim=-1).to(dtype)

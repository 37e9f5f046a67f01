"""Checks of the frequency filters and their mixing. Tolerances are those of the data's README."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d2.rules.frequency import low_pass, mix
from golden.case import Case
from golden.networks import FLOAT64, expect


def check_frequency(case: Case) -> None:
    masks = {name: published_mask(p) for name, p in case.meta["filters"].items()}
    for name, mask in masks.items():
        axes = tuple(range(mask.ndim))
        expect(torch.fft.fftshift(mask, dim=axes), case.expected(f"filter.{name}"), 1e-6)
    for name, p in case.meta["mixes"].items():
        assert p["function"] == f"freq_mix_{masks[p['filter']].ndim}d"
        x, noise = (case.tensors[f"input.mix.{name}.{part}"] for part in ("x", "noise"))
        expect(mix(x, noise, masks[p["filter"]]), case.expected(f"mix.{name}"), 1e-6)
        # the reference rounds its masks
        exact = mix(x.double(), noise.double(), masks[p["filter"]].float())
        expect(exact, case.expected(f"mix.{name}"), FLOAT64)


def published_mask(p: dict[str, Any]) -> Tensor:
    """Of a filter's parameters; its shape begins with batch and channels, which all have the same
    mask."""
    kind = p["filter_type"].removesuffix("_4d")
    return low_pass(
        p["shape"][2:], kind=kind, order=p["n"], space=p["d_s"], time=p["d_t"], published=True
    )

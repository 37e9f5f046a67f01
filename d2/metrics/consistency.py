"""How much neighbouring cells of a matrix differ: needs no truth, and means most beside it.

Axes: v views, f frames, c h w. Pixels are in [0, 1], on white.

A repeated picture has no change at all, noise has too much; the ratio to the true matrix's change should be 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHANGE_NAMES = ("temporal_flicker", "cross_view_change")


def consistency_metrics(
    sample: Tensor,  # v f 3 h w
    truth: Tensor | None = None,  # v f 3 h w
) -> dict[str, float]:
    """`temporal_flicker` and `cross_view_change` of the sample and, where the truth is given, NAME_ratio to it.

    A change is NaN along an axis of length 1; a ratio is NaN where the truth does not change.
    """
    changes = {"temporal_flicker": temporal_flicker(sample), "cross_view_change": cross_view_change(sample)}
    if truth is None:
        return changes
    true_changes = {"temporal_flicker": temporal_flicker(truth), "cross_view_change": cross_view_change(truth)}
    return changes | {f"{name}_ratio": _ratio(changes[name], true_changes[name]) for name in CHANGE_NAMES}


def temporal_flicker(
    matrix: Tensor,  # v f 3 h w
) -> float:
    """Mean |x[v, f+1] - x[v, f]|."""
    return float(matrix.float().diff(dim=1).abs().mean())


def cross_view_change(
    matrix: Tensor,  # v f 3 h w
) -> float:
    """Mean |x[v+1, f] - x[v, f]|, the last view being the first one's neighbour."""
    if len(matrix) == 1:
        return torch.nan
    return float((matrix.float().roll(-1, dims=0) - matrix.float()).abs().mean())


def _ratio(change: float, true_change: float) -> float:
    return change / true_change if true_change > 0 else torch.nan

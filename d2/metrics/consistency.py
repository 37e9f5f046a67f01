"""How well the cells of a matrix agree: needs no truth, and means most beside it.

Axes: v views, f frames, c h w. Pixels are in [0, 1], on white.

Neighbours change: a repeated picture has no change at all, noise has too much; the ratio to the
true matrix's change should be 1. And all cells show one scene: one that is fitted to the matrix
says what the matrix says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2.metrics.reference import POOLED_NAMES, VISIBLE, measure_cells, pool
from d2.scene import Truth

CHANGE_NAMES = ("temporal_flicker", "cross_view_change")


def consistency_metrics(
    sample: Tensor,  # v f 3 h w
    truth: Tensor | None = None,  # v f 3 h w
) -> dict[str, float]:
    """`temporal_flicker` and `cross_view_change` of the sample and, where the truth is given,
    NAME_ratio to it.

    A change is NaN along an axis of length 1; a ratio is NaN where the truth does not change.
    """
    changes = {
        "temporal_flicker": temporal_flicker(sample),
        "cross_view_change": cross_view_change(sample),
    }
    if truth is None:
        return changes
    true_changes = {
        "temporal_flicker": temporal_flicker(truth),
        "cross_view_change": cross_view_change(truth),
    }
    return changes | {
        f"{name}_ratio": _ratio(changes[name], true_changes[name]) for name in CHANGE_NAMES
    }


def self_figures(
    sample: Tensor,  # v f 3 h w
    # v f 3 h w, the cells of a scene fitted to it; None: there is no such scene
    fitted: Tensor | None,
    truth: Truth | None,
) -> dict[str, float]:
    """self_psnr, self_psnr_masked, self_sharpness of the fit against the sample, higher where it is
    one scene. Against the truth, asset_NAME of the fit for every figure of `reference`, and
    asset_gain, the dB of masked PSNR that it is ahead of the sample. NaN without a fit.
    """
    white = torch.ones_like(sample) if fitted is None else fitted.to(sample)
    shown = (sample < 1 - VISIBLE).any(dim=2, keepdim=True).to(sample)
    own = _pooled(white, Truth(sample, shown, torch.zeros_like(shown)))
    figures = {f"self_{name}": own[name] for name in ("psnr", "psnr_masked", "sharpness")}
    if truth is not None:
        asset, plain = _pooled(white, truth), _pooled(sample, truth)
        figures |= {f"asset_{name}": asset[name] for name in POOLED_NAMES}
        figures["asset_gain"] = asset["psnr_masked"] - plain["psnr_masked"]
    return figures if fitted is not None else dict.fromkeys(figures, torch.nan)


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


def _pooled(sample: Tensor, truth: Truth) -> dict[str, float]:
    return pool(
        measure_cells(sample, truth),
        torch.ones(sample.shape[:2], dtype=torch.bool, device=sample.device),
    )


def _ratio(change: float, true_change: float) -> float:
    return change / true_change if true_change > 0 else torch.nan

"""How far two priors were from each other, in pictures: a curve over sigma and maps of the
matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from d2.report.charts import Curve, lines

MAP = 150  # pixels of a map's longer side
BAR = 8  # pixels left of a map, where a bar marks the input view


def disagreement_figure(
    sigma: Tensor,  # n
    distance: Tensor,  # n v f, NaN where unknown
    input_view: int,
) -> dict[str, Any] | None:
    """`curve`: the mean distance over the matrix against sigma, as SVG. `maps`: what a template
    draws of the cells.

    There is a map of the highest, the middle and the lowest third of the levels. None where nothing
    is known.
    """
    distance = distance.cpu()
    known = (
        ~distance.flatten(1).isnan().all(dim=1)
        if distance.numel()
        else torch.zeros(0, dtype=torch.bool)
    )
    if not known.any():
        return None
    sigma, distance = sigma.cpu()[known], distance[known].float()
    order = sigma.argsort(descending=True, stable=True)
    means = distance.flatten(1).nanmean(dim=1)
    points = list(zip(sigma[order].tolist(), means[order].tolist(), strict=True))
    thirds = [part for part in order.tensor_split(3) if len(part)]
    return {
        "curve": lines("mean over the matrix", [Curve(1, "rows and columns", points)], x_label="σ"),
        "maps": [_map(distance[part].nanmean(dim=0), sigma[part], input_view) for part in thirds],
    }


def _map(
    mean: Tensor,  # v f
    sigma: Tensor,  # n, the levels it is a mean of
    input_view: int,
) -> dict[str, Any]:
    """Every cell's place and darkness, as text for the template."""
    views, frames = mean.shape
    side = MAP / max(views, frames)
    least, most = float(mean.nan_to_num(math.inf).min()), float(mean.nan_to_num(-math.inf).max())
    cells = [
        {
            "view": view + 1,
            "frame": frame + 1,
            "value": f"{value:.3g}",
            "x": f"{BAR + frame * side:.2f}",
            "y": f"{view * side:.2f}",
            "opacity": f"{0.06 + 0.94 * (value - least) / max(most - least, 1e-9):.2f}",
        }
        for view, row in enumerate(mean.tolist())
        for frame, value in enumerate(row)
        if not math.isnan(value)
    ]
    return {
        "cells": cells,
        "side": f"{side + 0.3:.2f}",  # a little over the next: no seams
        "input": f"{input_view * side:.2f}",
        "width": f"{BAR + frames * side + 0.3:.1f}",
        "height": f"{views * side + 0.3:.1f}",
        "high": f"{float(sigma.max()):.3g}",
        "low": f"{float(sigma.min()):.3g}",
        "least": f"{least:.2g}",
        "most": f"{most:.2g}",
    }

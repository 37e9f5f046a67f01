"""The energy score of several samples of one scene: a proper score, which neither blur nor a mean
can win.

Axes: k samples, v views, f frames, c h w. Pixels are in [0, 1].
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from d2.matrix import FOV_Y_DEG, RADIUS

OBJECT_RADIUS = 0.5  # objects lie within it around the origin


class Energy(NamedTuple):
    """score = error - spread; all in units of one pixel value, as a root mean square."""

    score: float  # the lower, the better
    error: float  # mean |X - y|
    spread: float  # half of mean |X - X'|


def energy_score(
    samples: Tensor,  # k ... 3 h w
    truth: Tensor,  # ... 3 h w
    mask: Tensor | None = None,  # broadcasts to the truth, bool; None: everywhere
) -> Energy:
    """mean |X - y| - ½ mean |X - X'| over the masked values (Gneiting and Raftery 2007, equation
    22).

    |.| is the Euclidean norm over all masked values of all cells together, divided by the root of
    their number. Pairs are of different samples, which keeps the score unbiased at any k. Its
    expectation is least for samples of the truth's own distribution, provided that the mask is
    known before either is seen: `object_disc` is such a mask; one cut from the truth rewards
    guessing where the object will be. The spread, and with it the score, is NaN for k = 1.
    """
    assert samples.shape[1:] == truth.shape, (
        f"samples {tuple(samples.shape)}, truth {tuple(truth.shape)}"
    )
    where = (
        torch.ones_like(truth, dtype=torch.bool)
        if mask is None
        else mask.to(truth.device).expand_as(truth)
    )
    y = truth[where].double()
    x = [sample[where.to(sample.device)].double().to(y.device) for sample in samples]
    error = _mean([_rms(one - y) for one in x])
    spread = _mean([_rms(one - other) for one, other in combinations(x, 2)]) / 2
    return Energy(error - spread, error, spread)


def object_disc(height: int, width: int) -> Tensor:  # h w, bool
    """The pixels that can show anything within `OBJECT_RADIUS` of the origin, from any camera of
    the ring."""
    # of half the height
    reach = math.tan(math.asin(OBJECT_RADIUS / RADIUS)) / math.tan(math.radians(FOV_Y_DEG / 2))
    y = (torch.arange(height) + 0.5 - height / 2) / (height / 2)
    x = (torch.arange(width) + 0.5 - width / 2) / (height / 2)
    pixel = 2 / height  # a pixel that the outline crosses is in
    return y[:, None].square() + x.square() <= (reach + pixel) ** 2


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan

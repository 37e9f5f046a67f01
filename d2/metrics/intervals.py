"""Bootstrap intervals over scenes.

A difference between two variants is taken scene by scene, on the same scenes and the same noise: what makes one scene
harder than another then cancels, and 16 scenes say much more than two separate intervals would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """A mean over n scenes and the bounds that hold it at the level asked for."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values: Sequence[float] | NDArray[np.floating],  # n
    *,
    seed: int,
    num_resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """The percentile bootstrap of a mean (Efron 1979), deterministic in the seed.

    The bounds of fewer than two values are NaN: one scene says nothing of the spread. So is all that holds a NaN.
    With few scenes the interval is a little narrow: at n = 16 normal values, 95 % cover in about 92 of 100 cases.
    """
    x = np.asarray(values, dtype=np.float64)
    assert x.ndim == 1 and len(x) > 0, f"values of shape {x.shape}"
    n = len(x)
    if n == 1:
        return Interval(float(x[0]), math.nan, math.nan, 1)
    draws = np.random.default_rng(seed).integers(n, size=(num_resamples, n))
    low, high = np.quantile(x[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high), n)


def paired_difference(
    a: Sequence[float] | NDArray[np.floating],  # n
    b: Sequence[float] | NDArray[np.floating],  # n, of the same scenes in the same order
    *,
    seed: int,
    num_resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """The mean of a - b and its bounds; the scenes are resampled, each with both its values."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert x.shape == y.shape, f"values of shapes {x.shape} and {y.shape} cannot be paired"
    return bootstrap_mean(x - y, seed=seed, num_resamples=num_resamples, level=level)

"""Intervals of distances between sets: what a resample is, and what the bounds promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from d2.metrics.frechet import KERNEL_DEGREE, frechet_distance, kernel_distance
from d2.metrics.set_intervals import (
    MAX_DIM,
    frechet_resamples,
    kernel_resamples,
    scene_counts,
    set_difference,
    set_interval,
)

D = 5


def scenes(seed: int, sizes: Sequence[int], *, shift: float = 0.0, dim: int = D) -> list[Tensor]:
    """Sets whose members have more in common within a scene than between scenes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return [shift + draw(1, dim) + 0.5 * draw(size, dim) for size in sizes]


def laid_out(parts: Sequence[Tensor], counts: Tensor) -> Tensor:
    """The members of a resample, one after the other."""
    return torch.cat(
        [part.repeat(int(count), 1) for part, count in zip(parts, counts, strict=True)]
    )


def test_every_resample_holds_as_many_scenes_and_the_seed_decides_which():
    counts = scene_counts(7, seed=3)
    assert (counts.sum(dim=1) == 7).all() and counts.max() > 1
    assert torch.equal(counts, scene_counts(7, seed=3)) and not torch.equal(
        counts, scene_counts(7, seed=4)
    )


def test_the_frechet_distance_of_a_resample_is_that_of_its_members():
    sampled, true = scenes(0, [3, 4, 2, 5], shift=0.3), scenes(1, [2, 2, 6, 1])
    counts = torch.tensor([[1, 1, 1, 1], [2, 0, 1, 1], [0, 0, 4, 0]])
    got = frechet_resamples(sampled, true, counts)
    assert got is not None
    for value, count in zip(got.tolist(), counts, strict=True):
        assert value == pytest.approx(
            frechet_distance(laid_out(sampled, count), laid_out(true, count)), abs=1e-6
        )


def test_the_kernel_distance_of_a_resample_leaves_out_pairs_of_copies():
    sampled, true = scenes(0, [3, 4, 2], shift=0.3), scenes(1, [2, 2, 5])
    counts = torch.tensor([[1, 1, 1], [2, 0, 1]])
    whole, twice = kernel_resamples(sampled, true, counts).tolist()
    assert whole == pytest.approx(kernel_distance(torch.cat(sampled), torch.cat(true)), abs=1e-12)

    def mean(a: Tensor, b: Tensor, copies_apart: bool) -> float:
        kernel = (a.double() @ b.double().T / D + 1) ** KERNEL_DEGREE
        pairs = [
            (i, j)
            for i, j in product(range(len(a)), range(len(b)))
            if copies_apart or not a[i].equal(b[j])
        ]
        return sum(float(kernel[pair]) for pair in pairs) / len(pairs)

    x, y = (laid_out(side, counts[1]) for side in (sampled, true))
    assert twice == pytest.approx(
        mean(x, x, False) + mean(y, y, False) - 2 * mean(x, y, True), abs=1e-9
    )


@pytest.mark.parametrize(
    ("distance", "function"), [("frechet", frechet_distance), ("kernel", kernel_distance)]
)
def test_the_value_is_the_distance_of_all_and_lies_between_its_bounds(
    distance: str, function: object
):
    sampled, true = scenes(0, [4] * 12, shift=0.5), scenes(1, [4] * 12)
    interval = set_interval(sampled, true, distance, seed=0)
    assert callable(function) and interval.mean == function(torch.cat(sampled), torch.cat(true))
    assert interval.low < interval.mean < interval.high and interval.n == 12
    assert interval == set_interval(sampled, true, distance, seed=0)
    assert interval[1:3] != set_interval(sampled, true, distance, seed=1)[1:3]


@pytest.mark.parametrize("distance", ["frechet", "kernel"])
def test_the_bounds_hold_what_other_scenes_would_give(distance: str):
    """The mean of the distance over many drawings of 16 scenes, in about 95 of 100 cases; its bias
    is in both."""
    intervals = [
        set_interval(
            scenes(k, [2] * 16, shift=0.5, dim=3),
            scenes(1000 + k, [2] * 16, dim=3),
            distance,
            seed=k,
        )
        for k in range(120)
    ]
    middle = sum(interval.mean for interval in intervals) / len(intervals)
    coverage = sum(interval.low <= middle <= interval.high for interval in intervals) / len(
        intervals
    )
    assert 0.85 < coverage <= 0.99


@pytest.mark.parametrize("distance", ["frechet", "kernel"])
def test_a_difference_is_paired(distance: str):
    true = scenes(0, [3] * 12)
    good = [part + 0.3 for part in true]
    bad = [part + 0.5 for part in true]
    difference = set_difference((bad, true), (good, true), distance, seed=0)
    a, b = (set_interval(side, true, distance, seed=0) for side in (bad, good))
    assert difference.mean == pytest.approx(a.mean - b.mean) and difference.low > 0
    assert difference.high - difference.low < (a.high - a.low) + (b.high - b.low)
    assert set_difference((bad, true), (bad, true), distance, seed=0)[:3] == (0, 0, 0)


def test_where_nothing_can_be_said_the_bounds_are_nan():
    one = set_interval(scenes(0, [4]), scenes(1, [4]), "frechet", seed=0)
    assert math.isfinite(one.mean) and math.isnan(one.low) and math.isnan(one.high) and one.n == 1
    wide = [scenes(seed, [2, 2], dim=MAX_DIM + 1) for seed in (0, 1)]
    assert math.isnan(set_interval(*wide, "frechet", seed=0).low)
    assert math.isfinite(set_interval(*wide, "kernel", seed=0).low)


def test_a_resample_of_one_video_alone_does_not_spoil_the_bounds():
    """Two scenes of one video each: half of all resamples hold the same video twice, which makes no
    pair."""
    interval = set_interval(scenes(0, [1, 1]), scenes(1, [1, 1]), "kernel", seed=0)
    assert math.isfinite(interval.low) and math.isfinite(interval.high)

"""Laws of the bootstrap and of the tables made with it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2.metrics.intervals import bootstrap_mean, paired_difference
from d2.metrics.metric import METRIC_NAMES
from d2.metrics.table import TABLE_COLUMNS, cell, interval_text, markdown_table


def test_the_bounds_are_those_of_the_normal_law_for_many_values():
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = bootstrap_mean(values, seed=1)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.03 * half
    )


def test_the_truth_is_covered_as_often_as_promised():
    """300 experiments of 16 scenes; a percentile interval at n = 16 covers about 92 %, 3 standard
    errors are 4.7 %."""
    rng = np.random.default_rng(0)
    intervals = [
        bootstrap_mean(rng.normal(5, 2, 16), seed=k, num_resamples=1000) for k in range(300)
    ]
    coverage = np.mean([i.low <= 5 <= i.high for i in intervals])
    assert 0.87 < coverage < 0.97


def test_the_seed_alone_decides():
    values = np.random.default_rng(0).normal(size=16)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(list(values), seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_a_wider_level_holds_the_narrower():
    values = np.random.default_rng(0).normal(size=16)
    narrow, wide = (
        bootstrap_mean(values, seed=1, level=0.5),
        bootstrap_mean(values, seed=1, level=0.99),
    )
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_pairing_sees_a_small_difference_between_hard_and_easy_scenes():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(16, 3, 16)
    a, b = difficulty + 0.5 + rng.normal(0, 0.2, 16), difficulty + rng.normal(0, 0.2, 16)
    paired = paired_difference(a, b, seed=0)
    assert paired.mean == pytest.approx(a.mean() - b.mean())
    assert paired.low > 0
    one, other = bootstrap_mean(a, seed=0), bootstrap_mean(b, seed=1)
    assert one.low < other.high  # unpaired, the two cannot be told apart
    assert paired.high - paired.low < 0.2 * math.hypot(one.high - one.low, other.high - other.low)


def test_pairing_with_itself_is_exactly_zero():
    values = np.random.default_rng(0).normal(size=16)
    assert paired_difference(values, values, seed=0)[:3] == (0, 0, 0)


def test_one_scene_has_no_bounds_and_nan_is_not_hidden():
    single = bootstrap_mean([3.0], seed=0)
    assert single.mean == 3 and math.isnan(single.low) and math.isnan(single.high)
    assert all(math.isnan(value) for value in bootstrap_mean([1.0, math.nan, 2.0], seed=0)[:3])


def test_every_table_shows_psnr_with_sharpness_and_retrieval():
    assert set(TABLE_COLUMNS) <= set(METRIC_NAMES)
    assert {"psnr_masked", "sharpness", "own_view_unseen", "own_frame_unseen"} < set(TABLE_COLUMNS)


def test_a_dash_stands_where_nothing_was_measured():
    assert interval_text(bootstrap_mean([math.nan], seed=0)) == "–"
    assert cell("energy", None) == "–" and markdown_table([]) == ""

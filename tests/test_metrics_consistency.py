"""Laws of the change between neighbouring cells."""

from __future__ import annotations

import math

import pytest
import torch

from d2.metrics.baselines import repeat_orbit, show_input
from d2.metrics.consistency import consistency_metrics

V, N, H = 4, 6, 8


def separable(per_frame: float, per_view: list[float]) -> torch.Tensor:
    """x[v, f] = level[v] + per_frame · f."""
    level = torch.tensor(per_view)[:, None] + per_frame * torch.arange(N)[None]
    return level[:, :, None, None, None].expand(-1, -1, 3, H, H)


def test_a_steady_ramp_has_its_slope_and_the_ring_closes():
    figures = consistency_metrics(separable(0.01, [0.0, 0.1, 0.2, 0.3]))
    assert figures == pytest.approx(
        {"temporal_flicker": 0.01, "cross_view_change": (0.1 + 0.1 + 0.1 + 0.3) / 4}
    )


def test_ratios_to_itself_are_one_and_scale_with_the_change():
    truth = separable(0.01, [0.0, 0.1, 0.2, 0.3])
    same = consistency_metrics(truth, truth)
    assert (same["temporal_flicker_ratio"], same["cross_view_change_ratio"]) == pytest.approx(
        (1, 1)
    )
    other = consistency_metrics(separable(0.03, [0.0, 0.05, 0.1, 0.15]), truth)
    assert (other["temporal_flicker_ratio"], other["cross_view_change_ratio"]) == pytest.approx(
        (3, 0.5)
    )


def test_baselines_do_not_change_along_the_axis_they_repeat():
    truth = torch.rand(V, N, 3, H, H, generator=torch.Generator().manual_seed(0))
    orbit = consistency_metrics(repeat_orbit(truth[:, 0], N), truth)
    assert (
        orbit["temporal_flicker"]
        == orbit["temporal_flicker_ratio"]
        == 0
        < orbit["cross_view_change"]
    )
    shown = consistency_metrics(show_input(truth[-1], V), truth)
    assert (
        shown["cross_view_change"]
        == shown["cross_view_change_ratio"]
        == 0
        < shown["temporal_flicker"]
    )


def test_the_start_of_the_ring_does_not_matter():
    matrix = torch.rand(V, N, 3, H, H, generator=torch.Generator().manual_seed(0))
    assert consistency_metrics(matrix.roll(1, dims=0)) == pytest.approx(consistency_metrics(matrix))


def test_one_picture_and_a_still_truth_have_no_answer():
    assert all(
        math.isnan(value) for value in consistency_metrics(torch.rand(1, 1, 3, H, H)).values()
    )
    still = torch.full((V, N, 3, H, H), 0.5)
    figures = consistency_metrics(torch.rand(V, N, 3, H, H), still)
    assert math.isnan(figures["temporal_flicker_ratio"]) and math.isnan(
        figures["cross_view_change_ratio"]
    )

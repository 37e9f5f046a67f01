"""Cutting a matrix into sequences and putting them back; the camera ring."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2 import matrix
from d2.matrix import RADIUS, Cut, camera_positions, camera_ring, coverage, put, take

CUTS = {
    # name -> function, number and length of its sequences
    "rows": (matrix.rows, lambda v, f: (v, f)),
    "columns": (matrix.columns, lambda v, f: (f, v)),
    "single_cells": (matrix.single_cells, lambda v, f: (v * f, 1)),
    "diagonals": (matrix.diagonals, lambda v, f: (v, f)),
    "raster": (matrix.raster, lambda v, f: (1, v * f)),
}
sizes = st.integers(1, 6)


def numbered(num_views: int, num_frames: int) -> Tensor:
    """A matrix whose every number is another one: v f 2 3."""
    return torch.arange(num_views * num_frames * 6.0).reshape(num_views, num_frames, 2, 3)


def windows(num_views: int, num_frames: int, length: int) -> Cut:
    """Row windows of `length` at every start, each cell shared evenly among those that cover it."""
    starts = range(num_frames - length + 1)
    cells = torch.tensor(
        [
            [[view, start + t] for t in range(length)]
            for view in range(num_views)
            for start in starts
        ],
    )
    covering = [
        sum(start <= frame < start + length for start in starts) for frame in range(num_frames)
    ]
    return Cut(cells, 1 / torch.tensor(covering, dtype=torch.float64)[cells[..., 1]])


@pytest.mark.parametrize("name", CUTS)
@settings(deadline=None, max_examples=30)
@given(v=sizes, f=sizes)
def test_full_cuts_visit_every_cell_once_and_put_undoes_take(name: str, v: int, f: int) -> None:
    make, shape = CUTS[name]
    cut = make(v, f)
    assert tuple(cut.cells.shape) == (*shape(v, f), 2)
    visited = [tuple(cell) for cell in cut.cells.flatten(0, 1).tolist()]
    assert sorted(visited) == [(view, frame) for view in range(v) for frame in range(f)]
    x = numbered(v, f)
    assert torch.equal(put(take(x, cut), cut, v, f), x)
    assert coverage(cut, v, f).all()


def test_rows_run_along_frames_and_columns_along_views() -> None:
    x = numbered(3, 4)
    assert torch.equal(take(x, matrix.rows(3, 4))[2], x[2])
    assert torch.equal(take(x, matrix.columns(3, 4))[2], x[:, 2])
    assert torch.equal(take(x, matrix.single_cells(3, 4))[5, 0], x[1, 1])


def test_diagonals_move_on_by_one_view_a_frame() -> None:
    assert matrix.diagonals(3, 4).cells[2].tolist() == [[2, 0], [0, 1], [1, 2], [2, 3]]


def test_neighbours_of_the_raster_touch() -> None:
    path = matrix.raster(4, 5).cells[0]
    assert ((path[1:] - path[:-1]).abs().sum(dim=1) == 1).all()


@settings(deadline=None, max_examples=30)
@given(v=sizes, f=sizes, data=st.data())
def test_overlapping_windows_blend_back_to_what_was_taken(
    v: int, f: int, data: st.DataObject
) -> None:
    cut = windows(v, f, data.draw(st.integers(1, f)))
    x = torch.randn(
        v, f, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(v + 7 * f)
    )
    torch.testing.assert_close(put(take(x, cut), cut, v, f), x, rtol=1e-12, atol=1e-12)
    assert coverage(cut, v, f).all()


def test_put_weighs_by_the_shares() -> None:
    cut = Cut(
        torch.tensor([[[0, 0], [0, 1]], [[0, 1], [0, 2]]]), torch.tensor([[1.0, 0.25], [0.75, 1.0]])
    )
    blended = put(torch.tensor([[1.0, 2.0], [6.0, 7.0]]), cut, 1, 3)
    assert blended.tolist() == [[1.0, 0.25 * 2 + 0.75 * 6, 7.0]]


def test_put_adds_in_the_order_of_the_sequences() -> None:
    """Float sums depend on their order, so it is part of the result: only (big - big) + small keeps
    small."""
    big, small = 2.0**60, 1.0
    cut = Cut(torch.zeros(3, 1, 2, dtype=torch.long), torch.ones(3, 1))
    assert put(torch.tensor([[big], [-big], [small]]), cut, 1, 1).item() == small
    assert put(torch.tensor([[big], [small], [-big]]), cut, 1, 1).item() == 0


def test_what_is_not_covered_is_zero_and_told() -> None:
    cut = Cut(torch.tensor([[[1, 0], [1, 1]]]), torch.ones(1, 2))
    assert coverage(cut, 2, 3).tolist() == [[False] * 3, [True, True, False]]
    x = numbered(2, 3) + 1
    there = coverage(cut, 2, 3)[..., None, None]
    assert torch.equal(put(take(x, cut), cut, 2, 3), torch.where(there, x, 0))


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_put_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    cut = CUTS[name][0](2, 3)
    assert put(take(numbered(2, 3).to(dtype), cut), cut, 2, 3).dtype == dtype


@pytest.mark.parametrize("num_views", [1, 2, 8, 21])
def test_the_ring_is_even_and_ends_with_the_input_view_at_a_whole_turn(num_views: int) -> None:
    ring = camera_ring(num_views, 0.3)
    assert ring.num_views == num_views and ring.input_view == num_views - 1
    assert ring.azimuth_rad[-1].item() == 2 * math.pi
    steps = torch.diff(ring.azimuth_rad, prepend=torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(
        steps, torch.full_like(steps, 2 * math.pi / num_views), rtol=1e-12, atol=0
    )
    assert (ring.elevation_rad == 0.3).all()


def test_cameras_stand_on_a_sphere_and_turn_counter_clockwise_seen_from_above() -> None:
    ring = camera_ring(8, torch.linspace(-0.2, 0.6, 8))
    at = camera_positions(ring)
    torch.testing.assert_close(at.norm(dim=1), torch.full((8,), RADIUS, dtype=torch.float64))
    torch.testing.assert_close(at[:, 2], RADIUS * torch.linspace(-0.2, 0.6, 8).double().sin())
    ahead = at.roll(-1, 0)
    assert (at[:, 0] * ahead[:, 1] - at[:, 1] * ahead[:, 0] > 0).all()  # z of the cross product


def test_a_ring_of_no_views_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^matrix\.num_views=0: .*$"):
        camera_ring(0)

"""The torchmetrics shell says what the plain functions say, whatever the order and the ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from d2.data.scene import Truth
from d2.metrics.metric import METRIC_NAMES, MatrixMetrics, MatrixResults, matrix_metrics

V, N, H = 3, 2, 16


def scene(index: int) -> tuple[Tensor, Truth, int, int]:
    generator = torch.Generator().manual_seed(index)
    masks = torch.zeros(V, N, 1, H, H)
    masks[..., 5:11, 4:12] = 1
    pixels = 1 - masks * torch.rand(V, N, 3, H, H, generator=generator)
    sample = (pixels + 0.1 * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
    return sample, Truth(pixels, masks, torch.ones_like(masks)), V - 1, index


def updated(indices: list[int]) -> MatrixMetrics:
    metric = MatrixMetrics()
    for index in indices:
        metric.update(*scene(index))
    return metric


def test_equals_the_plain_function_and_does_not_know_the_order():
    results = updated([2, 0, 5]).compute()
    assert [row["scene"] for row in results.scenes] == [0, 2, 5]
    plain = [matrix_metrics(*scene(index)[:3]) for index in (0, 2, 5)]
    for row, figures in zip(results.scenes, plain, strict=True):
        assert tuple(figures) == METRIC_NAMES
        assert {name: row[name] for name in METRIC_NAMES} == pytest.approx(figures, rel=1e-6)
    assert results.mean == pytest.approx({k: sum(f[k] for f in plain) / 3 for k in METRIC_NAMES}, rel=1e-6)
    assert results == updated([5, 2, 0]).compute()


def test_a_scene_counted_twice_is_a_bug():
    with pytest.raises(AssertionError, match="counted twice"):
        updated([1, 0, 1]).compute()


def test_reset_forgets():
    metric = updated([0, 1])
    metric.reset()
    metric.update(*scene(3))
    assert metric.compute() == updated([3]).compute()


def _rank(rank: int, shares: list[list[int]], folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(shares))
    torch.save(tuple(updated(shares[rank]).compute()), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("shares", [[[3, 0], [1]], [[0, 1, 3], []]], ids=["uneven", "one rank has none"])
def test_ranks_gather_to_what_one_process_says(tmp_path: Path, shares: list[list[int]]):
    start_processes(_rank, (shares, tmp_path), nprocs=2, start_method="fork")
    for rank in range(2):
        assert MatrixResults(*torch.load(tmp_path / f"{rank}.pt")) == updated([0, 1, 3]).compute()

"""All figures of a matrix whose truth is known, and their torchmetrics shell.

Axes: v views, f frames, c h w.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from d2.data.scene import Truth
from d2.metrics.consistency import CHANGE_NAMES, consistency_metrics
from d2.metrics.reference import POOLED_NAMES, reference_metrics

METRIC_NAMES = (
    *POOLED_NAMES,
    *(f"{name}_unseen" for name in POOLED_NAMES),
    *CHANGE_NAMES,
    *(f"{name}_ratio" for name in CHANGE_NAMES),
)


class MatrixResults(NamedTuple):
    """What `MatrixMetrics` knows after all scenes."""

    mean: dict[str, float]  # over scenes
    scenes: list[dict[str, float]]  # by scene index: "scene" and the figures


def matrix_metrics(
    sample: Tensor,  # v f 3 h w
    truth: Truth,
    input_view: int,
) -> dict[str, float]:
    """The figures `METRIC_NAMES` of one matrix; see `reference_metrics` and `consistency_metrics`."""
    return reference_metrics(sample, truth, input_view) | consistency_metrics(sample, truth.pixels.to(sample.device))


class MatrixMetrics(Metric):
    """`matrix_metrics` of each scene, gathered over ranks. Every scene is updated once, on one rank."""

    full_state_update = False
    rows: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        # Flat float32, the scene's index in front: the form in which torchmetrics gathers a rank that has no scene.
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self,
        sample: Tensor,  # v f 3 h w
        truth: Truth,
        input_view: int,
        scene_index: int,
    ) -> None:
        figures = matrix_metrics(sample, truth, input_view)
        row = [float(scene_index), *(figures[name] for name in METRIC_NAMES)]
        assert isinstance(self.rows, list)
        self.rows.append(torch.tensor(row, dtype=torch.float32, device=self.device))

    def compute(self) -> MatrixResults:
        table = dim_zero_cat(self.rows).reshape(-1, 1 + len(METRIC_NAMES)).double().cpu()
        table = table[table[:, 0].argsort()]
        indices = [int(i) for i in table[:, 0]]
        assert len(set(indices)) == len(indices), f"a scene was counted twice: {indices}"
        scenes = [
            {"scene": index, **dict(zip(METRIC_NAMES, row[1:].tolist(), strict=True))}
            for index, row in zip(indices, table, strict=True)
        ]
        return MatrixResults(dict(zip(METRIC_NAMES, table[:, 1:].mean(dim=0).tolist(), strict=True)), scenes)

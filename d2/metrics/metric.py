"""The figures of a matrix that need no network: what `d2 sample` measures unless told.

Axes: v views, f frames, c h w.
"""

from __future__ import annotations

from torch import Tensor

from d2.matrix import Cameras
from d2.metrics.consistency import CHANGE_NAMES
from d2.metrics.photometric import NAMES as PHOTOMETRIC_NAMES
from d2.metrics.reference import POOLED_NAMES
from d2.metrics.suite import Suite, measure, seen_pairs
from d2.scene import Truth

METRIC_NAMES = (
    *POOLED_NAMES,
    *(f"{name}_unseen" for name in POOLED_NAMES),
    "psnr_pictures",
    *CHANGE_NAMES,
    *(f"{name}_ratio" for name in CHANGE_NAMES),
    *PHOTOMETRIC_NAMES,
)
PLAIN = Suite(("reference", "consistency"), (), None, (), (), {})


def matrix_metrics(
    sample: Tensor,  # v f 3 h w
    truth: Truth,
    cameras: Cameras,
) -> dict[str, float]:
    """The figures `METRIC_NAMES` of one matrix; see reference.py, consistency.py and
    photometric.py."""
    view, pairs = cameras.input_view, seen_pairs(PLAIN, truth, cameras)
    measured = measure(
        [sample], truth, PLAIN, true={}, masked=True, input_view=view, pairs=pairs, cameras=cameras
    )
    return {figure.metric: figure.value for figure in measured.figures}

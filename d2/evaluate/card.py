"""The card beside a table: every choice that changes a number, and what keeps two tables from being
compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from d2 import __version__
from d2.metrics.energy import OBJECT_RADIUS
from d2.metrics.features import Resize
from d2.metrics.features import card as network_card
from d2.metrics.frechet import KERNEL_DEGREE
from d2.metrics.photometric import SOLID, TOLERANCE
from d2.metrics.reference import DILATION, PSNR_CAP, VISIBLE
from d2.metrics.suite import Suite
from d2.recon.self_fit import RECIPE

TRAVERSAL_TEXT = {
    "f": "rows: one video a view, along the frames",
    "v": "columns: one video a frame, along the views",
    "diag": "diagonals: one video a starting view, on by one view a frame, around the ring",
    "4d": "raster: one video a matrix, view by view, every other row backwards (row-major)",
    "4d_columns": (
        "raster: one video a matrix, frame by frame, every other column backwards (column-major)"
    ),
}
MASK_TEXT = (
    f"true coverage > {VISIBLE}, or a sampled channel < 1 - {VISIBLE}; dilated by {DILATION} pixels"
)
PHOTOMETRIC_TEXT = (
    f"both neighbours on the ring; true coverage > {SOLID:g}; depths within {TOLERANCE:g} pixels'"
    " widths; bilinear; where cameras and true depth are known and pictures are not resized"
)
DISC_TEXT = (
    f"all that can show a ball of radius {OBJECT_RADIUS}; every pixel where the cameras are not"
    " those of d2"
)


def choices(
    suite: Suite,
    *,
    resize: Resize | None,  # of all pictures, before anything else
    input_view: int | None,
) -> dict[str, Any]:
    """What changes a number, as plain data. Two evaluations may be compared where these are
    equal."""
    return {
        "metrics": list(suite.metrics),
        "pixels": "8 bits as stored, in [0, 1], over white; no clamping, no crop",
        "resize": None if resize is None else resize._asdict(),
        "input_view": "the matrix's own; else none" if input_view is None else input_view,
        "psnr": (
            f"of the MSE pooled over a matrix, at most {PSNR_CAP:g} dB; psnr_pictures: mean over"
            " pictures"
        ),
        "ssim": (
            "torchmetrics: Gaussian window, sigma 1.5; mean over pictures; ssim_masked: pooled over"
            " masked pixels"
        ),
        "mask": MASK_TEXT,
        "energy_mask": DISC_TEXT,
        "photometric": PHOTOMETRIC_TEXT,
        "self_fit": dataclasses.asdict(RECIPE) if "self_psnr" in suite.metrics else None,
        "perceptual": [
            {"name": d.name, "file": d.file, "sha256": d.sha256} for d in suite.distances
        ],
        "video_features": None if suite.video is None else network_card(suite.video),
        "image_features": [network_card(network) for network in suite.images],
        "feature_maps": None if suite.places is None else network_card(suite.places),
        "texts": {name: _digest(text.tolist()) for name, text in suite.texts.items()},
        "traversals": {name: TRAVERSAL_TEXT[name] for name in suite.traversals},
        "set_distances": (
            "float64; Fréchet: unbiased covariances; kernel: unbiased MMD², (xy / d +"
            f" 1)^{KERNEL_DEGREE}"
        ),
        "sets": (
            "all objects' videos or pictures together, those of all samples of an object on the"
            " sampled side"
        ),
        "averaging": "cells of a matrix, then samples of an object, then objects",
    }


def versions() -> dict[str, str]:
    """Of what does the arithmetic."""
    packages = ("torch", "torchmetrics", "open_clip_torch", "numpy", "pillow")
    return {"d2": __version__, "python": platform.python_version()} | {
        name: version(name) for name in packages
    }


def key_of(*parts: Any) -> str:
    """One hash of plain data: figures kept under it were made in the same way of the same files."""
    return _digest(parts)


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The choices that two cards make differently, by dotted name."""
    left, right = dict(_leaves(a)), dict(_leaves(b))
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{place}.{name}" if place else str(name))
    else:
        yield place, value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

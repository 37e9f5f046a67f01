"""Lets `import torchvision` survive where its wheel was built for CUDA and torch was not.

open_clip needs torchvision's transforms, and lightning and torchmetrics import it where they find it. Its compiled
operators do not load beside a CPU torch; its Python side then dies on the missing operator `nms`. Declaring the two
schemas it refers to is enough for all that these libraries use of it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def declare_missing_operators() -> torch.library.Library | None:
    """Declare `nms` and `qnms` where torchvision is installed and its operators cannot be loaded; else do nothing."""
    spec = importlib.util.find_spec("torchvision")  # finds, does not import
    compiled = sorted(Path(spec.origin).parent.glob("_C*")) if spec and spec.origin else []
    if not compiled or hasattr(torch.ops.torchvision, "nms"):
        return None
    try:
        torch.ops.load_library(compiled[0])  # what torchvision does first itself; a second load is free
        return None
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


_LIBRARY = declare_missing_operators()  # the schemas live as long as this object

"""Lets `import torchvision` survive where its wheel was built for another torch, as CUDA's is
beside a CPU torch.

open_clip needs torchvision's transforms, and lightning and torchmetrics import it where they find
it. Where its compiled operators do not load, its Python side dies on registering `nms` and `qnms`,
which are then unknown. Declaring these two is enough for all that these libraries use of it.
Nothing happens before somebody imports torchvision, and nothing at all where its operators load.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# the module that dies; torchvision.extension comes before it
REGISTRATIONS = "torchvision._meta_registrations"
_LIBRARIES: list[Any] = []  # schemas live as long as their library


class DeclareMissingOperators:
    """A finder that finds nothing: it is asked for `REGISTRATIONS` right before that module runs,
    and prepares it."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Declare `nms` and `qnms` where torchvision has tried to load its operators and could
        not."""
        if (
            name == REGISTRATIONS
            and not sys.modules["torchvision.extension"]._has_ops()
            and not _LIBRARIES
        ):
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            _LIBRARIES.append(library)
            logging.getLogger(__name__).warning(
                "torchvision was built for another torch than %s: its operators do not load. d2"
                " needs none of them and has declared the two that its import asks for.",
                torch.__version__,
            )
        return None


sys.meta_path.insert(0, DeclareMissingOperators)

"""SCENE/.measured.safetensors: what the tables, the index and the loggers want of a finished scene.

It stays until all scenes of the run are finished, so that whoever goes on with a run that was
stopped, or finishes it on other processes, makes the same of it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from d2.files import read_metadata, read_tensors, write_tensors
from d2.metrics.figures import Figure
from d2.metrics.suite import Measured
from d2.report.page import Card

KEPT = ".measured.safetensors"


class Kept(NamedTuple):
    """What is kept of a scene."""

    methods: dict[str, Measured]
    card: Card | None  # of the index; None without pages

    @property
    def figures(self) -> list[Figure]:
        """All methods' figures."""
        return [figure for each in self.methods.values() for figure in each.figures]


def write_kept(folder: Path, kept: Kept) -> None:
    """Into the folder of its scene."""
    tensors = {
        f"{method} {name}": features.clone()  # methods share the truth's
        for method, each in kept.methods.items()
        for name, features in each.features.items()
    }
    methods = {
        method: {"figures": [dataclasses.asdict(f) for f in each.figures], "shape": each.shape}
        for method, each in kept.methods.items()
    }
    write_tensors(
        folder / KEPT, tensors, {"methods": json.dumps(methods), "card": json.dumps(kept.card)}
    )


def read_kept(folder: Path) -> Kept:
    """What `write_kept` wrote, to the bit."""
    tensors, metadata = read_tensors(folder / KEPT)
    methods = {}
    for method, each in json.loads(metadata["methods"]).items():
        own = {
            name.partition(" ")[2]: t
            for name, t in tensors.items()
            if name.partition(" ")[0] == method
        }
        methods[method] = Measured(
            [Figure(**f) for f in each["figures"]], own, tuple(each["shape"])
        )
    card = json.loads(metadata["card"])
    return Kept(methods, card and Card(*card))


def is_finished(folder: Path, of: str) -> bool:
    """Whether a scene was finished from this input, under the configuration that its run's folder
    is of."""
    matrix = folder / "matrix.safetensors"
    return (folder / KEPT).exists() and matrix.exists() and read_metadata(matrix).get("input") == of

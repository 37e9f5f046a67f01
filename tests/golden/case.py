"""A golden file: what went in, what the reference made of it, and the options it ran with."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import ItemsView, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).parents[2]
SHIPPED = Path(__file__).parent / "data"
FOLDER = Path(os.environ.get("D2_PARITY_DIR") or SHIPPED)

DESCRIBING = {  # names in the files that say how the numbers came to be, or what lies in the file
    *(
        "kind",
        "tensors",
        "note",
        "err_f32",
        "random_draws",
        "check_max_difference_to_formula",
        "eight_ranks_equal_one",
    ),
    *("embedders", "bbox", "side_len"),  # steps on the way to the result
    *("config", "open_clip_config"),  # of networks, which official.py reads
}


class Options(dict[str, Any]):
    """An object of a golden file's json. It remembers what a check has read: an option nobody reads
    is not applied."""

    def __init__(self, values: dict[str, Any]):
        super().__init__(values)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def items(self) -> ItemsView[str, Any]:
        self.seen.update(self)
        return super().items()

    def unread(self, path: str = "") -> Iterator[str]:
        """Dotted paths of the options that no check has read."""
        for key, value in super().items():
            place = f"{path}{key}"
            if key in DESCRIBING or (isinstance(value, str) and " " in value):  # sentences describe
                continue
            if key not in self.seen:
                yield place
            for at, part in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(part, Options):
                    yield from part.unread(
                        f"{place}.{at}." if isinstance(value, list) else f"{place}."
                    )


class Case(NamedTuple):
    stem: str
    meta: Options  # the json
    tensors: dict[str, Tensor]  # the safetensors beside it, as stored; empty where there is none
    folder: Path

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with `prefix`, under the rest of their name."""
        return cut(self.tensors, prefix)

    def expected(self, name: str) -> Tensor:
        """The float64 result of the reference where the file has it, else the float32 one."""
        key = f"output64.{name}"
        return self.tensors[key if key in self.tensors else f"output.{name}"]


def read_case(stem: str, folder: Path) -> Case:
    file = folder / f"{stem}.safetensors"
    tensors = load_file(file) if file.is_file() else {}
    meta = json.loads((folder / f"{stem}.json").read_text(), object_hook=Options)
    return Case(stem, meta, tensors, folder)


@functools.cache
def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Weights of a tiny engine in float32, under the official keys."""
    return {
        key: tensor.float() for key, tensor in load_file(folder / f"{name}.safetensors").items()
    }


@functools.cache
def load_engine(folder: Path, name: str) -> dict[str, Any]:
    """The json beside the weights: `config` of the engine, `open_clip_config` of its image
    tower."""
    return json.loads((folder / f"{name}.json").read_text())


def cut(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


def relative_error(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|b|; where b is zero, max|a|. Differing shapes and NaN are infinitely
    wrong."""
    if a.shape != b.shape:
        return float("inf")
    error, scale = (a.double() - b.double()).abs().max(), b.double().abs().max()
    return torch.nan_to_num(error / scale if scale > 0 else error, nan=float("inf")).item()

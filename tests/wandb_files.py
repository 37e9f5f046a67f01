"""Reads what W&B wrote offline, record by record."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import wandb
from wandb.proto import wandb_internal_pb2

# bytes, of LevelDB's log format; the file begins with seven bytes of its own
BLOCK, HEADER = 32768, 7
FULL, FIRST, LAST = 1, 2, 4  # kinds of fragments; others lie in the middle of a record


class WandbRun(NamedTuple):
    """One offline run."""

    id: str
    name: str
    group: str
    entity: str
    project: str
    job_type: str
    tags: list[str]
    config: dict[str, Any]
    history: list[dict[str, Any]]  # every logged row


def read_runs(folder: Path) -> list[WandbRun]:
    """All offline runs below a folder, in the order of their names."""
    wandb.teardown()  # its service writes on for a moment after a run is finished
    return sorted(
        (read_run(path) for path in folder.rglob("offline-run-*/*.wandb")), key=lambda run: run.name
    )


def read_run(path: Path) -> WandbRun:
    found: list[Any] = []
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for record in records(path.read_bytes()):
        if record.HasField("run"):
            found.append(record.run)
        for update in (*record.run.config.update, *record.config.update):
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        if record.HasField("history"):
            items = record.history.item
            history.append(
                {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
            )
    run = found[0]
    told = (run.run_id, run.display_name, run.run_group, run.entity, run.project, run.job_type)
    return WandbRun(*told, list(run.tags), config, history)


def records(data: bytes) -> Iterator[Any]:
    """The records of a .wandb file."""
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too short for another fragment
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        body, at = data[at + HEADER : at + HEADER + length], at + HEADER + length
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record

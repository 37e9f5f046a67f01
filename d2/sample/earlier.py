"""What an earlier run left in a folder: results of two configurations are never mixed.

A run's folder holds the configuration it is of, as .begun while scenes are being sampled, as config.yaml afterwards.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from d2.errors import InputError
from d2.files import write_text

BEGUN = ".begun"  # holds the configuration under which a run's scenes are being sampled, until all are
TABLES = ("config.yaml", "metrics.csv", "set_metrics.csv", "results.csv", "index.html", BEGUN)
FREE = ("trainer", "logger", "plan")  # keys that no result depends on
SHOWN = 3  # a message names so many keys and counts the rest


def claim(folder: Path, text: str, *, overwrite: bool) -> None:
    """Refuse a folder with results of another configuration, or empty it where `overwrite` says so."""
    held = earlier_text(folder)
    if held is None or not (keys := differing(held, text)):
        return
    if not overwrite:
        if not held:
            raise InputError(
                f"output_dir={folder}: holds scenes of an unknown configuration; give another output_dir, "
                "or overwrite=true"
            )
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        raise InputError(
            f"output_dir={folder}: holds results of another configuration, which differs in {', '.join(keys[:SHOWN])}"
            f"{more}; give another output_dir, or overwrite=true"
        )
    if rank_zero_only.rank == 0:
        for scene in sampled_scenes(folder):
            shutil.rmtree(scene)
        for name in TABLES:
            (folder / name).unlink(missing_ok=True)


def begin(folder: Path, text: str) -> None:
    """Note that a run under this configuration has begun; from now on what is there is not finished."""
    if rank_zero_only.rank == 0:
        (folder / "config.yaml").unlink(missing_ok=True)
        if earlier_text(folder) != text:  # else the note's time tells which scenes are of this run
            write_text(folder / BEGUN, text)


def end(folder: Path) -> None:
    """Note that all scenes are there."""
    if rank_zero_only.rank == 0:
        (folder / BEGUN).unlink(missing_ok=True)


def earlier_text(folder: Path) -> str | None:
    """The configuration that a folder's scenes are of; "" where they do not say, None where there are none."""
    for name in (BEGUN, "config.yaml"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    return "" if sampled_scenes(folder) else None


def sampled_scenes(folder: Path) -> list[Path]:
    """The folders of the scenes of a run."""
    return sorted(path.parent for path in folder.glob("*/matrix.safetensors"))


def differing(held: str, wanted: str) -> list[str]:
    """The keys, weights and files in which two configurations differ, but for those that no result depends on."""
    one, other = dict(entries(held)), dict(entries(wanted))
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def entries(text: str) -> Iterator[tuple[str, Any]]:
    """Dotted key -> value of a configuration as it is kept, and of the lines of facts behind it."""
    node = yaml.safe_load(text) or {}
    yield from flat({key: value for key, value in node.items() if key not in FREE})
    for line in text.splitlines():
        if line.startswith("# ") and ": " in line:
            yield tuple(line[2:].rsplit(": ", 1))  # type: ignore[misc]


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

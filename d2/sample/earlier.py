"""What an earlier run left in a folder: results of two configurations are never mixed.

A run's folder holds the configuration it is of, as .begun while scenes are being sampled, as config.yaml afterwards.
A scene that is finished under it is not sampled again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from d2.errors import InputError
from d2.files import read_metadata, write_text
from d2.sample.kept import KEPT
from d2.sample.state import STATE, input_of
from d2.scene import Scene

BEGUN = ".begun"  # holds the configuration under which a run's scenes are being sampled, until all are
TABLES = ("config.yaml", "metrics.csv", "set_metrics.csv", "results.csv", "index.html", BEGUN)
FREE = ("trainer", "logger", "plan", "save_every_seconds")  # keys that no result depends on
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
        for scene in {*sampled_scenes(folder), *(path.parent for path in folder.glob(f"*/{STATE}"))}:
            shutil.rmtree(scene)
        for name in TABLES:
            (folder / name).unlink(missing_ok=True)


def begin(folder: Path, text: str) -> None:
    """Note that a run under this configuration has begun; from now on what is there is not finished."""
    if rank_zero_only.rank == 0:
        write_text(folder / BEGUN, text)
        (folder / "config.yaml").unlink(missing_ok=True)


def end(folder: Path, scenes: Sequence[Scene]) -> None:
    """Note that all scenes are there."""
    if rank_zero_only.rank == 0:
        (folder / BEGUN).unlink(missing_ok=True)
        for scene in scenes:
            (folder / scene.name / KEPT).unlink(missing_ok=True)


def was_finished(folder: Path, text: str, scenes: Sequence[Scene]) -> bool:
    """Whether a run came to its end under this configuration with these scenes, and all of it is still there."""
    held = earlier_text(folder)
    if held is None or (folder / BEGUN).exists() or differing(held, text):
        return False
    of = {folder / scene.name: input_of(scene) for scene in scenes}
    files = {place / name for place in of for name in ("matrix.safetensors", "metrics.json")}
    if not all(file.exists() for file in files):
        return False
    figures = any((place / "metrics.json").read_text(encoding="utf-8") != "{}\n" for place in of)
    if figures and not (folder / "results.csv").exists():
        return False
    return all(read_metadata(place / "matrix.safetensors").get("input") == wanted for place, wanted in of.items())


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

"""What an earlier run left in a folder: results of two configurations are never mixed.

A run's folder holds the configuration it is of, as .begun while scenes are being sampled, as
config.yaml afterwards. A scene that is finished under it is not sampled again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from d2 import launch
from d2.errors import InputError
from d2.files import locked, read_metadata, write_text
from d2.sample.kept import KEPT
from d2.sample.state import STATE, input_of
from d2.scene import Scene

# holds the configuration under which a run's scenes are being sampled, until all are
BEGUN = ".begun"
TABLES = ("config.yaml", "metrics.csv", "set_metrics.csv", "results.csv", "index.html", BEGUN)
FREE = ("trainer", "logger", "plan", "save_every_seconds")  # keys that no result depends on
SHOWN = 3  # a message names so many keys and counts the rest


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder, by its first process."""
    first = rank_zero_only.rank == 0 and launch.worker()[0] == 0
    with locked(folder) if first else nullcontext():
        yield


def refuse_another(folder: Path, text: str) -> None:
    """Raise an InputError for a folder with results of another configuration."""
    held = earlier_text(folder)
    if held is None or not (keys := differing(held, text)):
        return
    if not held:
        raise InputError(
            f"output_dir={folder}: holds scenes of an unknown configuration; give another"
            " output_dir, or overwrite=true"
        )
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    raise InputError(
        f"output_dir={folder}: holds results of another configuration, which differs in"
        f" {', '.join(keys[:SHOWN])}{more}; give another output_dir, or overwrite=true"
    )


def clear_another(folder: Path, text: str) -> None:
    """Remove what another configuration left in a folder."""
    held = earlier_text(folder)
    if held is not None and differing(held, text) and rank_zero_only.rank == 0:
        for scene in {
            *sampled_scenes(folder),
            *(path.parent for path in folder.glob(f"*/{STATE}")),
        }:
            shutil.rmtree(scene)
        for name in TABLES:
            (folder / name).unlink(missing_ok=True)


def begin(folder: Path, text: str) -> None:
    """Note that a run under this configuration has begun; from now on what is there is not
    finished."""
    if rank_zero_only.rank == 0:
        write_text(folder / BEGUN, text)
        (folder / "config.yaml").unlink(missing_ok=True)


def has_begun(folder: Path, text: str) -> bool:
    """Whether a run under this configuration has begun, and nothing of another is there any
    more."""
    note = folder / BEGUN
    return note.exists() and not differing(note.read_text(encoding="utf-8"), text)


def end(folder: Path, names: Iterable[str]) -> None:
    """Note that all scenes, which go by these names, are there."""
    if rank_zero_only.rank == 0:
        (folder / BEGUN).unlink(missing_ok=True)
        for name in names:
            (folder / name / KEPT).unlink(missing_ok=True)


def was_finished(folder: Path, text: str, scenes: Iterable[Scene]) -> bool:
    """Whether a run came to its end under this configuration with these scenes, and all of it is
    still there."""
    held = earlier_text(folder)
    if held is None or (folder / BEGUN).exists() or differing(held, text):
        return False
    has_figures = False
    for scene in scenes:
        matrix, figures = (
            folder / scene.name / name for name in ("matrix.safetensors", "metrics.json")
        )
        if not (matrix.exists() and figures.exists()):
            return False
        if read_metadata(matrix).get("input") != input_of(scene):
            return False
        has_figures |= figures.read_text(encoding="utf-8") != "{}\n"
    return not has_figures or (folder / "results.csv").exists()


def earlier_text(folder: Path) -> str | None:
    """The configuration that a folder's scenes are of; "" where they do not say, None where there
    are none."""
    for name in (BEGUN, "config.yaml"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    return "" if sampled_scenes(folder) else None


def sampled_scenes(folder: Path) -> list[Path]:
    """The folders of the scenes of a run."""
    return sorted(path.parent for path in folder.glob("*/matrix.safetensors"))


def differing(held: str, wanted: str) -> list[str]:
    """The keys, weights and files in which two configurations differ, but for those that no result
    depends on."""
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

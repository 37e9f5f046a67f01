"""One figure, whoever measured it: a line of every results.csv.

`d2 sample` and `d2 evaluate` write the same columns, and `d2 report` reads both. Only two of their
names differ: what `sample` calls scene and seed, `evaluate` calls object and sample. A table with
fewer columns is still read, if it has the metric, its value and the scene or object: such were
written before there were runs, bounds and weights in it.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from d2.errors import InputError
from d2.files import csv_text, write_text

ALL = "all"  # in the place of a scene, or of a sample: the figure belongs to all of them together
JOINT = "joint"  # the method that is the sample itself; others are what it has to beat
COST = "cell_evaluations"  # the figure that says what a sample costs
# the facts of a run that name files of weights
WEIGHTS = ("video", "multiview", "autoencoder", "cell")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number, with all that it depends on."""

    run: str = ""  # its folder as seen from the table, or its name where the table lies in it
    variant: str = JOINT  # the rule that sampled, or a baseline
    scene: str = ALL
    sample: str = "0"  # seed, or number among the samples of the scene
    metric: str
    value: float
    low: float = math.nan  # bounds at 95 %; NaN where there are none, as of a single scene
    high: float = math.nan
    n: int = 1  # scenes that the bounds were resampled from
    config: str = ""  # hash of the configuration; "" of a baseline
    weights: str = ""  # hash of the weights of the run; "" where they are not known
    commit: str = ""  # of the code


# the columns of `d2 sample`
SAMPLED = tuple("seed" if f.name == "sample" else f.name for f in fields(Figure))
# and those of `d2 evaluate`
EVALUATED = tuple("object" if f.name == "scene" else f.name for f in fields(Figure))
NAMES = {"seed": "sample", "object": "scene"}  # column -> field, where they differ


def write_figures(path: Path, figures: Iterable[Figure], columns: Sequence[str] = SAMPLED) -> None:
    """results.csv; a bound that does not exist is empty. `columns` is SAMPLED or EVALUATED."""
    lines = [
        {name: _text(getattr(figure, NAMES.get(name, name)), name) for name in columns}
        for figure in figures
    ]
    write_text(path, csv_text(lines))


def read_figures(path: Path) -> list[Figure]:
    """A results.csv of any command and age; a ValueError says what is wrong with it.

    A table without runs or variants is of the run, or of the variant, that its folder is named
    after.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; give folders that d2 sample wrote, with figures"
            " (metrics=[reference])"
        )
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        found = [NAMES.get(name, name) for name in reader.fieldnames or ()]
        if not {"scene", "metric", "value"} <= set(found) <= {f.name for f in fields(Figure)}:
            raise InputError(
                f"{path}: has columns {', '.join(reader.fieldnames or ())}; {', '.join(SAMPLED)}"
                " are wanted"
            )
        place = path.resolve().parent.name
        known = {"run": place, "variant": place}
        return [
            Figure(**{**known, **{NAMES.get(k, k): _value(k, v) for k, v in line.items()}})
            for line in reader
        ]


def owned(
    figures: Iterable[Figure], run: str, variant: str, sample: str, **made: str
) -> list[Figure]:
    """A run's figures with its names; those of its own sample go by the variant's name, a
    baseline's by its own.

    `made` says how they were made: config, weights, commit. No configuration of rules makes a
    baseline.
    """
    return [
        replace(
            figure,
            **{
                "run": run,
                "sample": sample,
                **made,
                **({"variant": variant} if own else {"config": ""}),
            },
        )
        for figure in figures
        for own in [figure.variant == JOINT]
    ]


def _text(value: Any, column: str) -> Any:
    return "" if column in ("low", "high") and math.isnan(value) else value


def _value(column: str, text: str) -> Any:
    if column in ("low", "high"):
        return float(text) if text else math.nan
    return int(text) if column == "n" else float(text) if column == "value" else text


# --- where they come from -------------------------------------------------------------------------


def deciding(text: str) -> str:
    """A configuration as it is kept, without where and on what it ran, which no result depends
    on."""
    kept, free = [], False
    for line in text.splitlines(keepends=True):
        if line[:1] not in (" ", "-"):
            free = line.partition(":")[0] in (
                "output_dir",
                "trainer",
                "logger",
                "plan",
                "save_every_seconds",
            )
        kept += [] if free else [line]
    return "".join(kept)


def hash_of(text: str) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a text: of a configuration as it is kept beside
    results."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_hash(facts: Mapping[str, str]) -> str:
    """One hash of all weights that sampled, from the SHA-256 of each file in a run's facts; ""
    where none is known."""
    used = [f"{kind}: {facts[kind]}\n" for kind in WEIGHTS if kind in facts]
    return hash_of("".join(used)) if used else ""

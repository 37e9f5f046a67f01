"""What people read of an evaluation: means over objects with their intervals, alone or beside another evaluation."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from d2.metrics.intervals import Interval, bootstrap_mean, paired_difference
from d2.metrics.suite import ALL, SetFigure
from d2.metrics.table import interval_text, markdown_table

SET_NOTE = (
    "A distance between sets has the spread of its resamples around it: how much it would vary with other objects, as "
    "many as these. It is larger for smaller sets, whatever they hold: compare equal sizes only."
)
DIGITS = ".4g"
UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)
Values = dict[str, dict[str, float]]  # metric -> object (or ALL) -> mean over its samples


class Evaluation(NamedTuple):
    """A finished evaluation that another is compared with."""

    name: str
    choices: dict[str, Any]
    values: Values
    objects: frozenset[str]


def read_evaluation(folder: Path) -> Evaluation:
    """What `d2 evaluate` wrote into its output_dir."""
    table, card = folder / "results.csv", folder / "card.json"
    if not (table.is_file() and card.is_file()):
        raise ValueError(f"compare_to={folder}: no results.csv and card.json there; give an evaluation's output_dir")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    choices = json.loads(card.read_text(encoding="utf-8"))["choices"]
    objects = frozenset(row["object"] for row in rows) - {ALL}
    return Evaluation(folder.name, choices, object_values(rows), objects)


def object_values(rows: Sequence[Mapping[str, Any]]) -> Values:
    """The mean over its samples of every object's figures, from the rows of results.csv."""
    lists: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        lists.setdefault(row["metric"], {}).setdefault(row["object"], []).append(float(row["value"]))
    return {metric: {name: sum(v) / len(v) for name, v in objects.items()} for metric, objects in lists.items()}


def summary(
    values: Values,
    sets: Sequence[SetFigure],
    other: Evaluation | None,
    differences: Mapping[str, Interval],  # of the distances between sets, from the other evaluation
    *,
    left_out: Sequence[str],
    seed: int,
) -> str:
    """summary.md. N counts the objects with a value, or those whose videos and pictures make the sets."""
    columns = ["metric", "mean [95 %]", "N"] + ([f"minus {other.name} [95 %]", "pairs"] if other else [])
    rows = [_row(metric, objects, other, columns, seed) for metric, objects in values.items() if ALL not in objects]
    rows += [_set_row(figure, other, differences.get(figure.metric), columns) for figure in sets]
    lines = ["# Evaluation", "", markdown_table(rows, columns), ""]
    if sets:
        frechet = [each for each in sets if each.metric.startswith("f")]  # a kernel distance is of the same sets
        sizes = [f"{each.metric.partition('[')[0]} {each.sampled} / {each.true}" for each in frechet]
        lines += [f"Members of the sets, sampled / true: {', '.join(sizes)}.", "", SET_NOTE, ""]
    lines += ["Intervals: percentile bootstrap over objects. Every choice that changes a number is in card.json.", ""]
    if left_out:
        lines += ["Left out:", "", *(f"- {line}" for line in left_out), ""]
    return "\n".join(lines)


def _row(
    metric: str,
    objects: Mapping[str, float],
    other: Evaluation | None,
    columns: Sequence[str],
    seed: int,
) -> dict[str, str]:
    known = {name: value for name, value in objects.items() if not math.isnan(value)}
    own = bootstrap_mean(list(known.values()), seed=seed) if known else UNKNOWN
    cells = [metric, interval_text(own, DIGITS), str(len(known))]
    if other is not None:
        theirs = other.values.get(metric, {})
        both = [name for name in known if not math.isnan(theirs.get(name, math.nan))]
        pairs = [known[name] for name in both], [theirs[name] for name in both]
        apart = paired_difference(*pairs, seed=seed) if both else UNKNOWN
        cells += [interval_text(apart, f"+{DIGITS}"), str(len(both))]
    return dict(zip(columns, cells, strict=True))


def _set_row(
    figure: SetFigure,
    other: Evaluation | None,
    difference: Interval | None,
    columns: Sequence[str],
) -> dict[str, str]:
    own = Interval(figure.value, figure.low, figure.high, figure.objects)
    cells = [figure.metric, interval_text(own, DIGITS), f"{figure.objects}, as sets"]
    if other is not None:
        apart = difference or UNKNOWN
        cells += [interval_text(apart, f"+{DIGITS}"), f"{apart.n}, as sets"]
    return dict(zip(columns, cells, strict=True))

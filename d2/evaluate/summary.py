"""What people read of an evaluation: means over objects with their intervals, alone or beside
another evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from d2.errors import InputError
from d2.metrics.figures import ALL, Figure, read_figures
from d2.metrics.intervals import UNKNOWN, Interval, differences, means
from d2.metrics.table import interval_text, markdown_table

SET_NOTE = (
    "A distance between sets has the spread of its resamples around it: how much it would vary with"
    " other objects, as many as these. It is larger for smaller sets, whatever they hold: compare"
    " equal sizes only."
)
DIGITS = ".4g"


class Evaluation(NamedTuple):
    """A finished evaluation that another is compared with."""

    name: str
    choices: dict[str, Any]
    figures: list[Figure]

    @property
    def objects(self) -> set[str]:
        return {figure.scene for figure in self.figures} - {ALL}


def read_evaluation(folder: Path) -> Evaluation:
    """What `d2 evaluate` wrote into its output_dir."""
    table, card = folder / "results.csv", folder / "card.json"
    if not (table.is_file() and card.is_file()):
        raise InputError(
            f"compare_to={folder}: no results.csv and card.json there; give an evaluation's"
            " output_dir"
        )
    return Evaluation(
        folder.name, json.loads(card.read_text(encoding="utf-8"))["choices"], read_figures(table)
    )


def summary(
    figures: Sequence[Figure],
    other: Evaluation | None,
    # of the distances between sets, from the other evaluation
    set_differences: Mapping[str, Interval],
    *,
    set_sizes: Mapping[str, int],  # members of "sampled/NAME" and "true/NAME"
    left_out: Sequence[str],
    seed: int,
) -> str:
    """summary.md: a line a figure. N counts the objects that have it, or that make the sets."""
    sets = {figure.metric for figure in figures if figure.scene == ALL}
    (own,) = means(figures, seed=seed).values()
    apart = {} if other is None else compared(figures, other, seed) | dict(set_differences)
    rows = []
    for metric in [
        *(name for name in own if name not in sets),
        *(name for name in own if name in sets),
    ]:
        as_sets = ", as sets" if metric in sets else ""
        row = {
            "metric": metric,
            "mean [95 %]": interval_text(own[metric], DIGITS),
            "N": f"{own[metric].n}{as_sets}",
        }
        if other is not None:
            pairs = apart.get(metric, UNKNOWN)
            row |= {
                f"minus {other.name} [95 %]": interval_text(pairs, f"+{DIGITS}"),
                "pairs": f"{pairs.n}{as_sets}",
            }
        rows.append(row)
    lines = ["# Evaluation", "", markdown_table(rows), ""]
    if sets:
        names = [name.removeprefix("true/") for name in set_sizes if name.startswith("true/")]
        sizes = [
            f"{name} {set_sizes[f'sampled/{name}']} / {set_sizes[f'true/{name}']}" for name in names
        ]
        lines += [f"Members of the sets, sampled / true: {', '.join(sizes)}.", "", SET_NOTE, ""]
    lines += [
        (
            "Intervals: percentile bootstrap over objects. Every choice that changes a number is in"
            " card.json."
        ),
        "",
    ]
    if left_out:
        lines += ["Left out:", "", *(f"- {line}" for line in left_out), ""]
    return "\n".join(lines)


def compared(figures: Sequence[Figure], other: Evaluation, seed: int) -> dict[str, Interval]:
    """Every figure's mean difference from the other evaluation's, over the objects that both
    have."""
    both = [replace(figure, variant="this") for figure in figures]
    both += [replace(figure, variant="other") for figure in other.figures]
    return differences(both, "other", seed=seed)["this"]

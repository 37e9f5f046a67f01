"""The wide view of figures, for people: a line a variant, a column a figure. PSNR never stands in
it alone.

It is rewarded by blur, so the columns are fixed: sharpness, retrieval and, of several samples, the
energy score beside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from d2.metrics.figures import ALL, COST, Figure
from d2.metrics.intervals import Interval, Means, differences, means

TABLE_COLUMNS = (
    "psnr_masked",
    "psnr_masked_unseen",
    "ssim_masked",
    "sharpness",
    "own_view_unseen",
    "own_frame_unseen",
    "own_view",
    "own_frame",
    "temporal_flicker_ratio",
    "cross_view_change_ratio",
)
COLUMNS = ("energy", "psnr_masked_of_mean", *TABLE_COLUMNS, COST)


def columns_of(names: Iterable[str]) -> list[str]:
    """Of these figures, those that a table shows, in its order: `COLUMNS`, then those of feature
    networks."""
    there = dict.fromkeys(names)
    return [*(name for name in COLUMNS if name in there), *(name for name in there if "[" in name)]


def is_ratio(name: str) -> bool:
    """Whether a figure is best at 1."""
    return name.startswith("sharpness") or name.endswith("_ratio")


# --- scenes ---------------------------------------------------------------------------------------


def by_method(figures: Iterable[Figure]) -> dict[str, dict[str, dict[str, float]]]:
    """One run's figures: method -> scene -> metric -> value, in their order."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for f in figures:
        found.setdefault(f.variant, {}).setdefault(f.scene, {})[f.metric] = f.value
    return found


def scene_rows(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """metrics.csv: a scene under a method a line, its figures the columns; NaN where it has
    none."""
    own = [f for f in figures if f.scene != ALL]
    names = list(dict.fromkeys(f.metric for f in own))
    return [
        {"scene": scene, "method": method, **{name: values.get(name, math.nan) for name in names}}
        for method, scenes in by_method(own).items()
        for scene, values in scenes.items()
    ]


# --- means ----------------------------------------------------------------------------------------


def mean_rows(found: Means, *, signed: bool = False) -> list[dict[str, str]]:
    """A line a variant, as text: how many scenes it has, and the mean and the bounds of every
    figure that is shown."""
    columns = columns_of(name for metrics in found.values() for name in metrics)
    rows = []
    for variant, metrics in found.items():
        scenes = max((interval.n for interval in metrics.values()), default=0)
        cells = {name: cell(name, metrics.get(name), signed=signed) for name in columns}
        rows.append({"variant": variant, "scenes": str(scenes), **cells})
    return rows


def tables(figures: Sequence[Figure], *, compare_to: str | None, seed: int = 0) -> str:
    """table.md: means, and paired differences from `compare_to`. `seed` is the bootstrap's."""
    parts = [markdown_table(mean_rows(means(figures, seed=seed)))]
    if compare_to is not None:
        apart = differences(figures, compare_to, seed=seed)
        parts += [
            f"Paired differences from {compare_to}.",
            markdown_table(mean_rows(apart, signed=True)),
        ]
    return "\n\n".join(parts)


def cell(name: str, interval: Interval | None, *, signed: bool = False) -> str:
    """`18.31 [17.90, 18.70]` in the digits that a figure deserves; without bounds that say
    nothing."""
    if interval is None:
        return "–"
    digits = 0 if name == COST else 4 if name.startswith("energy") else 2
    if interval.low == interval.high:
        interval = interval._replace(low=math.nan, high=math.nan)
    return interval_text(interval, f"{'+' if signed else ''}.{digits}f")


def interval_text(interval: Interval, style: str = ".2f") -> str:
    """As `18.31 [17.90, 18.70]`; a dash where there is nothing to tell, the mean alone where it is
    all there is."""
    if math.isnan(interval.mean):
        return "–"
    if math.isnan(interval.low):
        return format(interval.mean, style)
    return f"{interval.mean:{style}} [{interval.low:{style}}, {interval.high:{style}}]"


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys as a GitHub table, its columns aligned in plain text too; "" of none."""
    if not rows:
        return ""
    columns = list(rows[0])
    widths = [max([len(column), *(len(row[column]) for row in rows)]) for column in columns]
    lines = [
        columns,
        ["-" * width for width in widths],
        *([row[column] for column in columns] for row in rows),
    ]
    return "\n".join(
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )

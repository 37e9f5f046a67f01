"""The tables that people read. PSNR is never shown without sharpness and retrieval, so the columns are fixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from d2.metrics.intervals import Interval

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


def markdown_table(
    rows: Sequence[Mapping[str, str]],
    columns: Sequence[str],
) -> str:
    """Rows as a GitHub table, its columns aligned in plain text too."""
    widths = [max([len(column), *(len(row[column]) for row in rows)]) for column in columns]
    lines = [columns, ["-" * width for width in widths], *([row[column] for column in columns] for row in rows)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def interval_text(interval: Interval, style: str = ".2f") -> str:
    """As `18.31 [17.90, 18.70]`; a dash where there is nothing to tell, the mean alone where it is all there is."""
    if math.isnan(interval.mean):
        return "–"
    if math.isnan(interval.low):
        return format(interval.mean, style)
    return f"{interval.mean:{style}} [{interval.low:{style}}, {interval.high:{style}}]"

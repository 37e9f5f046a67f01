"""Charts of figures: the same for the page of a run, for that of a study and for plot.svg."""

from __future__ import annotations

import math

from markupsafe import Markup

from d2.metrics.intervals import Means
from d2.metrics.table import columns_of, is_ratio
from d2.report.charts import Point, ranking, sheet
from d2.report.page import Charts

NOTE = (
    "Means over scenes with their 95 % bootstrap intervals, none where a single scene has the"
    " figure."
)


def rankings(found: Means) -> dict[str, Markup]:
    """A ranking of all variants by every figure that a table shows."""
    names, drawn = list(found), {}
    for metric in columns_of(name for metrics in found.values() for name in metrics):
        points = [
            Point(number, name, math.nan, interval.mean, interval.low, interval.high)
            for number, name in enumerate(names, start=1)
            for interval in [found[name].get(metric)]
            if interval is not None and not math.isnan(interval.mean)
        ]
        if points:
            drawn[metric] = ranking(metric, names, points, ideal=1.0 if is_ratio(metric) else None)
    return drawn


def ranking_charts(found: Means) -> Charts:
    """The rankings as a part of a page."""
    return Charts("Intervals", NOTE, rankings(found))


def plot(found: Means) -> str:
    """The rankings as a picture of their own, SVG."""
    return sheet(list(rankings(found).values()), len(found))

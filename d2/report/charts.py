"""Small charts as SVG, one function for all of them: they need no library, follow a page's colours,
and print.

A variant is known by its number and its colour, the same in all charts of a page. A chart lies in a
page as it is, and a sheet of them is a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from d2.report.markup import render

WIDTH, HEIGHT = 340, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 40  # margins around the plotted box
ABREAST = 5  # charts in a line of a sheet
ROW = 17  # pixels of a variant in a ranking
NAME = 22  # letters of a variant's name that a ranking has room for
LETTER = 6.2  # pixels of one
SPREAD = 13  # pixels between points of the same cost, which would hide each other
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#3a9bdc", "#8c6bb1", "#7f7f7f")
# of the page, or their own
INK, SOFT, LINE = "var(--ink, #191b1f)", "var(--soft, #5c626d)", "var(--line, #e2e2dd)"


class Point(NamedTuple):
    """A variant with one figure: y at a cost x, and the bounds of y; those are NaN where there are
    none."""

    number: int  # of the variant, from 1
    name: str
    x: float
    y: float
    low: float
    high: float


class Curve(NamedTuple):
    """A variant in a line plot."""

    number: int
    name: str
    points: Sequence[tuple[float, float]]


class Axis(NamedTuple):
    """Values to pixels along one side of a chart."""

    low: float
    high: float
    start: float  # the pixel of `low`
    end: float
    log: bool = False
    names: Sequence[str] = ()  # of 0, 1, … in the place of numbers

    def __call__(self, value: float) -> float:
        value, low, high = (math.log10(v) if self.log else v for v in (value, self.low, self.high))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round numbers, few enough to be read."""
        if self.names:
            return [float(index) for index in range(len(self.names))]
        if self.log:
            powers = range(
                math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1
            )
            return [10.0**power for power in powers]
        step = nice(self.high - self.low)
        return [
            k * step
            for k in range(
                math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1
            )
        ]

    def labelled(self) -> list[dict[str, object]]:
        """Every tick's pixel and text."""
        return [
            {"at": self(v), "label": self.names[int(v)] if self.names else f"{v:.6g}"}
            for v in self.ticks()
        ]


class Mark(NamedTuple):
    """What a chart draws of one variant, in pixels."""

    kind: str  # point | curve
    number: int
    said: str  # when pointed at
    dots: Sequence[tuple[float, float]] = ()
    radius: float = 4
    path: str = ""  # a line
    bar: str = ""  # the bounds
    label: str = ""
    label_x: float = 0
    label_y: float = 0

    @property
    def colour(self) -> str:
        return colour_of(self.number)


class Guide(NamedTuple):
    """A dashed line in pixels."""

    kind: str  # front | ideal
    path: str
    dashes: str


def chart(
    title: str,
    marks: Sequence[Mark],
    x: Axis,
    y: Axis,
    *,
    x_label: str = "",
    guides: Sequence[Guide] = (),
) -> Markup:
    """An SVG element of the marks between two axes; what is said in it is escaped."""
    left, right = sorted((x.start, x.end))
    bottom = max(y.start, y.end)
    return render(
        "chart.svg",
        title=title,
        marks=marks,
        guides=guides,
        x_ticks=x.labelled(),
        y_ticks=y.labelled(),
        x_label=x_label,
        left=left,
        right=right,
        bottom=bottom,
        width=WIDTH,
        height=bottom + BOTTOM,
        ink=INK,
        soft=SOFT,
        line=LINE,
    )


# --- kinds of charts ------------------------------------------------------------------------------


def scatter(
    title: str,
    points: Sequence[Point],
    *,
    x_label: str,
    badness: Callable[[float], float],  # of y: the less, the better
    ideal: float | None = None,  # a value of y to draw a line at
) -> Markup:
    """Points with their intervals, and the front of those that no other beats in both y and cost
    x."""
    ys = [v for p in points for v in (p.y, p.low, p.high) if math.isfinite(v)] + (
        [] if ideal is None else [ideal]
    )
    x = Axis(*padded([0.0, *(p.x for p in points)]), LEFT, WIDTH - RIGHT)
    y = Axis(*padded(ys), HEIGHT - BOTTOM, TOP)
    guides = [] if ideal is None else [Guide("ideal", f"M{LEFT} {y(ideal)}H{WIDTH - RIGHT}", "2 4")]
    front = [points[i] for i in pareto_front([(p.x, badness(p.y)) for p in points])]
    if len(front) > 1:
        path = "".join(f"H{x(p.x)}V{y(p.y)}" for p in front[1:])
        guides.append(Guide("front", f"M{x(front[0].x)} {y(front[0].y)}{path}", "5 3"))
    marks, taken = [], list[float]()
    for p in points:
        left = x(p.x)
        while any(abs(left - other) < SPREAD for other in taken):
            left += SPREAD
        taken.append(left)
        bar = f"M{left} {y(p.low)}V{y(p.high)}" if math.isfinite(p.low) else ""
        said, label = f"{p.name}: {p.x:g}, {said_of(p)}", str(p.number)
        marks.append(
            Mark("point", p.number, said, [(left, y(p.y))], 4, "", bar, label, left + 6, y(p.y) - 5)
        )
    return chart(title, marks, x, y, x_label=x_label, guides=guides)


def ranking(
    title: str,
    names: Sequence[str],  # of all variants, in the order of their numbers
    points: Sequence[Point],  # of those that have the figure; their x is not used
    *,
    ideal: float | None = None,  # a value to draw a line at
) -> Markup:
    """Every variant's figure with its interval, one below the other."""
    values = [v for p in points for v in (p.y, p.low, p.high) if math.isfinite(v)] + (
        [] if ideal is None else [ideal]
    )
    short = [name if len(name) <= NAME else f"{name[: NAME - 1]}…" for name in names]
    x = Axis(*padded(values), round(14 + LETTER * max(map(len, short))), WIDTH - RIGHT)
    y = Axis(-0.5, len(names) - 0.5, TOP, TOP + ROW * len(names), names=short)
    guides = [] if ideal is None else [Guide("ideal", f"M{x(ideal)} {TOP}V{y.end}", "2 4")]
    marks = []
    for p in points:
        row = y(p.number - 1)
        bar = f"M{x(p.low)} {row}H{x(p.high)}" if math.isfinite(p.low) else ""
        marks.append(
            Mark("point", p.number, f"{p.name}: {said_of(p)}", [(x(p.y), row)], 4, "", bar)
        )
    return chart(title, marks, x, y, guides=guides)


def lines(title: str, curves: Sequence[Curve], *, x_label: str) -> Markup:
    """Curves over a logarithmic axis that falls from left to right, as noise does during
    sampling."""
    xs = [px for c in curves for px, _ in c.points]
    ys = [py for c in curves for _, py in c.points]
    low, high = min(xs), max(xs)
    x = Axis(low, high if high > low else 10 * low, WIDTH - RIGHT, LEFT, log=True)
    y = Axis(*padded([0.0, *ys]), HEIGHT - BOTTOM, TOP)
    marks = []
    for c in curves:
        dots = [(x(px), y(py)) for px, py in c.points]
        path = "M" + "L".join(f"{px} {py}" for px, py in dots)
        (label_x, label_y), label = dots[0], str(c.number) if len(curves) > 1 else ""
        marks.append(
            Mark("curve", c.number, c.name, dots, 2.2, path, "", label, label_x + 3, label_y - 4)
        )
    return chart(title, marks, x, y, x_label=x_label)


def sheet(rankings: Sequence[Markup], num_variants: int) -> str:
    """Rankings of the same variants side by side, as an SVG file of its own on white."""
    height = TOP + ROW * num_variants + BOTTOM
    places = [
        (index % ABREAST * WIDTH, index // ABREAST * height) for index in range(len(rankings))
    ]
    width, height = WIDTH * min(len(rankings), ABREAST), height * -(-len(rankings) // ABREAST)
    return (
        render(
            "sheet.svg", charts=list(zip(places, rankings, strict=True)), width=width, height=height
        )
        + "\n"
    )


# --- parts ----------------------------------------------------------------------------------------


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of those that no other beats in both numbers, by the first: the less, the better."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if math.isfinite(points[index][1]) and (
            not front or points[index][1] < points[front[-1]][1]
        ):
            front.append(index)
    return front


def colour_of(number: int) -> str:
    """A variant's colour; they come round after eight."""
    return COLOURS[(number - 1) % len(COLOURS)]


def said_of(p: Point) -> str:
    """A figure with its bounds."""
    return f"{p.y:.4g} [{p.low:.4g}, {p.high:.4g}]" if math.isfinite(p.low) else f"{p.y:.4g}"


def nice(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides a span into three to six."""
    raw = span / 4
    power = 10.0 ** math.floor(math.log10(raw))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= 0.8 * raw)


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of values with some room around; a zero at its end is the end of the axis."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if low == 0 else low - room), high + room

"""Small charts as inline SVG, drawn here: they need no library, follow the page's colours, and print.

A variant is known by its number and its colour, the same in all charts of a page; `legend` says whose they are.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 340, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 40  # margins around the plotted box
SPREAD = 13  # pixels between points of the same cost, which would hide each other
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#3a9bdc", "#8c6bb1", "#7f7f7f")
INK, SOFT, LINE = "var(--ink, #191b1f)", "var(--soft, #5c626d)", "var(--line, #e2e2dd)"  # of the page, or their own


class Point(NamedTuple):
    """A variant in a scatter plot."""

    number: int  # of the variant, from 1
    name: str
    x: float
    y: float
    low: float  # bounds of y; NaN where there are none
    high: float


class Curve(NamedTuple):
    """A variant in a line plot."""

    number: int
    name: str
    points: Sequence[tuple[float, float]]


class Scale(NamedTuple):
    """Values to pixels along one axis."""

    low: float
    high: float
    start: float  # the pixel of `low`
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value, low, high = (math.log10(v) if self.log else v for v in (value, self.low, self.high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            return [10.0**power for power in powers]
        step = nice(self.high - self.low)
        return [k * step for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def scatter(
    title: str,
    points: Sequence[Point],
    *,
    x_label: str,
    badness: Callable[[float], float],  # of y: the less, the better
    ideal: float | None = None,  # a value of y to draw a line at
) -> str:
    """Points with their intervals, and the front of those that no other beats in both y and cost x."""
    ys = [v for p in points for v in (p.y, p.low, p.high) if math.isfinite(v)] + ([] if ideal is None else [ideal])
    x = Scale(*padded([0.0, *(p.x for p in points)]), LEFT, WIDTH - RIGHT)
    y = Scale(*padded(ys), HEIGHT - BOTTOM, TOP)
    parts = axes(title, x, y, x_label)
    if ideal is not None:
        parts.append(f'<path d="M{LEFT} {y(ideal):.1f}H{WIDTH - RIGHT}" stroke="{SOFT}" stroke-dasharray="2 4"/>')
    front = pareto_front([(p.x, badness(p.y)) for p in points])
    if len(front) > 1:
        path = "".join(f"H{x(points[i].x):.1f}V{y(points[i].y):.1f}" for i in front[1:])
        start = points[front[0]]
        parts.append(
            f'<path class="front" d="M{x(start.x):.1f} {y(start.y):.1f}{path}" '
            f'stroke="{SOFT}" stroke-dasharray="5 3" fill="none"/>'
        )
    taken: list[float] = []
    for p in points:
        left = x(p.x)
        while any(abs(left - other) < SPREAD for other in taken):
            left += SPREAD
        taken.append(left)
        colour, said = colour_of(p.number), f"{p.name}: {p.x:g}, {p.y:.4g}"
        whisker = ""
        if math.isfinite(p.low):
            said += f" [{p.low:.4g}, {p.high:.4g}]"
            whisker = f'<path d="M{left:.1f} {y(p.low):.1f}V{y(p.high):.1f}" stroke="{colour}" stroke-width="2"/>'
        parts.append(
            f'<g class="point" data-variant="{p.number}"><title>{html.escape(said)}</title>{whisker}'
            f'<circle cx="{left:.1f}" cy="{y(p.y):.1f}" r="4" fill="{colour}"/>'
            f"{text(left + 6, y(p.y) - 5, str(p.number), anchor='start', fill=INK)}</g>"
        )
    return svg(title, parts)


def lines(title: str, curves: Sequence[Curve], *, x_label: str) -> str:
    """Curves over a logarithmic axis that falls from left to right, as noise does during sampling."""
    xs = [px for c in curves for px, _ in c.points]
    ys = [py for c in curves for _, py in c.points]
    low, high = min(xs), max(xs)
    x = Scale(low, high if high > low else 10 * low, WIDTH - RIGHT, LEFT, log=True)
    y = Scale(*padded([0.0, *ys]), HEIGHT - BOTTOM, TOP)
    parts = axes(title, x, y, x_label)
    for curve in curves:
        colour = colour_of(curve.number)
        path = "L".join(f"{x(px):.1f} {y(py):.1f}" for px, py in curve.points)
        px, py = curve.points[0]
        parts.append(
            f'<g class="curve" data-variant="{curve.number}"><title>{html.escape(curve.name)}</title>'
            f'<path d="M{path}" stroke="{colour}" stroke-width="1.8" fill="none"/>'
            f"{text(x(px) + 3, y(py) - 4, str(curve.number), anchor='start', fill=colour)}</g>"
        )
    return svg(title, parts)


def legend(names: Sequence[str]) -> str:
    """The numbers and colours of the variants."""
    items = (
        f'<li><span class="dot" style="background:{colour_of(number)}"></span>{number} {html.escape(name)}</li>'
        for number, name in enumerate(names, start=1)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of those that no other beats in both numbers, by the first: the less, the better."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if math.isfinite(points[index][1]) and (not front or points[index][1] < points[front[-1]][1]):
            front.append(index)
    return front


def colour_of(number: int) -> str:
    return COLOURS[(number - 1) % len(COLOURS)]


# --- parts -----------------------------------------------------------------------------------------------------------


def nice(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides a span into three to six."""
    raw = span / 4
    power = 10.0 ** math.floor(math.log10(raw))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= 0.8 * raw)


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of values with some room around."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if low == 0 else low - room), high + room


def axes(title: str, x: Scale, y: Scale, x_label: str) -> list[str]:
    parts = [text(LEFT, 16, title.replace("_", " "), anchor="start", fill=INK, size=13)]
    for tick in y.ticks():
        parts.append(f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="{LINE}"/>')
        parts.append(text(LEFT - 6, y(tick) + 4, f"{tick:.4g}", anchor="end"))
    for tick in x.ticks():
        parts.append(text(x(tick), HEIGHT - BOTTOM + 16, f"{tick:.6g}"))
    parts.append(f'<path d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="{SOFT}"/>')
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label))
    return parts


def text(x: float, y: float, said: str, *, anchor: str = "middle", fill: str = SOFT, size: int = 11) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} style="fill:{fill};font-size:{size}px">{html.escape(said)}</text>'


def svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}" style="font-family:sans-serif" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )

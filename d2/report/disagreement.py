"""How far two priors were from each other, as pictures of one line: a curve over sigma and maps of the matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WIDTH, HEIGHT, LEFT, BELOW = 420, 180, 46, 34  # of the curve, in pixels, with room for its labels
MAP = 150  # longer side of a map


def disagreement_figure(
    sigma: Tensor,  # n
    distance: Tensor,  # n v f, NaN where unknown
    input_view: int,
) -> str:
    """A curve of the mean distance against sigma, and maps of its mean in the highest, middle and lowest third.

    "" where nothing is known.
    """
    distance = distance.cpu()
    known = ~distance.flatten(1).isnan().all(dim=1) if distance.numel() else torch.zeros(0, dtype=torch.bool)
    if not known.any():
        return ""
    sigma, distance = sigma[known], distance[known].float()
    thirds = [part for part in sigma.argsort(descending=True, stable=True).tensor_split(3) if len(part)]
    maps = [_map(distance[part].nanmean(dim=0), sigma[part], input_view) for part in thirds]
    return (
        f'<div class="apart">{_curve(sigma, distance.flatten(1).nanmean(dim=1))}{"".join(maps)}</div>'
        '<p class="hint">Root mean square, over a cell\'s latents, of what rows say less what columns say of the clean '
        "picture, each under its guidance; in units of the latents' standard deviation. Maps: views down, time "
        "across, darker is further apart, each on its own scale; the bar marks the input view.</p>"
    )


def _curve(
    sigma: Tensor,  # n
    mean: Tensor,  # n
) -> str:
    """Mean distance against sigma, on a logarithmic axis that falls to the right as sampling runs."""
    high, low = math.log10(float(sigma.max())), math.log10(float(sigma.min()))
    span, top = max(high - low, 1e-9), float(mean.max()) or 1.0
    order = sigma.argsort(descending=True, stable=True)
    points = [
        (
            LEFT + (WIDTH - LEFT) * (high - math.log10(s)) / span,
            (HEIGHT - BELOW) * (1 - m / (1.08 * top)),
        )
        for s, m in zip(sigma[order].tolist(), mean[order].tolist(), strict=True)
    ]
    ticks = [k for k in range(math.ceil(low), math.floor(high) + 1)]
    x_axis = "".join(
        f'<text x="{LEFT + (WIDTH - LEFT) * (high - k) / span:.1f}" y="{HEIGHT - BELOW + 15}">{10.0**k:g}</text>'
        for k in ticks
    )
    y_axis = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/><text class="y" x="{LEFT - 6}" y="{y + 4:.1f}">'
        f"{value:.2g}</text>"
        for value in (0.0, top / 2, top)
        for y in [(HEIGHT - BELOW) * (1 - value / (1.08 * top))]
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in points)
    return (
        f'<figure><figcaption>Mean over the matrix</figcaption><svg viewBox="0 0 {WIDTH + 14} {HEIGHT}" role="img" '
        f'aria-label="Disagreement against sigma" width="{WIDTH}">{y_axis}{x_axis}'
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 3}">σ</text><polyline points="{line}"/>{dots}</svg></figure>'
    )


def _map(
    mean: Tensor,  # v f
    sigma: Tensor,  # n, the levels it is a mean of
    input_view: int,
) -> str:
    """One rectangle a cell, as dark as it is far."""
    views, frames = mean.shape
    cell = MAP / max(views, frames)
    low, high = float(mean.nan_to_num(math.inf).min()), float(mean.nan_to_num(-math.inf).max())
    span = max(high - low, 1e-9)
    cells = "".join(
        f'<rect x="{8 + f * cell:.2f}" y="{v * cell:.2f}" width="{cell + 0.3:.2f}" height="{cell + 0.3:.2f}" '
        f'fill-opacity="{0.06 + 0.94 * (value - low) / span:.2f}"><title>view {v + 1}, frame {f + 1}: {value:.3g}'
        "</title></rect>"
        for v, row in enumerate(mean.tolist())
        for f, value in enumerate(row)
        if not math.isnan(value)
    )
    bar = f'<rect class="input" x="0" y="{input_view * cell:.2f}" width="3" height="{cell:.2f}"/>'
    width, height = 8 + frames * cell + 0.3, views * cell + 0.3
    levels = f"σ {float(sigma.max()):.3g} to {float(sigma.min()):.3g}"
    return (
        f'<figure><figcaption>{levels}<br>{low:.2g} to {high:.2g}</figcaption><svg viewBox="0 0 {width:.1f} '
        f'{height:.1f}" width="{width:.0f}" role="img" aria-label="Disagreement in every cell, {levels}">{bar}{cells}'
        "</svg></figure>"
    )

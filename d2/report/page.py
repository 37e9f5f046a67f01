"""The offline pages: one scene's matrix to turn and play by hand, and the index of a run.

Axes: v views, f frames, h w; `matrix` means v f 3 h w, pixels in [0, 1]. A page is one file that asks the network for
nothing: pictures travel as sprite atlases in data URIs. The look and the behaviour live in the three HTML files beside
this one; in them `{{name}}` is replaced by escaped text and `{{{name}}}` by ready HTML, or by JSON that holds numbers
and data URIs but never a user's text.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from d2.files import write_text
from d2.report.disagreement import disagreement_figure
from d2.report.markup import JPEG_QUALITY, data_uri, fill, ledger, section, table

MAX_CELL = 256  # longest side of an embedded cell: 21 × 25 cells with their truth stay a page that a browser opens
MAX_THUMBNAIL = 128  # longest side of a cell of the index
MAX_PNG_CELL = 128  # cells up to this size are embedded without loss, larger ones as JPEG
ATLAS_WIDTH = 4096  # the widest texture that every browser, phones too, draws without scaling it down


class SceneEntry(NamedTuple):
    """One scene of the index."""

    name: str
    href: str  # its page, a path relative to the index, not yet quoted
    preview: Tensor | None  # v f 3 h w, in [0, 1]
    metrics: dict[str, float]


def write_scene_page(
    path: Path,
    *,
    title: str,
    sample: Tensor,  # v f 3 h w, in [0, 1]
    truth: Tensor | None,  # v f 3 h w, in [0, 1]
    input_view: int,
    azimuth_deg: list[float],  # v
    elevation_deg: list[float],  # v
    fps: float,
    metrics: dict[str, float] | None,
    baselines: list[dict[str, Any]] | None,  # {"method": name, metric: value, ...}
    config: str,  # YAML
    notes: str = "",
    disagreement: tuple[Tensor, Tensor] | None = None,  # sigma n, distance n v f
) -> None:
    """Write the viewer of one matrix: drag across to change the view, up or down to change the time.

    With `truth`, the true picture and the absolute difference stand beside the sample. `metrics` are the sample's own;
    they also head the table of `baselines`, where they have the same names. The file is replaced at once or not at all.
    """
    num_views, num_frames, _, height, width = sample.shape
    assert truth is None or truth.shape == sample.shape
    assert len(azimuth_deg) == len(elevation_deg) == num_views and 0 <= input_view < num_views
    atlas = _atlas(sample, MAX_CELL)
    scene = {
        "sample": atlas,
        "truth": None if truth is None else _atlas(truth, MAX_CELL),
        "input_view": input_view,
        "azimuth_deg": azimuth_deg,
        "elevation_deg": elevation_deg,
        "num_views": num_views,
        "num_frames": num_frames,
        "fps": fps,
    }
    facts = [f"{num_views} views × {num_frames} frames", f"{width} × {height} pixels", f"{fps:g} fps"]
    if (atlas["width"], atlas["height"]) != (width, height):
        facts.append(f"shown at {atlas['width']} × {atlas['height']}")
    if atlas["format"] == "JPEG":
        facts.append(f"embedded as JPEG, quality {JPEG_QUALITY}")
    rows = baselines or []
    shared = {name: value for name, value in (metrics or {}).items() if any(name in row for row in rows)}
    own = [{"method": "this sample", **shared}] if shared else []
    sections = [
        section("Metrics", ledger(metrics or {})),
        section("Baselines", table(own + rows, own=len(own))),
        section("Where the priors disagree", disagreement_figure(*disagreement, input_view) if disagreement else ""),
        section("Notes", f'<p class="notes">{html.escape(notes)}</p>' if notes.strip() else ""),
    ]
    body = fill("scene.html", sections="\n".join(sections), scene=json.dumps(scene))
    write_text(path, fill("page.html", title=title, facts=" · ".join(facts), body=body, config=config))


def write_index_page(
    path: Path,
    *,
    title: str,
    scenes: list[SceneEntry],
    summary: list[dict[str, Any]],
    config: str,  # YAML
) -> None:
    """Write the index of a run: an orbiting thumbnail and a row of metrics for each scene, linked to its page."""
    rows = [{"scene": scene.name, **scene.metrics} for scene in scenes]
    sections = [
        section("Summary", table(summary)),
        section("Scenes", table(rows, hrefs=[scene.href for scene in scenes])),
    ]
    cards = "\n".join(
        f'<li><a href="{quote(scene.href)}"><canvas width="1" height="1" aria-hidden="true"></canvas>'
        f"<span>{html.escape(scene.name)}</span></a></li>"
        for scene in scenes
    )
    thumbnails = [None if scene.preview is None else _orbit(scene.preview) for scene in scenes]
    body = fill("index.html", cards=cards, sections="\n".join(sections), thumbnails=json.dumps(thumbnails))
    facts = f"{len(scenes)} scene" + ("s" if len(scenes) != 1 else "")
    write_text(path, fill("page.html", title=title, facts=facts, body=body, config=config))


# --- pictures ---------------------------------------------------------------------------------------------------------


def _atlas(
    matrix: Tensor,  # v f 3 h w, in [0, 1]
    max_cell: int,
) -> dict[str, Any]:
    """One image a view, as data URIs: its frames in raster order, `columns` to a line, `pitch` pixels apart.

    Cells longer than `max_cell` are scaled down. A JPEG's cells start on multiples of 8, the gap filled by their own
    last row and column, so that no block of the code mixes two cells.
    """
    num_views, num_frames, _, height, width = matrix.shape
    shrink = min(1.0, max_cell / max(height, width))
    height, width = max(1, round(height * shrink)), max(1, round(width * shrink))
    lossless = max(height, width) <= MAX_PNG_CELL
    pitch = [width, height] if lossless else [-(-width // 8) * 8, -(-height // 8) * 8]
    columns = min(num_frames, ATLAS_WIDTH // pitch[0])
    kind = "PNG" if lossless else "JPEG"
    images = []
    for row in matrix.detach().float().cpu():
        cells = row if shrink == 1 else F.interpolate(row, (height, width), mode="bilinear", antialias=True)
        cells = F.pad(cells, (0, pitch[0] - width, 0, pitch[1] - height), mode="replicate")
        cells = F.pad(cells, (0, 0, 0, 0, 0, 0, 0, -num_frames % columns), value=1.0)
        pixels = rearrange((cells.clamp(0, 1) * 255).round().byte(), "(y x) c h w -> (y h) (x w) c", x=columns)
        images.append(data_uri(Image.fromarray(pixels.numpy()), kind))
    return {"images": images, "format": kind, "columns": columns, "pitch": pitch, "width": width, "height": height}


def _orbit(
    matrix: Tensor,  # v f 3 h w
) -> dict[str, Any]:
    """The thumbnail's atlas: one turn around the scene while its clip runs once, as a matrix of one row."""
    num_views, num_frames = matrix.shape[:2]
    steps = range(num_views)
    cells = matrix[list(steps), [step * num_frames // num_views for step in steps]]
    return {**_atlas(cells[None], MAX_THUMBNAIL), "num_frames": num_views}

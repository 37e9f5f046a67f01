"""The offline pages: one scene's matrix to turn and play by hand, and the index of any set of
figures.

Axes: v views, f frames, h w; `matrix` means v f 3 h w, pixels in [0, 1]. A page is one file that
asks the network for nothing: pictures travel as sprite atlases in data URIs. The look and the
behaviour live in templates/, Jinja2's, in which every text is escaped; what is computed of figures
comes as text, charts as SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from einops import rearrange
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from d2.files import write_text
from d2.report.charts import colour_of
from d2.report.disagreement import disagreement_figure
from d2.report.markup import JPEG_QUALITY, data_uri, render

# longest side of an embedded cell: 21 × 25 cells with their truth stay a page that a browser opens
MAX_CELL = 256
MAX_THUMBNAIL = 128  # longest side of a cell of the index
MAX_PNG_CELL = 128  # cells up to this size are embedded without loss, larger ones as JPEG
MAX_GRID = 640  # longest side of an embedded grid
# the widest texture that every browser, phones too, draws without scaling it down
ATLAS_WIDTH = 4096


class Card(NamedTuple):
    """One scene of the index."""

    name: str
    href: str  # its page, a path relative to the index, not yet quoted
    thumbnail: dict[str, Any] | None  # of `thumbnail`


class Table(NamedTuple):
    """Rows under a heading; the first key names the row."""

    heading: str
    note: str
    rows: Sequence[Mapping[str, Any]]
    hrefs: Sequence[str] = ()  # where the name of each row leads


class Charts(NamedTuple):
    """Charts side by side."""

    heading: str
    note: str
    drawn: Mapping[str, Markup]  # name -> svg
    # the variants, in the order of their numbers; none where the charts name them
    legend: Sequence[str] = ()


class Picture(NamedTuple):
    """What one variant made of a scene."""

    caption: str
    path: Path  # its grid


class Example(NamedTuple):
    """One scene by several variants."""

    heading: str
    pictures: Sequence[Picture]


def write_scene_page(
    path: Path,
    *,
    title: str,
    sample: Tensor,  # v f 3 h w, in [0, 1]
    # what can stand beside it, the first at first: name -> v f 3 h w, in [0, 1]
    others: Mapping[str, Tensor],
    input_view: int,
    azimuth_deg: list[float],  # v
    elevation_deg: list[float],  # v
    frusta: list[list[list[float]]],  # v 5 3: where a camera stands, and its picture's corners
    fps: float,
    metrics: Mapping[str, float],  # the sample's own
    baselines: Sequence[Mapping[str, Any]],  # {"method": name, metric: value, ...}
    config: str,  # YAML
    disagreement: tuple[Tensor, Tensor] | None = None,  # sigma n, distance n v f
) -> None:
    """Write the viewer of one matrix: drag across to change the view, up or down to change the
    time.

    One of `others`, chosen by name, and the absolute difference stand beside the sample. `metrics`
    also head the table of `baselines`, where they have the same names. The file is replaced at once
    or not at all.
    """
    num_views, num_frames, _, height, width = sample.shape
    assert all(other.shape == sample.shape for other in others.values())
    assert (
        len(azimuth_deg) == len(elevation_deg) == len(frusta) == num_views
        and 0 <= input_view < num_views
    )
    atlas = make_atlas(sample, MAX_CELL)
    scene = {
        "sample": atlas,
        "others": [make_atlas(other, MAX_CELL) for other in others.values()],
        "input_view": input_view,
        "azimuth_deg": azimuth_deg,
        "elevation_deg": elevation_deg,
        "frusta": frusta,
        "num_views": num_views,
        "num_frames": num_frames,
        "fps": fps,
    }
    facts = [
        f"{num_views} views × {num_frames} frames",
        f"{width} × {height} pixels",
        f"{fps:g} fps",
    ]
    if (atlas["width"], atlas["height"]) != (width, height):
        facts.append(f"shown at {atlas['width']} × {atlas['height']}")
    if atlas["format"] == "JPEG":
        facts.append(f"embedded as JPEG, quality {JPEG_QUALITY}")
    shared = {
        name: value for name, value in metrics.items() if any(name in row for row in baselines)
    }
    page = render(
        "scene.html",
        title=title,
        facts=" · ".join(facts),
        scene=scene,
        others=list(others),
        metrics=metrics,
        baselines=[{"method": "this sample", **shared}, *baselines] if baselines else [],
        disagreement=(
            None if disagreement is None else disagreement_figure(*disagreement, input_view)
        ),
        config=config,
    )
    write_text(path, page)


def write_index_page(
    path: Path,
    *,
    title: str,
    facts: str,
    cards: Sequence[Card] = (),
    tables: Sequence[Table] = (),
    charts: Sequence[Charts] = (),
    examples: Sequence[Example] = (),
    config: str,  # YAML
) -> None:
    """Write the index of a run, a study or many: its scenes' orbiting thumbnails, then tables,
    charts and pictures.

    The file is replaced at once or not at all.
    """
    page = render(
        "index.html",
        title=title,
        facts=facts,
        cards=cards,
        thumbnails=[card.thumbnail for card in cards],
        tables=tables,
        charts=charts,
        colour_of=colour_of,
        examples=[
            {
                "heading": one.heading,
                "pictures": [
                    {"caption": picture.caption, "uri": data_uri(shrunk(picture.path), "JPEG")}
                    for picture in one.pictures
                ],
            }
            for one in examples
        ],
        config=config,
    )
    write_text(path, page)


# --- pictures -------------------------------------------------------------------------------------


def make_atlas(
    matrix: Tensor,  # v f 3 h w, in [0, 1]
    max_cell: int,
) -> dict[str, Any]:
    """One image a view, as data URIs: its frames in raster order, `columns` to a line, `pitch`
    pixels apart.

    Cells longer than `max_cell` are scaled down. A JPEG's cells start on multiples of 8, the gap
    filled by their own last row and column, so that no block of the code mixes two cells.
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
        cells = (
            row
            if shrink == 1
            else F.interpolate(row, (height, width), mode="bilinear", antialias=True)
        )
        cells = F.pad(cells, (0, pitch[0] - width, 0, pitch[1] - height), mode="replicate")
        cells = F.pad(cells, (0, 0, 0, 0, 0, 0, 0, -num_frames % columns), value=1.0)
        pixels = rearrange(
            (cells.clamp(0, 1) * 255).round().byte(), "(y x) c h w -> (y h) (x w) c", x=columns
        )
        images.append(data_uri(Image.fromarray(pixels.numpy()), kind))
    return {
        "images": images,
        "format": kind,
        "columns": columns,
        "pitch": pitch,
        "width": width,
        "height": height,
    }


def thumbnail(
    matrix: Tensor,  # v f 3 h w
) -> dict[str, Any]:
    """A small atlas for the index: one turn around the scene while its clip runs once, as a matrix
    of one row."""
    num_views, num_frames = matrix.shape[:2]
    steps = range(num_views)
    cells = matrix[list(steps), [step * num_frames // num_views for step in steps]]
    return {**make_atlas(cells[None], MAX_THUMBNAIL), "num_frames": num_views}


def shrunk(path: Path) -> Image.Image:
    """A picture of at most `MAX_GRID` pixels a side."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((MAX_GRID, MAX_GRID), Image.Resampling.LANCZOS)
    return picture

"""The page of a study: tables, charts and pictures of any set of runs in one file that asks the network for nothing.

The look is page.py's. What is said here was computed elsewhere: tables come as text, charts as SVG.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from d2.files import write_text
from d2.report.charts import legend
from d2.report.markup import data_uri, fill, section, table

MAX_GRID = 640  # pixels of the longer side of an embedded grid


class Table(NamedTuple):
    """Rows of text under a heading."""

    heading: str
    note: str
    rows: Sequence[dict[str, str]]


class Charts(NamedTuple):
    """Charts side by side."""

    heading: str
    note: str
    drawn: Mapping[str, str]  # name -> svg


class Picture(NamedTuple):
    """What one variant made of a scene."""

    caption: str
    path: Path  # its grid


class Example(NamedTuple):
    """One scene by several variants."""

    heading: str
    pictures: Sequence[Picture]


def write_study_page(
    path: Path,
    *,
    title: str,
    facts: str,
    names: Sequence[str],  # of the variants, in the order of their numbers
    tables: Sequence[Table],
    charts: Sequence[Charts],
    examples: Sequence[Example],
    config: str,  # YAML
) -> None:
    """Write the page of a study; the file is replaced at once or not at all."""
    key = legend(names)
    sections = [section(t.heading, note(t.note) + table(list(t.rows))) for t in tables if t.rows]
    sections += [
        section(c.heading, note(c.note) + key + f'<div class="charts">{"".join(c.drawn.values())}</div>')
        for c in charts
        if c.drawn
    ]
    if examples:
        shown = "".join(example(one) for one in examples)
        sections.append(section("Best and worst scenes", note("Sampled on the left, the truth on the right.") + shown))
    body = fill("study.html", sections="\n".join(sections))
    write_text(path, fill("page.html", title=title, facts=facts, body=body, config=config))


def note(said: str) -> str:
    return f'<p class="note">{html.escape(said)}</p>' if said else ""


def example(one: Example) -> str:
    figures = "".join(
        f'<figure><img alt="{html.escape(p.caption)}" src="{data_uri(shrunk(p.path), "JPEG")}">'
        f"<figcaption>{html.escape(p.caption)}</figcaption></figure>"
        for p in one.pictures
    )
    return f'<div class="example"><h3>{html.escape(one.heading)}</h3><div class="pictures">{figures}</div></div>'


def shrunk(path: Path) -> Image.Image:
    """A picture of at most `MAX_GRID` pixels a side."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((MAX_GRID, MAX_GRID), Image.Resampling.LANCZOS)
    return picture


def log_to_wandb(
    run: Any,  # wandb's
    *,
    tables: Sequence[Table],
    charts: Sequence[Charts],
    examples: Sequence[Example],
) -> None:
    """The same as tables, charts and pictures of a W&B run."""
    import wandb

    logged: dict[str, Any] = {}
    for t in tables:
        if t.rows:
            columns: list[Any] = list(t.rows[0])
            logged[f"report/{t.heading}"] = wandb.Table(
                columns=columns, data=[[row[name] for name in columns] for row in t.rows]
            )
    for group in charts:
        logged |= {f"report/{group.heading}/{name}": wandb.Html(drawn) for name, drawn in group.drawn.items()}
    for one in examples:
        logged[f"report/{one.heading}"] = [wandb.Image(shrunk(p.path), caption=p.caption) for p in one.pictures]
    run.log(logged)

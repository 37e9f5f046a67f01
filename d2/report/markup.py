"""What the offline pages are made of: pictures as data URIs, tables, and templates with places to fill."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from PIL import Image

JPEG_QUALITY = 92


def data_uri(image: Image.Image, kind: str) -> str:
    """A picture inside the page itself; `kind` is PNG or JPEG."""
    buffer = io.BytesIO()
    if kind == "PNG":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # full colour: a prior's palette is judged here
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --- tables -----------------------------------------------------------------------------------------------------------


def section(heading: str, inner: str) -> str:
    """HTML under an escaped heading; nothing where there is none."""
    return f"<section><h2>{html.escape(heading)}</h2>{inner}</section>" if inner else ""


def ledger(metrics: dict[str, float]) -> str:
    """Names and figures, one below the other."""
    lines = (f"<div><dt>{_label(name)}</dt><dd>{_value(value)}</dd></div>" for name, value in metrics.items())
    return f'<dl class="ledger">{"".join(lines)}</dl>' if metrics else ""


def table(
    rows: list[dict[str, Any]],
    *,
    own: int = 0,  # how many rows at the top are the sample's own
    hrefs: list[str] | None = None,  # where the name of each row leads
) -> str:
    """A table whose columns are all keys of `rows`, in order of appearance; the first column names the row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    head = "".join(f'<th scope="col">{_label(name)}</th>' for name in columns)
    lines = []
    for index, row in enumerate(rows):
        first, *rest = (_value(row.get(name)) for name in columns)
        first = f'<a href="{quote(hrefs[index])}">{first}</a>' if hrefs else first
        mark = ' class="own"' if index < own else ""
        lines.append(f'<tr{mark}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>')
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Table">{inner}</div>'


def _label(name: str) -> str:
    return html.escape(name.replace("_", " "))


def _value(value: Any) -> str:
    """A number in the digits that a reader compares; what is missing or not a number as a dash; text escaped."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, float) or math.isinf(value):
        return html.escape(str(value))
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


# --- files ------------------------------------------------------------------------------------------------------------


def fill(template: str, **values: str) -> str:
    """The template with its places filled in one pass, so that what a value says is never itself filled."""
    text = (files("d2.report") / template).read_text(encoding="utf-8")
    raw_or_escaped = re.compile(r"\{\{\{(\w+)\}\}\}|\{\{(\w+)\}\}")
    return raw_or_escaped.sub(lambda m: values[m[1]] if m[1] else html.escape(values[m[2]]), text)

"""What the offline pages are made of: Jinja2 templates, in which every text is escaped, and
pictures as data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

JPEG_QUALITY = 92


def render(template: str, **values: Any) -> Markup:
    """A template of templates/ with its values; what they lack is an error."""
    return Markup(TEMPLATES.get_template(template).render(values))


def label(name: str) -> str:
    """A figure's name as people read it, with its unit where it has one."""
    return name.replace("_", " ") + (", dB" if "psnr" in name else "")


def number(value: Any) -> str:
    """A number in the digits that a reader compares; what is missing or not a number as a dash;
    text as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, float) or math.isinf(value):
        return str(value)
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys of the rows, in order of appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def data_uri(image: Image.Image, kind: str) -> str:
    """A picture inside the page itself; `kind` is PNG or JPEG."""
    buffer = io.BytesIO()
    if kind == "PNG":
        image.save(buffer, "PNG", optimize=True)
    else:
        # full colour: a prior's palette is judged here
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


TEMPLATES = Environment(
    loader=PackageLoader("d2.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters.update(label=label, number=number, columns=columns)

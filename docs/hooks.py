"""A hook of the site: links that lead out of docs/, right in a clone, become plain text, as nothing
lies there."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with `[text](../anywhere)` as `text`."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\s*\.\./[^)]*\)", r"\1", markdown)

"""Paths on a command line are taken as they are: Hydra's grammar minds apostrophes, spaces, commas,
accents and more.

A value is put in quotes where its key wants a path. Of an existing file or folder nothing has a
meaning of its own; in what is yet to be made, `${…}` is an interpolation, and between the values of
a sweep there are commas.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from d2.files import sha256_of

PATHS = {
    *(
        "output_dir",
        "cache_dir",
        "scenes.path",
        "matting.model",
        "autoencoder",
        "cell",
        "init_from",
    ),
    *("scenes.views", "cameras.path"),
    *(
        "video.checkpoint",
        "multiview.checkpoint",
        "features_file",
        "clip.file",
        "compare_to",
        "composition.moments",
    ),
    *("run", "pred", "truth", "runs", "hydra.sweep.dir", "hydra.run.dir"),
}
LISTS = {"run", "pred", "runs"}  # whose value may be several paths
# Hydra's functions of a sweep
SWEPT = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)


def as_path(override: str, *, swept: bool = False) -> str:
    """An override with its value in quotes, where its key wants a path; `swept`: commas lie between
    values (-m)."""
    key, equals, value = override.partition("=")
    if not equals or key.lstrip("+") not in PATHS or value in ("", "null", "???"):
        return override
    if _exists(value):
        return f"{key}={quoted(literal(value))}"
    if swept and (SWEPT.fullmatch(value) or "," in value) and _is_grammatical(override):
        return override
    if key.lstrip("+") in LISTS and value[:1] + value[-1:] == "[]":
        return override if _is_grammatical(override) else f"{key}=[{_each_quoted(value[1:-1])}]"
    if swept and "," in value:
        return f"{key}={_each_quoted(value)}"
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return override if is_quoted else f"{key}={quoted(value)}"


def quoted(text: str) -> str:
    """A text as a value of Hydra's grammar; an interpolation in it stays one."""
    return (
        "'"
        + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
        + "'"
    )


def literal(text: str) -> str:
    """A text in which `${` means itself."""
    return text.replace("${", "\\${")


def _each_quoted(values: str) -> str:
    parts = (part.strip() for part in values.split(","))
    return ",".join(quoted(literal(part) if _exists(part) else part) for part in parts if part)


def _exists(value: str) -> bool:
    return os.path.exists(value) or os.path.exists(os.path.expanduser(value))


def _is_grammatical(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def rule_files(node: Any) -> dict[str, str]:
    """File -> SHA-256 of the users' files that the rules of a configuration lie in, or read."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return {}
    named = (str(node.get("_target_", "")).rpartition(":")[0], str(node.get("file") or ""))
    paths = [Path(name) for name in named if Path(name).is_file()]
    found = {str(path): sha256_of(path) for path in paths}
    return {k: v for value in node.values() for k, v in rule_files(value).items()} | found

"""Paths, names and texts on a command line are taken as they are: Hydra's grammar minds
apostrophes, spaces, commas, accents and more.

A value is put in quotes where the schema says so of its key. Of an existing file nothing has a
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

from d2.config.bounds import leaves
from d2.config.schema import ROOTS
from d2.files import sha256_of

VERBATIM = {  # key -> one | several, which it is if it is for any command
    key: kind
    for kind in ("one", "several")
    for root in ROOTS.values()
    for key, _, each in leaves(root)
    if each.metadata.get("verbatim") == kind
} | {"hydra.sweep.dir": "one", "hydra.run.dir": "one"}
# Hydra's functions of a sweep
SWEPT = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)


def as_written(override: str, *, swept: bool = False) -> str:
    """An override with its value in quotes, where its key takes it as it is written; `swept`:
    commas lie between values (-m)."""
    key, equals, value = override.partition("=")
    # the rules' files have no schema
    kind = "one" if key.endswith(".file") else VERBATIM.get(key.lstrip("+"))
    if not equals or kind is None or value in ("", "null", "???"):
        return override
    if _exists(value):
        return f"{key}={quoted(literal(value))}"
    has_quotes = re.search(r"['\"]", value) and _is_grammatical(override)
    if swept and (SWEPT.fullmatch(value) or ("," in value and has_quotes)):
        return override
    if kind == "several" and value[:1] + value[-1:] == "[]":
        return override if has_quotes else f"{key}=[{_each_quoted(value[1:-1])}]"
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
    """Values between commas; what is there under a name with commas is one of them."""
    parts, found = values.split(","), []
    while parts:
        joined = [",".join(parts[:end]).strip() for end in range(len(parts), 0, -1)]
        there = next((name for name in joined if name and _exists(name)), None)
        found.append(quoted(joined[-1] if there is None else literal(there)))
        del parts[: 1 if there is None else len(parts) - joined.index(there)]
    return ",".join(part for part in found if part != "''")


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

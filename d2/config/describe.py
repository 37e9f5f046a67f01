"""The keys of a command with their defaults and what the schema says of them: for --help and
docs/configuration.md."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from d2.config.bounds import leaves
from d2.config.command_line import RULES, compose_command
from d2.config.schema import ROOTS


class Key(NamedTuple):
    """One plain value of a configuration."""

    name: str  # dotted
    kind: str  # its type
    # "range": low and high; "choices", or "several" of which it is a list
    allowed: Mapping[str, Any]
    meaning: str

    @property
    def choices(self) -> list[str]:
        return [plain(choice) for choice in self.allowed.get("choices", ())]

    @property
    def members(self) -> str:
        """What a list may hold."""
        return ", ".join(self.allowed.get("several", ()))


def values_and_meanings(command: str) -> dict[str, tuple[str, str]]:
    """Key -> its value when nothing is given, and what it means."""
    values, found = compose_command(command, []), {}
    for key in keys(command):
        parts = (" | ".join(key.choices), key.members, key.meaning)
        meaning = ": ".join(part for part in parts if part)
        found[key.name] = (plain(OmegaConf.select(values, key.name)), meaning)
    return found


def keys(command: str) -> Iterator[Key]:
    """Every plain value of a command's configuration; rules are groups of their own."""
    for key, owner, each in leaves(ROOTS["sample" if command == "calibrate" else command]):
        if key not in (*RULES, "recon.motion"):
            kind = str(each.type).replace(" | None", "").replace("Any", "")
            yield Key(key, re.sub(r"\[.*", "", kind), each.metadata, comments(owner)[each.name])


@functools.cache
def comments(root: type) -> dict[str, str]:
    """The comments of a dataclass's fields, behind them or, where they are long, above them."""
    source = inspect.getsource(root).splitlines()
    (tree,) = ast.parse("\n".join(source)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = source[node.lineno - 1 : node.end_lineno]
            behind = " ".join(filter(None, (line.partition("  # ")[2] for line in lines)))
            found[node.target.id] = behind or above(source[: node.lineno - 1])
    return found


def above(lines: Sequence[str]) -> str:
    """The comment at the end of some lines of source."""
    comment = itertools.takewhile(lambda line: line.lstrip().startswith("# "), reversed(lines))
    return " ".join(line.lstrip()[2:] for line in reversed(list(comment)))


def plain(value: Any) -> str:
    """A value as one writes it on the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if OmegaConf.is_list(value):
        return f"[{', '.join(map(plain, value))}]"
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)

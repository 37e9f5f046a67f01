"""Writes the tables of docs/configuration.md from the schema and conf/: `make docs`. A test refuses
stale ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from d2.config.command_line import compose_command
from d2.config.describe import keys, plain
from d2.config.schema import ROOTS
from d2.files import asset

PAGE = Path(__file__).parent / "configuration.md"


def filled(text: str) -> str:
    """The page with its tables made anew: `<!-- table: NAME -->` … `<!-- end -->`, NAME a command
    or `groups`."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        lines = group_table() if name == "groups" else key_table(name)
        return "\n".join([f"<!-- table: {name} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


def key_table(command: str) -> list[str]:
    """Every key of a command: its default when nothing is given, what is allowed, what it means."""
    values = composed(command)
    lines = ["| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for key in keys(command):
        allowed, meaning = key.kind, key.meaning.replace(" | ", " or ")
        if "range" in key.allowed:
            low, high = key.allowed["range"]
            allowed = f"{key.kind}, {plain(low)} … {plain(high)}"
        elif key.choices:
            allowed = " or ".join(f"`{choice}`" for choice in key.choices)
        elif key.members:
            allowed = f"list of {key.members}"
        value = plain(OmegaConf.select(values, key.name))
        lines.append(f"| `{key.name}` | `{value}` | {allowed} | {meaning} |")
    return lines


def group_table() -> list[str]:
    """Every choice of every group with the numbers that its file names."""
    conf = asset("conf")
    chosen = {
        group: choice
        for command in ROOTS
        for group, choice in composed(command).hydra.runtime.choices.items()
    }
    lines = ["| choice | numbers | meaning |", "| --- | --- | --- |"]
    for folder in sorted(path for path in conf.iterdir() if path.is_dir()):
        for path in sorted(folder.glob("*.yaml")):
            note = " (default)" if chosen.get(folder.name) == path.stem else ""
            first = (
                path.read_text(encoding="utf-8")
                .replace("# @package _global_\n", "")
                .splitlines()[0]
            )
            meaning = first.removeprefix("# ") if first.startswith("#") else ""
            prefix = "" if folder.name == "preset" else f"{folder.name}."
            numbers = ", ".join(
                f"`{prefix}{k}={plain(v)}`" for k, v in leaves(OmegaConf.load(path))
            )
            lines.append(f"| `{folder.name}={path.stem}`{note} | {numbers} | {meaning} |")
    return lines


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a file, without what names functions and other groups."""
    for name, value in node.items():
        if isinstance(value, DictConfig):
            yield from leaves(value, f"{prefix}{name}.")
        elif not name.startswith("_") and name != "defaults":
            yield prefix + name, value


def composed(command: str) -> DictConfig:
    """The configuration of a command when nothing is given."""
    return compose_command(command, [], whole=True)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""The keys of a command with their defaults and what the schema says of them: for --help and docs/configuration.md."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from d2.config import schema
from d2.config.command_line import RULES, compose_command

ROOTS = {
    "sample": schema.SampleConfig,
    "calibrate": schema.SampleConfig,
    "train": schema.TrainConfig,
    "evaluate": schema.EvaluateConfig,
    "report": schema.ReportConfig,
    "reconstruct": schema.ReconstructConfig,
}


def values_and_meanings(command: str) -> dict[str, tuple[str, str]]:
    """Key -> its value when nothing is given, and what it means."""
    values = compose_command(command, [])
    return {key: (plain(OmegaConf.select(values, key)), meaning) for key, _, meaning in keys(ROOTS[command])}


def keys(root: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, type and comment of every plain value; rules are groups of their own."""
    said = comments(root)
    for field in dataclasses.fields(root):
        key = prefix + field.name
        if dataclasses.is_dataclass(field.default_factory):
            yield from keys(field.default_factory, f"{key}.")  # type: ignore[arg-type]
        elif key not in (*RULES, "recon.motion"):
            kind = str(field.type).replace(" | None", "").replace("Any", "")
            yield key, re.sub(r"\[.*", "", kind), said.get(field.name, "")


def comments(root: type) -> dict[str, str]:
    """The comments behind the fields of a dataclass."""
    source = inspect.getsource(root).splitlines()
    (tree,) = ast.parse("\n".join(source)).body
    assert isinstance(tree, ast.ClassDef)
    return {
        node.target.id: source[node.lineno - 1].partition("  # ")[2]
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def plain(value: Any) -> str:
    """A value as one writes it on the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if OmegaConf.is_list(value):
        return f"[{', '.join(map(plain, value))}]"
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)

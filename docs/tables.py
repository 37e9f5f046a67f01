"""Writes the tables of docs/configuration.md from the schema and conf/: `make docs`. A test refuses stale ones."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from d2.config import checks, schema
from d2.files import asset

PAGE = Path(__file__).parent / "configuration.md"
RULES = ("renoise", "weights", "guidance", "composition", "solver")
ROOTS = {
    "sample": schema.SampleConfig,
    "train": schema.TrainConfig,
    "evaluate": schema.EvaluateConfig,
    "report": schema.ReportConfig,
}


def filled(text: str) -> str:
    """The page with its tables made anew: `<!-- table: NAME -->` … `<!-- end -->`, NAME a command or `groups`."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        lines = group_table() if name == "groups" else key_table(name)
        return "\n".join([f"<!-- table: {name} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


def key_table(command: str) -> list[str]:
    """Every key of a command: its default when nothing is given, what is allowed, what it means."""
    values = composed(command)
    lines = ["| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for key, kind, meaning in keys(ROOTS[command]):
        allowed = kind
        if key in checks.RANGES:
            low, high = checks.RANGES[key]
            allowed = f"{kind}, {plain(low)} … {plain(high)}"
        elif key in checks.CHOICES:
            allowed = " or ".join(f"`{choice}`" for choice in checks.CHOICES[key])
        lines.append(f"| `{key}` | `{plain(OmegaConf.select(values, key))}` | {allowed} | {meaning} |")
    return lines


def keys(root: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, type and comment of every plain value; rules are groups of their own."""
    said = comments(root)
    for field in dataclasses.fields(root):
        key = prefix + field.name
        if dataclasses.is_dataclass(field.default_factory):
            yield from keys(field.default_factory, f"{key}.")  # type: ignore[arg-type]
        elif key not in RULES:
            kind = str(field.type).replace(" | None", "").replace("Any", "")
            meaning = re.sub(r"^\w+( \| \w+)+(: |$)", "", said.get(field.name, ""))  # choices have a column
            yield key, re.sub(r"\[.*", "", kind), meaning.replace(" | ", " or ")


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


def group_table() -> list[str]:
    """Every choice of every group with the numbers that its file names."""
    conf = asset("conf")
    chosen = {group: choice for command in ROOTS for group, choice in composed(command).hydra.runtime.choices.items()}
    lines = ["| choice | numbers | meaning |", "| --- | --- | --- |"]
    for folder in sorted(path for path in conf.iterdir() if path.is_dir()):
        for path in sorted(folder.glob("*.yaml")):
            note = " (default)" if chosen.get(folder.name) == path.stem else ""
            first = path.read_text(encoding="utf-8").replace("# @package _global_\n", "").splitlines()[0]
            meaning = first.removeprefix("# ") if first.startswith("#") else ""
            prefix = "" if folder.name == "preset" else f"{folder.name}."
            numbers = ", ".join(f"`{prefix}{k}={plain(v)}`" for k, v in leaves(OmegaConf.load(path)))
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
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(asset("conf")), version_base="1.3"):
        return compose(command, return_hydra_config=True)


def plain(value: Any) -> str:
    """A value as one writes it on the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if OmegaConf.is_list(value):
        return f"[{', '.join(map(plain, value))}]"
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

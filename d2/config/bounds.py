"""What a value of a configuration may be, said on the field that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, field, fields, is_dataclass
from typing import Any

from d2.errors import InputError

MAX_SEED = 2**31 - 1


def bounded(default: Any, low: float, high: float) -> Any:
    """A number from `low` to `high`, or null where that is its default."""
    return field(default=default, metadata={"range": (low, high)})


def chosen(*choices: str | bool, default: Any = ...) -> Any:
    """One of the choices, the first if none is given; or null where that is the default."""
    return field(default=choices[0] if default is ... else default, metadata={"choices": choices})


def several(default: tuple[str, ...], *choices: str) -> Any:
    """A list of some of the choices."""
    return field(default_factory=lambda: list(default), metadata={"several": choices})


def verbatim(default: str | None = None) -> Any:
    """A path, a name or another text, which the command line takes as it is written."""
    return field(default=default, metadata={"verbatim": "one"})


def verbatims(*, always_list: bool = False) -> Any:
    """One such text or a list of them, null by default; or always a list, empty by default."""
    metadata = {"verbatim": "several"}
    if always_list:
        return field(default_factory=list, metadata=metadata)
    return field(default=None, metadata=metadata)


def leaves(root: type, prefix: str = "") -> Iterator[tuple[str, type, Field[Any]]]:
    """Every plain value of a configuration: its dotted key, the class and the field that hold
    it."""
    for each in fields(root):
        if is_dataclass(each.default_factory):
            yield from leaves(each.default_factory, f"{prefix}{each.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{each.name}", root, each


def values(node: Any, names: str) -> dict[str, Any]:
    """The values of these fields, by their names."""
    return {name: getattr(node, name) for name in names.split()}


def check_fields(node: Any, place: str = "") -> None:
    """Raise an InputError that names a key, its value and what is allowed, for the first that is
    not.

    Hydra's +key=value adds keys even to a schema, which nobody would ever read; they are refused
    too.
    """
    known = {each.name: each for each in fields(node)}
    for key, value in vars(node).items():
        if key not in known:
            raise InputError(f"{place}{key}: no such key; there are {', '.join(known)}")
        if is_dataclass(value):
            check_fields(value, f"{place}{key}.")
        elif value is not None:
            for said in _faults(value, known[key].metadata):
                raise InputError(f"{place}{key}={said}")


def _faults(value: Any, allowed: Any) -> Iterator[str]:
    """The value with what is wrong with it, and the way out."""
    if "verbatim" in allowed and value == "":
        yield ": empty; give a text, or leave it out"
    if "range" in allowed:
        low, high = allowed["range"]
        if not low <= value <= high:
            yield f"{value}: out of range, give {low:.10g} to {high:.10g}"
    if "choices" in allowed and value not in allowed["choices"]:
        choices = " or ".join(str(choice).lower() for choice in allowed["choices"])
        yield f"{value}: choose {choices}"
    if "several" in allowed and (unknown := set(value) - set(allowed["several"])):
        yield f"{sorted(unknown)}: choose from [{', '.join(allowed['several'])}], or [] for none"

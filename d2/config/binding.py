"""Rules from their nodes in the configuration: functions of d2 or of a user's file, with their
arguments checked."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from d2.errors import InputError
from d2.files import asset
from d2.rules.calibrated import Grams, from_plain
from d2.sampling import Composition

# annotation -> classes
PLAIN = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}


def bind(node: Any, key: str) -> Any:
    """A rule from its node: `_target_` names a function, the other keys its keyword arguments,
    themselves bound.

    With `_partial_: true` the arguments are bound and the rest is left to the sampler; without it
    the function is called now. Unlike Hydra's instantiate, a misspelt, missing or mistyped argument
    is refused here, at start-up. A `_target_` is a dotted name, or FILE.py:NAME for a function in a
    user's own file.
    """
    if isinstance(node, dict) and "_target_" in node:
        target = node["_target_"]
        function = rule_function(target, key)
        given = {k: bind(v, f"{key}.{k}") for k, v in node.items() if not k.startswith("_")}
        _check_arguments(function, target, given, key)
        files = [name for name, kind in _kinds(function).items() if kind == "Grams"]
        given |= {name: read_moments(given.get(name), f"{key}.{name}") for name in files}
        function = function if str(target).startswith("d2.") else as_users(function)
        return partial(function, **given) if node.get("_partial_") else function(**given)
    if isinstance(node, dict):
        return {k: bind(v, f"{key}.{k}") for k, v in node.items()}
    return [bind(v, key) for v in node] if isinstance(node, list) else node


def rule_function(target: Any, key: str) -> Callable[..., Any]:
    """The function that a `_target_` names: d2.rules.weights.scheduled, or path/to/my_rules.py:name
    from here."""
    said = f"{key}._target_={target}"
    path, _, name = str(target).rpartition(":")
    if path:
        return _from_file(Path(path), name, said)
    try:
        function = resolve_name(target)
    except Exception as error:
        raise InputError(f"{said}: no such function; name it by its full path") from error
    if not callable(function):
        raise InputError(f"{said}: not a function; name one by its full path")
    return function


def _from_file(path: Path, name: str, said: str) -> Callable[..., Any]:
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"{said}: no such file {path} in {Path.cwd()}; give FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{said}: {path} cannot be imported ({type(error).__name__}: {reason}); mend it"
        ) from error
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        own = [
            n
            for n, f in vars(module).items()
            if inspect.isfunction(f) and f.__module__ == module.__name__
        ]
        raise InputError(
            f"{said}: {path} has no function {name}; there are {', '.join(own) or 'none'}"
        )
    return function


def moments_file(file: str | None) -> Path:
    """The file of `composition=calibrated`: the one given, or that of the shipped priors."""
    return asset("checkpoints") / "tiny_calibrated.json" if file is None else Path(file)


def read_moments(file: str | None, key: str) -> Grams:
    """The moments that `d2 calibrate` has written."""
    path = moments_file(file)
    try:
        return from_plain(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{key}={path}: not a file that `d2 calibrate` has written") from error


def as_users(rule: Any) -> Any:
    """A rule of the user's own whose ValueErrors, and those of what it returns, are InputErrors
    like our rules'."""
    if isinstance(rule, Composition):
        return Composition(*map(as_users, rule))
    if not callable(rule):
        return rule

    @wraps(rule)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return as_users(rule(*args, **kwargs))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(str(error) or f"{rule}: a ValueError without a message") from error

    return guarded


def rule_node(target: str, key: str) -> dict[str, Any]:
    """The node of a function in a user's file: its keyword arguments at their defaults.

    What takes arguments by position is left to the sampler to call, anything else is called at
    start-up.
    """
    parameters = inspect.signature(rule_function(target, key)).parameters.values()
    kept = (bool, int, float, str, list, type(None))
    numbers = {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and isinstance(p.default, kept)
    }
    return {
        "_target_": target,
        "_partial_": any(p.kind is not p.KEYWORD_ONLY for p in parameters),
        **numbers,
    }


def _check_arguments(
    function: Callable[..., Any], target: str, given: dict[str, Any], key: str
) -> None:
    """A rule's hyper-parameters are its keyword-only arguments: all that have no default, and no
    others."""
    parameters, kinds = inspect.signature(function).parameters, _kinds(function)
    for name, value in given.items():
        if name not in kinds:
            raise InputError(
                f"{key}.{name}: {target} has no such argument; it takes"
                f" {', '.join(kinds) or 'none'}"
            )
        kind = "str | None" if kinds[name] == "Grams" else kinds[name]  # given as a file
        if parameters[name].annotation is not inspect.Parameter.empty and not _suits(value, kind):
            raise InputError(f"{key}.{name}={value}: {target} takes {kind} there")
    for name in kinds:
        parameter = parameters[name]
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise InputError(f"{key}.{name}: {target} needs this argument; give {key}.{name}=VALUE")


def _kinds(function: Callable[..., Any]) -> dict[str, str]:
    """Keyword-only argument -> its annotation as text; a user's file need not postpone its
    annotations."""
    parameters = inspect.signature(function).parameters.values()
    found = {p.name: p.annotation for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {
        k: kind if isinstance(kind, str) else inspect.formatannotation(kind)
        for k, kind in found.items()
    }


def _suits(value: Any, annotation: str) -> bool:
    """Whether a YAML value may be an argument annotated so: plain types are checked, others are no
    plain values."""
    kinds = annotation.split(" | ")
    if isinstance(value, bool) or not isinstance(value, (int, float, str, type(None))):
        return "bool" in kinds if isinstance(value, bool) else not set(kinds) <= PLAIN.keys()
    return any(isinstance(value, PLAIN[kind]) for kind in kinds if kind in PLAIN and kind != "bool")

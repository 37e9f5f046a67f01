"""Command lines into configurations: Hydra's composition of conf/COMMAND.yaml, and its errors in
one line.

It imports no network and no PyTorch, so that what is wrong with a command line is said at once.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from d2.config.names import Label, did_you_mean, experiments
from d2.config.paths import as_written, literal, quoted, rule_files
from d2.config.schema import register
from d2.errors import InputError
from d2.files import asset, is_out_of_room

RULES = ("renoise", "weights", "guidance", "composition", "solver", "choosing")
RULE_IN_FILE = re.compile(r"[^\s,=\[\](){}'\"]+\.py:\w+")  # path/to/my_rules.py:name
STARTED = "D2_STARTED"  # of the environment
_GIVEN: dict[tuple[str, str], str] = {}  # group, name of a rule in a file -> FILE.py:NAME
ERRORS = (HydraException, OmegaConfBaseException)  # what `one_line` makes a message of


def compose_command(command: str, overrides: Iterable[str], *, whole: bool = False) -> DictConfig:
    """conf/COMMAND.yaml with overrides; what is calibrated is configured as what is sampled.

    `whole` takes Hydra's own keys along. Raises what Hydra raises, see `one_line`.
    """
    register()
    overrides = list(overrides)
    if command == "calibrate":
        command, overrides = "sample", ["output_dir=outputs/calibrate", *overrides]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(asset("conf")), version_base="1.3"):
        try:
            known = [with_known_rules(as_written(override)) for override in overrides]
            return compose(command, [*known, *search_path(command)], whole)
        except ValueError as error:  # Hydra's own, of overrides that it cannot take apart
            raise HydraException(str(error)) from error


class Composed:
    """A configuration, typed, and its text, with what the users' files that it names hold."""

    swept = False  # whether it is a point of a sweep

    def __init__(
        self,
        command: str,
        node: DictConfig,
        choices: Mapping[str, str],  # of groups
        overrides: Sequence[str],  # that made it
        *,
        name: str | None = None,
        group: str | None = None,
    ):
        one_clock()
        OmegaConf.resolve(node)
        self.config: Any = OmegaConf.to_object(node)
        self.overrides = overrides
        files = rule_files(OmegaConf.to_container(node))
        kept = without(node, "overwrite")  # how a run came to its folder is no part of what it is
        self.text = OmegaConf.to_yaml(kept) + "".join(
            f"# {path}: {digest}\n" for path, digest in files.items()
        )
        # the variant that the results are of
        self.name: str = name or Path(node.get("output_dir", command)).name
        tags = dict.fromkeys(
            choices[key] for key in ("preset", "prior", "video", "multiview") if key in choices
        )
        self.label = Label(self.name, group, command, tuple(tags))


def composed(command: str, overrides: Sequence[str]) -> Composed:
    """conf/COMMAND.yaml with overrides, typed."""
    node = compose_command(command, overrides, whole=True)
    choices = node.hydra.runtime.choices
    return Composed(command, without(node, "hydra"), choices, overrides)


def printed(command: str, overrides: Iterable[str], which: str, *, resolve: bool) -> str:
    """What `--cfg` prints: the command's own keys (job), Hydra's (hydra), or both (all)."""
    node = compose_command(command, overrides, whole=True)
    if resolve:
        OmegaConf.resolve(node)
    if which == "hydra":
        node = OmegaConf.create({"hydra": node.hydra})
    elif which == "job":
        node = without(node, "hydra")
    return OmegaConf.to_yaml(node)


def without(node: DictConfig, key: str) -> DictConfig:
    """A copy of a configuration without one of its keys."""
    node = node.copy()
    with open_dict(node):
        node.pop(key, None)
    return node


def start_clock() -> None:
    """Note when the command began, for the processes that it starts too."""
    if "LOCAL_RANK" not in os.environ or STARTED not in os.environ:
        os.environ[STARTED] = datetime.now().isoformat()


def one_clock() -> None:
    """Let `${now:FORMAT}` say when the command began: once for all processes, seeds and
    variants."""
    if STARTED not in os.environ:  # composed from Python, by no command
        start_clock()
    began = datetime.fromisoformat(os.environ[STARTED])
    OmegaConf.register_new_resolver("now", began.strftime, replace=True)


def search_path(command: str) -> list[str]:
    """Where Hydra finds experiments/NAME/sweep.yaml; to it, all folders beside are groups, as runs/
    would be."""
    folder = quoted(literal(f"file://{asset('experiments').parent}"))
    return [] if command in ("report", "reconstruct", "view") else [f"hydra.searchpath=[{folder}]"]


# --- overrides as people write them ---------------------------------------------------------------


def readable(arguments: Sequence[str]) -> list[str]:
    """Overrides that Hydra can read: `experiment=NAME` names a file, variants are new keys, their
    lists are quoted."""
    return [_hold(_variants(_experiment(argument))) for argument in arguments]


def _hold(override: str) -> str:
    """`recon.hold=views:[1,3]`, in quotes."""
    key, _, value = override.partition("=")
    return (
        f"{key}={_quoted(value)}"
        if key == "recon.hold" and value.startswith(("views:", "frames:"))
        else override
    )


def _experiment(override: str) -> str:
    """`experiment=NAME` stands for experiments/NAME/sweep.yaml."""
    key, _, name = override.partition("=")
    if key != "experiment":
        return override
    if not (asset("experiments") / name / "sweep.yaml").is_file():
        known = experiments()
        raise InputError(f"experiment={name}: no such experiment; choose {' or '.join(known)}")
    return f"+experiments/{name}=sweep"


def _variants(override: str) -> str:
    """`variants={a:[],b:[weights=linear]}` and `variants.b=[weights=linear]`, without Hydra's plus
    sign and quotes."""
    key, equals, value = override.partition("=")
    name, value = key.lstrip("+"), value.strip()
    if not equals or name.partition(".")[0] != "variants" or value == "{}":
        return override
    if name != "variants":
        return f"++{name}={_list_of_overrides(name, value)}"
    if not (value.startswith("{") and value.endswith("}")):
        raise InputError(
            f"{override}: give each a name and its overrides, variants={{a:[],b:[weights=linear]}}"
        )
    pairs = [
        tuple(part.strip() for part in pair.partition(":")[::2]) for pair in _split(value[1:-1])
    ]
    names = [of for of, _ in pairs]
    for of in names:
        if names.count(of) > 1:
            raise InputError(f"variants: {of} is there {names.count(of)} times; give each a name")
    lists = (f"{of}:{_list_of_overrides(f'variants.{of}', text)}" for of, text in pairs)
    return f"++variants={{{','.join(lists)}}}"


def _list_of_overrides(key: str, text: str) -> str:
    """The overrides of a variant, in quotes where they hold what Hydra's grammar minds."""
    if not (text.startswith("[") and text.endswith("]")):
        raise InputError(
            f"{key}={text}: a variant is a list of overrides; give {key}=[weights=linear], or []"
            " for none"
        )
    return "[" + ",".join(_quoted(element.strip()) for element in _split(text[1:-1])) + "]"


def _quoted(text: str) -> str:
    if text[:1] in ("'", '"') or not re.search(r"[=,:\[\](){}'\"\s]", text):
        return text
    return quoted(text)


def _split(text: str) -> list[str]:
    """The parts of a list or dictionary, between commas that lie outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[({") - (character in "])}")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def with_known_rules(override: str) -> str:
    """`weights=my_rules.py:mine`: the function becomes a choice of its group, under a name that
    Hydra can read."""
    key, _, value = override.partition("=")
    group = key.lstrip("+")
    if group not in RULES:
        return override

    def known(match: re.Match[str]) -> str:
        from d2.config.binding import rule_node

        name = f"{re.sub(r'[^0-9A-Za-z]', '_', match[0])}_{zlib.crc32(match[0].encode()):08x}"
        ConfigStore.instance().store(name=name, group=group, node=rule_node(match[0], group))
        _GIVEN[group, name] = match[0]
        return name

    file, colon, _ = value.rpartition(":")
    if colon and file.endswith(".py") and Path(file).is_file():  # a path may hold whatever it likes
        return f"{key}={known(cast(re.Match[str], re.fullmatch('.*', value, re.DOTALL)))}"
    return f"{key}={RULE_IN_FILE.sub(known, value)}"


def as_given(override: str) -> str:
    """An override of a rule in a file as the user wrote it, for a process that knows no other name
    of it."""
    key, equals, name = override.partition("=")
    return f"{key}{equals}{_GIVEN.get((key.lstrip('+'), name), name)}"


# --- sweeps ---------------------------------------------------------------------------------------


def values_in_turn(overrides: list[str]) -> list[list[str]]:
    """Command lines in which every value of a sweep comes at least once, the others at their
    first."""
    # how a sweep is run is Hydra's business
    own = [o for o in overrides if not o.startswith("hydra")]
    choices: list[list[str]] = []
    for text, override in zip(own, OverridesParser.create().parse_overrides(own), strict=True):
        if isinstance(override.value(), Glob):
            continue  # names options that are there
        if override.is_discrete_sweep():
            choices.append(
                [
                    f"{override.get_key_element()}={value}"
                    for value in override.sweep_string_iterator()
                ]
            )
        elif override.is_interval_sweep():
            interval = cast(IntervalSweep, override.value())
            choices.append(
                [f"{override.get_key_element()}={end}" for end in (interval.start, interval.end)]
            )
        else:
            choices.append([text])
    first = [values[0] for values in choices]
    others = [
        [*first[:place], value, *first[place + 1 :]]
        for place, values in enumerate(choices)
        for value in values[1:]
    ]
    return [first, *others]


def fixed_keys(overrides: list[str]) -> set[str]:
    """Keys with one value in all points."""
    own = [o for o in overrides if not o.startswith("hydra")]
    parsed = zip(own, OverridesParser.create().parse_overrides(own), strict=True)
    return {key_of(text) for text, override in parsed if not override.is_sweep_override()}


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def is_of(group: str, override: str) -> bool:
    """Whether an override chooses in a group or sets a key of it."""
    return key_of(override).partition(".")[0] == group


def typed(node: DictConfig) -> Any:
    """A part of a configuration as the schema's own class."""
    return OmegaConf.to_object(node)


def sweep_folder(command: str, overrides: list[str]) -> Path:
    """Where Hydra will put the points, found out once: its default holds the time."""
    node = compose_command(command, overrides, whole=True)
    return Path(str(node.hydra.sweep.dir)).absolute()


# --- errors ---------------------------------------------------------------------------------------


def explained(error: Exception) -> str | None:
    """What is wrong, in one line, where it is something that the user can mend."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, ERRORS):
        return one_line(error)
    if isinstance(error, OSError) and is_out_of_room(error):
        way_out = "mend that and start the same command again: what is finished is kept"
        return f"{error.filename or 'output_dir'}: {error.strerror}; {way_out}"
    return None


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages: what is wrong, why, and what there is to choose from."""
    said, cause = str(error), error.__cause__
    if isinstance(error, OverrideParseException):
        if "=" not in str(error.override):
            return f"{error.override}: no value; give KEY=VALUE or GROUP=CHOICE"
        way_out = (
            "put the value in quotes within quotes, \"KEY='VALUE'\", if it is meant as it stands"
        )
        return f"{error.override}: cannot be parsed, {error.message}; {way_out}"
    text = f"{said}\n".split("\n")[0].rstrip(".").removeprefix("Error merging override ")
    if several := re.fullmatch(r"Ambiguous value for argument '((.*?)=(.*))'", text):
        override, key, values = several.groups()
        return f"{override}: several values; add -m for a run of each, or give {key}=[{values}]"
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        reason = "" if cause.msg is None else cause.msg.split("\n")[0]
        if "not in" in reason:
            return no_such_key(str(cause.full_key), cause.parent_node)
        if "is not a ListConfig" in reason:
            key, _, value = text.partition("=")
            return f"{text}: a list is wanted; give {key}=[{value}]"
        return f"{text}: {reason}"
    options, asked = (
        re.findall(r"^\t(\S+)$", said, re.MULTILINE),
        re.search(r"Could not find '(\S+)/(\S+)'", said),
    )
    if asked and options:
        return (
            f"{asked[1]}={asked[2]}: no such choice{did_you_mean(asked[2], options)}; choose"
            f" {' or '.join(options)}"
        )
    why = str(cause or "").partition("\n")[0].rstrip(".")
    return text if why in text else f"{text}: {why}"


def no_such_key(key: str, parent: DictConfig) -> str:
    """What there is instead of a key that is not there: one that looks like it, and those beside
    it."""
    beside = [str(name) for name in parent if name != "hydra" and not str(name).startswith("_")]
    alike = did_you_mean(key, all_keys(cast(DictConfig, parent._get_root())))
    return f"{key}: no such key{alike}" + (f"; there are {', '.join(beside)}" if beside else "")


def all_keys(node: DictConfig, prefix: str = "") -> list[str]:
    """The dotted keys of a configuration, Hydra's own left out."""
    found = []
    for name in node:
        if name == "hydra":
            continue
        found.append(f"{prefix}{name}")
        if OmegaConf.is_dict(node._get_node(name)):
            found += all_keys(cast(DictConfig, node._get_node(name)), f"{prefix}{name}.")
    return found

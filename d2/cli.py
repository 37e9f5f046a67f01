"""`d2 sample | train | evaluate | calibrate | report [group=choice] [key=value] [-m]`,
`d2 checkpoints list | verify FILE | download NAME`.

With config.py the only user of hydra and omegaconf.

Exit codes: 0 done; 2 the user can mend it (one line on stderr, nothing half-written); 3 part of the work failed, the
rest is there; 1 a bug. Hydra reports its own errors on several lines with exit code 1, so a configuration is composed
under a handler first; only sweeps (-m) then enter Hydra's own main.
"""

from __future__ import annotations

import dis
import logging
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2.config.binding import rule_files, rule_node
from d2.config.checks import check
from d2.config.schema import SampleConfig, register
from d2.files import asset

CHECKPOINTS = "d2 checkpoints list|verify FILE|download NAME"
COMMANDS = ("sample", "train", "evaluate", "calibrate", "report")
RULES = ("renoise", "weights", "guidance", "composition", "solver")
RULE_IN_FILE = re.compile(r"[^\s,=\[\](){}'\"]+\.py:\w+")  # path/to/my_rules.py:name
USAGE = f"usage: d2 {'|'.join(COMMANDS)} [group=choice] [key=value] [-m], or {CHECKPOINTS}"


class Composed:
    """A configuration, typed, and its text, with what the users' files that it names hold."""

    def __init__(self, node: DictConfig, name: str | None = None):
        self.config: Any = OmegaConf.to_object(node)
        files = rule_files(OmegaConf.to_container(node))
        self.text = OmegaConf.to_yaml(node) + "".join(f"# {path}: {digest}\n" for path, digest in files.items())
        self.name: str = name or Path(self.config.output_dir).name  # the variant that the results are of


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run a command line and return its exit code."""
    if argv and argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if argv and argv[0] == "checkpoints":
        return checkpoints(argv[1:])
    if not argv or argv[0] not in COMMANDS:
        return complain(f"{' '.join(argv[:1]) or 'no command'}: {USAGE}")
    command, arguments = argv[0], argv[1:]
    multirun = bool({"-m", "--multirun"} & set(arguments))
    overrides = [a for a in arguments if a not in ("-m", "--multirun")]
    unknown = [a for a in overrides if a.startswith("-")]
    if unknown:
        return complain(f"{unknown[0]}: no such option; {USAGE}")
    register()
    try:
        overrides = expand(overrides)
        if multirun:
            return sweep(command, overrides)
        composed = composed_from(command, overrides)
        check(composed.config)
        return execute(command, composed, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        return complain(one_line(error))
    except ValueError as error:
        if not is_users(error):
            raise
        return complain(str(error))


def checkpoints(arguments: list[str]) -> int:
    """What the priors' weights are and where they come from; Hydra has no part in it."""
    from d2.priors.catalog import download, list_checkpoints, verify

    try:
        match arguments:
            case ["list"]:
                print(list_checkpoints(asset("checkpoints")))
            case ["verify", path]:
                print(verify(Path(path)))
            case ["download", name]:
                print(download(name, asset("checkpoints")))
            case _:
                return complain(f"checkpoints {' '.join(arguments)}: usage: {CHECKPOINTS}")
    except ValueError as error:
        if not is_users(error):
            raise
        return complain(str(error))
    return 0


def execute(command: str, composed: Composed, overrides: list[str]) -> int:
    """Run a command under its typed configuration, which `overrides` gave."""
    if command == "train":
        from d2.train.job import train_command

        quiet()
        return train_command(composed.config)
    if command == "evaluate":
        from d2.evaluate.job import evaluate

        quiet()
        return evaluate(composed.config)
    if command == "calibrate":
        from d2.sample.calibrate import calibrate

        quiet()
        return calibrate(composed.config, composed.text)
    if command == "report":
        from d2.study.report import report

        quiet()
        return report(composed.config, composed.text)
    from d2.sample.job import sample
    from d2.study.job import record, study

    quiet()

    def variant(more: list[str]) -> tuple[SampleConfig, str]:
        node = node_from(command, [*overrides, *more])
        node.variants, node.seeds, node.compare_to = {}, [], None  # a variant does not depend on the others
        one = Composed(node)
        check(one.config)
        return one.config, one.text

    if composed.config.variants or composed.config.seeds:
        return study(composed.config, variant, composed.name)
    code = sample(composed.config, composed.text)
    record(composed.config, composed.name)
    return code


def composed_from(command: str, overrides: list[str]) -> Composed:
    """conf/COMMAND.yaml with overrides."""
    return Composed(node_from(command, overrides))


def node_from(command: str, overrides: list[str]) -> DictConfig:
    """Hydra's composition of conf/COMMAND.yaml with overrides; what is calibrated is configured as what is sampled."""
    if command == "calibrate":
        command, overrides = "sample", ["output_dir=outputs/calibrate", *overrides]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(asset("conf")), version_base="1.3"):
        try:
            return compose(command, [*map(with_known_rules, overrides), *search_path(command)])
        except ValueError as error:  # Hydra's own, of overrides that it cannot take apart
            raise HydraException(str(error)) from error


def search_path(command: str) -> list[str]:
    """Where Hydra finds experiments/NAME/sweep.yaml; to it, all folders beside are groups, as runs/ would be."""
    return [] if command == "report" else [f"hydra.searchpath=['file://{asset('experiments').parent}']"]


def sweep(command: str, overrides: list[str]) -> int:
    """Every point of a Hydra multirun, once every value of it has been found good; 3 if only some points failed.

    Points may run in other processes, so what they say comes back through files in the sweep's folder.
    """
    if command not in ("sample", "train"):
        raise ValueError(f"-m: d2 {command} has no points to sweep over; give one command line")
    for override in overrides:
        if override.startswith("output_dir="):
            raise ValueError(f"{override}: all points of a sweep would write there; give hydra.sweep.dir=DIR instead")
    overrides = [with_known_rules(override) for override in overrides]
    lines = values_in_turn(overrides)
    for one in lines:
        config = composed_from(command, one).config
        check(config)
        if getattr(config, "objective", None):
            from d2.study.job import check_objective

            check_objective(config)
        if config.trainer.devices != 1:
            raise ValueError(f"trainer.devices={config.trainer.devices}: a point of a sweep (-m) runs on one device")
    folder = sweep_folder(command, [*lines[0], *(o for o in overrides if o.startswith("hydra"))])
    codes, fixed = folder / ".codes", fixed_keys(overrides)
    shutil.rmtree(codes, ignore_errors=True)

    def point(node: DictConfig) -> float | None:
        job, node = HydraConfig.get(), node.copy()
        node.output_dir = job.runtime.output_dir
        swept = [o for o in job.overrides.task if key_of(o) not in fixed]
        composed = Composed(node, ",".join(o for o in swept if key_of(o) != "seed") or folder.name)
        try:
            check(composed.config)
            code = run_point(command, composed, [*job.overrides.task, f"output_dir='{node.output_dir}'"])
        except ValueError as error:
            if not is_users(error):
                raise
            code = complain(str(error))
        codes.mkdir(parents=True, exist_ok=True)
        (codes / str(job.job.num)).write_text(str(code))
        if command == "train" or composed.config.objective is None:
            return None
        from d2.study.job import objective_of

        return objective_of(composed.config, composed.name)

    GlobalHydra.instance().clear()
    own = sys.argv
    sys.argv = [own[0], "-m", *overrides, f"hydra.sweep.dir='{folder}'", *search_path(command)]
    try:
        hydra.main(version_base="1.3", config_path=str(asset("conf")), config_name=command)(point)()
    finally:
        sys.argv = own
    said = {int(file.read_text()) for file in codes.iterdir()}
    shutil.rmtree(codes)
    if command == "sample":
        from d2.study.job import sweep_results

        sweep_results(folder)
    return said.pop() if len(said) == 1 else 3


def run_point(command: str, composed: Composed, overrides: list[str]) -> int:
    """One point, if it was not finished under this very configuration before."""
    if command == "sample":
        from d2.study.job import was_finished

        if was_finished(composed.config, composed.text, composed.name):
            return 0
    return execute(command, composed, overrides)


def sweep_folder(command: str, overrides: list[str]) -> Path:
    """Where Hydra will put the points, found out once: its default holds the time."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(asset("conf")), version_base="1.3"):
        node = compose(command, [*overrides, *search_path(command)], return_hydra_config=True)
    return Path(str(node.hydra.sweep.dir)).absolute()


def fixed_keys(overrides: list[str]) -> set[str]:
    """Keys with one value in all points."""
    own = [o for o in overrides if not o.startswith("hydra")]
    parsed = zip(own, OverridesParser.create().parse_overrides(own), strict=True)
    return {key_of(text) for text, override in parsed if not override.is_sweep_override()}


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def with_known_rules(override: str) -> str:
    """`weights=my_rules.py:mine`: the function becomes a choice of its group, under a name that Hydra can read."""
    key, _, value = override.partition("=")
    group = key.lstrip("+")
    if group not in RULES:
        return override

    def known(match: re.Match[str]) -> str:
        name = f"{re.sub(r'[^0-9A-Za-z]', '_', match[0])}_{zlib.crc32(match[0].encode()):08x}"
        ConfigStore.instance().store(name=name, group=group, node=rule_node(match[0], group))
        return name

    return f"{key}={RULE_IN_FILE.sub(known, value)}"


def expand(arguments: Sequence[str]) -> list[str]:
    """`experiment=NAME` stands for experiments/NAME/sweep.yaml."""
    short, folder = "experiment=", asset("experiments")
    for name in (a.removeprefix(short) for a in arguments if a.startswith(short)):
        if not (folder / name / "sweep.yaml").is_file():
            known = sorted(path.parent.name for path in folder.glob("*/sweep.yaml"))
            raise ValueError(f"experiment={name}: no such experiment; choose {' or '.join(known)}")
    return [f"+experiments/{a.removeprefix(short)}=sweep" if a.startswith(short) else a for a in arguments]


def values_in_turn(overrides: list[str]) -> list[list[str]]:
    """Command lines in which every value of a sweep comes at least once, the others at their first."""
    own = [o for o in overrides if not o.startswith("hydra")]  # how a sweep is run is Hydra's business
    choices: list[list[str]] = []
    for text, override in zip(own, OverridesParser.create().parse_overrides(own), strict=True):
        if isinstance(override.value(), Glob):
            continue  # names options that are there
        if override.is_discrete_sweep():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        elif override.is_interval_sweep():
            interval = cast(IntervalSweep, override.value())
            choices.append([f"{override.get_key_element()}={end}" for end in (interval.start, interval.end)])
        else:
            choices.append([text])
    first = [values[0] for values in choices]
    others = [
        [*first[:place], value, *first[place + 1 :]] for place, values in enumerate(choices) for value in values[1:]
    ]
    return [first, *others]


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages: what is wrong, why, and what there is to choose from."""
    said, cause = str(error), error.__cause__
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be parsed, {error.message}"
    text = f"{said}\n".split("\n")[0].rstrip(".")
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        reason = "" if cause.msg is None else cause.msg.split("\n")[0]
        known = [str(key) for key in cause.parent_node if key != "hydra"]
        if "not in" in reason:
            return f"{cause.full_key}: no such key; there are {', '.join(known)}"
        return f"{text}: {reason}"
    options = re.findall(r"^\t(\S+)$", said, re.MULTILINE)
    if "Available options" in said and options:
        return f"{text}; choose {' or '.join(options)}"
    return f"{text}: {str(cause).splitlines()[0]}" if cause and str(cause) else text


def is_users(error: ValueError) -> bool:
    """Whether a ValueError is a message of ours to the user: one line, raised by a raise statement of d2 itself."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    code = trace.tb_frame.f_code
    ours = Path(code.co_filename).is_relative_to(Path(__file__).parent)
    return ours and dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS" and "\n" not in str(error)


def complain(message: str) -> int:
    """One line on stderr; the exit code of a mistake that the user can mend."""
    print(f"d2: {' '.join(message.split())}", file=sys.stderr)
    return 2


def quiet() -> None:
    """Lightning's banners and hints tell our users nothing, and what Hydra logs we say ourselves.

    To be called once Lightning has been imported, which sets its own levels.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")


if __name__ == "__main__":
    main()

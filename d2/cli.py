"""`d2 COMMAND [group=choice] [key=value] [options]`: see `d2 --help`, which config/help.py writes.

Exit codes: 0 done; 2 the user can mend it (one line on stderr, nothing half-written); 3 part of the
work failed, the rest is there; 1 a bug; 130, 143 and 75 stopped by a signal. Hydra reports its own
errors on several lines with exit code 1, so a configuration is composed under a handler first; only
sweeps (-m) then enter Hydra's own main.

What needs PyTorch is imported once the configuration is known to be good.
"""

from __future__ import annotations

import argparse
import gc
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from d2 import __version__, launch, processes, signals
from d2.allocator import keep_freed_memory
from d2.config import help as pages
from d2.config.names import did_you_mean
from d2.errors import InputError, as_line
from d2.files import asset

if TYPE_CHECKING:
    from d2.config.command_line import Composed

MANY = ("sample", "train", "evaluate", "calibrate")  # the commands that can use several devices
CHECKPOINTS = "d2 checkpoints list|verify FILE|download NAME"


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    signals.install(loading=True)
    processes.end_with_parent()
    # what a command says on stderr is its own
    logging.getLogger("d2._torchvision").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):  # a terminal need not know × and σ
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except signals.Stopped as stopped:
        signals.announce(stopped)
        signals.leave(stopped.exit_code)
    except BrokenPipeError:  # whoever read what we print has enough of it, as `d2 --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signals.leave(128 + signal.SIGPIPE)
    except Exception:
        if not processes.is_watched():
            raise
        processes.last_words(traceback.format_exc())
        signals.leave(1)
    # an interpreter with a process group takes its time to fold up, and W&B waits for its server
    if processes.is_watched() or signals.in_haste():
        signals.leave(code)
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run a command line and return its exit code."""
    command, arguments = (argv[0], argv[1:]) if argv else ("", [])
    if command in ("-h", "--help", "help"):
        print(pages.overview(__version__))
        return 0
    if command in ("-V", "--version"):
        print(f"d2 {__version__}")
        return 0
    if command not in pages.COMMANDS:
        alike = did_you_mean(command, pages.COMMANDS)
        return complain(
            f"{command or 'no command'}{alike or ':'} d2 {'|'.join(pages.COMMANDS)}; see d2 --help"
        )
    if {"-h", "--help"} & set(arguments):
        print(f"usage: {CHECKPOINTS}" if command == "checkpoints" else pages.of_command(command))
        return 0
    if {"-V", "--version"} & set(arguments):
        return run(["--version"])
    if command == "checkpoints":
        return checkpoints(arguments)
    from d2.config import command_line

    keep_freed_memory()
    if not processes.is_watched():  # else the clock is that of the command behind this process
        command_line.start_clock()
    try:
        return run_command(command, arguments)
    except Exception as error:
        if (line := command_line.explained(error)) is None:
            raise
        return complain(line)


def run_command(command: str, arguments: list[str]) -> int:
    """Compose, check and run; or print what was composed."""
    from d2.config import command_line

    options, overrides = parsed(command, arguments)
    overrides = command_line.readable(overrides)
    if options.cfg:
        print(
            command_line.printed(command, overrides, options.cfg, resolve=options.resolve), end=""
        )
        return 0
    if options.multirun:
        from d2.sweep import sweep

        return sweep(command, overrides, refuse, execute)
    composed, point = command_line.composed(command, overrides), launch.point()
    refuse(composed.config)
    if command in MANY and (count := launch.processes(composed.config)):
        return launch.begin(command, arguments, composed.config, count)
    if point:  # of a sweep, by whose names its results go
        composed.name, composed.label = point["name"], composed.label._replace(**point["label"])
        composed.swept = True
    return execute(command, composed)


def refuse(config: Any) -> None:
    """Raise a ValueError for what is wrong with a configuration, and for a logger that could not
    start."""
    from d2.config.checks import check

    check(config)
    if hasattr(config, "logger") and config.logger.kind != "csv":
        from d2.loggers import check_logger

        check_logger(config.logger)


def parsed(command: str, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options as Hydra names them, and what is left: overrides."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    try:
        options, overrides = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"{error.argument_name}: {error.message}") from error
    for unknown in (one for one in overrides if one.startswith("-")):
        raise InputError(
            f"{unknown}: no such option; there are {', '.join(pages.OPTIONS)}; see d2 {command}"
            " --help"
        )
    if options.multirun and options.cfg:
        raise InputError(
            "--cfg: prints one configuration; leave -m out and give the values of one point"
        )
    return options, overrides


def checkpoints(arguments: list[str]) -> int:
    """What the priors' weights are and where they come from; Hydra has no part in it."""
    from d2.priors.catalog import download, list_checkpoints, verify

    signals.loaded()
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
    except InputError as error:
        return complain(str(error))
    return 0


def execute(command: str, composed: Composed) -> int:
    """Do a command."""
    planned = getattr(composed.config, "plan", False)
    room = loaded(f"d2.commands.{'plan' if planned else command}")
    quiet()
    use_threads(composed.config)
    return room.run(composed)


def loaded(name: str) -> ModuleType:
    """A command's room with its libraries. What a first import makes stays, so garbage is looked
    for neither meanwhile nor, ever after, among it: a tenth of the start, and of the end."""
    if "torch" in sys.modules:
        return import_module(name)
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def use_threads(config: Any) -> None:
    """Let PyTorch have as many threads as the configuration says."""
    import torch

    if hasattr(config, "trainer") and config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)


def complain(message: str) -> int:
    """One line on stderr; the exit code of a mistake that the user can mend."""
    processes.last_words(as_line(message))
    return 2


def quiet() -> None:
    """Lightning's banners and hints tell our users nothing, and what Hydra logs we say ourselves.

    To be called once Lightning has been imported, which sets its own levels: the last of the
    libraries that are loaded before a command's work.
    """
    signals.loaded()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
    warnings.formatwarning = _plain


def _plain(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as its one line, on the first process alone."""
    return "" if int(os.environ.get("LOCAL_RANK", "0")) else f"{as_line(f'warning: {message}')}\n"


if __name__ == "__main__":
    main()

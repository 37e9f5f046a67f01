"""`d2 COMMAND -m`: the points of a Hydra multirun, each a run of its own, and the one table that
they leave.

Hydra goes through the points by a launcher: local, of ours (hydra_plugins/d2_launcher.py), joblib
or submitit. Points may run in other processes, so what they say comes back through files in the
sweep's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from d2 import launch, processes
from d2.config import command_line
from d2.config.command_line import Composed
from d2.config.paths import as_written, literal, quoted
from d2.errors import InputError, as_line, say
from d2.files import asset, locked

if TYPE_CHECKING:
    from omegaconf import DictConfig

CODES = ".codes"  # of a sweep's folder, while it runs: how each point ended


class Point(NamedTuple):
    """One point of a sweep."""

    number: int
    folder: str  # where it was started: paths are as they were given, whatever hydra.job.chdir says
    composed: Composed

    @property
    def names(self) -> dict[str, Any]:
        """The names that its results go by."""
        label = self.composed.label
        return {"name": self.composed.name, "label": {"name": label.name, "group": label.group}}


@dataclass(frozen=True)
class Task:
    """What Hydra calls for each point."""

    command: str
    folder: Path  # of the sweep
    fixed: frozenset[str]  # keys with one value in all points
    refuse: Callable[[Any], None]
    execute: Callable[..., int]

    def __call__(self, node: DictConfig) -> float | None:
        """Run a point here. Returns what a sweeper tunes for."""
        point = self.point(node)
        try:
            with contextlib.chdir(point.folder):
                code = self.run(point)
        except Exception as error:  # the others go on
            line = command_line.explained(error)
            processes.last_words(traceback.format_exc() if line is None else as_line(line))
            code = 1 if line is None else 2
        return self.ended(point, code)

    def run(self, point: Point) -> int:
        """Run a point in this process, or in several of its own."""
        config = point.composed.config
        self.refuse(config)
        if count := launch.processes(config):
            return launch.begin(self.command, point.composed.overrides, config, count, point.names)
        return self.execute(self.command, point.composed)

    def point(self, node: DictConfig) -> Point:
        """What Hydra has composed."""
        from hydra.core.hydra_config import HydraConfig

        job, node = HydraConfig.get(), node.copy()
        node.output_dir = job.runtime.output_dir
        given = [command_line.as_given(override) for override in job.overrides.task]
        swept = [o for o in given if command_line.key_of(o) not in self.fixed]
        name = ",".join(o for o in swept if command_line.key_of(o) != "seed") or self.folder.name
        line = [*given, f"output_dir={quoted(literal(job.runtime.output_dir))}"]
        composed = Composed(
            self.command, node, job.runtime.choices, line, name=name, group=self.folder.name
        )
        composed.label, composed.swept = composed.label._replace(name=",".join(swept)), True
        return Point(job.job.num, job.runtime.cwd, composed)

    def groups(self, config: DictConfig, points: Sequence[Sequence[str]]) -> list[list[str]]:
        """The groups of devices on which points, told by their overrides, run at once; one where
        each gets all devices.

        Trainings always do: the number of their ranks is part of what they are.
        """
        own = {tuple(o for o in point if command_line.is_of("trainer", o)) for point in points}
        trainer = command_line.typed(config.trainer)
        told = SimpleNamespace(trainer=trainer, plan=config.get("plan"))
        devices = launch.processes(told) if self.command == "sample" and len(own) == 1 else 0
        if not devices or (trainer.parallel == "scenes" and len(points) < devices):
            return [[]]
        names = launch.names_of(trainer.devices, trainer.accelerator, devices)
        number = launch.number_of_groups(
            trainer, len(points), devices, launch.number_of_blocks(config), launch.OF_POINT
        )
        return launch.in_groups(names, number)

    def at_once(
        self, points: Sequence[Point], groups: Sequence[Sequence[str]]
    ) -> list[float | None]:
        """Run points on groups of devices. Returns what a sweeper tunes for, of each."""
        own = [f"trainer.devices={len(groups[0])}"]
        own += ["trainer.strategy=auto"] if len(groups[0]) == 1 else []
        lines = [
            (
                [self.command, *point.composed.overrides, *own],
                {launch.POINT: json.dumps(point.names)},
            )
            for point in points
        ]
        count = sum(len(devices) for devices in groups)
        codes = processes.spread(lines, [launch.seen(devices) for devices in groups], count)
        return [self.ended(point, code) for point, code in zip(points, codes, strict=True)]

    def ended(self, point: Point, code: int) -> float | None:
        """Note how a point ended, and where a job of submitit's keeps what it says; the figure of
        it that a sweeper tunes for."""
        codes = self.folder / CODES
        codes.mkdir(parents=True, exist_ok=True)
        (codes / str(point.number)).write_text(f"{code} {log_of_job()}")
        config = point.composed.config
        if self.command == "train" or config.objective is None:
            return None
        from d2.study.job import objective_of

        return objective_of(Path(config.output_dir), point.composed.name, config.objective)


def log_of_job() -> str:
    """The file that takes what this process writes to stderr, if it is a job of submitit's."""
    if "SUBMITIT_FOLDER" not in os.environ:
        return ""
    import submitit

    return str(submitit.JobEnvironment().paths.stderr)


def sweep(
    command: str,
    overrides: list[str],
    refuse: Callable[[Any], None],
    execute: Callable[..., int],
) -> int:
    """Run every point, once every value of it has been found good: the code that all ended with,
    or 3.

    `refuse` raises for a configuration that is not good, `execute` runs one.
    """
    overrides = checked(command, overrides, refuse)
    line = [*command_line.values_in_turn(overrides)[0]]
    line += [override for override in overrides if override.startswith("hydra")]
    folder = command_line.sweep_folder(command, line)
    fixed = frozenset(command_line.fixed_keys(overrides))
    with locked(folder, "hydra.sweep.dir"):
        return run_points(overrides, Task(command, folder, fixed, refuse, execute))


def run_points(overrides: list[str], task: Task) -> int:
    """Let Hydra go through the points, and gather what they leave: the code that all ended with, or
    3."""
    codes = task.folder / CODES
    shutil.rmtree(codes, ignore_errors=True)
    try:
        through_hydra(overrides, task)
    except SystemExit:  # Hydra said why: no point ran, or one was killed elsewhere
        if not codes.exists():
            raise
        (codes / "killed").write_text("1")
    ends = {file.name: file.read_text().split(maxsplit=1) for file in sorted(codes.iterdir())}
    shutil.rmtree(codes)
    for point, (code, *place) in ends.items():
        if place and code != "0":
            say(f"d2: point {point} ended with code {code}; it said why in {place[0]}")
    if task.command == "sample":
        from d2.study.job import sweep_results

        sweep_results(task.folder)
    said = {int(code) for code, *_ in ends.values()}
    return said.pop() if len(said) == 1 else 3


def checked(command: str, overrides: list[str], refuse: Callable[[Any], None]) -> list[str]:
    """The overrides of a sweep, once every value in them has been found good."""
    if command not in ("sample", "train"):
        raise InputError(f"-m: d2 {command} has no points to sweep over; give one command line")
    for override in overrides:
        if override.startswith("output_dir="):
            raise InputError(
                f"{override}: all points of a sweep would write there; give hydra.sweep.dir=DIR"
                " instead"
            )
    overrides = [
        command_line.with_known_rules(as_written(override, swept=True)) for override in overrides
    ]
    for one in command_line.values_in_turn(overrides):
        config = command_line.composed(command, one).config
        refuse(config)
        if getattr(config, "objective", None):
            from d2.study.job import check_objective

            check_objective(
                config.objective, num_variants=len(config.variants), num_seeds=len(config.seeds)
            )
    return overrides


def through_hydra(overrides: list[str], task: Task) -> None:
    """Let Hydra go through the points."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    own = sys.argv
    sys.argv = [
        own[0],
        "-m",
        *overrides,
        f"hydra.sweep.dir={quoted(literal(str(task.folder)))}",
        *command_line.search_path(task.command),
    ]
    main = hydra.main(version_base="1.3", config_path=str(asset("conf")), config_name=task.command)
    try:
        main(task)()
    finally:
        sys.argv = own

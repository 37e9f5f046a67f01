"""The one place that starts loggers and feeds them: CSV files, Weights & Biases, TensorBoard.

A job says what its run is called and hands over figures, curves, media and tables. Which logger can
show what is known here alone.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from d2 import __version__, signals
from d2.config.names import Label
from d2.errors import InputError, say
from d2.files import commit, csv_text, write_text
from d2.settings import Logging

FINISH_SECONDS = 120.0  # that a finished run waits for W&B
CURVE_AXIS = "sigma"  # what W&B draws curves against
STEP_AXIS = "trainer/global_step"  # Lightning's name of the step that it logs beside figures


def check_logger(logging: Logging) -> None:
    """Raise a ValueError for a logger that could not start, before any work: no package, no
    account, no connection."""
    if logging.kind != "csv" and not importlib.util.find_spec(logging.kind):
        raise InputError(
            f"logger={logging.kind}: {logging.kind} is not installed; in the clone, pip install -e"
            f" '.[{logging.kind}]'"
        )
    if logging.kind != "wandb":
        return
    if "/" in logging.project:
        team, _, project = logging.project.partition("/")
        raise InputError(
            f"logger.project={logging.project}: a team is a key of its own; give"
            f" logger.entity={team} logger.project={project}"
        )
    if re.search(r"[\\#?%:]", logging.project):
        raise InputError(
            rf"logger.project={logging.project}: W&B allows none of / \ # ? % : in the name of a"
            r" project"
        )
    if wandb_mode(logging) == "online" and not rank_zero_only.rank:
        _check_account()


def wandb_mode(logging: Logging) -> str:
    """online, offline or disabled: WANDB_MODE=disabled wins, then the key, then WANDB_MODE; without
    any, offline."""
    told = os.environ.get("WANDB_MODE", "offline").replace("dryrun", "offline")
    if told == "disabled" or logging.offline is None:
        return told
    return "offline" if logging.offline else "online"


def _check_account() -> None:
    import wandb

    wandb.setup(settings=_settings())
    way_out = "run `wandb login`, or take logger.offline=true"
    try:
        known = wandb.login(prompt=False, verify=True)
    except wandb.Error as error:
        signals.hasten()
        raise InputError(
            f"logger.offline=false: {' '.join(str(error).split())} {way_out}"
        ) from error
    if not known:
        raise InputError(f"logger.offline=false: W&B knows no account here; {way_out}")


def _settings() -> Any:
    import wandb

    return wandb.Settings(silent=True, console="off")


def start_loggers(
    logging: Logging,
    folder: Path,
    label: Label,
    told: Mapping[str, Any],  # the configuration and what else decides the result
    *,
    # keeps W&B's name of the run, so that whoever goes on with it finds it again
    id_file: Path | None = None,
    # of a training that goes on: what the log holds from there on is told anew
    first_step: int = 0,
) -> list[Any]:
    """Start the loggers of one run, and tell them its configuration. W&B that is disabled is no
    logger."""
    if logging.kind == "wandb":
        if wandb_mode(logging) == "disabled":
            return []
        # On other ranks than the first, Lightning gives the logger a dummy for its run.
        run = None if rank_zero_only.rank else _wandb_run(logging, folder, label, told, id_file)
        if run is not None and first_step:
            # W&B drops what comes at a step before the last one that it has
            run.log({}, step=first_step)
        return [WandbLogger(project=logging.project, experiment=run)]
    if logging.kind == "tensorboard":
        logger = TensorBoardLogger(folder, "log", version="", purge_step=first_step or None)
    else:
        logger = _csv_logger(folder, first_step)
    logger.log_hyperparams(dict(told))
    return [logger]


def _csv_logger(folder: Path, first_step: int) -> CSVLogger:
    """A log that goes on after the rows before `first_step`; Lightning's own would delete them."""
    logger, path, rows = CSVLogger(folder, "log", version=""), folder / "log" / "metrics.csv", []
    if first_step and path.exists() and not rank_zero_only.rank:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < first_step]
    writer = logger.experiment
    if rows:
        write_text(path, csv_text(rows))
        writer.metrics_keys = list(rows[0])
    return logger


def _wandb_run(
    logging: Logging, folder: Path, label: Label, told: Mapping[str, Any], id_file: Path | None
) -> Any:
    import wandb

    try:
        run = wandb.init(
            entity=logging.entity,
            project=logging.project,
            group=logging.group or label.group,
            name=label.name,
            job_type=label.command,
            tags=[*label.tags, *logging.tags],
            config={**told, "version": __version__, "commit": commit()},
            id=None if id_file is None else kept_id(id_file),
            resume="allow",
            dir=folder,
            mode=wandb_mode(logging),  # type: ignore[arg-type]
            settings=_settings(),
        )
    except wandb.Error as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"logger=wandb: {said}; logger.offline=true needs no connection"
        ) from error
    run.define_metric(CURVE_AXIS, hidden=True)
    run.define_metric("disagreement/*", step_metric=CURVE_AXIS)
    for drawn in ("train/*", "val/*", "lr*", "scene/*"):
        run.define_metric(drawn, step_metric=STEP_AXIS)
    return run


def kept_id(path: Path) -> str:
    """The identifier in a file, which is made where it is missing."""
    if not path.exists():
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")


def log_figures(
    loggers: Sequence[Logger], figures: Mapping[str, float], step: int | None = None
) -> None:
    """Numbers of one step: those that are finite."""
    finite = {name: value for name, value in figures.items() if math.isfinite(value)}
    for logger in loggers:
        if finite:
            logger.log_metrics(finite, step=step)


@rank_zero_only
def log_scene(
    loggers: Sequence[Logger], folder: Path, index: int, figures: Mapping[str, float]
) -> None:
    """A sampled scene from its folder: its figures, its grid and video, and the disagreement of the
    priors.

    W&B draws the disagreement of every step against its noise level, TensorBoard, which shows no
    videos here, in the order of steps. CSV files hold figures alone.
    """
    log_figures(loggers, {f"scene/{name}": value for name, value in figures.items()}, index)
    grid, curve = folder / "grid.png", read_curve(folder / "disagreement.csv")
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for sigma, value in curve:
                logger.experiment.log({f"disagreement/{folder.name}": value, CURVE_AXIS: sigma})
            logger.log_image(f"grid/{folder.name}", [str(grid)])
            logger.log_video(
                f"preview/{folder.name}", [str(folder / "preview.mp4")], format=["mp4"]
            )
        elif isinstance(logger, TensorBoardLogger):
            for step, (_, value) in enumerate(curve):
                logger.experiment.add_scalar(f"disagreement/{folder.name}", value, step)
            with Image.open(grid) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(f"grid/{folder.name}", pixels, index, dataformats="HWC")


@rank_zero_only
def log_videos(
    loggers: Sequence[Logger], folder: Path, object_name: str, names: Sequence[str]
) -> None:
    """FOLDER/NAME.mp4 under NAME/OBJECT; W&B alone shows videos here."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for name in names:
                logger.log_video(
                    f"{name}/{object_name}", [str(folder / f"{name}.mp4")], format=["mp4"]
                )


def read_curve(path: Path) -> list[tuple[float, float]]:
    """Noise level and value of every step of a scene's disagreement.csv that has both; none where
    there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            (float(row["sigma"]), float(row["video_multiview"])) for row in csv.DictReader(file)
        ]
    return [(sigma, value) for sigma, value in rows if math.isfinite(value)]


@rank_zero_only
def log_table(loggers: Sequence[Logger], name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table, whose first row names the columns; CSV files leave it out: the run's own folder
    holds it."""
    for logger in loggers:
        columns = list(rows[0]) if rows else []
        if isinstance(logger, WandbLogger) and rows:
            data = [[row.get(column) for column in columns] for row in rows]
            logger.log_table(name, columns=columns, data=data)
        elif isinstance(logger, TensorBoardLogger) and rows:
            lines = [
                columns,
                ["---"] * len(columns),
                *([str(row.get(c, "")) for c in columns] for row in rows),
            ]
            logger.experiment.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines))


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """Write what is left; the next run of this process is another one."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger) and not rank_zero_only.rank:
            _finish_wandb(logger.experiment)


def _finish_wandb(run: Any) -> None:
    """Send what is left, and leave it in its files where the server does not take it."""
    sent = threading.Event()

    def send() -> None:
        with suppress(Exception):  # of the process that sends
            run.finish()
            sent.set()

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    sending.join(FINISH_SECONDS)
    if not sent.is_set():
        signals.hasten()
        say(
            "d2: logger=wandb: the server has not taken all that was logged; send it later, wandb"
            f" sync {Path(run.dir).parent}"
        )

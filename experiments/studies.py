"""All studies, one after the other: python experiments/studies.py [--list] [--minutes N] [NAME
...].

A study that was finished under the weights that ship is not run again, and one that was stopped
goes on where it stopped. After `--minutes` the command that runs is told to stop, keeps its state,
and the same line goes on another time. What a study leaves is copied beside its README.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from d2.files import fingerprint
from d2.metrics.figures import weights_hash

ROOT = Path(__file__).parents[1]
STALE = Path(__file__).parent / "STALE"  # studies whose tables are not of the weights that ship
KEPT = ("results.csv", "table.md", "assets.md", "plot.svg", "plot.png")


class Study(NamedTuple):
    """One table of a folder of experiments/."""

    name: str  # of the folder of experiments/
    hours: float  # of two cores; from cell evaluations at 5 ms each, of the tiny priors at 8 × 8
    command: str
    part: str = ""  # what the table is called where a folder has several

    @property
    def outputs(self) -> Path:
        return ROOT / "outputs" / (self.part or self.name)

    def kept(self, name: str) -> Path:
        """Where a file that it leaves lies beside the README."""
        stem, dot, kind = name.partition(".")
        return (
            ROOT
            / "experiments"
            / self.name
            / f"{stem}{'_' * bool(self.part)}{self.part}{dot}{kind}"
        )


LARGER = (
    "d2 sample -m preset=official_short renoise=none sampler.num_steps=10 scenes.split=validation"
    " baselines=false pages=false hydra.sweep.dir=outputs"
)
FRAMES = "scenes.count=8 matrix.num_frames=16 video.window=null,8"
VIEWS = "scenes.count=8 matrix.num_views=16 multiview.window=null,8 multiview.dilation=1,2"
BOTH = (
    "scenes.count=4 matrix.num_views=16 matrix.num_frames=24 multiview.window=8"
    " multiview.dilation=2 video.window=null,8"
)
PATH = (
    "d2 sample scenes.split=test scenes.count=16 seeds=[0] pages=false"
    " output_dir=outputs/any_cameras_"
)
HELIX = (
    "'cameras.azimuth_deg=[40,90,130,180,230,270,320,360]'"
    " 'cameras.elevation_deg=[15,20,25,30,35,40,45,10]'"
    " 'cameras.radius=[1.9,1.8,1.9,2.0,2.1,2.2,2.3,2.0]'"
)
CAMERA = "multiview=tiny_camera"
# exact worlds and damages know no priors; then what others build on, then what chooses, then test
# scenes
STUDIES = (
    Study("exact_world", 0.05, "python experiments/exact_world/study.py outputs/exact_world"),
    Study(
        "metric_response",
        0.3,
        "python experiments/metric_response/study.py outputs/metric_response",
    ),
    Study("budget", 0.06, "python experiments/budget/study.py outputs/budget 8 10"),
    Study("does_composition_help", 0.7, "d2 sample experiment=does_composition_help"),
    Study("guidance", 0.06, "d2 sample experiment=guidance"),
    Study("schedules", 0.06, "d2 sample experiment=schedules"),
    Study("vrs", 0.05, "d2 sample experiment=vrs"),
    Study("rules", 0.15, "d2 sample experiment=rules"),
    Study("scaffold", 0.06, "d2 sample experiment=scaffold"),
    Study("priors_beyond_training", 0.2, f"{LARGER}/longer_frames {FRAMES}", "longer_frames"),
    Study("priors_beyond_training", 0.3, f"{LARGER}/longer_views {VIEWS}", "longer_views"),
    Study("priors_beyond_training", 0.4, f"{LARGER}/larger_matrix {BOTH}", "larger_matrix"),
    Study("quality_per_call", 0.25, "d2 sample experiment=quality_per_call"),
    Study(
        "any_cameras",
        0.05,
        "python experiments/any_cameras/columns.py outputs/any_cameras_columns",
        "any_cameras_columns",
    ),
    Study(
        "any_cameras",
        0.3,
        f"{PATH}spiral {CAMERA} cameras.preset=spiral matrix.num_views=9",
        "any_cameras_spiral",
    ),
    Study(
        "any_cameras",
        0.4,
        f"{PATH}spiral_told {CAMERA} multiview.told_orbit=1 cameras.preset=spiral"
        " matrix.num_views=9",
        "any_cameras_spiral_told",
    ),
    Study("any_cameras", 0.3, f"{PATH}helix {CAMERA} {HELIX} scenes.count=8", "any_cameras_helix"),
    Study("any_cameras", 0.3, f"{PATH}ring {CAMERA}", "any_cameras_ring"),
    Study("any_cameras", 0.3, f"{PATH}ring_prior multiview=tiny", "any_cameras_ring_prior"),
    Study("choosing", 0.1, "python experiments/choosing/study.py outputs/choosing 8 8"),
    Study("best_rule", 0.1, "d2 sample experiment=best_rule"),
    Study(
        "does_the_matrix_make_an_asset",
        0.8,
        "python experiments/does_the_matrix_make_an_asset/study.py"
        " outputs/does_the_matrix_make_an_asset",
    ),
)


def shipped() -> str:
    """The hash of the weights that ship, as results.csv has it."""
    return hash_with("multiview")


def hash_with(columns: str) -> str:
    """The same with another prior of columns."""
    files = {"video": "video", "multiview": columns, "autoencoder": "autoencoder"}
    return weights_hash(
        {
            kind: fingerprint(ROOT / "checkpoints" / f"tiny_{name}.safetensors")
            for kind, name in files.items()
        }
    )


def current() -> set[str]:
    """The hashes of all tables that are up to date."""
    camera = (ROOT / "checkpoints" / "tiny_camera.safetensors").exists()
    return {shipped(), *([hash_with("camera")] if camera else [])}


def weights_of(table: Path) -> set[str] | None:
    """The weights that a results.csv says it is of; None of one whose study asks no priors."""
    with table.open(newline="", encoding="utf-8") as f:
        rows = csv.DictReader(f)
        if "scene" not in (rows.fieldnames or ()):
            return None
        return {row.get("weights") or "not said" for row in rows}


def stale() -> set[str]:
    """Folders of experiments/ with a table that is not of the weights that ship."""
    own = current()
    found = {path.parent.name: set[str]() for path in Path(__file__).parent.glob("*/results*.csv")}
    for path in Path(__file__).parent.glob("*/results*.csv"):
        found[path.parent.name] |= (weights_of(path) or set()) - own
    return {name for name, others in found.items() if others}


def finished(study: Study) -> bool:
    """Whether what lies beside its README is of the weights that ship, or of none."""
    table = study.kept("results.csv")
    return table.exists() and (weights_of(table) or set()) <= current()


def run(study: Study, end: float | None) -> bool:
    """Whether it came to its end before that time; what it left is copied then. It goes on where it
    stood."""
    words = shlex.split(study.command)
    program = [sys.executable, *(["-m", "d2", *words[1:]] if words[0] == "d2" else words[1:])]
    process = subprocess.Popen(program, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        code = process.wait(timeout=None if end is None else max(0.0, end - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGTERM)
        process.wait()
        return False
    if code:
        raise SystemExit(f"{study.name}: {study.command} ended with {code}")
    for name in KEPT:
        if (study.outputs / name).exists():
            shutil.copyfile(study.outputs / name, study.kept(name))
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="All studies, resumable.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of studies; none: all")
    parser.add_argument("--minutes", type=float, help="stop after so long, and go on another time")
    parser.add_argument(
        "--list", action="store_true", help="say what there is and how long it takes"
    )
    given = parser.parse_args()
    unknown = set(given.names) - {study.name for study in STUDIES}
    if unknown:
        parser.error(
            f"no study {min(unknown)}; there are {', '.join(study.name for study in STUDIES)}"
        )
    todo = [study for study in STUDIES if study.name in given.names or not given.names]
    for study in todo:
        named = f"{study.name} {study.part}".strip()
        print(f"{named:40}{study.hours:5.2f} h  {'finished' if finished(study) else study.command}")
    left = [study for study in todo if not finished(study)]
    print(f"{sum(study.hours for study in left):.1f} hours of two cores to go", flush=True)
    if given.list:
        return 0
    end = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    for study in left:
        if (end is not None and time.monotonic() >= end) or not run(study, end):
            print(f"{study.name}: stopped; the same command goes on there", flush=True)
            return 75
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`d2 report`: any set of runs, sweeps and studies on one offline page, and in W&B where that is
the logger."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from d2.config.names import Label
from d2.errors import InputError
from d2.files import ensure_writable
from d2.loggers import Logging, finish_loggers, start_loggers
from d2.metrics.figures import ALL, COST, Figure, read_figures, write_figures
from d2.metrics.intervals import Means, Values, by_scene, differences, means
from d2.metrics.table import COLUMNS, is_ratio, mean_rows
from d2.report.charts import Curve, Point, lines, scatter
from d2.report.figures import ranking_charts
from d2.report.page import Charts, Example, Picture, Table, write_index_page
from d2.report.wandb_media import log_to_wandb
from d2.study.results import place_of

# none is shown alone
COMPANIONS = ("energy", "psnr_masked", "sharpness", "own_view_unseen", "own_frame_unseen")
CURVES = "disagreement.csv"  # of a scene: step, sigma and what is drawn against it


class Runs(NamedTuple):
    """What was found in the folders given."""

    figures: list[Figure]
    places: dict[str, list[Path]]  # variant -> the folders of its scenes, one a seed


@dataclass(frozen=True)
class ReportJob:
    """All that decides a report."""

    runs: Mapping[str, Path]  # a folder as it was given -> where it lies
    folder: Path
    compare_to: str | None
    quality: str | None
    shown_scenes: int
    seed: int  # of the bootstrap
    logging: Logging
    label: Label
    text: str  # the configuration as YAML
    told: Mapping[str, Any]  # the same, for loggers


def report(job: ReportJob) -> int:
    """Write results.csv and index.html of the runs, and tell W&B. Returns the exit code."""
    runs = read_runs(job.runs)
    found, values = means(runs.figures, seed=job.seed), by_scene(runs.figures)
    quality = quality_of(job.quality, found)
    if job.compare_to is not None and job.compare_to not in found:
        raise InputError(
            f"compare_to={job.compare_to}: choose one of the variants, {', '.join(found)}"
        )
    folder = job.folder
    ensure_writable(folder)
    wanted = job.logging.kind == "wandb"
    loggers = start_loggers(job.logging, folder, job.label, job.told) if wanted else []
    tables = make_tables(found, runs, job.compare_to, job.seed)
    charts = [
        ranking_charts(found),
        cost_charts(found, quality),
        sigma_charts(list(found), runs.places),
    ]
    examples = make_examples(values, runs.places, quality, job.shown_scenes)
    write_figures(folder / "results.csv", runs.figures)
    scenes = len({figure.scene for figure in runs.figures} - {ALL})
    write_index_page(
        folder / "index.html",
        title="d2: " + ", ".join(dict.fromkeys(run.resolve().name for run in job.runs.values())),
        facts=f"{len(found)} variants · {scenes} scenes",
        tables=tables,
        charts=charts,
        examples=examples,
        config=job.text,
    )
    for logger in loggers:
        log_to_wandb(logger.experiment, tables=tables, charts=charts, examples=examples)
    finish_loggers(loggers)
    return 0


# --- what there is --------------------------------------------------------------------------------


def read_runs(folders: Mapping[str, Path]) -> Runs:
    """All figures, a variant that two runs have under names of its own, and where the scenes of
    each lie."""
    if not folders:
        raise InputError("runs=[]: give folders that d2 sample wrote, runs=[DIR,DIR]")
    tables = {given: read_figures(folder / "results.csv") for given, folder in folders.items()}
    owners: dict[str, set[str]] = {}
    for folder, figures in tables.items():
        for figure in figures:
            owners.setdefault(figure.variant, set()).add(folder)
    short = {given: folder.resolve().name for given, folder in folders.items()}
    if len(set(short.values())) < len(short):
        short = {folder: folder for folder in tables}
    found, places = [], {}
    for folder, figures in tables.items():
        names = {v: f"{short[folder]}/{v}" if len(of) > 1 else v for v, of in owners.items()}
        found += [replace(figure, variant=names[figure.variant]) for figure in figures]
        for variant, run in dict.fromkeys(
            (f.variant, f.run) for f in figures if f.config and f.sample != ALL
        ):
            places.setdefault(names[variant], []).append(place_of(folders[folder], run))
    return Runs(found, places)


def quality_of(given: str | None, found: Means) -> str:
    """The figure that scenes are ranked by."""
    known = {name for metrics in found.values() for name in metrics}
    if given is None:
        return "energy" if "energy" in known else "psnr_masked"
    if given not in known:
        raise InputError(f"quality={given}: no such figure; choose {' or '.join(sorted(known))}")
    return given


def badness(name: str, value: float) -> float:
    """The less, the better: errors and costs as they are, ratios by their distance from 1, the rest
    negated."""
    if name.startswith("energy") or name == COST:
        return value
    if is_ratio(name):
        return abs(math.log(value)) if value > 0 else math.inf
    return -value


# --- what is shown --------------------------------------------------------------------------------


def make_tables(found: Means, runs: Runs, compare_to: str | None, seed: int) -> list[Table]:
    said = (
        "Means over scenes, a scene's seeds averaged first, with their 95 % bootstrap intervals; N:"
        " scenes. "
    )
    said += (
        "PSNR alone rewards blur: read it beside sharpness (1 is ideal), retrieval and the energy"
        " score (low is good)."
    )
    tables = [Table("Figures", said, numbered(mean_rows(found), found))]
    if compare_to is not None:
        apart = differences(runs.figures, compare_to, seed=seed)
        said = "Scene by scene, on the scenes that both have."
        heading = f"Paired differences from {compare_to}"
        tables.append(Table(heading, said, numbered(mean_rows(apart, signed=True), found)))
    made = []
    for variant in found:
        own = [figure for figure in runs.figures if figure.variant == variant]
        seeds = sorted(
            {figure.sample for figure in own} - {ALL}, key=lambda sample: (len(sample), sample)
        )
        origin = {
            name: (
                ", ".join(
                    dict.fromkeys(getattr(figure, name) for figure in own if getattr(figure, name))
                )
                or "–"
            )
            for name in ("config", "weights", "commit")
        }
        made.append({"variant": variant, "seeds": ", ".join(seeds), **origin})
    return [*tables, Table("Runs", "", made)]


def numbered(rows: Sequence[dict[str, str]], found: Means) -> list[dict[str, str]]:
    """Rows with the numbers that variants have in the charts; scenes are counted as N."""
    number = {name: str(index) for index, name in enumerate(found, start=1)}
    return [
        {"variant": f"{number[row['variant']]} {row['variant']}", "N": row["scenes"]}
        | {name: text for name, text in row.items() if name not in ("variant", "scenes")}
        for row in rows
    ]


def cost_charts(found: Means, quality: str) -> Charts:
    """Every figure of `COMPANIONS` against the cost; methods that sample nothing have none."""
    drawn = {}
    for name in dict.fromkeys((quality, *COMPANIONS)):
        points = [
            Point(number, variant, metrics[COST].mean, *metrics[name][:3])
            for number, (variant, metrics) in enumerate(found.items(), start=1)
            if COST in metrics and name in metrics and not math.isnan(metrics[name].mean)
        ]
        if points:
            drawn[name] = scatter(
                name,
                points,
                x_label="cell evaluations",
                badness=lambda value, name=name: badness(name, value),
                ideal=1.0 if is_ratio(name) else None,
            )
    said = (
        "A cell through a network once, each half of guidance for itself, is one evaluation. The"
        " dashed line joins "
    )
    said += (
        "what no other variant beats in both; points of equal cost stand side by side. Bars: 95 %"
        " intervals."
    )
    return Charts("Cost and quality", said, drawn, legend=list(found))


def sigma_charts(names: Sequence[str], places: Mapping[str, Sequence[Path]]) -> Charts:
    """What scenes keep against sigma, averaged over scenes and seeds."""
    curves: dict[str, list[Curve]] = {}
    for number, variant in enumerate(names, start=1):
        sums: dict[str, dict[float, list[float]]] = {}
        for path in (
            file for place in places.get(variant, ()) for file in sorted(place.glob(f"*/{CURVES}"))
        ):
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    sigma = float(row["sigma"])
                    for name in row.keys() - {"step", "sigma"}:
                        if row[name] and math.isfinite(float(row[name])) and sigma > 0:
                            sums.setdefault(name, {}).setdefault(sigma, []).append(float(row[name]))
        for name, values in sums.items():
            points = [(sigma, sum(v) / len(v)) for sigma, v in sorted(values.items(), reverse=True)]
            curves.setdefault(name, []).append(Curve(number, variant, points))
    drawn = {name: lines(name, of, x_label="σ") for name, of in sorted(curves.items())}
    said = (
        "How far rows and columns are from each other at each noise level: root mean square over"
        " cells and scenes."
    )
    return Charts("Disagreement", said, drawn, legend=names)


def make_examples(
    values: Values, places: Mapping[str, Sequence[Path]], quality: str, count: int
) -> list[Example]:
    """The scenes that all variants together did best and worst, by every variant whose pictures are
    there."""
    shown = {variant: found for variant in values if (found := grids(places.get(variant, ())))}
    if not shown or not count:
        return []
    of = {variant: values[variant].get(quality, {}) for variant in shown}
    common = [
        s for s in next(iter(shown.values())) if all(s in shown[v] and s in of[v] for v in shown)
    ]
    scores = {s: sum(badness(quality, of[v][s]) for v in shown) / len(shown) for s in common}
    ranked = sorted((s for s in common if not math.isnan(scores[s])), key=lambda s: scores[s])
    best = ranked[:count]
    worst = [scene for scene in ranked[-count:] if scene not in best]
    captions = [
        name for name in dict.fromkeys((quality, *COMPANIONS)) if name in COLUMNS or name == quality
    ]
    return [
        Example(
            f"{kind}: {scene}",
            [
                Picture(caption(variant, values[variant], scene, captions), shown[variant][scene])
                for variant in shown
            ],
        )
        for kind, scenes in (("best", best), ("worst", worst))
        for scene in scenes
    ]


def grids(places: Sequence[Path]) -> dict[str, Path]:
    """Scene -> its grid, of the first seed that has it."""
    found: dict[str, Path] = {}
    for place in places:
        for path in sorted(place.glob("*/grid.png")):
            found.setdefault(path.parent.name, path)
    return found


def caption(
    variant: str, figures: Mapping[str, Mapping[str, float]], scene: str, names: Sequence[str]
) -> str:
    own = [
        f"{name.replace('_', ' ')} {figures[name][scene]:.3g}"
        for name in names
        if scene in figures.get(name, {})
    ]
    return f"{variant}: {', '.join(own)}"

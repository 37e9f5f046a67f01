"""`d2 report`: any set of runs, sweeps and studies on one offline page, and in W&B where that is the logger."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from d2.config.names import Label
from d2.config.schema import ReportConfig
from d2.files import ensure_writable
from d2.loggers import finish_loggers, start_loggers
from d2.metrics.intervals import bootstrap_mean
from d2.report.charts import Curve, Point, lines, scatter
from d2.report.study_page import Charts, Example, Picture, Table, log_to_wandb, write_study_page
from d2.study.results import (
    ALL,
    COLUMNS,
    COST,
    Figures,
    Row,
    by_variant,
    config_hash,
    is_ratio,
    read_rows,
    table_rows,
    write_rows,
)

COMPANIONS = ("energy", "psnr_masked", "sharpness", "own_view_unseen", "own_frame_unseen")  # none is shown alone
CURVES = "disagreement.csv"  # of a scene: step, sigma and what is drawn against it


class Runs(NamedTuple):
    """What was found in the folders given."""

    rows: list[Row]
    places: dict[str, list[Path]]  # variant -> the folders of its scenes, one a seed


def report(config: ReportConfig, text: str, label: Label) -> int:
    """Write results.csv and index.html of the runs, and tell W&B under `label`. Returns the exit code."""
    runs = read_runs(config.runs)
    results = by_variant(runs.rows)
    quality = quality_of(config.quality, results)
    if config.compare_to is not None and config.compare_to not in results:
        raise ValueError(f"compare_to={config.compare_to}: choose one of the variants, {', '.join(results)}")
    folder = Path(config.output_dir)
    ensure_writable(folder)
    wanted = config.logger.kind == "wandb"
    loggers = start_loggers(config.logger, folder, label, dataclasses.asdict(config)) if wanted else []
    tables = make_tables(results, runs, config)
    charts = [cost_charts(results, quality, config.seed), sigma_charts(list(results), runs.places)]
    examples = make_examples(results, runs.places, quality, config.shown_scenes)
    write_rows(folder / "results.csv", runs.rows)
    scenes = len({row.scene for row in runs.rows})
    write_study_page(
        folder / "index.html",
        title="d2: " + ", ".join(dict.fromkeys(Path(run).resolve().name for run in config.runs)),
        facts=f"{len(results)} variants · {scenes} scenes",
        names=list(results),
        tables=tables,
        charts=charts,
        examples=examples,
        config=text,
    )
    for logger in loggers:
        log_to_wandb(logger.experiment, tables=tables, charts=charts, examples=examples)
    finish_loggers(loggers)
    return 0


# --- what there is ---------------------------------------------------------------------------------------------------


def read_runs(folders: Sequence[str]) -> Runs:
    """All rows, a variant that two runs have under names of its own, and where the scenes of each lie."""
    if not folders:
        raise ValueError("runs=[]: give folders that d2 sample wrote, runs=[DIR,DIR]")
    tables = {folder: read_rows(Path(folder) / "results.csv") for folder in dict.fromkeys(folders)}
    owners: dict[str, set[str]] = {}
    for folder, rows in tables.items():
        for row in rows:
            owners.setdefault(row.variant, set()).add(folder)
    short = {folder: Path(folder).resolve().name for folder in tables}
    if len(set(short.values())) < len(short):
        short = {folder: folder for folder in tables}
    found, places = [], {}
    for folder, rows in tables.items():
        names = {v: f"{short[folder]}/{v}" if len(of) > 1 else v for v, of in owners.items()}
        found += [row._replace(variant=names[row.variant]) for row in rows]
        by_hash = {config_hash(path.read_text(encoding="utf-8")): path.parent for path in config_files(Path(folder))}
        for variant, _, key in dict.fromkeys((row.variant, row.seed, row.config) for row in rows if row.seed != ALL):
            if key in by_hash:
                places.setdefault(names[variant], []).append(by_hash[key])
    return Runs(found, places)


def config_files(folder: Path) -> list[Path]:
    """Of a run, of the points of a sweep, of the variants of a study and their seeds."""
    return [path for depth in range(4) for path in sorted(folder.glob("*/" * depth + "config.yaml"))]


def quality_of(given: str | None, results: Mapping[str, Figures]) -> str:
    """The figure that scenes are ranked by."""
    known = {name for figures in results.values() for name in figures}
    if given is None:
        return "energy" if "energy" in known else "psnr_masked"
    if given not in known:
        raise ValueError(f"quality={given}: no such figure; choose {' or '.join(sorted(known))}")
    return given


def badness(name: str, value: float) -> float:
    """The less, the better: errors and costs as they are, ratios by their distance from 1, the rest negated."""
    if name.startswith("energy") or name == COST:
        return value
    if is_ratio(name):
        return abs(math.log(value)) if value > 0 else math.inf
    return -value


# --- what is shown ---------------------------------------------------------------------------------------------------


def make_tables(results: Mapping[str, Figures], runs: Runs, config: ReportConfig) -> list[Table]:
    said = "Means over scenes, a scene's seeds averaged first, with their 95 % bootstrap intervals; N: scenes. "
    said += (
        "PSNR alone rewards blur: read it beside sharpness (1 is ideal), retrieval and the energy score (low is good)."
    )
    tables = [Table("Figures", said, numbered(table_rows(results, seed=config.seed), results))]
    if config.compare_to is not None:
        rows = table_rows(results, baseline=config.compare_to, seed=config.seed)
        said = "Scene by scene, on the scenes that both have."
        tables.append(Table(f"Paired differences from {config.compare_to}", said, numbered(rows, results)))
    made = []
    for variant in results:
        own = [row for row in runs.rows if row.variant == variant]
        seeds = sorted({row.seed for row in own} - {ALL}, key=int)
        made.append(
            {
                "variant": variant,
                "seeds": ", ".join(seeds),
                "config": ", ".join(dict.fromkeys(row.config for row in own if row.config)) or "–",
                "commit": ", ".join(dict.fromkeys(row.commit for row in own if row.commit)) or "–",
            }
        )
    return [*tables, Table("Runs", "", made)]


def numbered(rows: Sequence[dict[str, str]], results: Mapping[str, Figures]) -> list[dict[str, str]]:
    """Rows with the numbers that variants have in the charts; scenes are counted as N."""
    number = {name: str(index) for index, name in enumerate(results, start=1)}
    return [
        {"variant": f"{number[row['variant']]} {row['variant']}", "N": row["scenes"]}
        | {name: row[name] for name in COLUMNS if name in row}
        for row in rows
    ]


def cost_charts(results: Mapping[str, Figures], quality: str, seed: int) -> Charts:
    """Every figure of `COMPANIONS` against the cost; methods that sample nothing have none."""
    drawn = {}
    for name in dict.fromkeys((quality, *COMPANIONS)):
        points = []
        for number, (variant, figures) in enumerate(results.items(), start=1):
            values = [value for value in figures.get(name, {}).values() if math.isfinite(value)]
            if values and COST in figures:
                costs = figures[COST].values()
                interval = bootstrap_mean(values, seed=seed)
                points.append(
                    Point(number, variant, sum(costs) / len(costs), interval.mean, interval.low, interval.high)
                )
        if points:
            drawn[name] = scatter(
                name,
                points,
                x_label="cell evaluations",
                badness=lambda value, name=name: badness(name, value),
                ideal=1.0 if is_ratio(name) else None,
            )
    said = "A cell through a network once, each half of guidance for itself, is one evaluation. The dashed line joins "
    said += "what no other variant beats in both; points of equal cost stand side by side. Bars: 95 % intervals."
    return Charts("Cost and quality", said, drawn)


def sigma_charts(names: Sequence[str], places: Mapping[str, Sequence[Path]]) -> Charts:
    """What scenes keep against sigma, averaged over scenes and seeds."""
    curves: dict[str, list[Curve]] = {}
    for number, variant in enumerate(names, start=1):
        sums: dict[str, dict[float, list[float]]] = {}
        for path in (file for place in places.get(variant, ()) for file in sorted(place.glob(f"*/{CURVES}"))):
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
    said = "How far rows and columns are from each other at each noise level: root mean square over cells and scenes."
    return Charts("Disagreement", said, drawn)


def make_examples(
    results: Mapping[str, Figures], places: Mapping[str, Sequence[Path]], quality: str, count: int
) -> list[Example]:
    """The scenes that all variants together did best and worst, by every variant whose pictures are there."""
    shown = {variant: found for variant in results if (found := grids(places.get(variant, ())))}
    if not shown or not count:
        return []
    values = {variant: results[variant].get(quality, {}) for variant in shown}
    common = [s for s in next(iter(shown.values())) if all(s in shown[v] and s in values[v] for v in shown)]
    scores = {s: sum(badness(quality, values[v][s]) for v in shown) / len(shown) for s in common}
    ranked = sorted((s for s in common if not math.isnan(scores[s])), key=lambda s: scores[s])
    best = ranked[:count]
    worst = [scene for scene in ranked[-count:] if scene not in best]
    captions = [name for name in dict.fromkeys((quality, *COMPANIONS)) if name in COLUMNS or name == quality]
    return [
        Example(
            f"{kind}: {scene}",
            [Picture(caption(variant, results[variant], scene, captions), shown[variant][scene]) for variant in shown],
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


def caption(variant: str, figures: Figures, scene: str, names: Sequence[str]) -> str:
    own = [f"{name.replace('_', ' ')} {figures[name][scene]:.3g}" for name in names if scene in figures.get(name, {})]
    return f"{variant}: {', '.join(own)}"

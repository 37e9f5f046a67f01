"""A study: variants of the rules sampled in one process, the priors loaded once, under the same noise and conditions.

`variants` in the configuration maps a name to overrides, `seeds` gives several samples of each scene. Every variant's
folder holds its scenes, or a folder seed_N for each seed; results.csv holds every figure in long format, and table.md
the means with their bootstrap intervals and paired differences. What a single run and a sweep leave is the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_only

from d2.config.names import Label
from d2.config.schema import SampleConfig
from d2.config.tiers import facts_of, load_priors, sizes
from d2.data.folder import list_clips
from d2.evaluate.networks import sample_suite
from d2.files import csv_text, write_text
from d2.metrics.metric import METRIC_NAMES
from d2.plan.cost import of_methods
from d2.sample.job import SEED_STRIDE, load_scenes, make_rules, make_settings, predict, with_facts
from d2.sample.matrix_sampler import BASELINES, MatrixSampler
from d2.scene import Scene
from d2.study.results import (
    COST,
    OF_SAMPLES,
    Figures,
    Row,
    by_variant,
    columns_of,
    is_ratio,
    read_rows,
    run_rows,
    sample_rows,
    tables,
    write_rows,
)

Compose = Callable[[list[str]], tuple[SampleConfig, str]]  # a variant's overrides -> its configuration and text
BEGUN = ".begun"  # holds the configuration under which a run's scenes are being sampled, until all are


class Run(NamedTuple):
    """One variant under one seed."""

    variant: str
    seed: int
    folder: Path
    config: SampleConfig
    text: str
    label: Label


def study(config: SampleConfig, compose: Compose, name: str, label: Label) -> int:
    """Sample every variant over the same scenes and write results.csv, table.md and a plot. Returns the exit code.

    Without variants, `name` is the only one. What was sampled to its end by the same configuration is not run again.
    """
    runs = plan_runs(config, compose, name, label)
    size = sizes(config)
    rules = {run.variant: make_rules(run.config) for run in runs}
    costs = {
        run.variant: of_methods(
            rules[run.variant],
            make_settings(run.config),
            size.num_views,
            size.num_frames,
            baselines=run.config.baselines,
        )
        for run in runs
    }
    sample_suite(config, size.num_views, size.num_frames)  # what is missing stops the study
    found = load_scenes(config, size)
    if any(scene.truth is None for scene in found.scenes):
        raise ValueError(f"scenes.source={config.scenes.source}: a study compares with truth; take scenes=world4d")
    module = MatrixSampler(
        load_priors(config),
        make_rules(config),
        make_settings(config),
        num_frames=size.num_frames,
        baselines=False,
        offload=config.offload,
    )
    seed = config.seed
    for run in runs:
        if finished(run.folder, run.text):
            continue
        if run.seed != seed:
            module.references.clear()  # orbits are samples too
            seed = run.seed
        scenes = [scene._replace(seed=scene.seed + SEED_STRIDE * (seed - config.seed)) for scene in found.scenes]
        left = begin(run, scenes)
        module.rules, module.settings = rules[run.variant], make_settings(run.config)
        module.baselines = run.config.baselines
        if left:
            predict(run.config, module, left, run.folder, run.text, run.label)
        if rank_zero_only.rank == 0:
            end(run, scenes, whole=len(left) == len(scenes))
    if rank_zero_only.rank == 0:
        write_results(Path(config.output_dir), config, runs, costs)
    return 3 if found.failures else 0


def plan_runs(config: SampleConfig, compose: Compose, name: str, label: Label) -> list[Run]:
    """Every variant under every seed, a seed's runs together; a ValueError for what cannot be compared."""
    if "reference" not in config.metrics:
        raise ValueError(f"metrics={config.metrics}: a study compares figures; take metrics=[reference]")
    if len(set(config.seeds)) < len(config.seeds) or any(seed < 0 for seed in config.seeds):
        raise ValueError(f"seeds={config.seeds}: give different numbers, none below 0")
    variants = config.variants or {name: []}
    known = [*variants, *(BASELINES if config.baselines else ())]
    if config.compare_to is not None and config.compare_to not in known:
        raise ValueError(f"compare_to={config.compare_to}: choose one of the variants, {', '.join(known)}")
    first, folder = next(iter(variants)), Path(config.output_dir)
    facts, runs = facts_of(config), []
    for seed in config.seeds or [config.seed]:
        for variant, overrides in variants.items():
            baselines = config.baselines and variant == first  # they are the same for all variants
            own, text = compose([f"seed={seed}", *overrides, f"baselines={baselines}"])
            _check_variant(variant, own, dataclasses.replace(config, seed=seed))
            parts = [variant] * bool(config.variants) + [f"seed_{seed}"] * bool(config.seeds)
            place = folder.joinpath(*parts)
            called = label._replace(
                name="/".join([label.name] * bool(label.group) + parts), group=label.group or folder.name
            )
            runs.append(Run(variant, seed, place, own, with_facts(text, facts), called))
    return runs


def _check_variant(name: str, variant: SampleConfig, config: SampleConfig) -> None:
    """Variants share scenes, priors and outputs."""
    rules = {"sampler", "unary", "renoise", "weights", "guidance", "composition", "solver"}
    free = rules | {"baselines", "variants", "seeds", "compare_to"}
    for field in dataclasses.fields(SampleConfig):
        if field.name not in free and getattr(variant, field.name) != getattr(config, field.name):
            raise ValueError(f"variants.{name}: changes {field.name}, which all variants share; give it to the study")


# --- what is there already -------------------------------------------------------------------------------------------


def finished(folder: Path, text: str) -> bool:
    """Whether a run was sampled to its end under this very configuration."""
    config = folder / "config.yaml"
    begun = (folder / BEGUN).exists()
    return not begun and (folder / "metrics.csv").exists() and config.exists() and config.read_text() == text


def begin(run: Run, scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes that are left to do; all but for those that the same run finished before it was stopped.

    Pages and distances between sets of scenes need all scenes at once: such a run begins anew.
    """
    (run.folder / "config.yaml").unlink(missing_ok=True)  # what is there is finished no more
    begun = run.folder / BEGUN
    piecewise = not run.config.pages and run.config.metrics == ["reference"]
    if not (piecewise and begun.exists() and begun.read_text() == run.text):
        if rank_zero_only.rank == 0:
            write_text(begun, run.text)
        return list(scenes)
    since = begun.stat().st_mtime_ns
    files = {scene.name: run.folder / scene.name / "metrics.json" for scene in scenes}
    done = {name for name, file in files.items() if file.exists() and file.stat().st_mtime_ns > since}
    return [scene for scene in scenes if scene.name not in done]


def end(run: Run, scenes: Sequence[Scene], *, whole: bool) -> None:
    """Mark a run as finished; one that was stopped in between gets its table from its scenes' own files."""
    if not whole:
        figures = {scene.name: json.loads((run.folder / scene.name / "metrics.json").read_text()) for scene in scenes}
        table = [
            {"scene": name, "method": method, **{k: math.nan if v is None else v for k, v in of[method].items()}}
            for method in figures[scenes[0].name]
            for name, of in figures.items()
        ]
        write_text(run.folder / "metrics.csv", csv_text(table))
        write_text(run.folder / "config.yaml", run.text)
    (run.folder / BEGUN).unlink()


def was_finished(config: SampleConfig, text: str, name: str) -> bool:
    """Whether a point of a sweep is there to its last scene, under this very configuration; if so, says it.

    What is not, counts as finished no more. A study knows for itself.
    """
    if config.variants or config.seeds or config.plan:
        return False
    folder = Path(config.output_dir)
    kept = folder / "config.yaml"
    if kept.exists() and kept.read_text() == with_facts(text, facts_of(config)):
        c = config.scenes
        asked = c.count if c.path is None else len(list_clips(Path(c.path))[c.first :][: c.count])
        if len(list(folder.glob("*/matrix.safetensors"))) == asked:
            print(f"d2: {folder}: finished before, not run again", file=sys.stderr)
            record(config, name)
            return True
    kept.unlink(missing_ok=True)
    return False


# --- what is left behind ---------------------------------------------------------------------------------------------


def record(config: SampleConfig, name: str) -> None:
    """results.csv of a single run; none where nothing was measured."""
    size, folder = sizes(config), Path(config.output_dir)
    if rank_zero_only.rank or config.plan or not (folder / "metrics.csv").exists():
        return
    costs = of_methods(
        make_rules(config), make_settings(config), size.num_views, size.num_frames, baselines=config.baselines
    )
    write_rows(folder / "results.csv", run_rows(folder, name, config.seed, costs))


def write_results(
    folder: Path, config: SampleConfig, runs: Sequence[Run], costs: Mapping[str, dict[str, float]]
) -> None:
    """results.csv, table.md and plot.png of a study."""
    rows = [row for run in runs for row in run_rows(run.folder, run.variant, run.seed, costs[run.variant])]
    for variant in costs:
        folders = [run.folder for run in runs if run.variant == variant]
        rows += sample_rows(folders, [row for row in rows if row.variant == variant])
    order = {variant: place for place, variant in enumerate(dict.fromkeys(row.variant for row in rows))}
    write_summary(folder, sorted(rows, key=lambda row: order[row.variant]), config.compare_to)


def sweep_results(folder: Path) -> None:
    """The same of a sweep, from what its points left; points that differ by their seed alone are one variant."""
    places = sorted((path.parent for path in folder.glob("*/results.csv")), key=lambda p: (len(p.name), p.name))
    rows: dict[tuple[str, ...], Row] = {}
    samples: dict[str, dict[Path, list[Row]]] = {}
    for place in places:
        single = (place / "metrics.csv").exists()
        for row in read_rows(place / "results.csv"):
            if not single:  # a study, which may have the variants of another
                row = row._replace(variant=f"{place.name}/{row.variant}")
            elif row.config:
                samples.setdefault(row.variant, {}).setdefault(place, []).append(row)
            rows.setdefault((row.variant, row.scene, row.metric, row.seed), row)  # of a baseline, the first point's
    more = [row for of in samples.values() for row in sample_rows(list(of), [r for rs in of.values() for r in rs])]
    if rows:
        write_summary(folder, [*rows.values(), *more], None)


def write_summary(folder: Path, rows: Sequence[Row], compare_to: str | None) -> None:
    """results.csv, table.md, plot.png."""
    write_rows(folder / "results.csv", rows)
    results = by_variant(rows)
    seeds = sorted({row.seed for row in rows if row.seed.isdigit()}, key=int)
    scenes = len({row.scene for row in rows})
    head = f"N = {scenes} scenes, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}; means [95 % bootstrap intervals]."
    write_text(folder / "table.md", f"{head}\n\n{tables(results, compare_to=compare_to)}\n")
    plot(folder / "plot.png", results)


def plot(path: Path, results: Mapping[str, Figures]) -> None:
    """Every figure of the table as means with intervals, one panel a figure; left out where matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    from d2.metrics.intervals import bootstrap_mean

    names = list(results)
    columns = columns_of(results)
    grid = (-(-len(columns) // 5), 5)
    figure, axes = plt.subplots(*grid, figsize=(17, (0.8 + 0.28 * len(names)) * grid[0]), sharey=True, squeeze=False)
    figure.set_layout_engine("constrained")
    for axis in axes.flat[len(columns) :]:
        axis.set_visible(False)
    for axis, metric in zip(axes.flat, columns, strict=False):
        for y, name in enumerate(names):
            values = [value for value in results[name].get(metric, {}).values() if math.isfinite(value)]
            if values:
                interval = bootstrap_mean(values, seed=0)
                axis.plot([interval.low, interval.high], [y, y], color="0.6", lw=2, solid_capstyle="round")
                axis.plot(interval.mean, y, "o", color="C0")
        if is_ratio(metric):
            axis.axvline(1, color="0.8", lw=1, zorder=0)
        axis.set_title(metric, fontsize=9)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


# --- what a sweeper tunes --------------------------------------------------------------------------------------------


def check_objective(config: SampleConfig) -> None:
    """Refuse a figure that no point will have."""
    wanted = config.objective
    if config.variants:
        raise ValueError(f"objective={wanted}: of which variant? give no variants to a sweep that tunes")
    if wanted in OF_SAMPLES and len(config.seeds) < 2:
        raise ValueError(f"objective={wanted}: wants several samples of a scene; give seeds=[0,1]")
    if wanted not in (*OF_SAMPLES, *METRIC_NAMES, COST):
        raise ValueError(
            f"objective={wanted}: no such figure; choose {' or '.join((*OF_SAMPLES, *METRIC_NAMES, COST))}"
        )


def objective_of(config: SampleConfig, name: str) -> float:
    """The mean over scenes of the figure that a sweeper tunes for; NaN where the point has none."""
    path = Path(config.output_dir) / "results.csv"
    figures = by_variant(read_rows(path)).get(name, {}) if path.exists() else {}
    values = figures.get(config.objective or "", {}).values()
    return sum(values) / len(values) if values else math.nan

"""A study: variants of the rules sampled in one process, the priors loaded once, under the same noise and conditions.

`variants` in the configuration maps a name to overrides. Every variant's folder holds its scenes; results.csv holds
every figure in long format, and table.md the means with their bootstrap intervals and paired differences.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from d2.config import SampleConfig
from d2.io import write_text
from d2.lit.callbacks import JOINT, csv_text
from d2.lit.matrix_sampler import BASELINES, MatrixSampler
from d2.lit.sample_job import load_scenes, make_rules, make_settings, predict, with_facts
from d2.lit.tiers import facts_of, load_priors, sizes
from d2.metrics.table import TABLE_COLUMNS, summary_table

Compose = Callable[[list[str]], tuple[SampleConfig, str]]  # a variant's overrides -> its configuration and text
Rows = list[dict[str, float]]  # one scene each: "scene" and the figures


def study(config: SampleConfig, compose: Compose) -> int:
    """Sample every variant over the same scenes and write results.csv, table.md and a plot. Returns the exit code.

    A variant whose metrics.csv is there, made by the same configuration, is not run again.
    """
    assert config.variants
    if "reference" not in config.metrics:
        raise ValueError(f"metrics={config.metrics}: a study compares figures; take metrics=[reference]")
    known = [*config.variants, *(BASELINES if config.baselines else ())]
    if config.compare_to is not None and config.compare_to not in known:
        raise ValueError(f"compare_to={config.compare_to}: choose one of the variants, {', '.join(known)}")
    baselines = [config.baselines] + [False] * (len(config.variants) - 1)  # they are the same for all variants
    variants = {
        name: compose([*overrides, f"baselines={own}"])
        for (name, overrides), own in zip(config.variants.items(), baselines, strict=True)
    }
    for name, (variant, _) in variants.items():
        _check_variant(name, variant, config)
    rules = {name: make_rules(variant) for name, (variant, _) in variants.items()}
    size = sizes(config)
    found = load_scenes(config, size)
    if any(scene.truth is None for scene in found.scenes):
        raise ValueError(f"scenes.source={config.scenes.source}: a study compares with truth; take scenes=world4d")
    folder = Path(config.output_dir)
    priors, facts = load_priors(config), facts_of(config)
    module = MatrixSampler(
        priors,
        make_rules(config),
        make_settings(config),
        num_frames=size.num_frames,
        baselines=False,
        offload=config.offload,
    )
    texts = {name: with_facts(text, facts) for name, (_, text) in variants.items()}
    for name, (variant, _) in variants.items():
        if finished(folder / name, texts[name]):
            continue
        (folder / name / "config.yaml").unlink(missing_ok=True)  # what is there is finished no more
        module.rules, module.settings, module.baselines = rules[name], make_settings(variant), variant.baselines
        predict(variant, module, found.scenes, folder / name, texts[name])
    if rank_zero_only.rank == 0:
        write_results(folder, config, texts)
    return 3 if found.failures else 0


def _check_variant(name: str, variant: SampleConfig, config: SampleConfig) -> None:
    """Variants share scenes, priors and outputs."""
    free = {"sampler", "renoise", "weights", "guidance", "composition", "solver", "baselines", "variants", "compare_to"}
    for field in dataclasses.fields(SampleConfig):
        if field.name not in free and getattr(variant, field.name) != getattr(config, field.name):
            raise ValueError(f"variants.{name}: changes {field.name}, which all variants share; give it to the study")


def finished(folder: Path, text: str) -> bool:
    """Whether a variant was sampled to its end under this very configuration."""
    config = folder / "config.yaml"
    return (folder / "metrics.csv").exists() and config.exists() and config.read_text() == text


def read_rows(folder: Path) -> dict[str, Rows]:
    """metrics.csv of a run: method -> rows of one scene each, in their order."""
    methods: dict[str, Rows] = {}
    with (folder / "metrics.csv").open() as f:
        for row in csv.DictReader(f):
            figures = {k: float(v) for k, v in row.items() if k not in ("scene", "method")}
            index = float(row["scene"].rsplit("_", 1)[-1])
            methods.setdefault(row["method"], []).append({"scene": index, **figures})
    return methods


def write_results(folder: Path, config: SampleConfig, texts: dict[str, str]) -> None:
    """results.csv (variant, scene, metric, value, seed, config hash, commit), table.md, plot.png."""
    results: dict[str, Rows] = {}
    for position, name in enumerate(texts):
        methods = read_rows(folder / name)
        results[name] = methods.pop(JOINT)
        if position == 0:
            results |= methods
    made_by = commit()
    long = [
        {
            "variant": name,
            "scene": int(row["scene"]),
            "metric": metric,
            "value": value,
            "seed": config.seed,
            "config": hashlib.sha256(texts[name].encode()).hexdigest()[:12] if name in texts else "",
            "commit": made_by,
        }
        for name, rows in results.items()
        for row in rows
        for metric, value in row.items()
        if metric != "scene"
    ]
    write_text(folder / "results.csv", csv_text(long))
    tables = [f"N = {len(next(iter(results.values())))} scenes, seed {config.seed}; means [95 % bootstrap intervals]."]
    tables.append(summary_table(results))
    if config.compare_to:
        tables.append(f"Paired differences from {config.compare_to}.")
        tables.append(summary_table(results, baseline=config.compare_to))
    write_text(folder / "table.md", "\n\n".join(tables) + "\n")
    plot(folder / "plot.png", results)


def plot(path: Path, results: dict[str, Rows]) -> None:
    """Every figure of the table as means with intervals, one panel a figure; left out where matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    from d2.metrics.intervals import bootstrap_mean

    names = list(results)
    figure, axes = plt.subplots(2, 5, figsize=(17, 1.6 + 0.55 * len(names)), sharey=True, layout="constrained")
    for axis, metric in zip(axes.flat, TABLE_COLUMNS, strict=True):
        for y, name in enumerate(names):
            interval = bootstrap_mean([row[metric] for row in results[name]], seed=0)
            axis.plot([interval.low, interval.high], [y, y], color="0.6", lw=2, solid_capstyle="round")
            axis.plot(interval.mean, y, "o", color="C0")
        if metric == "sharpness" or metric.endswith("_ratio"):
            axis.axvline(1, color="0.8", lw=1, zorder=0)
        axis.set_title(metric, fontsize=9)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def commit() -> str:
    """The commit of the code that ran, with + where it was changed; "" outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except OSError:
        return ""

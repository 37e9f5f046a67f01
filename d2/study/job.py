"""A study: variants of the rules sampled in one process, the priors loaded once, under the same noise and conditions.

`variants` in the configuration maps a name to overrides, `seeds` gives several samples of each scene. Every variant's
folder holds its scenes, or a folder seed_N for each seed; results.csv holds every figure in long format, and table.md
the means with their bootstrap intervals and paired differences. What a single run and a sweep leave is the same.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only

from d2.config.names import Label
from d2.config.schema import SampleConfig
from d2.config.tiers import check_tier, facts_of, load_priors, sizes
from d2.data.folder import list_clips
from d2.errors import InputError, say
from d2.evaluate.networks import sample_suite
from d2.matrix import camera_ring
from d2.metrics.figures import COST, read_figures, write_figures
from d2.metrics.intervals import by_scene
from d2.metrics.metric import METRIC_NAMES
from d2.plan.planning import planned
from d2.plan.rehearsal import steps_by_kind
from d2.sample.earlier import claim, end, was_finished
from d2.sample.job import SEED_STRIDE, load_scenes, make_rules, make_settings, predict, with_facts
from d2.sample.matrix_sampler import BASELINES, MatrixSampler
from d2.study.results import OF_SAMPLES, study_figures, sweep_figures, write_summary

Compose = Callable[[list[str]], tuple[SampleConfig, str]]  # a variant's overrides -> its configuration and text
REFERENCES = ".references"  # orbits and clips of reference, which all variants share, while a study runs


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
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    runs = plan_runs(config, compose, name, label)
    size, folder = sizes(config), Path(config.output_dir)
    if config.plan:
        print(plans(runs))
        return 0
    for run in runs:
        claim(run.folder, run.text, overwrite=config.overwrite)
    rules = {run.variant: make_rules(run.config) for run in runs}
    sample_suite(config, size.num_views, size.num_frames)  # what is missing stops the study
    found = load_scenes(config, size)
    if any(scene.truth is None for scene in found.scenes):
        raise InputError(f"scenes.source={config.scenes.source}: a study compares with truth; take scenes=world4d")
    if rank_zero_only.rank == 0:
        shutil.rmtree(folder / REFERENCES, ignore_errors=True)  # of a study that was killed
    module = MatrixSampler(
        load_priors(config),
        make_rules(config),
        make_settings(config),
        num_frames=size.num_frames,
        baselines=False,
        offload=config.offload,
        references=folder / REFERENCES,
    )
    for run in runs:
        shift = SEED_STRIDE * (run.seed - config.seed)
        scenes = [scene._replace(seed=scene.seed + shift) for scene in found.scenes]
        if was_finished(run.folder, run.text, scenes):
            end(run.folder, scenes)
            continue
        module.rules, module.settings = rules[run.variant], make_settings(run.config)
        module.baselines = run.config.baselines
        predict(run.config, module, scenes, run.folder, run.text, run.label, run.variant)
        end(run.folder, scenes)
    if rank_zero_only.rank == 0:
        shutil.rmtree(folder / REFERENCES, ignore_errors=True)
        write_summary(folder, study_figures(folder, [run.folder for run in runs]), config.compare_to)
    return 3 if found.failures else 0


def plan_runs(config: SampleConfig, compose: Compose, name: str, label: Label) -> list[Run]:
    """Every variant under every seed, a seed's runs together; a ValueError for what cannot be compared."""
    if "reference" not in config.metrics:
        raise InputError(f"metrics={config.metrics}: a study compares figures; take metrics=[reference]")
    if len(set(config.seeds)) < len(config.seeds) or any(seed < 0 for seed in config.seeds):
        raise InputError(f"seeds={config.seeds}: give different numbers, none below 0")
    variants = config.variants or {name: []}
    known = [*variants, *(BASELINES if config.baselines else ())]
    if config.compare_to is not None and config.compare_to not in known:
        raise InputError(f"compare_to={config.compare_to}: choose one of the variants, {', '.join(known)}")
    first, folder = next(iter(variants)), Path(config.output_dir)
    facts, runs = facts_of(config), []
    for seed in config.seeds or [config.seed]:
        for variant, overrides in variants.items():
            baselines = config.baselines and variant == first  # they are the same for all variants
            own, text = compose([f"seed={seed}", *overrides, f"baselines={baselines}"])
            _check_variant(variant, own, dataclasses.replace(config, seed=seed))
            check_tier(own)
            parts = [variant] * bool(config.variants) + [f"seed_{seed}"] * bool(config.seeds)
            place = folder.joinpath(*parts)
            called = label._replace(
                name="/".join([label.name] * bool(label.group) + parts), group=label.group or folder.name
            )
            runs.append(Run(variant, seed, place, own, with_facts(text, facts), called))
    return runs


def plans(runs: Sequence[Run]) -> str:
    """What the variants cost: each distinct plan is rehearsed once, and stands below all whose it is."""
    rehearsed: dict[Hashable, str] = {}
    names: dict[str, list[str]] = {}
    for variant, run in {run.variant: run for run in runs}.items():
        work = work_of(run.config)
        if work not in rehearsed:
            rehearsed[work] = planned(run.config, make_rules(run.config), make_settings(run.config))
        names.setdefault(rehearsed[work], []).append(variant)
    parts = [f"{', '.join(of)}\n{plan}" for plan, of in names.items()]
    return "\n\n".join([*parts, f"{len(runs)} runs; the plans are of one scene"])


def work_of(config: SampleConfig) -> Hashable:
    """What a plan depends on: how many steps of each kind there are, and the functions that take their predictions."""
    rules, settings, size = make_rules(config), make_settings(config), sizes(config)
    steps = rules.renoise(settings.sigmas)
    kinds = steps_by_kind(steps, rules, camera_ring(size.num_views), size.num_frames)
    counts = tuple((kind, len(of_kind)) for kind, of_kind in kinds.items())
    levels = dataclasses.replace(settings, sigma_min=1.0, sigma_max=1.0, rho=1.0)
    return counts, repr(levels), *re.findall(r"'_target_': '(.*?)'", repr((config.composition, config.solver)))


def _check_variant(name: str, variant: SampleConfig, config: SampleConfig) -> None:
    """Variants share scenes, priors and outputs."""
    rules = {"sampler", "unary", "renoise", "weights", "guidance", "composition", "solver"}
    free = rules | {"baselines", "variants", "seeds", "compare_to"}
    for field in dataclasses.fields(SampleConfig):
        if field.name not in free and getattr(variant, field.name) != getattr(config, field.name):
            raise InputError(f"variants.{name}: changes {field.name}, which all variants share; give it to the study")


# --- what is there already -------------------------------------------------------------------------------------------


def point_was_finished(config: SampleConfig, text: str, name: str) -> bool:
    """Whether a point of a sweep is there to its last scene, under this very configuration; if so, says it.

    A study knows for itself.
    """
    if config.variants or config.seeds or config.plan:
        return False
    folder = Path(config.output_dir)
    kept = folder / "config.yaml"
    if kept.exists() and kept.read_text() == with_facts(text, facts_of(config)):
        c = config.scenes
        asked = c.count if c.path is None else len(list_clips(Path(c.path))[c.first :][: c.count])
        if len(list(folder.glob("*/matrix.safetensors"))) == asked:
            say(f"d2: {folder}: finished before, not run again")
            rename(folder, name)
            return True
    return False


# --- what is left behind ---------------------------------------------------------------------------------------------


def rename(folder: Path, variant: str) -> None:
    """Let the results of a run go by another name: in a sweep, that of what is swept over."""
    path = folder / "results.csv"
    if path.exists():
        figures = read_figures(path)
        write_figures(path, [dataclasses.replace(f, variant=variant) if f.config else f for f in figures])


def sweep_results(folder: Path) -> None:
    """results.csv, table.md and plot.svg of a sweep, from what its points left."""
    figures = sweep_figures(folder)
    if figures:
        write_summary(folder, figures, None)


# --- what a sweeper tunes --------------------------------------------------------------------------------------------


def check_objective(config: SampleConfig) -> None:
    """Refuse a figure that no point will have."""
    wanted = config.objective
    if config.variants:
        raise InputError(f"objective={wanted}: of which variant? give no variants to a sweep that tunes")
    if wanted in OF_SAMPLES and len(config.seeds) < 2:
        raise InputError(f"objective={wanted}: wants several samples of a scene; give seeds=[0,1]")
    if wanted not in (*OF_SAMPLES, *METRIC_NAMES, COST):
        raise InputError(
            f"objective={wanted}: no such figure; choose {' or '.join((*OF_SAMPLES, *METRIC_NAMES, COST))}"
        )


def objective_of(config: SampleConfig, name: str) -> float:
    """The mean over scenes of the figure that a sweeper tunes for; NaN where the point has none."""
    path = Path(config.output_dir) / "results.csv"
    figures = by_scene(read_figures(path)).get(name, {}) if path.exists() else {}
    values = figures.get(config.objective or "", {}).values()
    return sum(values) / len(values) if values else math.nan

"""Does the matrix make an asset? python experiments/does_the_matrix_make_an_asset/study.py [folder]
[variant:scenes …] [key=value …, of d2 sample].

A matrix with its fit is a file of its own, so that a killed study goes on with the next, and
tables are made of all that are there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import d2
from d2.data.sources import list_scenes
from d2.files import commit, write_text
from d2.metrics.baselines import repeat_orbit
from d2.metrics.figures import (
    ALL,
    JOINT,
    Figure,
    deciding,
    hash_of,
    owned,
    read_figures,
    weights_hash,
    write_figures,
)
from d2.metrics.intervals import (
    UNKNOWN,
    Interval,
    bootstrap_mean,
    by_scene,
    means,
    paired_difference,
)
from d2.metrics.reference import POOLED_NAMES
from d2.metrics.suite import Suite
from d2.metrics.table import interval_text, markdown_table
from d2.rules.bundle import under_one_prior
from d2.sample.measure import measure_scene
from d2.scene import Scene
from d2.study.results import table_text

NAME = "does_the_matrix_make_an_asset"
DEFAULT = "fast"  # the preset of d2 sample
VARIANTS = ("default", "official_short", "columns_alone", "repeat_orbit", "truth", "published")
PRESETS = {"default": DEFAULT, "published": "official"}  # of the others: official_short
SUITE = Suite(("reference", "self_psnr"), (), None, (), (), {})
SHOWN = ("psnr_masked", "asset_psnr_masked", "asset_sharpness", "asset_own_view", "asset_own_frame")
SELF = ("self_psnr", "self_psnr_masked", "self_sharpness")
ORACLES = ("truth",)  # nobody ranks samples by it
Figures = Mapping[str, Mapping[str, float]]  # scene -> variant -> value
Samplers = Callable[[str], Any]  # variant -> what d2.load gives


# --- matrices and their scenes --------------------------------------------------------------------


@torch.no_grad()
def matrix_of(variant: str, scene: Scene, samplers: Samplers) -> Tensor:  # v f 3 h w
    """What a variant makes of a scene. The default has its own orbit, all others share one."""
    if variant == "truth":
        assert scene.truth is not None
        return scene.truth.pixels
    base, sampler = samplers("official_short").module, samplers(variant).module
    orbit_of = sampler if variant == "default" else base
    given, orbits = orbit_of.reference(scene.observed())
    if variant == "repeat_orbit":
        return repeat_orbit(orbits[0], len(given.pixels))
    alone = variant == "columns_alone"
    rules = under_one_prior(sampler.rules, "multiview") if alone else sampler.rules
    return sampler.sample(given, orbits, rules, variant).matrix.pixels


def measured(variant: str, scene: Scene, samplers: Samplers) -> list[Figure]:
    """The figures of a variant's matrix and of the scene that is fitted to it."""
    pixels, job = matrix_of(variant, scene, samplers), samplers(variant).job
    return owned(
        measure_scene(SUITE, {JOINT: pixels}, scene)[JOINT].figures,
        run=NAME,
        variant=variant,
        sample=str(job.seed),
        config=hash_of(deciding(job.text)),
        weights=weights_hash(job.facts),
        commit=commit(),
    )


# --- tables ---------------------------------------------------------------------------------------


def assets(figures: Sequence[Figure]) -> str:
    """A line a variant: the matrix and its scene against the truth, and the matrix against its
    scene."""
    return markdown_table(
        [
            {
                "variant": variant,
                "scenes": str(max(interval.n for interval in of.values())),
                **{name: interval_text(of.get(name, UNKNOWN)) for name in (*SHOWN, *SELF)},
            }
            for variant, of in means(figures, seed=0).items()
        ]
    )


def gains(figures: Sequence[Figure]) -> str:
    """A line a variant: what its scene is ahead of its matrix, paired."""
    rows = []
    for variant, metrics in by_scene(figures).items():
        if variant in ORACLES:
            continue
        row = {"variant": variant}
        for name in POOLED_NAMES:
            pairs = [(metrics[f"asset_{name}"][s], own) for s, own in metrics[name].items()]
            apart = paired_difference(*zip(*pairs, strict=True), seed=0)
            row[name] = interval_text(apart, "+.2f")
        rows.append(row)
    return markdown_table(rows)


def ranks(figures: Sequence[Figure]) -> str:
    """Spearman's rank correlation of self_psnr_masked with psnr_masked of the matrix and of its
    scene: between the variants of a scene, a mean over scenes; and between the scenes of a variant,
    a mean over variants.
    """
    rows = []
    for truth in ("psnr_masked", "asset_psnr_masked"):
        ours, theirs = (of_scenes(figures, name) for name in ("self_psnr_masked", truth))
        across = {
            variant: {scene: ours[scene].get(variant, math.nan) for scene in ours}
            for variant in variants(ours)
        }
        true = {
            variant: {s: theirs.get(s, {}).get(variant, math.nan) for s in ours}
            for variant in across
        }
        rows.append(
            {
                "ranked by": truth,
                "variants of a scene": interval_text(mean(spearmans(ours, theirs))),
                "scenes of a variant": interval_text(mean(spearmans(across, true))),
            }
        )
    return markdown_table(rows)


def of_scenes(figures: Sequence[Figure], metric: str) -> dict[str, dict[str, float]]:
    """Scene -> variant -> the figure, oracles apart."""
    found: dict[str, dict[str, float]] = {}
    for variant, metrics in by_scene(figures).items():
        for scene, value in metrics.get(metric, {}).items():
            if scene != ALL and variant not in ORACLES:
                found.setdefault(scene, {})[variant] = value
    return found


def variants(figures: Figures) -> list[str]:
    return list(dict.fromkeys(variant for of in figures.values() for variant in of))


def spearmans(ours: Figures, theirs: Figures) -> Iterator[float]:
    """One correlation a line of the two, over the columns that both know; none where fewer than
    three are known."""
    for line, values in ours.items():
        pairs = [(a, theirs.get(line, {}).get(name, math.nan)) for name, a in values.items()]
        known = np.array([pair for pair in pairs if not any(map(math.isnan, pair))])
        if len(known) > 2:
            places = known.argsort(axis=0).argsort(axis=0)
            yield float(np.corrcoef(places.T)[0, 1])


def mean(values: Iterator[float]) -> Interval:
    found = list(values)
    return bootstrap_mean(found, seed=0) if found else UNKNOWN


def plot(path: Path, figures: Sequence[Figure]) -> None:
    """Every scene's asset against its matrix, and both against self_psnr; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        ("psnr_masked", "asset_psnr_masked", "matrix against truth", "asset against truth"),
        ("self_psnr_masked", "psnr_masked", "matrix against its own fit", "matrix against truth"),
    )
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for axis, (across, up, x_label, y_label) in zip(axes, panels, strict=True):
        for variant, metrics in by_scene(figures).items():
            if variant not in ORACLES:
                x, y = ([metrics[name][s] for s in metrics[across]] for name in (across, up))
                axis.plot(x, y, "o", ms=4, alpha=0.8, label=variant.replace("_", " "))
        axis.set(xlabel=f"{x_label}, masked PSNR, dB", ylabel=f"{y_label}, masked PSNR, dB")
        axis.spines[["top", "right"]].set_visible(False)
    low, high = min(axes[0].get_xlim()), max(axes[0].get_xlim())
    axes[0].plot([low, high], [low, high], color="0.6", lw=1, zorder=0)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main(folder: Path, *given: str) -> None:
    words = [word for word in given if "=" in word]
    counts = dict.fromkeys(VARIANTS, 16) | {
        name: int(count) for name, _, count in (w.partition(":") for w in given if "=" not in w)
    }
    shared = (*words, "scenes.split=test", f"scenes.count={max(counts.values())}", "trainer=cpu")

    load = cache(partial(d2.load, *shared))

    def samplers(variant: str) -> Any:
        return load(preset=PRESETS.get(variant, "official_short"))

    weights = weights_hash(samplers("default").job.facts)
    scenes = list_scenes(samplers("default").job.source)
    figures: list[Figure] = []
    for variant, count in counts.items():
        for unread in scenes[:count]:
            file = folder / "parts" / f"{variant}.{unread.name}.{weights}.csv"
            if not file.exists():
                write_figures(file, measured(variant, unread.read(), samplers))
            figures += read_figures(file)
    write_figures(folder / "results.csv", figures)
    write_text(folder / "table.md", table_text(figures, "columns_alone"))
    parts = (
        "Means over scenes [95 % bootstrap intervals].",
        assets(figures),
        "Asset minus matrix, paired.",
        gains(figures),
        "Spearman's rank correlation of self_psnr_masked, the truth apart.",
        ranks(figures),
    )
    text = "\n\n".join(parts) + "\n"
    write_text(folder / "assets.md", text)
    plot(folder / "plot.png", figures)
    print(text, end="")


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else f"outputs/{NAME}"
    main(Path(folder), *sys.argv[2:])

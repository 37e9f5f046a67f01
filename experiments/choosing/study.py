"""Which score ranks samples as truth does: python experiments/choosing/study.py [folder] [scenes]
[particles].

A scene is a file of its own, so that a killed study goes on with the next; tables are made of all
that are there.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import d2
from d2.data.sources import list_scenes
from d2.files import write_json
from d2.metrics.figures import weights_hash
from d2.metrics.intervals import Interval, bootstrap_mean
from d2.metrics.reference import reference_metrics
from d2.metrics.table import interval_text, markdown_table
from d2.pipeline import sample_scene
from d2.reference import decode
from d2.rules import choosing
from d2.rules.choosing import Choosing, Judge

SCORES = {
    "agreement": choosing.agreement,
    "lift": choosing.lift,
    "smoothness": choosing.smoothness,
    "neighbours": choosing.neighbours,
}
TRUTHS = ("psnr_masked", "sharpness", "own_view_unseen", "own_frame_unseen")
Found = dict[str, list[float]]  # name of a score or a figure -> one a particle


def measured(sampler: Any, scene: Any, particles: int) -> Found:
    """Every score and every figure of all particles of a scene."""
    module, truth = sampler.module, scene.truth
    given, orbits = module.make_reference(scene.observed())
    found: Found = {name: [] for name in (*SCORES, *TRUTHS)}

    def spy(x: Tensor, judge: Judge) -> Tensor:
        for name, score in SCORES.items():
            found[name].append(float(score(x, judge)))
        figures = reference_metrics(
            decode(x, module.priors.first_stage), truth, scene.cameras.input_view
        )
        for name in TRUTHS:
            found[name].append(float(figures[name]))
        return torch.zeros(())

    rules = module.rules._replace(choose=Choosing(particles, spy, (), 1.0))
    sample_scene(given, module.priors, rules, module.settings, orbits=orbits)
    return found


def ranks(values: list[float]) -> Tensor:
    """Mean ranks; equal values share theirs."""
    x = torch.tensor(values, dtype=torch.float64)
    return (x[:, None] > x).double().sum(1) + 0.5 * (x[:, None] == x).double().sum(1)


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's; 0 where one of them says the same of all."""
    x, y = (ranks(values) - ranks(values).mean() for values in (a, b))
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def gain(score: list[float], figure: list[float]) -> float:
    """A figure of the particle with the best score, minus the mean of all."""
    return figure[max(range(len(score)), key=score.__getitem__)] - sum(figure) / len(figure)


def table(scenes: list[Found]) -> str:
    """Rank correlations, and what the best of all particles gains; `truth` chooses by the figure
    itself."""
    parts = []
    for heading, of in (
        ("Spearman's rank correlation within a scene", rank_correlation),
        ("Best minus mean", gain),
    ):
        rows = []
        for name in (*SCORES, *(("truth",) if of is gain else ())):
            row = {"score": name}
            for figure in TRUTHS:
                values = [
                    of(found[figure if name == "truth" else name], found[figure])
                    for found in scenes
                ]
                interval: Interval = bootstrap_mean(values, seed=0)
                row[figure] = interval_text(interval, "+.2f")
            rows.append(row)
        parts.append(f"{heading}, {len(scenes)} scenes, mean [95 %].\n\n{markdown_table(rows)}")
    return "\n\n".join(parts) + "\n"


def main(folder: Path, scenes: int, particles: int) -> None:
    words = (
        "preset=fast",
        "scenes.split=validation",
        f"scenes.count={scenes}",
        f"particles={particles}",
    )
    sampler, found = d2.load(*words), {}
    weights = weights_hash(sampler.job.facts)
    for unread in list_scenes(sampler.job.source):
        file = folder / f"{unread.name}.{particles}.{weights}.json"
        if not file.exists():
            write_json(file, measured(sampler, unread.read(), particles))
        found[unread.name] = json.loads(file.read_text(encoding="utf-8"))
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("scene", "particle", "name", "value", "weights"))
        for scene, names in found.items():
            for name, values in names.items():
                writer.writerows(
                    (scene, k, name, f"{value:.6g}", weights) for k, value in enumerate(values)
                )
    (folder / "table.md").write_text(table(list(found.values())), encoding="utf-8")
    print(table(list(found.values())))


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        Path(given[0] if given else "outputs/choosing"),
        int(given[1]) if len(given) > 1 else 16,
        int(given[2]) if len(given) > 2 else 8,
    )

"""What a rule can gain at all: python experiments/budget/study.py [folder] [scenes] [levels].

The squared error of the clean latents that each prior, their best weighted sum and nested terms
say, at levels of the sampler, of three inputs: truth with noise, the prior's own sampler's x, and
the composed sampler's. A scene is a file of its own, so that a killed study goes on with the next.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import d2
from d2.data.sources import list_scenes
from d2.files import write_json
from d2.metrics.figures import weights_hash
from d2.metrics.intervals import bootstrap_mean
from d2.noise import draw
from d2.pipeline import sample_scene
from d2.reference import shard_of
from d2.rules.bundle import under_one_prior
from d2.rules.nested import nested
from d2.sampling import Prediction, State, Step, evenly, sample_matrix
from d2.terms import joint_terms, to_images

INPUTS = ("noised truth", "own sampler's x", "composed sampler's x")
PAIR = ("video", "multiview")
NAMES = {"video": "rows", "multiview": "columns"}
Found = dict[str, list[float]]  # "input/who" -> one a level; "moments/input" -> six a level


def path_of(module: Any, rules: Any, scene: Any, orbits: Tensor) -> list[tuple[float, Tensor]]:
    """A sampler's x before every evaluation but the first, with its level."""
    seen: list[tuple[float, Tensor]] = []

    def see(state: State) -> None:
        seen.append((state.step.sigma_next, state.x))

    sample_scene(scene, module.priors, rules, module.settings, orbits=orbits, on_step=see)
    return seen[:-1]


def measured(sampler: Any, scene: Any, count: int) -> Found:
    """Errors of one scene."""
    module, truth = sampler.module, scene.truth.pixels
    given, orbits = module.make_reference(scene.observed())
    z = torch.stack([module.priors.first_stage.encode(to_images(row)) for row in truth])
    noise = partial(draw, scene.seed)
    terms = joint_terms(given.pixels, orbits, given.cameras, noise, module.priors, module.settings)
    shard, every = shard_of(module.settings), torch.ones(z.shape[:2], dtype=torch.bool)
    rules = [under_one_prior(module.rules, name) for name in PAIR]
    own = {
        name: path_of(module, rule, given, orbits) for name, rule in zip(PAIR, rules, strict=True)
    }
    composed = path_of(module, module.rules, given, orbits)
    picked = torch.linspace(0, len(composed) - 1, count).round().long().unique().tolist()
    found: Found = {"sigma": [composed[i][0] for i in picked]}

    def note(name: str, *values: float) -> None:
        found.setdefault(name, []).extend(values)

    def error(matrix: Tensor) -> float:
        return float((matrix - z).square().mean())

    for i in picked:
        sigma = composed[i][0]
        noised = z + sigma * noise("init", tuple(z.shape), step=1 + i)
        at: dict[str, dict[str, Tensor]] = {
            INPUTS[0]: dict.fromkeys(PAIR, noised),
            INPUTS[2]: dict.fromkeys(PAIR, composed[i][1]),
        }
        at[INPUTS[1]] = {name: own[name][i][1] for name in PAIR}
        for name, inputs in at.items():
            said = [said_of(shard, term, inputs[term.name], sigma, every) for term in terms]
            note(f"{name}/rows", error(said[0]))
            note(f"{name}/columns", error(said[1]))
            if name != INPUTS[1]:  # where both are asked about the same x
                note(f"{name}/even sum", error((said[0] + said[1]) / 2))
                a, b = (one.double() for one in said)
                note(
                    f"moments/{name}",
                    *(float(m.mean()) for m in (a * a, a * b, b * b, a * z, b * z, z * z)),
                )
                note(f"{name}/nested", error(nested_at(inputs["video"], sigma, terms, shard)))
    return found


def said_of(shard: Any, term: Any, x: Tensor, sigma: float, every: Tensor) -> Tensor:
    """The conditional half of a term."""
    prediction: Prediction = shard(term, x, sigma, (~every, every))
    assert prediction.cond is not None
    return prediction.cond


def nested_at(x: Tensor, sigma: float, terms: Sequence[Any], shard: Any) -> Tensor:
    """What nested terms of one step make of x, unguided."""
    step = Step(0, 1, 0, 1, sigma, 0.0)
    return sample_matrix(
        x, [step], terms=terms, guidance=evenly(terms, 1.0), compose=nested(steps=1), shard=shard
    )


def best_linear(scenes: Sequence[Found], name: str) -> list[float]:
    """What the best two weights leave, fitted to these very scenes level by level: a floor of
    weighted sums."""
    moments = torch.tensor(
        [found[f"moments/{name}"] for found in scenes], dtype=torch.float64
    ).mean(dim=0)
    left = []
    for aa, ab, bb, az, bz, zz in moments.reshape(-1, 6).tolist():
        gram, cross = torch.tensor([[aa, ab], [ab, bb]]).double(), torch.tensor([az, bz]).double()
        left.append(zz - float(cross @ torch.linalg.lstsq(gram, cross).solution))
    return left


def lines_of(scenes: Sequence[Found]) -> list[dict[str, Any]]:
    """A line for each input, who and level: the mean over scenes with its bounds."""
    rows = []
    for key in scenes[0]:
        name, _, who = key.partition("/")
        if name not in INPUTS:
            continue
        for k, sigma in enumerate(scenes[0]["sigma"]):
            interval = bootstrap_mean([found[key][k] for found in scenes], seed=0)
            rows.append({"input": name, "who": who, "sigma": sigma, **interval._asdict()})
    for name in (INPUTS[0], INPUTS[2]):
        for sigma, value in zip(scenes[0]["sigma"], best_linear(scenes, name), strict=True):
            rows.append(
                {
                    "input": name,
                    "who": "best weights",
                    "sigma": sigma,
                    "mean": value,
                    "n": len(scenes),
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The means as Markdown, a line an input and who."""
    sigmas = list(dict.fromkeys(row["sigma"] for row in rows))
    lines = [
        f"| input | who | {' | '.join(f'σ {sigma:.3g}' for sigma in sigmas)} |",
        f"|---|---|{'---:|' * len(sigmas)}",
    ]
    values = {(row["input"], row["who"], row["sigma"]): row["mean"] for row in rows}
    for name, who in dict.fromkeys((row["input"], row["who"]) for row in rows):
        lines.append(
            f"| {name} | {who} |"
            f" {' | '.join(f'{values[name, who, sigma]:.3f}' for sigma in sigmas)} |"
        )
    return (
        f"Squared error of the clean latents, {rows[0]['n']} scenes.\n\n" + "\n".join(lines) + "\n"
    )


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """An axis for every input, up to the worst that a sampler leaves; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(INPUTS), figsize=(12, 3.6), sharey=True, layout="constrained"
    )
    top = 1.25 * max(row["mean"] for row in rows if row["input"] == INPUTS[1])
    colours = {
        who: f"C{i}"
        for i, who in enumerate(("rows", "columns", "even sum", "best weights", "nested"))
    }
    for axis, name in zip(axes, INPUTS, strict=True):
        for who in dict.fromkeys(row["who"] for row in rows if row["input"] == name):
            line = [row for row in rows if (row["input"], row["who"]) == (name, who)]
            at, mean = [row["sigma"] for row in line], [row["mean"] for row in line]
            style = "o--" if who == "best weights" else "o-"  # it lies on the columns
            axis.plot(at, mean, style, ms=3, color=colours[who], label=who)
            if "low" in line[0]:
                axis.fill_between(
                    at,
                    *([row[end] for row in line] for end in ("low", "high")),
                    color=colours[who],
                    alpha=0.15,
                )
        axis.set(title=name, xlabel="σ", xscale="log", xlim=(0.05, 100), ylim=(0, top))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("squared error")
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path)


def main(folder: Path, count: int, levels: int) -> None:
    words = ("preset=official_tuned", "scenes.split=validation", f"scenes.count={count}")
    sampler, scenes = d2.load(*words), []
    weights = weights_hash(sampler.job.facts)
    for unread in list_scenes(sampler.job.source):
        file = folder / f"{unread.name}.{levels}.{weights}.json"
        if not file.exists():
            with torch.no_grad():
                write_json(file, measured(sampler, unread.read(), levels))
        scenes.append(json.loads(file.read_text(encoding="utf-8")))
    rows = lines_of(scenes)
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("scene", "input", "who", "sigma", "mean", "low", "high", "n", "weights"))
        for row in rows:
            bounds = [f"{row[end]:.6g}" if end in row else "" for end in ("low", "high")]
            numbers = (f"{row['sigma']:.6g}", f"{row['mean']:.6g}", *bounds, row["n"], weights)
            writer.writerow(("all", row["input"], row["who"], *numbers))
    (folder / "table.md").write_text(table(rows), encoding="utf-8")
    plot(folder / "plot.svg", rows)
    print(table(rows))


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        Path(given[0] if given else "outputs/budget"),
        int(given[1]) if len(given) > 1 else 16,
        int(given[2]) if len(given) > 2 else 10,
    )

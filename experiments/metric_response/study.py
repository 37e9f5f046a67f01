"""How the video metrics respond to known damage: python experiments/metric_response/study.py
[folder] [weights].

Axes: v views, f frames, s scenes, n videos of a set, d features. Pixels are in [0, 1].
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from d2.data import world4d
from d2.metrics.features import FeatureNetwork, load_video_encoder
from d2.metrics.video_sets import TRAVERSALS, figure_name, joined, matrix_features, video_distances

SCENES = 64
HALVES = 20  # random halves of the scenes that every figure is measured on
WEIGHTS = Path(__file__).parents[2] / "checkpoints" / "tiny_video_encoder.safetensors"
Damage = Callable[[Tensor, torch.Generator], Tensor]  # v f 3 h w -> v f 3 h w
Features = dict[str, Tensor]  # n d by traversal


class Result(NamedTuple):
    """A figure over random halves of the scenes; `against` the same scenes' truth, or the other
    half's."""

    damage: str
    strength: float
    against: str
    figure: str
    mean: float
    sd: float


# --- damage ---------------------------------------------------------------------------------------


def blur(matrix: Tensor, generator: torch.Generator, *, strength: float) -> Tensor:
    """A Gaussian of `strength` pixels' standard deviation, cut at four of them."""
    radius = max(1, round(4 * strength))
    tap = (-0.5 * (torch.arange(-radius, radius + 1) / strength).square()).exp()
    kernel = (tap / tap.sum()).expand(3, 1, 1, -1)
    x = F.pad(matrix.flatten(0, 1), [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, kernel, groups=3), kernel.mT, groups=3).unflatten(
        0, matrix.shape[:2]
    )


def noise(matrix: Tensor, generator: torch.Generator, *, strength: float) -> Tensor:
    """White noise of that standard deviation, then clipped as any picture is."""
    return (matrix + strength * torch.randn(matrix.shape, generator=generator)).clamp(0, 1)


def displaced_frames(matrix: Tensor, generator: torch.Generator, *, strength: float) -> Tensor:
    """A share of the frames change places, alike in all views."""
    return matrix[:, displaced(matrix.shape[1], strength, generator)]


def displaced_views(matrix: Tensor, generator: torch.Generator, *, strength: float) -> Tensor:
    """A share of the views change places, alike in all frames."""
    return matrix[displaced(len(matrix), strength, generator)]


def reversed_time(matrix: Tensor, generator: torch.Generator, *, strength: float) -> Tensor:
    """Played backwards with that probability."""
    return matrix.flip(1) if torch.rand((), generator=generator) < strength else matrix


def displaced(length: int, share: float, generator: torch.Generator) -> Tensor:  # length
    """An order in which a share of the places, drawn at random, pass their content on in a random
    circle."""
    chosen = torch.randperm(length, generator=generator)[: round(share * length)]
    order = torch.arange(length)
    order[chosen] = chosen.roll(1)
    return order


DAMAGES: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "blur": (blur, (0.4, 0.7, 1.0, 1.5)),
    "noise": (noise, (0.02, 0.05, 0.1, 0.2)),
    "displaced frames": (displaced_frames, (0.25, 0.5, 0.75, 1.0)),
    "reversed time": (reversed_time, (0.25, 0.5, 0.75, 1.0)),
    "displaced views": (displaced_views, (0.25, 0.5, 0.75, 1.0)),
}
# whose set of videos is unchanged
STAYS = {"displaced frames": "v", "reversed time": "v", "displaced views": "f"}


# --- measurement ----------------------------------------------------------------------------------


def features_of(
    matrices: Sequence[Tensor], network: FeatureNetwork, damage: Damage
) -> list[Features]:
    """Features of every matrix after the damage; a scene's draw does not depend on the other
    scenes."""
    return [
        matrix_features(damage(matrix, torch.Generator().manual_seed(scene)), network)
        for scene, matrix in enumerate(matrices)
    ]


def halves(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Random halves of the scenes."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(HALVES):
        order = torch.randperm(count, generator=generator).tolist()
        yield order[: count // 2], order[count // 2 :]


def measure(
    true: list[Features], damaged: list[Features], name: str, strength: float
) -> list[Result]:
    """Every figure of one damage at one strength, against the truth of the same scenes and of
    others."""
    found: dict[tuple[str, str], list[float]] = {}
    for half, other in halves(len(true)):
        sampled = joined([damaged[i] for i in half])
        for against, scenes in (("same", half), ("others", other)):
            distances = video_distances(
                sampled, joined([true[i] for i in scenes]), "world4d-encoder"
            )
            for figure, value in distances.items():
                found.setdefault((against, figure), []).append(value)
    return [
        Result(name, strength, against, figure, statistics.mean(values), statistics.stdev(values))
        for (against, figure), values in found.items()
    ]


def run(network: FeatureNetwork, count: int = SCENES) -> list[Result]:
    """All damages, the truth itself first."""
    matrices = [world4d.full_matrix("test", [i]).pixels[0] for i in range(count)]
    true = features_of(matrices, network, lambda matrix, _: matrix)
    results = measure(true, true, "none", 0.0)
    for name, (function, strengths) in DAMAGES.items():
        for strength in strengths:
            damaged = features_of(matrices, network, partial(function, strength=strength))
            results += measure(true, damaged, name, strength)
            print(name, strength, flush=True)
    return results


# --- report ---------------------------------------------------------------------------------------


def figures(distance: str) -> dict[str, str]:
    """Traversal -> the name of its figure."""
    return {t: figure_name(distance, t, "world4d-encoder") for t in TRAVERSALS}


def tables(results: list[Result]) -> str:
    """Markdown: a table for each distance and each kind of truth."""
    kinds = {"f": "Fréchet distance", "k": "Kernel distance"}
    truths = {"same": "the truth of the same scenes", "others": "the truth of other scenes"}
    by_key = {(r.damage, r.strength, r.against, r.figure): r for r in results}
    parts = []
    for distance, kind in kinds.items():
        for against, truth in truths.items():
            names = figures(distance).values()
            lines = [f"| damage | {' | '.join(name.partition('[')[0] for name in names)} |"]
            lines.append(f"|---|{'---:|' * len(names)}")
            for damage, strength in dict.fromkeys((r.damage, r.strength) for r in results):
                cells = [by_key[damage, strength, against, name] for name in names]
                label = damage if damage == "none" else f"{damage} {strength:g}"
                lines.append(f"| {label} | {' | '.join(map(spread, cells))} |")
            parts.append(f"{kind} to {truth}.\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, responses(results)]) + "\n"


def spread(result: Result) -> str:
    """Mean ± standard deviation over the halves; what is rounding is 0."""
    small = abs(result.mean) + result.sd < 1e-9
    return "0" if small else f"{result.mean:.3g} ± {result.sd:.1g}"


def responses(results: list[Result]) -> str:
    """For each damage and figure, whether the mean rises from each strength to the next, starting
    with none."""
    mean = {(r.damage, r.strength, r.against, r.figure): r.mean for r in results}
    names = [*figures("f").values(), *figures("k").values()]
    lines = [f"| damage, against | {' | '.join(name.partition('[')[0] for name in names)} |"]
    lines.append(f"|---|{'---|' * len(names)}")
    for damage, (_, strengths) in DAMAGES.items():
        for against in ("same", "others"):
            words = []
            for name in names:
                series = [
                    mean["none", 0.0, against, name],
                    *(mean[damage, s, against, name] for s in strengths),
                ]
                scale = max(abs(value) for value in series)
                flat = all(abs(value - series[0]) <= 1e-6 * max(scale, 1) for value in series)
                climbs = sum(
                    after > before for before, after in zip(series, series[1:], strict=False)
                )
                words.append(
                    "stays"
                    if flat
                    else "rises"
                    if climbs == len(strengths)
                    else f"{climbs} of 4 steps up"
                )
            lines.append(f"| {damage}, {against} | {' | '.join(words)} |")
    return (
        "Does the mean rise with every strength, from none on? It stays where it changes by less"
        " than 1e-6.\n\n" + "\n".join(lines)
    )


def plot(path: Path, results: list[Result]) -> None:
    """Fréchet distances by strength; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(DAMAGES), figsize=(15, 6), layout="constrained", sharex="col"
    )
    for row, against in zip(axes, ("same", "others"), strict=True):
        for axis, damage in zip(row, DAMAGES, strict=True):
            for name in figures("f").values():
                found = [r for r in results if r.against == against and r.figure == name]
                line = [r for r in found if r.damage in ("none", damage)]
                label = name.partition("[")[0]
                axis.errorbar(
                    [r.strength for r in line],
                    [r.mean for r in line],
                    [r.sd for r in line],
                    fmt="o-",
                    label=label,
                )
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_title(damage if against == "same" else "", fontsize=9)
        row[0].set_ylabel(f"to the truth of {'the same' if against == 'same' else 'other'} scenes")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main(folder: Path, weights: Path) -> None:
    results = run(load_video_encoder(weights))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(Result._fields)
        writer.writerows((*r[:4], f"{r.mean:.6g}", f"{r.sd:.6g}") for r in results)
    (folder / "table.md").write_text(tables(results), encoding="utf-8")
    plot(folder / "plot.png", results)
    print(tables(results))


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*given, *(Path("outputs/metric_response"), WEIGHTS)[len(given) :])

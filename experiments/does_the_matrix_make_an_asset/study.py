"""Does the matrix make an asset? README.md beside this file says what is asked.

python experiments/does_the_matrix_make_an_asset/study.py [key=value …]: the study, and what is made
of its figures.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from d2 import cli
from d2.files import write_text
from d2.metrics.figures import ALL, Figure, read_figures
from d2.metrics.intervals import UNKNOWN, Interval, bootstrap_mean, by_scene, means
from d2.metrics.table import interval_text, markdown_table

NAME = "does_the_matrix_make_an_asset"
SHOWN = (
    "psnr_masked",
    "asset_psnr_masked",
    "asset_gain",
    "asset_sharpness",
    "asset_own_view",
    "asset_own_frame",
)
SELF = ("self_psnr", "self_psnr_masked", "self_sharpness")
ORACLES = ("truth", "autoencoder_ceiling", "true_orbit_repeated")  # nobody ranks samples by these
Figures = Mapping[str, Mapping[str, float]]  # scene -> variant -> value


def assets(figures: Sequence[Figure]) -> str:
    """A line a variant: the matrix and its scene against the truth, and the matrix against its
    scene."""
    rows = [
        {
            "variant": variant,
            **{name: interval_text(of.get(name, UNKNOWN)) for name in (*SHOWN, *SELF)},
        }
        for variant, of in means(figures, seed=0).items()
    ]
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


def main(overrides: Sequence[str]) -> int:
    given = [value.partition("=")[2] for value in overrides if value.startswith("output_dir=")]
    folder = Path(given[-1] if given else f"outputs/{NAME}")
    if code := cli.run(["sample", f"experiment={NAME}", *overrides]):
        return code
    figures = read_figures(folder / "results.csv")
    text = (
        f"{assets(figures)}\n\nSpearman's rank correlation of"
        f" self_psnr_masked.\n\n{ranks(figures)}\n"
    )
    write_text(folder / "assets.md", text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

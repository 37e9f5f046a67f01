"""Which preset should be the default: python experiments/best_rule/choose.py RESULTS.csv ...
[--columns NAME].

The criterion, written before the tables are there: of the variants of validation studies, those
that keep 0.9 of the ceiling's sharpness (the autoencoder's, 1 where a table has none) and do not
find fewer own frames than columns alone, which is to say that the interval of the paired difference
is not below zero; of them the one with the least energy. Where none qualifies, the one with the
least energy of all is named with what it lacks.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from d2.metrics.figures import Figure, read_figures
from d2.metrics.intervals import Interval, differences, means

SHARPNESS = 0.9  # of the ceiling's
CEILING = "autoencoder_ceiling"


class Candidate(NamedTuple):
    """A variant and what the criterion looks at."""

    name: str
    energy: float
    sharpness: float  # of the ceiling's
    own_frames: Interval  # beyond columns alone

    @property
    def lacks(self) -> list[str]:
        """What it falls short of."""
        frames = self.own_frames.mean if math.isnan(self.own_frames.high) else self.own_frames.high
        sharp = (
            []
            if self.sharpness >= SHARPNESS
            else [f"sharpness {self.sharpness:.2f} of the ceiling's"]
        )
        return sharp + (
            [] if frames >= 0 else [f"own frames {self.own_frames.mean:+.3f} against columns alone"]
        )


def candidates(figures: Sequence[Figure], columns: str, sharpest: float = 1.0) -> list[Candidate]:
    """All variants with an energy score, the best first; an earlier table's figures come before a
    later one's. `sharpest` is the ceiling's sharpness where no table has its row."""
    found, apart = means(figures, seed=0), differences(figures, columns, seed=0)
    ceiling = (
        found.get(CEILING, {}).get("sharpness", Interval(sharpest, math.nan, math.nan, 0)).mean
    )
    none = Interval(0.0, math.nan, math.nan, 0)
    every = [
        Candidate(
            name,
            own["energy"].mean,
            own["sharpness"].mean / ceiling,
            apart.get(name, {}).get("own_frame_unseen", none),
        )
        for name, own in found.items()
        if "energy" in own and not math.isnan(own["energy"].mean)
    ]
    return sorted(every, key=lambda candidate: candidate.energy)


def chosen(ranked: Sequence[Candidate]) -> Candidate:
    """The best that lacks nothing, else the best."""
    return next((candidate for candidate in ranked if not candidate.lacks), ranked[0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Which preset should be the default.")
    parser.add_argument(
        "tables",
        nargs="+",
        type=Path,
        help="results.csv of validation studies, same scenes and seeds",
    )
    parser.add_argument("--columns", default="columns", help="what the tables call columns alone")
    parser.add_argument(
        "--ceiling", type=float, default=1.0, help="the autoencoder's sharpness, if no table has it"
    )
    given = parser.parse_args()
    figures = {
        (f.variant, f.scene, f.metric, f.sample): f
        for path in given.tables
        for f in read_figures(path)
    }
    ranked = candidates(list(figures.values()), given.columns, given.ceiling)
    for one in ranked:
        print(f"{one.energy:.4f}  {one.name:32}{'; '.join(one.lacks) or 'qualifies'}")
    best = chosen(ranked)
    print(f"chosen: {best.name}" + (f", though {'; '.join(best.lacks)}" if best.lacks else ""))


if __name__ == "__main__":
    main()

"""Columns alone along the spiral: python experiments/any_cameras/columns.py [folder] [scenes].

Of every test scene the column of frame 4, by the prior alone and the rule of its orbits, told the
input's cell alone; beside it the input at every view. A hundredth of what the whole matrix costs.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch

import d2
from d2.data.sources import list_scenes
from d2.metrics.baselines import show_input
from d2.metrics.figures import weights_hash
from d2.metrics.intervals import bootstrap_mean
from d2.metrics.reference import reference_metrics
from d2.scene import Truth

FRAME = 4
FIGURES = ("own_view_unseen", "psnr_masked_unseen", "sharpness_unseen")
WORDS = ("multiview=tiny_camera", "cameras.preset=spiral", "matrix.num_views=9")


def main(folder: Path, count: int) -> None:
    sampler = d2.load(*WORDS, f"scenes.anchor_frame={FRAME}", f"scenes.count={count}")
    rows: list[tuple[str, str, *tuple[float, ...]]] = []
    for unread in list_scenes(sampler.job.source):
        scene = unread.read()
        truth, view = scene.truth, scene.cameras.input_view
        assert truth is not None
        column = Truth(*(part[:, FRAME : FRAME + 1] for part in truth))
        with torch.no_grad():
            orbits = sampler.module.make_reference(scene.observed())[1]
        shown = show_input(scene.pixels, len(orbits[0]))[:, FRAME : FRAME + 1]
        for method, cells in (("columns_alone", orbits[0][:, None]), ("show_input", shown)):
            found = reference_metrics(cells, column, view)
            rows.append((scene.name, method, *(found[name] for name in FIGURES)))
        print(*rows[-2:], sep="\n", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights_hash(sampler.job.facts)
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("scene", "method", *FIGURES, "weights"))
        writer.writerows((*row[:2], *(f"{x:.6g}" for x in row[2:]), weights) for row in rows)
    (folder / "table.md").write_text(table(rows), encoding="utf-8")


def table(rows: list[tuple[str, str, *tuple[float, ...]]]) -> str:
    """Means over the scenes with their 95 % intervals."""
    lines = [f"| method | {' | '.join(FIGURES)} | scenes |", f"|---{'|---' * (1 + len(FIGURES))}|"]
    for method in ("columns_alone", "show_input"):
        own = [row[2:] for row in rows if row[1] == method]
        cells = []
        for values in zip(*own, strict=True):
            found = bootstrap_mean(values, seed=0)
            cells.append(f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]")
        lines.append(f"| {method} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    told = sys.argv[1:]
    main(
        Path(told[0] if told else "outputs/any_cameras_columns"),
        int(told[1]) if len(told) > 1 else 16,
    )

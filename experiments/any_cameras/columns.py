"""Columns alone along the spiral: python experiments/any_cameras/columns.py [folder] [scenes].

Of every test scene the column of frame 4, by the prior alone and the rule of its orbits, told the
input's cell alone; beside it the input at every view. A hundredth of what the whole matrix costs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import d2
from d2.data.sources import list_scenes
from d2.files import commit
from d2.metrics.baselines import show_input
from d2.metrics.figures import Figure, owned, weights_hash
from d2.metrics.reference import reference_metrics
from d2.scene import Truth
from d2.study.results import write_summary

FRAME = 4
FIGURES = ("own_view_unseen", "psnr_masked_unseen", "sharpness_unseen")
WORDS = ("multiview=tiny_camera", "cameras.preset=spiral", "matrix.num_views=9")


def main(folder: Path, count: int) -> None:
    sampler = d2.load(*WORDS, f"scenes.anchor_frame={FRAME}", f"scenes.count={count}")
    job, figures = sampler.job, list[Figure]()
    for unread in list_scenes(job.source):
        scene = unread.read()
        truth, view = scene.truth, scene.cameras.input_view
        assert truth is not None
        column = Truth(*(part[:, FRAME : FRAME + 1] for part in truth))
        with torch.no_grad():
            orbits = sampler.module.make_reference(scene.observed())[1]
        shown = show_input(scene.pixels, len(orbits[0]))[:, FRAME : FRAME + 1]
        for method, cells in (("columns_alone", orbits[0][:, None]), ("show_input", shown)):
            found = reference_metrics(cells, column, view)
            figures += [
                Figure(variant=method, scene=scene.name, metric=name, value=found[name])
                for name in FIGURES
            ]
        print(*figures[-2 * len(FIGURES) :], sep="\n", flush=True)
    made = {"weights": weights_hash(job.facts), "commit": commit()}
    write_summary(folder, owned(figures, "columns", "", str(job.seed), **made), "show_input")


if __name__ == "__main__":
    told = sys.argv[1:]
    main(
        Path(told[0] if told else "outputs/any_cameras_columns"),
        int(told[1]) if len(told) > 1 else 16,
    )

"""What a study and a sweep leave: the figures of all their runs in one table, and what is made of
it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from d2.files import write_text
from d2.io import read_matrix, read_truth
from d2.metrics.energy import energy_score, object_disc
from d2.metrics.figures import ALL, Figure, read_figures, write_figures
from d2.metrics.intervals import means
from d2.metrics.reference import reference_metrics
from d2.metrics.table import tables
from d2.report.figures import plot

OF_SAMPLES = ("energy", "energy_error", "energy_spread", "psnr_masked_of_mean", "sharpness_of_mean")


def study_figures(folder: Path, runs: Sequence[Path]) -> list[Figure]:
    """The figures of a study's runs, which lie under `folder`, and of their samples together,
    variant by variant."""
    own = [figure for run in runs for figure in figures_of_run(folder, run)]
    return in_order([*own, *of_samples(folder, own)])


def sweep_figures(folder: Path) -> list[Figure]:
    """The figures of a sweep's points, which lie in `folder`; points that differ by their seed
    alone are one variant.

    A point that is a study has variants of its own, which may be those of another point.
    """
    places = sorted(
        (path.parent for path in folder.glob("*/results.csv")), key=lambda p: (len(p.name), p.name)
    )
    found: dict[tuple[str, ...], Figure] = {}
    singles: list[Figure] = []
    for place in places:
        single = (place / "metrics.csv").exists()
        for figure in figures_of_run(folder, place):
            if not single:
                figure = replace(figure, variant=f"{place.name}/{figure.variant}")
            key = (figure.variant, figure.scene, figure.metric, figure.sample)
            found.setdefault(key, figure)  # of a baseline, the first point's
            if single:
                singles.append(figure)
    return [*found.values(), *of_samples(folder, singles)]


def figures_of_run(folder: Path, run: Path) -> list[Figure]:
    """A run's own table, its folder named as seen from `folder`."""
    own = read_figures(run / "results.csv")
    if run == folder:
        return own
    inside = run.relative_to(folder).as_posix()
    return [replace(f, run=inside if f.run == run.name else f"{inside}/{f.run}") for f in own]


def of_samples(folder: Path, figures: Sequence[Figure]) -> list[Figure]:
    """Figures of several samples of each scene, one a run: the energy score, and what their mean
    scores.

    A scene that some run of its variant lacks is left out, and so are baselines.
    """
    scenes: dict[str, dict[str, list[Figure]]] = {}  # variant -> scene -> one figure a run
    for figure in figures:
        if figure.config and figure.scene != ALL:
            one = scenes.setdefault(figure.variant, {}).setdefault(figure.scene, [])
            if figure.run not in {other.run for other in one}:
                one.append(figure)
    found = []
    for variant, of_scene in scenes.items():
        runs = {figure.run for one in of_scene.values() for figure in one}
        for scene, one in of_scene.items():
            values = scene_of_samples([place_of(folder, figure.run) / scene for figure in one])
            if len(one) == len(runs) > 1 and values:
                found += [
                    replace(one[0], run=variant, metric=name, value=value, sample=ALL)
                    for name, value in zip(OF_SAMPLES, values, strict=True)
                ]
    return found


def scene_of_samples(places: Sequence[Path]) -> tuple[float, ...]:
    """`OF_SAMPLES` of one scene's folders; nothing where one lacks its matrix, or where there is no
    truth."""
    if len(places) < 2 or not all((place / "matrix.safetensors").exists() for place in places):
        return ()
    truth = read_truth(places[0])
    if truth is None:
        return ()
    matrices = [read_matrix(place) for place in places]
    samples = torch.stack([matrix.pixels for matrix in matrices])
    energy = energy_score(samples, truth.pixels, object_disc(*truth.pixels.shape[-2:]))
    mean = reference_metrics(samples.mean(dim=0), truth, matrices[0].cameras.input_view)
    return (*energy, mean["psnr_masked"], mean["sharpness"])


def place_of(folder: Path, run: str) -> Path:
    """Where the scenes of a run lie, which is named as seen from `folder`, or is what lies there
    itself."""
    return folder / run if (folder / run).is_dir() else folder


def in_order(figures: Sequence[Figure]) -> list[Figure]:
    """The figures of a variant together, in the order of variants."""
    order = {
        variant: place
        for place, variant in enumerate(dict.fromkeys(figure.variant for figure in figures))
    }
    return sorted(figures, key=lambda figure: order[figure.variant])


def write_summary(folder: Path, figures: Sequence[Figure], compare_to: str | None) -> None:
    """results.csv, table.md and plot.svg."""
    write_figures(folder / "results.csv", figures)
    write_text(folder / "table.md", table_text(figures, compare_to))
    write_text(folder / "plot.svg", plot(means(figures, seed=0)))


def table_text(figures: Sequence[Figure], compare_to: str | None) -> str:
    """table.md: of how many scenes and which seeds it is, then the means and the differences."""
    seeds = sorted({figure.sample for figure in figures if figure.sample.isdigit()}, key=int)
    scenes = len({figure.scene for figure in figures} - {ALL})
    head = (
        f"N = {scenes} scenes, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}; means [95 %"
        " bootstrap intervals]."
    )
    return f"{head}\n\n{tables(figures, compare_to=compare_to)}\n"

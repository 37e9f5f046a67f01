"""Figures in one long format, whoever made them: variant, scene, metric, value, seed, config, commit.

A run is a folder that holds scenes, their metrics.csv and config.yaml; `config` is the hash of that text. Figures of
several seeds together have the seed `all`.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from d2.files import commit, csv_text, write_text
from d2.io import read_matrix, read_truth
from d2.metrics.energy import energy_score, object_disc
from d2.metrics.intervals import bootstrap_mean, paired_difference
from d2.metrics.reference import reference_metrics
from d2.metrics.table import TABLE_COLUMNS, interval_text, markdown_table
from d2.sample.figures import JOINT

ALL = "all"  # in the place of a seed
OF_SAMPLES = ("energy", "energy_error", "energy_spread", "psnr_masked_of_mean", "sharpness_of_mean")
COST = "cell_evaluations"
COLUMNS = ("energy", "psnr_masked_of_mean", *TABLE_COLUMNS, COST)


class Row(NamedTuple):
    """One figure."""

    variant: str
    scene: str
    metric: str
    value: float
    seed: str
    config: str  # hash; "" of a baseline
    commit: str


Figures = dict[str, dict[str, float]]  # metric -> scene -> value, the mean over seeds


def run_rows(folder: Path, variant: str, seed: int, costs: Mapping[str, float]) -> list[Row]:
    """What a run measured; its own sample goes by the variant's name, a baseline by its own."""
    config, made_by = config_hash((folder / "config.yaml").read_text(encoding="utf-8")), commit()
    rows = []
    for method, scenes in read_metrics(folder).items():
        own = method == JOINT
        for scene, figures in scenes.items():
            cost = {COST: costs[method]} if method in costs else {}
            rows += [
                Row(variant if own else method, scene, metric, value, str(seed), config if own else "", made_by)
                for metric, value in {**figures, **cost}.items()
            ]
    return rows


def sample_rows(folders: Sequence[Path], rows: Sequence[Row]) -> list[Row]:
    """Figures of several samples of each scene, one a run: the energy score, and what their mean scores.

    `rows` are the runs' own, all of one variant; a scene that some run lacks is left out.
    """
    own = {row.scene: row for row in rows}
    found = []
    for scene, row in own.items():
        places = [folder / scene for folder in folders]
        if len(places) < 2 or not all((place / "matrix.safetensors").exists() for place in places):
            continue
        truth = read_truth(places[0])
        if truth is None:
            continue
        matrices = [read_matrix(place) for place in places]
        samples = torch.stack([matrix.pixels for matrix in matrices])
        energy = energy_score(samples, truth.pixels, object_disc(*truth.pixels.shape[-2:]))
        mean = reference_metrics(samples.mean(dim=0), truth, matrices[0].cameras.input_view)
        values = (*energy, mean["psnr_masked"], mean["sharpness"])
        found += [
            row._replace(metric=name, value=value, seed=ALL) for name, value in zip(OF_SAMPLES, values, strict=True)
        ]
    return found


def read_metrics(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """metrics.csv of a run: method -> scene -> figures, in their order."""
    methods: dict[str, dict[str, dict[str, float]]] = {}
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            figures = {k: float(v) for k, v in row.items() if k not in ("scene", "method")}
            methods.setdefault(row["method"], {})[row["scene"]] = figures
    return methods


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    write_text(path, csv_text([row._asdict() for row in rows]))


def read_rows(path: Path) -> list[Row]:
    """A results.csv; a ValueError says what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give folders that d2 sample wrote, with figures (metrics=[reference])")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or list(reader.fieldnames) != list(Row._fields):
            raise ValueError(f"{path}: has columns {reader.fieldnames}, {', '.join(Row._fields)} are wanted")
        return [Row(**{**row, "value": float(row["value"])}) for row in reader]


def by_variant(rows: Iterable[Row]) -> dict[str, Figures]:
    """Variant -> its figures, averaged over seeds scene by scene, so that a scene counts once in an interval."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        values.setdefault(row.variant, {}).setdefault(row.metric, {}).setdefault(row.scene, []).append(row.value)
    return {
        variant: {metric: {scene: sum(v) / len(v) for scene, v in scenes.items()} for metric, scenes in metrics.items()}
        for variant, metrics in values.items()
    }


# --- tables ----------------------------------------------------------------------------------------------------------


def columns_of(results: Mapping[str, Figures]) -> list[str]:
    """The figures of `COLUMNS` that any variant has."""
    return [name for name in COLUMNS if any(name in figures for figures in results.values())]


def is_ratio(name: str) -> bool:
    """Whether a figure is best at 1."""
    return name.startswith("sharpness") or name.endswith("_ratio")


def table_rows(
    results: Mapping[str, Figures],
    *,
    baseline: str | None = None,  # show paired differences from this variant
    seed: int = 0,  # of the bootstrap
) -> list[dict[str, str]]:
    """A row a variant: mean and 95 % bootstrap interval over scenes of every figure of `COLUMNS` that anyone has.

    PSNR stands beside sharpness, retrieval and, of several samples, the energy score: alone it rewards blur.
    """
    columns = columns_of(results)
    rows = []
    for variant, figures in results.items():
        if variant == baseline:
            continue
        others = {} if baseline is None else results[baseline]
        scenes = {scene for values in figures.values() for scene in values}
        if baseline is not None:
            scenes &= {scene for values in others.values() for scene in values}
        row = {"variant": variant, "scenes": str(len(scenes))}
        for name in columns:
            row[name] = _cell(name, figures.get(name, {}), others.get(name, {}) if baseline else None, seed)
        rows.append(row)
    return rows


def tables(results: Mapping[str, Figures], *, compare_to: str | None, seed: int = 0) -> str:
    """table.md: means, and paired differences from `compare_to`."""
    parts = [_markdown(table_rows(results, seed=seed))]
    if compare_to is not None:
        parts += [
            f"Paired differences from {compare_to}.",
            _markdown(table_rows(results, baseline=compare_to, seed=seed)),
        ]
    return "\n\n".join(parts)


def _markdown(rows: Sequence[dict[str, str]]) -> str:
    return markdown_table(rows, list(rows[0])) if rows else ""


def _cell(name: str, values: Mapping[str, float], others: Mapping[str, float] | None, seed: int) -> str:
    """`18.31 [17.90, 18.70]`; a dash where nothing is known, the mean alone where it is all there is."""
    beside = values if others is None else others
    both = [s for s in values if not math.isnan(values[s]) and not math.isnan(beside.get(s, math.nan))]
    if not both:
        return "–"
    own = [values[scene] for scene in both]
    if others is None:
        interval = bootstrap_mean(own, seed=seed)
    else:
        interval = paired_difference(own, [others[scene] for scene in both], seed=seed)
    digits = 0 if name == COST else 4 if name.startswith("energy") else 2
    if interval.low == interval.high:
        interval = interval._replace(low=math.nan, high=math.nan)
    return interval_text(interval, f"{'' if others is None else '+'}.{digits}f")


# --- where they come from --------------------------------------------------------------------------------------------


def config_hash(text: str) -> str:
    """Of the configuration as it is kept beside results."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]

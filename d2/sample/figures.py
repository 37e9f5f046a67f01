"""What a run measures of its scenes: every method's figures, and the tables made of them.

A rank measures whole scenes; what comes out is plain data that ranks can hand each other. The tables are made from all
of it in the order of scenes, so they are the same whoever measured which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from d2.metrics.suite import Measured, SetFigure, Suite, encoded, measure, seen_pairs, set_figures, without_truth
from d2.scene import Scene

JOINT = "joint"  # the method that is the sample itself; others are what it has to beat
Figures = dict[str, float]  # by their names


class Tables(NamedTuple):
    """All that a run has found, by method."""

    scenes: dict[str, dict[int, Figures]]  # scene's index -> its figures
    means: dict[str, Figures]  # over scenes
    sets: dict[str, list[SetFigure]]  # of all scenes together


def measure_scene(suite: Suite, methods: Mapping[str, Tensor], scene: Scene) -> dict[str, Measured]:
    """Every method's matrix against the scene's truth, or by itself where there is none."""
    truth = scene.truth
    suite = suite if truth else without_truth(suite)
    true = {} if truth is None else encoded(truth.pixels, suite)
    one = partial(
        measure,
        truth=truth,
        suite=suite,
        true=true,
        masked=True,
        input_view=scene.cameras.input_view,
        pairs=seen_pairs(suite, truth, scene.cameras),
        centred=True,
    )
    return {name: one([pixels.cpu()]) for name, pixels in methods.items()}


def figures_of(found: Measured) -> Figures:
    """The one sample's figures."""
    return {row.metric: row.value for row in found.rows}


def tables_of(suite: Suite | None, measured: Mapping[int, Mapping[str, Measured]]) -> Tables:
    """From what all ranks have found: scene's index -> method -> what was found."""
    methods: dict[str, dict[int, Measured]] = {}
    for index in sorted(measured):
        for method, found in measured[index].items():
            if found.rows or found.features:
                methods.setdefault(method, {})[index] = found
    scenes = {name: {i: figures_of(found) for i, found in each.items()} for name, each in methods.items()}
    means = {name: mean_figures(list(each.values())) for name, each in scenes.items()}
    if suite is None:
        return Tables(scenes, means, {})
    known = {  # the scenes whose truth is
        name: [found.features for found in each.values() if any(key.startswith("true/") for key in found.features)]
        for name, each in methods.items()
    }
    return Tables(scenes, means, {name: set_figures(each, suite, seed=0) for name, each in known.items()})


def mean_figures(scenes: Sequence[Figures]) -> Figures:
    """Over scenes; NaN where a scene lacks the figure or has NaN."""
    return {name: sum(each.get(name, math.nan) for each in scenes) / len(scenes) for name in names_in(scenes)}


def names_in(scenes: Iterable[Figures]) -> list[str]:
    """All figures that any scene has, in order of appearance."""
    return list(dict.fromkeys(name for figures in scenes for name in figures))


def scene_rows(tables: Tables, scene_names: Mapping[int, str]) -> list[dict[str, Any]]:
    """metrics.csv: a scene under a method, and its figures."""
    columns = names_in(figures for scenes in tables.scenes.values() for figures in scenes.values())
    return [
        {"scene": scene_names[index], "method": method, **{name: figures.get(name, math.nan) for name in columns}}
        for method, scenes in tables.scenes.items()
        for index, figures in scenes.items()
    ]


def set_rows(tables: Tables) -> list[dict[str, Any]]:
    """set_metrics.csv: a method, and one distance between its set and the true one."""
    return [{"method": method, **figure._asdict()} for method, found in tables.sets.items() for figure in found]

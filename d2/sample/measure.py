"""The callback that measures: every scene as soon as it is sampled, on exactly one rank.

It keeps figures and, where sets of scenes are compared, features. No matrix outlives its scene.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from d2.metrics.baselines import true_orbit_repeated
from d2.metrics.figures import JOINT, Figure
from d2.metrics.suite import Measured, Suite, encoded, measure, seen_pairs, set_figures, without_truth
from d2.sample.matrix_sampler import MatrixSampler, SceneResult
from d2.scene import Scene
from d2.shard import gather_objects


class MeasuredScene(NamedTuple):
    """What is kept of a scene."""

    name: str
    methods: dict[str, Measured]


class Measure(L.Callback):
    """Measures scenes; `Write` and `Log` take what it found.

    After a scene, its rank finds the scene's figures in `of_scene`. At the end every rank has `names`, all scenes by
    their index, and `figures`, those of all scenes in order and then those of all scenes together.
    """

    def __init__(
        self,
        load_suite: Callable[[torch.device], Suite | None],  # what is measured; None: nothing
        earlier: Sequence[Figure] = (),  # of the run's first scenes, which were finished before
    ):
        self.load_suite, self.earlier = load_suite, earlier
        self.suite: Suite | None = None
        self.measured: dict[int, MeasuredScene] = {}
        self.of_scene: list[Figure] = []
        self.names: dict[int, str] = {}
        self.figures: list[Figure] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.suite = self.load_suite(pl_module.device)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Scene, batch_idx: int, *_: Any
    ) -> None:
        assert isinstance(pl_module, MatrixSampler) and isinstance(outputs, SceneResult)
        if not is_mine(trainer, batch_idx):
            return
        methods = {} if self.suite is None else all_methods(pl_module, outputs, batch)
        found = {} if self.suite is None else measure_scene(self.suite, methods, batch)
        self.measured[batch_idx] = MeasuredScene(batch.name, found)
        self.of_scene = [figure for each in found.values() for figure in each.figures]

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parts = gather_objects(self.measured)
        measured = dict(sorted((index, scene) for part in parts for index, scene in part.items()))
        self.names = {index: scene.name for index, scene in measured.items()}
        self.figures = [*self.earlier, *run_figures(self.suite, [scene.methods for scene in measured.values()])]


def is_mine(trainer: L.Trainer, index: int) -> bool:
    """Whether this rank is the one that measures, writes and logs the scene."""
    return index % trainer.world_size == trainer.global_rank


def all_methods(module: MatrixSampler, result: SceneResult, scene: Scene) -> dict[str, Tensor]:
    """The sample, and where truth is known the baselines, the oracle and the ceiling: name -> v f 3 h w."""
    methods = {JOINT: result.sampled.matrix.pixels}
    if scene.truth is not None and result.baselines:
        methods |= result.baselines
        methods["true_orbit_repeated"] = true_orbit_repeated(scene.truth, module.settings.anchor_frames[0])
        methods["autoencoder_ceiling"] = module.ceiling(scene.truth.pixels)
    return methods


def measure_scene(suite: Suite, methods: Mapping[str, Tensor], scene: Scene) -> dict[str, Measured]:
    """Every method's matrix against the scene's truth, or by itself where there is none."""
    truth = scene.truth
    suite = suite if truth else without_truth(suite)
    one = partial(
        measure,
        truth=truth,
        suite=suite,
        true={} if truth is None else encoded(truth.pixels, suite),
        masked=True,
        input_view=scene.cameras.input_view,
        pairs=seen_pairs(suite, truth, scene.cameras),
        centred=True,
        scene=scene.name,
    )
    return {name: one([pixels.cpu()], variant=name) for name, pixels in methods.items()}


def run_figures(suite: Suite | None, scenes: Sequence[Mapping[str, Measured]]) -> list[Figure]:
    """The figures of all scenes, and every method's distances between the sets of those scenes whose truth is known."""
    figures = [figure for methods in scenes for each in methods.values() for figure in each.figures]
    if suite is None:
        return figures
    for name in dict.fromkeys(method for methods in scenes for method in methods):
        features = [methods[name].features for methods in scenes if name in methods]
        known = [each for each in features if any(key.startswith("true/") for key in each)]
        figures += set_figures(known, suite, seed=0, variant=name)
    return figures

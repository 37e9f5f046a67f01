"""The callback that measures: every scene as soon as it is sampled, on exactly one rank.

No matrix outlives its scene.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from d2.metrics.baselines import true_orbit_repeated
from d2.metrics.figures import JOINT, Figure
from d2.metrics.suite import (
    Measured,
    Suite,
    encoded,
    measure,
    seen_pairs,
    set_figures,
    without_truth,
)
from d2.recon.self_fit import fitted_matrix
from d2.sample.kept import Kept, read_kept
from d2.sample.matrix_sampler import MatrixSampler, SceneResult
from d2.scene import Scene
from d2.shard import meet


class Measure(L.Callback):
    """Measures scenes; `Write` and `Log` take what it found.

    After a scene, its rank has its figures and features in `of_scene`. At the end the first rank
    has `scenes`, what is kept of all by their names, in order, and `figures`, those of every scene
    and then those of all together.
    """

    def __init__(
        self,
        load_suite: Callable[[torch.device], Suite | None],  # None: nothing is measured
        folder: Path,
        *,
        # whether all scenes of a run come by, so that there are figures of all together
        whole: bool = True,
    ):
        self.load_suite, self.folder, self.whole = load_suite, folder, whole
        self.suite: Suite | None = None
        self.names: dict[int, str] = {}
        self.of_scene: dict[str, Measured] = {}
        self.scenes: dict[str, Kept] = {}
        self.figures: list[Figure] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.suite = self.load_suite(pl_module.device)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Scene,
        batch_idx: int,
        *_: Any,
    ) -> None:
        assert isinstance(pl_module, MatrixSampler)
        self.names[batch_idx], self.of_scene = batch.name, {}
        if (
            self.suite is not None
            and isinstance(outputs, SceneResult)
            and is_mine(trainer, batch_idx)
        ):
            methods = all_methods(pl_module, outputs, batch, self.suite.metrics)
            self.of_scene = measure_scene(self.suite, methods, batch)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        meet()  # all scenes are written
        if self.whole and trainer.is_global_zero:
            self.scenes = {name: read_kept(self.folder / name) for name in self.names.values()}
            self.figures = run_figures(self.suite, [kept.methods for kept in self.scenes.values()])


def is_mine(trainer: L.Trainer, index: int) -> bool:
    """Whether this rank is the one that measures, writes and logs the scene."""
    return index % trainer.world_size == trainer.global_rank


def all_methods(
    module: MatrixSampler, result: SceneResult, scene: Scene, metrics: Sequence[str]
) -> dict[str, Tensor]:
    """The sample, the baselines that were made, and with them, where truth is known, the oracle and
    the ceiling: name -> v f 3 h w."""
    methods = {JOINT: result.sampled.matrix.pixels}
    methods |= result.baselines
    if scene.truth is not None and result.baselines:
        methods["true_orbit_repeated"] = true_orbit_repeated(
            scene.truth, module.settings.anchor_frames[0]
        )
        methods["autoencoder_ceiling"] = module.ceiling(scene.truth.pixels)
        if "self_psnr" in metrics:
            # what the scene of a matrix without fault is worth
            methods["truth"] = scene.truth.pixels
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
        cameras=scene.cameras,
        refit=fitted_matrix,
        scene=scene.name,
    )
    return {name: one([pixels.cpu()], variant=name) for name, pixels in methods.items()}


def run_figures(suite: Suite | None, scenes: Sequence[Mapping[str, Measured]]) -> list[Figure]:
    """The figures of all scenes, and every method's distances between the sets of those scenes
    whose truth is known."""
    figures = [figure for methods in scenes for each in methods.values() for figure in each.figures]
    if suite is None:
        return figures
    for name in dict.fromkeys(method for methods in scenes for method in methods):
        features = [methods[name].features for methods in scenes if name in methods]
        known = [each for each in features if any(key.startswith("true/") for key in each)]
        figures += set_figures(known, suite, seed=0, variant=name)
    return figures

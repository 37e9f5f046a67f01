"""`d2 calibrate`: the moments of all halves of all terms on scenes whose truth is known, and the
composition of them.

Writes output_dir/calibrated.json, which `composition=calibrated composition.file=PATH` reads, and
calibrated.csv, the error that several rules leave at every level and distance from the input view.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from d2.data.sources import Stream, list_scenes
from d2.errors import InputError
from d2.files import csv_text, ensure_writable, write_json, write_text
from d2.job import Job
from d2.networks import load_priors
from d2.noise import draw
from d2.reference import shard_of
from d2.rules.calibrated import (
    FORMAT,
    Grams,
    averaged,
    by_half,
    errors,
    fit,
    levels,
    measured,
    stacked,
)
from d2.rules.composition import convex, linear
from d2.sample.matrix_sampler import MatrixSampler
from d2.sampling import Prediction, Step
from d2.scene import Scene
from d2.terms import joint_terms, to_images
from d2.trainer import make_trainer

LEVELS = 12  # noise levels measured, from 0.05 to 80


class SceneMoments(NamedTuple):
    """Of one scene: the moments, and the error of the convex rule under the run's own weights and
    guidance."""

    grams: Grams
    convex: Tensor  # s d


class GramMeter(MatrixSampler):
    """In `Trainer.predict`, noises a scene's true latents and measures what every half of every
    term makes of them."""

    @torch.no_grad()
    def predict_step(self, batch: Scene, batch_idx: int) -> SceneMoments:  # type: ignore[override]
        scene, orbits = self.reference(batch.observed())
        assert batch.truth is not None
        noise, first_stage = partial(draw, scene.seed), self.priors.first_stage
        truth = torch.stack(
            [first_stage.encode(to_images(row.to(self.device))) for row in batch.truth.pixels]
        )
        terms = joint_terms(scene.pixels, orbits, scene.cameras, noise, self.priors, self.settings)
        shard, plan = shard_of(self.settings), self.rules.renoise(self.settings.sigmas)
        every = torch.ones(truth.shape[:2], dtype=torch.bool)
        found, errs = [], []
        for i, sigma in enumerate(levels(LEVELS)):
            x = truth + sigma * noise("init", tuple(truth.shape), step=1 + i).to(truth)
            predictions = {term.name: shard(term, x, sigma, (every, every)) for term in terms}
            found.append(measured(predictions, truth, sigma))
            step = min(
                plan, key=lambda s: abs(s.sigma / sigma - 1) + abs(sigma / s.sigma - 1)
            )._replace(sigma=sigma)
            denoised = self.convex(predictions, x, step, scene)
            errs.append(
                measured({"rule": Prediction(None, denoised - truth)}, truth, sigma).outer[
                    0, :, 0, 0
                ]
            )
        return SceneMoments(stacked(found), torch.stack(errs))

    def convex(
        self, predictions: dict[str, Prediction], x: Tensor, step: Step, scene: Scene
    ) -> Tensor:
        """What the convex rule makes of them under the run's weights and guidance."""
        place = step, scene.cameras, x.shape[1]
        rule = linear(coefficients=convex)
        return rule.combine(
            predictions, self.rules.weights(*place), self.rules.guidance(*place), x, step, {}
        )[0]


def calibrate(job: Job) -> int:
    """Measure the job's networks on its scenes, into its folder. Returns the exit code."""
    if not job.source.has_truth:
        raise InputError(
            f"scenes.source={job.source.kind}: calibration needs truth; take scenes=world4d"
        )
    scenes = list_scenes(job.source)
    module = GramMeter(job, load_priors(job.networks))
    trainer = make_trainer(job.devices, job.folder, [], [])
    ensure_writable(job.folder)
    results: Any = trainer.predict(module, DataLoader(Stream(scenes), batch_size=None))
    if rank_zero_only.rank == 0:
        names = [scene.name for scene in scenes]
        facts = {"split": job.source.split, "scenes": names, **job.facts, "config": job.config}
        write(job.folder, results, facts)
    return 0


def write(folder: Path, results: Sequence[SceneMoments], facts: dict[str, Any]) -> None:
    """calibrated.json and calibrated.csv."""
    grams = averaged([r.grams for r in results])
    tensors = {
        name: value.tolist() for name, value in grams._asdict().items() if isinstance(value, Tensor)
    }
    write_json(
        folder / "calibrated.json",
        {"format": FORMAT, "halves": list(grams.halves), **tensors, "facts": facts},
    )
    found = {
        "truth": grams.truth,
        "convex": torch.stack([r.convex for r in results]).mean(dim=0),
        **{
            f"{name}_alone": errors(grams, {f"{name}.cond": torch.ones(())})
            for name in ("video", "multiview")
        },
        "even": errors(
            grams, {"video.cond": torch.tensor(0.5), "multiview.cond": torch.tensor(0.5)}
        ),
        "calibrated": errors(grams, by_half(fit(grams))),
        "sum_to_one": errors(grams, by_half(fit(grams, sum_to_one=True))),
        "conditional": errors(grams, by_half(fit(grams, conditional=True))),
    }
    rows = [
        {
            "sigma": sigma,
            "turns": turn,
            **{name: value[i, j].item() for name, value in found.items()},
        }
        for i, sigma in enumerate(grams.sigmas.tolist())
        for j, turn in enumerate(grams.turns.tolist())
    ]
    write_text(folder / "calibrated.csv", csv_text(rows))

"""The LightningModule that holds both frozen priors and the rules, and samples one scene a predict
step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from d2 import launch
from d2.files import read_tensors, write_tensors
from d2.job import BASELINES, PUBLISHED, Job
from d2.metrics.baselines import repeat_orbit, show_input
from d2.nn.unet import compiled
from d2.passes import Journal, Run, straight
from d2.pipeline import Sampled, sample_scene
from d2.priors.placement import place
from d2.reference import make_clip, make_orbits, to_pixels
from d2.rules.bundle import Rules, under_one_prior
from d2.sample.kept import is_finished
from d2.sample.state import input_of, journal
from d2.sampling import State
from d2.scene import Scene
from d2.shard import from_first
from d2.shard import place as place_of_process
from d2.terms import Priors, to_images


class SceneResult(NamedTuple):
    """A predict step's result. Every rank has the same."""

    sampled: Sampled
    baselines: dict[str, Tensor]  # name -> v f 3 h w


class MatrixSampler(L.LightningModule):
    """Samples image matrices in `Trainer.predict`, job by job.

    Orbits and clips of reference are made under the job's own `reference`, once a scene, so that
    variants of the joint sampling are compared under the same conditions.
    """

    priors: Priors

    def __init__(
        self,
        job: Job,
        priors: Priors,
        # a folder that keeps them from one predict loop to the next
        references: Path | None = None,
    ):
        super().__init__()
        self.offload, self.placed = job.offload, False
        if self.offload == "none":
            self.networks = nn.ModuleList(priors.present)  # Lightning moves them
        # else they are placed where the offload wants them
        object.__setattr__(self, "priors", priors)
        for prior in (priors.video, priors.multiview) if job.compile else ():
            compiled(prior.unet)
        self.rules, self.settings = job.rules, job.settings
        self.baselines, self.published = job.baselines, job.published
        self.reference_rules, self.reference_settings = job.reference
        self.num_frames, self.references = job.size.num_frames, references
        # where scenes are kept: what is finished there is not sampled again
        self.folder: Path | None = None
        self.save_every_seconds = 0.0  # of a scene that is being sampled; 0: never
        self.starts: list[Callable[[Scene, int], None]] = []  # called before a scene is sampled
        # called with the pass's name after every step
        self.listeners: list[Callable[[str, State], None]] = []

    def take(self, job: Job) -> None:
        """Go on with this job, keeping scenes in its folder."""
        self.rules, self.settings = job.rules, job.settings
        self.baselines, self.published = job.baselines, job.published
        self.folder, self.save_every_seconds = job.folder, job.save_every_seconds

    def on_predict_start(self) -> None:
        if self.offload != "none" and not self.placed:
            place(self.priors.present, self.device, self.offload)
            self.placed = True

    @torch.no_grad()
    def predict_step(self, batch: Scene, batch_idx: int) -> SceneResult | None:
        if self.is_finished(batch):
            return None
        for start in self.starts:
            start(batch, batch_idx)
        folder = None if self.folder is None else self.folder / batch.name
        with journal(folder, input_of(batch), self.save_every_seconds, self.device) as passes:
            return self.sample_all(batch.observed(), passes)

    def is_finished(self, scene: Scene) -> bool:
        """Whether an earlier run of the same configuration finished it, as every process is told by
        the first."""
        folder = self.folder
        return folder is not None and from_first(
            lambda: is_finished(folder / scene.name, input_of(scene))
        )

    def sample_all(self, scene: Scene, passes: Journal) -> SceneResult:
        """The matrix of a scene, and the baselines that are sampled."""
        scene, orbits = self.reference(scene, passes.named("reference"))
        sampled = self.sample(scene, orbits, self.rules, "joint", passes.named("joint"))
        if not self.baselines:
            return SceneResult(sampled, {})
        columns, rows = (
            self.sample(
                scene,
                orbits,
                under_one_prior(self.rules, term),
                f"{term} alone",
                passes.named(term),
            )
            for term in ("multiview", "video")
        )
        matrices = (
            columns.matrix.pixels,
            rows.matrix.pixels,
            repeat_orbit(orbits[0], self.num_frames),
            show_input(scene.pixels, scene.cameras.num_views),
        )
        baselines: dict[str, Tensor] = dict(zip(BASELINES, matrices, strict=True))
        if self.published is not None:
            run = passes.named(PUBLISHED)
            published = self.sample(scene, orbits, self.published, "published rule", run)
            baselines = {PUBLISHED: published.matrix.pixels, **baselines}
        return SceneResult(sampled, baselines)

    def sample(
        self, scene: Scene, orbits: Tensor, rules: Rules, name: str, run: Run = straight
    ) -> Sampled:
        """One pass of joint sampling."""
        told = partial(self.tell, name)
        return sample_scene(
            scene, self.priors, rules, self.settings, orbits=orbits, on_step=told, run=run
        )

    def reference(self, scene: Scene, run: Run = straight) -> tuple[Scene, Tensor]:
        """The scene as a whole clip, and the orbits of its anchor frames: a v 3 h w."""
        if self.references is None:
            return self.make_reference(scene, run)
        rank, _ = place_of_process()
        whose = launch.worker()[0] or self.global_rank - rank  # a group's, or a worker's
        file = self.references / f"{whose}" / f"{scene.name}.{scene.seed}.safetensors"
        kept = from_first(lambda: read_tensors(file)[0] if file.exists() else {})
        if kept:
            return scene._replace(pixels=kept["clip"].to(self.device)), kept["orbits"].to(
                self.device
            )
        made, orbits = self.make_reference(scene, run)
        if rank == 0:
            write_tensors(file, {"clip": made.pixels, "orbits": orbits}, {})
        return made, orbits

    def make_reference(self, scene: Scene, run: Run = straight) -> tuple[Scene, Tensor]:
        """Sample what `reference` gives."""
        settings, rules, given = self.reference_settings, self.reference_rules, scene.pixels
        if len(scene.pixels) == 1 and self.num_frames > 1:
            clip = make_clip(
                scene.pixels[0], self.num_frames, scene.seed, self.priors, rules, settings, run=run
            )
            scene = scene._replace(pixels=clip)
        # what was given, not what was made of it
        pictures = torch.cat([given, scene.pixels[len(given) :]])
        told = (pictures, scene.cameras, scene.seed, self.priors, rules, settings)
        return scene, make_orbits(*told, run=run, others=scene.others)

    def tell(self, name: str, state: State) -> None:
        for listener in self.listeners:
            listener(name, state)

    @torch.no_grad()
    def ceiling(
        self,
        pixels: Tensor,  # v f 3 h w
    ) -> Tensor:
        """The truth through the autoencoder and back: the most that any sampler reaches in this
        latent space."""
        latents = self.priors.first_stage.encode(to_images(pixels.to(self.device)).flatten(0, 1))
        images = self.priors.first_stage.decode(latents, num_frames=pixels.shape[1])
        return to_pixels(images).unflatten(0, pixels.shape[:2])

    def transfer_batch_to_device(
        self, batch: Scene, device: torch.device, dataloader_idx: int
    ) -> Scene:
        """The input goes to the device, the truth stays where it is."""
        return batch._replace(pixels=batch.pixels.to(device), masks=batch.masks.to(device))

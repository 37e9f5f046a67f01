"""From a clip to a saved matrix in three lines of Python, with the defaults of `d2 sample`.

sampler = d2.load()
matrix = sampler("my_clip.mp4", seed=0)
matrix.save("outputs/mine")
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from d2.config import command_line
from d2.config.checks import check
from d2.data.sources import SEED_STRIDE, list_scenes
from d2.errors import InputError
from d2.files import absolute
from d2.io import write_matrix
from d2.job import Job
from d2.matrix import ImageMatrix
from d2.networks import load_priors
from d2.priors.placement import place
from d2.resolve import resolve
from d2.rules.bundle import Rules
from d2.sample.matrix_sampler import MatrixSampler
from d2.sampling import Composition, State
from d2.scene import Scene

RULES = {
    "renoise": "renoise",
    "weights": "weights",
    "guidance": "guidance",
    "composition": "compose",
    "solver": "solver",
}


class SampledMatrix(ImageMatrix):
    """An `ImageMatrix`, pixels v f 3 h w in [0, 1] with their cameras, that can be saved."""

    __slots__ = ()

    def save(self, folder: str | Path) -> None:
        """Write tensors, rows as videos and pictures, grid, preview and cameras; an earlier
        `folder` is replaced."""
        write_matrix(Path(folder), self, None, {})


@dataclass(frozen=True)
class Sampler:
    """Frozen priors under rules and settings. It samples as many scenes as one likes; `load` makes
    one."""

    job: Job
    module: MatrixSampler
    device: torch.device

    @property
    def rules(self) -> Rules:
        """The functions that the sampler runs under."""
        return self.module.rules

    @torch.no_grad()
    def __call__(
        self,
        scene: str | Path | Scene | None = None,
        *,
        seed: int | None = None,
        on_step: Callable[[State], None] | None = None,
    ) -> SampledMatrix:
        """Sample the matrix of a video, a picture, a folder of frames or a `Scene`; of the
        configured scene if of None.

        Of a scene, only what a sampler may see is used. `seed` shifts every noise stream, as the
        key `seed` does; None takes the configured one. `on_step` sees the state after every step of
        the joint sampling. What the user can mend is an InputError with one line.
        """
        seed = self.job.seed if seed is None else seed
        if isinstance(scene, Scene):
            scene = scene._replace(seed=scene.seed + SEED_STRIDE * seed)
        else:
            scene = self._read(scene, seed)
        module = self.module
        given = module.transfer_batch_to_device(scene.observed(), self.device, 0)
        module.listeners[:] = [] if on_step is None else [lambda name, state: on_step(state)]
        whole, orbits = module.reference(given)
        matrix = module.sample(whole, orbits, module.rules, "joint").matrix
        latents = None if matrix.latents is None else matrix.latents.cpu()
        return SampledMatrix(matrix.pixels.cpu(), matrix.cameras, matrix.fps, latents)

    def _read(self, path: str | Path | None, seed: int) -> Scene:
        source = self.job.source._replace(seed=seed)
        if path is not None:
            source = source._replace(kind="folder", path=absolute(path), first=0, count=None)
        found = list_scenes(source)
        if len(found) != 1:
            names = ", ".join(scene.name for scene in found)
            raise InputError(
                f"{path or source.kind}: holds {len(found)} scenes ({names}); give one of them"
            )
        return found[0].read()


def load(*words: str, **choices: Any) -> Sampler:
    """A sampler with the defaults of `d2 sample`.

    `words` are those of the command line ("preset=official", "sampler.num_steps=10"); a later one
    wins. `choices` are the same by name (`weights="linear"`, `precision="bf16"`), or rules as
    functions (`weights=my_rule`), each with the arguments that docs/adding-a-rule.md lists. The
    priors go to the GPU where there is one and `trainer` allows it. What the user can mend is an
    InputError with one line.
    """
    functions = {
        key: value
        for key, value in choices.items()
        if callable(value) or isinstance(value, Composition)
    }
    unknown = sorted(functions.keys() - RULES.keys())
    if unknown:
        raise InputError(
            f"{unknown[0]}: no rule of that name; functions are taken as {', '.join(RULES)}"
        )
    job = _job(
        [*words, *(f"{key}={_written(choices[key])}" for key in choices if key not in functions)]
    )
    rules = job.rules._replace(**{RULES[key]: function for key, function in functions.items()})
    job = replace(job, rules=rules, reference=(rules, job.settings))
    module = MatrixSampler(job, load_priors(job.networks))
    wants_gpu = job.devices.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if wants_gpu else "cpu")
    if job.offload == "none":
        module.to(device)
    else:
        place(module.priors.present, device, job.offload)
    return Sampler(job, module, device)


def _job(words: list[str]) -> Job:
    """The job of `d2 sample` under these words."""
    command_line.start_clock()
    try:
        composed = command_line.composed("sample", command_line.readable(words))
    except command_line.ERRORS as error:
        raise InputError(command_line.one_line(error)) from error
    check(composed.config)
    return resolve(composed.config, composed.text, composed.name, composed.label)


def _written(value: Any) -> str:
    """A value as one writes it on the command line."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)

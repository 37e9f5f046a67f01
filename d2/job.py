"""One run of `d2 sample` as a frozen value: all that was decided before it begins, and every file
by its whole path.

`d2/resolve.py` makes jobs of configurations. A single run is a list of one job, a study of one a
variant and seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from d2.config.names import Label
from d2.config.recipe import Recipe
from d2.data import world4d
from d2.data.sources import SceneSource
from d2.matrix import MatrixSize
from d2.networks import Networks, weights_hashes
from d2.rules.bundle import Rules
from d2.settings import Devices, Logging, Metrics, Settings

if TYPE_CHECKING:
    from d2.recon.motion import Motion

# what needs no joint sampling, beside it
BASELINES = ("columns_alone", "rows_alone", "repeat_orbit", "show_input")
PUBLISHED = "published_rule"  # a baseline of a single run under other rules


class Assets(NamedTuple):
    """Scenes of moving Gaussians to be fitted to a run's matrices."""

    recipe: Recipe
    motion: Motion
    required: bool  # else one that cannot be made is said in one line


@dataclass(frozen=True)
class Job:
    """One variant under one seed, sampled over the scenes of one source into one folder."""

    variant: str  # what its results go by
    seed: int
    folder: Path
    config: str  # YAML
    told: Mapping[str, Any]  # the same as plain values, for loggers
    label: Label
    size: MatrixSize
    networks: Networks
    offload: str  # none | idle | sequential: what of the networks waits in host memory
    compile: bool  # whether UNets go through torch.compile
    rules: Rules
    settings: Settings
    # under which orbits and clips are made: those of the study's base
    reference: tuple[Rules, Settings]
    source: SceneSource
    metrics: Metrics | None  # None: nothing is measured
    baselines: bool  # sample columns alone and rows alone too
    published: Rules | None  # sampled beside them where the job's own rules are others
    pages: bool
    save_every_seconds: float  # of a scene that is being sampled; 0: never
    overwrite: bool  # remove what another configuration left in the folder
    devices: Devices
    logging: Logging
    assets: Assets | None  # made of every matrix at the end of a single run

    @cached_property
    def facts(self) -> dict[str, str]:
        """What results depend on besides: the hashes of the weights, and the world's version."""
        world = {"world": world4d.WORLD_VERSION} if self.source.has_truth else {}
        return weights_hashes(self.networks) | world

    @property
    def text(self) -> str:
        """The configuration as it is kept beside results, with the facts behind it."""
        return self.config + "".join(f"# {name}: {value}\n" for name, value in self.facts.items())

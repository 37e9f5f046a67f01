"""What a rule costs: the cells that go through a network, each half of guidance for itself.

The job's own code runs, on pictures of a few pixels and with networks that count and say nothing.
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from d2.matrix import camera_ring
from d2.pipeline import Rules, sample_scene, under_one_prior
from d2.priors.prior import Condition
from d2.scene import Scene
from d2.shard import by_itself
from d2.terms import Priors, Settings

SIZE = 4  # pixels of a side, which are the latents' too


class Counting(nn.Module):
    """Stands in for a prior: says that everything is nothing, and counts the cells it was asked about."""

    encoder = decoder = None
    sigma_range = (0.0, math.inf)

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scalars=(("cond_aug", 1),))
        self.cells = 0

    def condition(self, images: Tensor, noise: Tensor, scalars: Any, length: int, encoder: Any) -> Any:
        told = Condition(*(images.new_zeros(len(images), length, 1) for _ in Condition._fields))
        return told, told

    def forward(
        self,
        x: Tensor,  # b t c h w
        sigma: Tensor,  # b t
        *_: Any,
    ) -> Tensor:
        self.cells += x.shape[0] * x.shape[1]
        return torch.zeros_like(x)


class Through(nn.Module):
    """Stands in for the first stage: latents are the pictures."""

    config = SimpleNamespace(channels=3, factor=1)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return images

    def decode(self, latents: Tensor, num_frames: int = 1) -> Tensor:
        return latents


def cell_evaluations(rules: Rules, settings: Settings, num_views: int, num_frames: int) -> int:
    """Cells through networks in one joint sampling; a cell with both halves of guidance counts twice."""
    networks = [Counting(), Counting(), Counting()]
    priors = Priors(networks[0], networks[1], Through(), networks[2])  # type: ignore[arg-type]
    clip = torch.zeros(num_frames, 3, SIZE, SIZE)
    scene = Scene("cost", 0, clip, clip[:, :1], camera_ring(num_views), 1.0)
    orbits = torch.zeros(len(settings.anchor_frames), num_views, 3, SIZE, SIZE)
    with by_itself():
        sample_scene(scene, priors, rules, settings, orbits=orbits)
    return sum(network.cells for network in networks)


def of_methods(
    rules: Rules, settings: Settings, num_views: int, num_frames: int, *, baselines: bool
) -> dict[str, float]:
    """By the name under which metrics.csv knows a method; of the baselines those that sample."""
    cost = partial(cell_evaluations, settings=settings, num_views=num_views, num_frames=num_frames)
    methods = {"joint": rules}
    if baselines:
        methods["columns_alone"] = under_one_prior(rules, "multiview")
        methods["rows_alone"] = under_one_prior(rules, "video")
    return {name: float(cost(one)) for name, one in methods.items()}

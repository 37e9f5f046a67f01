"""One moment from many cameras by a camera prior alone: anchors first, and then what lies between
them.

The path of Stable Virtual Camera's published program (arXiv 2503.14489, section 4.3) on this
house's sampler.

Axes: k known pictures, v views, t cells of a forward, c h w. Images are in [-1, 1].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from d2.cameras import Rig
from d2.matrix import columns
from d2.passes import Run, straight
from d2.priors import chunks, rays
from d2.priors.camera_prior import CameraCondition, CameraPrior, camera_denoiser
from d2.priors.chunks import Forward
from d2.priors.discrete_levels import own_plan, own_sigmas
from d2.sampling import State, Step, Term, initial_x, sample_matrix, weighted_sum

Chunks = list[list[chunks.Slot]]
Coder = Callable[[Tensor], Tensor]  # images n 3 H W to latents n c h w, or back


class Noise(Protocol):
    """Unit noise of a forward: what it starts from (step None), or what is added before a step."""

    def __call__(self, forward: int, step: int | None, *, length: int) -> Tensor:  # length c h w
        ...


class Recipe(NamedTuple):
    """How views are made; the numbers are those the authors recommend for a single picture and a
    path."""

    num_steps: int = 50
    length: tuple[int, int] = (21, 21)  # cells of a forward, of the anchors' pass and of the second
    alone: str = "nearest-gt"  # how a scene of one pass is cut into forwards
    first: str = "gt-nearest"  # how the anchors are
    second: str = "interp"  # and what lies between them
    scale: tuple[float, float] = (4.0, 2.0)  # guidance of both passes; of one pass alone the first
    low: float = 1.2  # guidance of cells as good as known
    camera_scale: float = rays.CAMERA_SCALE


class Made(NamedTuple):
    """What one forward made."""

    pass_: Literal[1, 2]
    forward: Forward
    condition: CameraCondition  # of the one sequence
    poses: Tensor  # t 4 4, normalised
    scales: Tensor  # t
    latents: Tensor  # t c h w


class Views(NamedTuple):
    """The pictures of the targets, and of the anchors where there were two passes."""

    images: Tensor  # n 3 H W
    anchors: Tensor | None  # a 3 H W


def make_views(
    prior: CameraPrior,
    encode: Coder,
    decode: Coder,
    pictures: Tensor,  # k 3 H W, of the inputs
    inputs: Rig,
    targets: Rig,
    recipe: Recipe,
    noise: Noise,
    *,
    two_passes: bool | None = None,  # None: where one forward does not hold all
    on_forward: Callable[[Made], None] | None = None,
    on_step: Callable[[State], None] | None = None,
    run: Run = straight,
) -> Views:
    """Pictures of all targets; where they are more than fit into one forward, anchors among them
    are made first."""
    m, n = len(pictures), len(targets.poses)
    two_passes = m + n > recipe.length[0] if two_passes is None else two_passes
    scene = torch.cat([inputs.poses, targets.poses])
    numbers = itertools.count()

    def make(
        cut: Chunks, known: Tensor, givers: Rig, wanted: Rig, length: int, pass_: Literal[1, 2]
    ) -> Tensor:
        made: dict[int, Tensor] = {}
        for forward in chunks.forwards(cut, length):
            # what was made can be told
            every = torch.cat([known, *(made[i][None] for i in sorted(made))])
            told = every[[slot.index for slot in forward.slots if slot.known]]
            rig, flags = rig_of(forward, givers, wanted), torch.tensor(forward.known)
            condition, poses = bind_views(
                prior, encode, told[None], forward.known, rig, scene, recipe
            )
            by = rays.scale_by_camera if pass_ == 1 else rays.scale_by_order
            scales = by(poses, rig.intrinsics, flags, scale=recipe.scale[pass_ - 1], low=recipe.low)
            of_forward = partial(noise, next(numbers), length=length)
            latents = sample_forward(
                prior, condition, scales, recipe.num_steps, of_forward, on_step=on_step, run=run
            )
            if on_forward:
                on_forward(Made(pass_, forward, condition, poses, scales, latents))
            for slot, own, image in zip(forward.slots, forward.own, decode(latents), strict=True):
                if own and not slot.known:
                    made[slot.index] = image
        return torch.stack([made[i] for i in range(len(wanted.poses))])

    if not two_passes:
        cut = chunks.cut_into_chunks(
            recipe.alone, recipe.length[0], *poses_of(inputs, targets), always=range(m)
        )
        return Views(make(cut, pictures, inputs, targets, recipe.length[0], 1), None)
    plan = chunks.count_anchors(recipe.second, recipe.length, m, n)
    orders = chunks.along_path(plan.count, m, n)
    among = targets.take([round(order) - m for order in orders])  # half to even
    cut = chunks.cut_into_chunks(
        recipe.first, plan.first, *poses_of(inputs, among), always=range(m)
    )
    anchors = make(cut, pictures, inputs, among, plan.first, 1)
    givers = joined(inputs, among)
    cut = chunks.cut_into_chunks(
        recipe.second,
        plan.second,
        *poses_of(givers, targets),
        always=range(m),
        # where the inputs stand on the path is not known
        input_orders=[*([math.nan] * m), *orders],
        target_orders=range(m, m + n),
    )
    return Views(
        make(cut, torch.cat([pictures, anchors]), givers, targets, plan.second, 2), anchors
    )


def poses_of(*rigs: Rig) -> list[Tensor]:
    return [rig.poses for rig in rigs]


def joined(*rigs: Rig) -> Rig:
    return Rig(*(torch.cat(parts) for parts in zip(*rigs, strict=True)))


def rig_of(forward: Forward, inputs: Rig, targets: Rig) -> Rig:
    """The cameras of a forward's slots; inputs may be followed by targets made before."""
    m = len(inputs.poses)
    return joined(inputs, targets).take(
        [slot.index if slot.known else m + slot.index for slot in forward.slots]
    )


@torch.no_grad()
def bind_views(
    prior: CameraPrior,
    encode: Coder,
    pictures: Tensor,  # b k 3 H W, of the known cells in their order
    known: Sequence[bool],  # t, the same in all sequences
    rig: Rig,  # of the t cells
    scene: Tensor,  # v 4 4, poses of all cameras there are
    recipe: Recipe = Recipe(),  # noqa: B008  a tuple of numbers
) -> tuple[CameraCondition, Tensor]:
    """What sequences that share their cameras are told; and the normalised poses, t 4 4."""
    (b, k), places = pictures.shape[:2], [i for i, flag in enumerate(known) if flag]
    assert k == len(places)
    latents = encode(pictures.flatten(0, 1)).unflatten(0, (b, k)).to(pictures)
    c, h, w = latents.shape[2:]
    clean, mask = (
        latents.new_zeros(b, len(known), c, h, w),
        latents.new_zeros(b, len(known), 1, h, w),
    )
    clean[:, places], mask[:, places] = latents, 1.0
    poses = prior.placed(scene, rig.poses, recipe.camera_scale)
    every = rays.pluecker(poses, rig.intrinsics, h, w).to(latents).expand(b, -1, -1, -1, -1)
    crossattn = prior.embed(pictures)[:, None, None].expand(-1, len(known), -1, -1)
    return CameraCondition(crossattn, clean, mask, every), poses


def sample_forward(
    prior: CameraPrior,
    condition: CameraCondition,  # of one sequence
    scales: Tensor,  # t, guidance
    num_steps: int,
    noise: Callable[[int | None], Tensor],
    *,
    plan: Sequence[Step] | None = None,  # None: the published one
    on_step: Callable[[State], None] | None = None,
    run: Run = straight,
) -> Tensor:
    """The latents of one forward by the prior's own sampler: t c h w."""
    t = condition.rays.shape[1]
    sample = partial(
        sample_matrix,
        terms=[Term("multiview", columns(t, 1), camera_denoiser(prior, condition))],
        guidance=lambda *_: {"multiview": scales[:, None]},
        compose=weighted_sum,
        noise=lambda step, when: noise(step.index)[:, None],
    )
    x = initial_x(noise(None), own_sigmas(num_steps)[0])[:, None]
    return run(sample, x, own_plan(num_steps) if plan is None else plan, on_step, {})[:, 0]

"""From a scene to its image matrix: orbit or clip of reference, conditions, noise, joint sampling,
decoding.

Plain Python: no configuration, no Lightning, no files. Axes: v views, f frames, c h w; pixels are
in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from d2.errors import InputError
from d2.matrix import Cameras, ImageMatrix
from d2.noise import Stream, draw
from d2.particles import SEED_STRIDE, choose
from d2.passes import Run, Sample, Trace, straight
from d2.priors.prior import dtype_of
from d2.reference import decode, latent_shape, make_orbits, shard_of
from d2.rules.bundle import Rules
from d2.rules.choosing import PAIR, Judge
from d2.rules.composition import disagreement, holding
from d2.sampling import State, Step, Term, in_range, initial_x, sample_matrix
from d2.scene import Known, Scene
from d2.terms import Draw, Priors, Settings, joint_terms, to_images


class Sampled(NamedTuple):
    """What the job makes of one scene."""

    matrix: ImageMatrix
    # a v 3 h w, the sampled orbits of the anchor frames, the input picture in its own view
    orbits: Tensor
    clip: Tensor  # f 3 h w, the input clip, or the one made of a single picture
    disagreement: Disagreement


class Disagreement(NamedTuple):
    """How far rows and columns were from each other at every evaluation that asked both."""

    sigma: Tensor  # n, float64
    # n v f, root mean square of row minus column; NaN where the rule weighs but one of them
    distance: Tensor


def sample_scene(
    scene: Scene,
    priors: Priors,
    rules: Rules,
    settings: Settings,
    *,
    orbits: Tensor | None = None,  # a v 3 h w, to share them between variants
    noise: Draw | None = None,  # None: the named streams of the scene's seed
    on_step: Callable[[State], None] | None = None,
    run: Run = straight,
) -> Sampled:
    """Sample the V × F matrix of a scene; of a single picture, `make_clip` makes the clip first."""
    assert scene.truth is None, "a sampler is given scene.observed()"
    cameras, clip = scene.cameras, scene.pixels
    noise = noise or partial(draw, scene.seed)
    if orbits is None:
        given = (clip, cameras, scene.seed, priors, rules, settings)
        orbits = make_orbits(*given, noise=noise, run=run, others=scene.others)
    latent = latent_shape(priors, clip)
    shape = (cameras.num_views, len(clip), *latent)
    terms = joint_terms(clip, orbits, cameras, noise, priors, settings, scene.others)
    sigma, plan = spoken(
        rules.renoise(settings.sigmas), settings.sigmas[0], terms, rules, cameras, len(clip)
    )
    known, where = known_cells(clip, orbits, cameras, priors, settings, scene.others)
    compose = (
        holding(compose=rules.compose, known=known, where=where) if where.any() else rules.compose
    )

    def noise_of(particle: int) -> Draw:
        return partial(draw, scene.seed + SEED_STRIDE * particle) if particle else noise

    def start(particle: int) -> Tensor:
        unit = noise_of(particle)("init", shape).to(clip)
        if settings.start == "noise":
            return initial_x(unit, sigma)
        orbit = to_images(orbits[0])
        z = priors.first_stage.encode(
            orbit, noise("orbit", (len(orbit), *latent), step=-1).to(clip)
        )
        return z[:, None] + sigma * unit

    def see(trace: Trace) -> Callable[[State], None]:
        def seen(state: State) -> None:
            distance = disagreement(state)
            if distance is not None:
                trace["sigma"].append(torch.tensor(state.step.sigma, dtype=torch.float64))
                trace["distance"].append(distance.masked_fill(where.to(clip.device), torch.nan))
            if on_step:
                on_step(state)

        return seen

    def sample(particle: int) -> Sample:
        own = noise_of(particle)

        def of_step(step: Step, when: Literal["before", "after"]) -> Tensor:
            stream: Stream = "churn" if when == "before" else "renoise"
            return own(stream, shape, step=step.index, repeat=step.repeat).to(clip)

        return partial(
            sample_matrix,
            terms=terms,
            cameras=cameras,
            weights=rules.weights,
            guidance=rules.guidance,
            compose=compose,
            solver=rules.solver,
            shard=shard_of(settings),
            noise=of_step,
        )

    if rules.choose is None:
        trace: Trace = {"sigma": [], "distance": []}
        latents = run(sample(0), start(0), plan, see(trace), trace)
    else:
        judge = judge_of(sample(0), terms, len(plan), noise, shape, priors, settings)
        numbers = partial(uniform, scene.seed)
        latents, trace, _ = choose(rules.choose, start, sample, plan, see, judge, run, numbers)
    pixels = decode(latents, priors.first_stage, settings.decode_chunk)
    apart = disagreements(trace, latents)
    return Sampled(ImageMatrix(pixels, cameras, scene.fps, latents), orbits, clip, apart)


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) of a name of its own, for the resampling before a step."""
    return float(
        torch.special.ndtr(draw(seed, "resampling", (1,), step=step).double()).clamp(max=1 - 1e-9)
    )


def judge_of(
    sample: Sample,
    terms: Sequence[Term],
    num_steps: int,
    noise: Draw,
    shape: tuple[int, ...],
    priors: Priors,
    settings: Settings,
) -> Judge:
    """What scores may ask of a scene's terms, under the rules of the plan's last step."""
    every = torch.ones(shape[:2], dtype=torch.bool)
    shard, pair = shard_of(settings), [term for term in terms if term.name in PAIR]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return sample(x, [Step(num_steps - 1, num_steps, 0, 1, sigma, 0.0)])

    def features(x: Tensor) -> Tensor:
        images = to_images(decode(x, priors.first_stage, settings.decode_chunk)).flatten(0, 1)
        tower = priors.video.tower
        parts = [
            tower(part.to(dtype_of(tower))).float() for part in images.split(settings.encode_chunk)
        ]
        return torch.cat(parts).unflatten(0, shape[:2])

    return Judge(
        ask=lambda x, sigma, uncond: {
            term.name: shard(term, x, sigma, (every & uncond, every)) for term in pair
        },
        denoise=denoise,
        noise=lambda k: noise("score", shape, step=k),
        features=features,
    )


def disagreements(trace: Trace, latents: Tensor) -> Disagreement:
    """What a pass noted of each step, as tensors; those of no steps where no step asked both."""
    if not trace["sigma"]:
        return Disagreement(torch.zeros(0, dtype=torch.float64), torch.zeros(0, *latents.shape[:2]))
    return Disagreement(torch.stack(trace["sigma"]), torch.stack(trace["distance"]))


def spoken(
    plan: Sequence[Step],
    sigma: float,  # the plan's first level
    terms: Sequence[Term],
    rules: Rules,
    cameras: Cameras,
    num_frames: int,
) -> tuple[float, list[Step]]:
    """The level that sampling starts at, and the steps at whose levels some prior with a share says
    something.

    A prior alone is asked at the levels of its range: sampling starts at the first of them and ends
    after the last.
    """

    def speaks(step: Step) -> bool:
        weights = rules.weights(step, cameras, num_frames)
        return any(
            in_range(t, step.sigma) and bool(weights[t.name].any())
            for t in terms
            if t.name in weights
        )

    steps = list(plan)
    if all(in_range(term, step.sigma) for term in terms for step in steps):
        return sigma, steps
    kept = [step for step in steps if speaks(step)]
    if not kept or kept == steps:
        return sigma, steps
    kept[-1] = kept[-1]._replace(sigma_next=steps[-1].sigma_next, noise_after=0.0)
    return sigma if kept[0] is steps[0] else kept[0].sigma, kept


@torch.no_grad()
def known_cells(
    clip: Tensor,  # f 3 h w
    orbits: Tensor,  # a v 3 h w
    cameras: Cameras,
    priors: Priors,
    settings: Settings,
    others: Known | None = None,
) -> tuple[Tensor, Tensor]:
    """What is known of the matrix before it is sampled: its latents (matrix) and where (v f,
    bool)."""
    v, f = cameras.num_views, len(clip)
    known = clip.new_zeros(v, f, *latent_shape(priors, clip))
    where = torch.zeros(v, f, dtype=torch.bool)
    unknown = set(settings.hold) - {"input_row", "reference_column"}
    if unknown:
        raise InputError(
            f"sampler.hold={sorted(unknown)}: choose from [input_row, reference_column]"
        )
    if "reference_column" in settings.hold:
        for anchor, orbit in zip(settings.anchor_frames, orbits, strict=True):
            known[:, anchor] = priors.first_stage.encode(to_images(orbit))
            where[:, anchor] = True
    if "input_row" in settings.hold:
        rows = [(cameras.input_view, clip), *([] if others is None else zip(*others, strict=True))]
        for view, pixels in rows:
            known[view] = priors.first_stage.encode(to_images(pixels))
            where[view] = True
    return known, where

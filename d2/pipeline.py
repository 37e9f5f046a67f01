"""From a scene to its image matrix: orbit or clip of reference, conditions, noise, joint sampling,
decoding.

Plain Python: no configuration, no Lightning, no files. Axes: v views, f frames, c h w; pixels are
in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from d2.errors import InputError
from d2.matrix import Cameras, ImageMatrix, camera_ring, put, rig_of, take
from d2.noise import Stream, draw
from d2.particles import SEED_STRIDE, choose
from d2.passes import Run, Sample, Trace, straight
from d2.priors.camera_prior import CameraPrior
from d2.priors.first_stage import FirstStage
from d2.priors.prior import dtype_of
from d2.rules.choosing import PAIR, Choosing, Judge
from d2.rules.composition import convex, disagreement, holding, linear
from d2.rules.frequency import LowPass, low_pass, reinitialised
from d2.rules.renoise import none as once
from d2.rules.weights import alone
from d2.sampling import (
    Combine,
    Composition,
    Prediction,
    Schedule,
    Shard,
    Solver,
    State,
    Step,
    Term,
    finite,
    in_range,
    initial_x,
    sample_matrix,
)
from d2.scene import Known, Scene
from d2.shard import make_shard, spread
from d2.terms import Draw, Priors, Settings, joint_terms, multiview_term, to_images, video_term
from d2.views import Recipe, make_views

# motion_bucket_id told for a single picture, whose motion cannot be measured: the mean of world4d
STILL_MOTION = 50.0


class Rules(NamedTuple):
    """What an ablation swaps."""

    renoise: Callable[[Sequence[float]], list[Step]]
    weights: Schedule
    guidance: Schedule
    compose: Composition | Combine
    solver: Solver
    low_pass: LowPass = low_pass  # what a further pass of a reference keeps of the pass before
    choose: Choosing | None = None  # among several particles; None: there is one


def under_one_prior(rules: Rules, term: str) -> Rules:
    """The same plan, guidance and solver, with one term in all cells: columns alone, rows alone."""
    return rules._replace(
        weights=partial(alone, term=term), compose=linear(coefficients=convex), choose=None
    )


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


def make_orbits(
    clip: Tensor,  # f 3 h w
    cameras: Cameras,
    seed: int,
    priors: Priors,
    rules: Rules,
    settings: Settings,
    *,
    noise: Draw | None = None,
    on_step: Callable[[State], None] | None = None,
    run: Run = straight,
    others: Known | None = None,
) -> Tensor:
    """The orbits of settings.anchor_frames, under the same noise: a v 3 h w."""
    for anchor in settings.anchor_frames:
        if not 0 <= anchor < len(clip):
            raise InputError(
                f"scenes.anchor_frame={anchor}: the clip has frames 0 to {len(clip) - 1}"
            )
    make = partial(
        make_orbit,
        priors=priors,
        rules=rules,
        settings=settings,
        noise=noise,
        on_step=on_step,
        run=run,
    )

    def known_at(anchor: int) -> Known | None:
        return (
            None
            if others is None
            else others._replace(pixels=others.pixels[:, anchor : anchor + 1])
        )

    anchors = settings.anchor_frames
    return torch.stack(
        [make(clip[anchor], cameras, seed, others=known_at(anchor)) for anchor in anchors]
    )


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


def make_orbit(
    picture: Tensor,  # 3 h w
    cameras: Cameras,
    seed: int,
    priors: Priors,
    rules: Rules,
    settings: Settings,
    *,
    noise: Draw | None = None,
    on_step: Callable[[State], None] | None = None,
    run: Run = straight,
    others: Known | None = None,  # of one frame
) -> Tensor:
    """The orbit of one picture by the multi-view prior alone, what is known itself in its own
    views: v 3 h w.

    A prior with a sampler of its own makes it by that, and a long path by anchors.
    """
    # one column has no neighbours
    noise, settings = noise or partial(draw, seed), replace(settings, conv_blend=None)
    prior = priors.multiview
    if isinstance(prior, CameraPrior) and prior.config.levels == "table":
        pixels = make_path(prior, picture, cameras, priors, settings, noise, others, on_step, run)
    else:
        shape = (cameras.num_views, 1, *latent_shape(priors, picture[None]))
        latents = sample_one_axis(
            lambda k: noise("orbit", shape, step=k).to(picture),
            multiview_term(picture[None], cameras, noise, priors, settings, others),
            cameras,
            rules,
            settings,
            on_step=on_step,
            run=run,
        )
        pixels = decode(latents, prior.decoder or priors.first_stage)[:, 0]
    pixels[cameras.input_view] = picture
    if others is not None:
        pixels[list(others.views)] = others.pixels[:, 0]
    return pixels


def make_path(
    prior: CameraPrior,
    picture: Tensor,  # 3 h w
    cameras: Cameras,
    priors: Priors,
    settings: Settings,
    noise: Draw,
    others: Known | None,
    on_step: Callable[[State], None] | None,
    run: Run,
) -> Tensor:
    """A path's pictures by a camera prior's own sampler; zeros in known views: v 3 h w."""
    views, pictures = [cameras.input_view], picture[None]
    if others is not None:
        views, pictures = [*views, *others.views], torch.cat([pictures, others.pixels[:, 0]])
    rest, rig = [view for view in range(cameras.num_views) if view not in views], rig_of(cameras)
    latent, stage = latent_shape(priors, pictures), prior.decoder or priors.first_stage

    def of_forward(forward: int, step: int | None, *, length: int) -> Tensor:
        return noise(
            "orbit", (length, *latent), step=forward, repeat=0 if step is None else 1 + step
        ).to(picture)

    made = make_views(
        prior,
        priors.first_stage,
        stage.decode,
        to_images(pictures),
        rig.take(views),
        rig.take(rest),
        Recipe(num_steps=settings.num_steps, second="interp" if len(views) == 1 else "interp-gt"),
        of_forward,
        on_step=on_step,
        run=run,
    )
    pixels = picture.new_zeros(cameras.num_views, *picture.shape)
    pixels[rest] = to_pixels(made.images)
    return pixels


def make_clip(
    picture: Tensor,  # 3 h w
    num_frames: int,
    seed: int,
    priors: Priors,
    rules: Rules,
    settings: Settings,
    *,
    noise: Draw | None = None,
    on_step: Callable[[State], None] | None = None,
    run: Run = straight,
) -> Tensor:
    """A clip that starts with a picture, by the video prior alone: f 3 h w."""
    noise = noise or partial(draw, seed)
    shape = (1, num_frames, *latent_shape(priors, picture[None]))
    still = repeat(picture, "c h w -> f c h w", f=num_frames)
    motion = STILL_MOTION if settings.motion_bucket_id is None else settings.motion_bucket_id
    whole = replace(settings, motion_bucket_id=motion, anchor_frames=(0,))
    term = video_term(picture[None, None], still, noise, priors, whole)
    latents = sample_one_axis(
        lambda k: noise("clip", shape, step=k).to(picture),
        term,
        camera_ring(1),
        rules,
        settings,
        on_step=on_step,
        run=run,
    )
    pixels = decode(latents, priors.first_stage, settings.decode_chunk)[0]
    if settings.keep_picture:
        pixels[0] = picture
    return pixels


def sample_one_axis(
    noise: Callable[[int], Tensor],  # pass -> unit noise, v f c h w with one of v, f equal to 1
    term: Term,
    cameras: Cameras,
    rules: Rules,
    settings: Settings,
    *,
    on_step: Callable[[State], None] | None = None,
    run: Run = straight,
) -> Tensor:
    """Plain sampling with one prior, in 1 + settings.reinit passes: latents v f c h w."""
    first = noise(0)
    rule = partial(
        sample_matrix,
        terms=[term],
        cameras=cameras,
        weights=lambda *step: {term.name: alone(*step, term=term.name)[term.name]},
        guidance=lambda *step: {term.name: rules.guidance(*step)[term.name]},
        compose=linear(coefficients=convex),
        solver=rules.solver,
        shard=shard_of(settings),
        noise=lambda step, when: torch.zeros_like(first),
    )

    def sample(x: Tensor) -> Tensor:
        return run(rule, initial_x(x, settings.sigmas[0]), once(settings.sigmas), on_step, {})

    def sequence(x: Tensor) -> Tensor:
        return rearrange(x, "v f c h w -> c (v f) h w")

    latents = sample(first)
    for k in range(settings.reinit):
        of_pass = [sequence(x) for x in (latents, first, noise(k + 1))]
        again = reinitialised(*of_pass, settings.sigmas[0], rules.low_pass(of_pass[0].shape[1:]))
        latents = sample(rearrange(again, "c (v f) h w -> v f c h w", v=len(first)))
    return latents


def shard_of(settings: Settings) -> Shard:
    """Sequences are spread over calls and processes; but columns that see each other go through one
    call, on one."""
    spread_out = make_shard(sequences_per_call=settings.sequences_per_call)

    def shard(term: Term, x: Tensor, sigma: float, need: tuple[Tensor, Tensor]) -> Prediction:
        halves = (bool(need[0].any()), bool(need[1].any()))
        if settings.conv_blend is None or term.name != "multiview" or not any(halves):
            return spread_out(term, x, sigma, need)
        sequences = take(x, term.cut)

        def whole(_: Tensor) -> Tensor:
            prediction = term.denoise(sequences, sigma, torch.arange(len(sequences)), halves)
            return torch.stack([half for half in prediction if half is not None])[None]

        results = iter(spread(whole, 1)[0])
        return Prediction(
            *(put(next(results), term.cut, *x.shape[:2]) if half else None for half in halves)
        )

    return shard


@torch.no_grad()
def decode(
    latents: Tensor,  # v f c h w
    first_stage: FirstStage,
    chunk: int | None = None,  # frames at once; None: a whole row
) -> Tensor:
    """Pixels v f 3 h w, every rank decoding its share of the rows; a temporal decoder sees the
    frames of a chunk."""

    def row(index: Tensor) -> Tensor:
        clips = latents[index].flatten(0, 1).split(chunk or latents.shape[1])
        images = torch.cat([first_stage.decode(clip, num_frames=len(clip)) for clip in clips])
        return to_pixels(images).unflatten(0, (len(index), -1))

    pixels = spread(row, len(latents))
    if not finite(pixels):
        raise InputError(
            "the autoencoder: what it decodes is not finite; take other weights or"
            " trainer.precision=fp32"
        )
    return pixels


def latent_shape(priors: Priors, pixels: Tensor) -> tuple[int, int, int]:
    """c h w of the latents of pixels ... h w."""
    config = priors.first_stage.config
    return config.channels, pixels.shape[-2] // config.factor, pixels.shape[-1] // config.factor


def to_pixels(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], in float32."""
    return ((images.float() + 1) / 2).clamp(0, 1)

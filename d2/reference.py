"""The clip and the orbits of reference, each by one prior alone: what joint sampling is told.

Plain Python: no configuration, no Lightning, no files. Axes: v views, f frames, a anchor frames, c
h w; pixels are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from einops import rearrange, repeat
from torch import Tensor

from d2.errors import InputError
from d2.matrix import Cameras, camera_ring, put, rig_of, take
from d2.noise import draw
from d2.passes import Run, straight
from d2.priors.camera_prior import CameraPrior
from d2.priors.first_stage import FirstStage
from d2.rules.bundle import Rules
from d2.rules.composition import convex, linear
from d2.rules.frequency import reinitialised
from d2.rules.renoise import none as once
from d2.rules.weights import alone
from d2.sampling import Prediction, Shard, State, Term, finite, initial_x, sample_matrix
from d2.scene import Known
from d2.shard import make_shard, spread
from d2.terms import Draw, Priors, Settings, multiview_term, to_images, video_term
from d2.views import Recipe, make_views

# motion_bucket_id told for a single picture, whose motion cannot be measured: the mean of world4d
STILL_MOTION = 50.0


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
    check_anchors(settings.anchor_frames, len(clip))
    rest = {"noise": noise, "on_step": on_step, "run": run}
    orbits = []
    for anchor in settings.anchor_frames:
        known = others and others._replace(pixels=others.pixels[:, anchor : anchor + 1])
        given = (clip[anchor], cameras, seed, priors, rules, settings)
        orbits.append(make_orbit(*given, **rest, others=known))
    return torch.stack(orbits)


def check_anchors(anchors: Sequence[int], num_frames: int) -> None:
    """Raise an InputError for a frame that the clip does not have."""
    for anchor in anchors:
        if not 0 <= anchor < num_frames:
            raise InputError(
                f"scenes.anchor_frame={anchor}: the clip has frames 0 to {num_frames - 1}"
            )


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

"""From a scene to its image matrix: orbit or clip of reference, conditions, noise, joint sampling, decoding.

Plain Python: no configuration, no Lightning, no files. Axes: v views, f frames, c h w; pixels are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor

from d2.data.scene import Scene
from d2.matrix import Cameras, Cut, ImageMatrix, camera_ring, columns, put, rows, take
from d2.noise import Stream, draw
from d2.priors.first_stage import FirstStage
from d2.priors.prior import Condition, Prior, denoiser
from d2.priors.tiny import motion_bucket, polar_rad
from d2.rules.composition import convex, linear
from d2.rules.frequency import LowPass, low_pass, reinitialised
from d2.rules.renoise import none as once
from d2.rules.weights import alone
from d2.sampling import (
    Compose,
    Prediction,
    Schedule,
    Shard,
    Solver,
    State,
    Step,
    Term,
    initial_x,
    karras_sigmas,
    sample_matrix,
)
from d2.shard import make_shard, spread

STILL_MOTION = 50.0  # motion_bucket_id told for a single picture, whose motion cannot be measured: the mean of world4d


class Draw(Protocol):
    """Where noise comes from: `partial(draw, seed)`, or a record of it."""

    def __call__(self, stream: Stream, shape: tuple[int, ...], *, step: int = 0, repeat: int = 0) -> Tensor: ...


class Priors(NamedTuple):
    """The frozen networks of a run. Where a prior has no encoder or decoder of its own, the first stage serves."""

    video: Prior
    multiview: Prior
    first_stage: FirstStage


class Rules(NamedTuple):
    """What an ablation swaps."""

    renoise: Callable[[Sequence[float]], list[Step]]
    weights: Schedule
    guidance: Schedule
    compose: Compose
    solver: Solver
    low_pass: LowPass = low_pass  # what a further pass of a reference keeps of the pass before


@dataclass(frozen=True)
class Settings:
    """The plain numbers of sampling."""

    num_steps: int = 20
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    start: Literal["noise", "multiview"] = "noise"  # of the joint sampling: noise alone, or added to the orbit
    reinit: int = 0  # further passes of orbit and clip, each from noise that remembers the pass before (FreeInit)
    keep_picture: bool = True  # a clip made of a picture starts with the picture itself, not with the sampled frame
    conv_blend: float | None = None  # share of a column itself in what its pixels attend to; None: all, and alone
    azimuth_sign: Literal[1, -1] = 1  # -1 where the multi-view prior's azimuth grows clockwise seen from above
    sequences_per_call: int | None = None
    encode_chunk: int = 8  # pictures of reference encoded at once
    decode_chunk: int | None = None  # frames of a clip decoded at once, unseen by the others; None: all
    anchor_frame: int = 0
    video_cond_aug: float = 0.02
    multiview_cond_aug: float = 1e-5
    fps_id: float = 7.0
    motion_bucket_id: float | None = None  # None: measured on the clip

    @property
    def sigmas(self) -> list[float]:
        return karras_sigmas(self.num_steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)


class Sampled(NamedTuple):
    """What the job makes of one scene."""

    matrix: ImageMatrix
    orbit: Tensor  # v 3 h w, the sampled orbit of the anchor frame, the input picture in its own view
    clip: Tensor  # f 3 h w, the input clip, or the one made of a single picture


def sample_scene(
    scene: Scene,
    priors: Priors,
    rules: Rules,
    settings: Settings,
    *,
    orbit: Tensor | None = None,  # v 3 h w, to share one between variants
    noise: Draw | None = None,  # None: the named streams of the scene's seed
    on_step: Callable[[State], None] | None = None,
) -> Sampled:
    """Sample the V × F matrix of a scene; of a single picture, `make_clip` makes the clip first."""
    assert scene.truth is None, "a sampler is given scene.observed()"
    cameras, clip = scene.cameras, scene.pixels
    if not 0 <= settings.anchor_frame < len(clip):
        raise ValueError(f"scenes.anchor_frame={settings.anchor_frame}: the clip has frames 0 to {len(clip) - 1}")
    noise = noise or partial(draw, scene.seed)
    if orbit is None:
        picture = clip[settings.anchor_frame]
        orbit = make_orbit(picture, cameras, scene.seed, priors, rules, settings, noise=noise)
    latent = latent_shape(priors, clip)
    unit = noise("init", (cameras.num_views, len(clip), *latent)).to(clip)
    x = initial_x(unit, settings.sigmas[0])
    if settings.start == "multiview":
        z = priors.first_stage.encode(to_images(orbit), noise("orbit", (len(orbit), *latent), step=-1).to(x))
        x = z[:, None] + settings.sigmas[0] * unit

    def of_step(step: Step, when: Literal["before", "after"]) -> Tensor:
        stream: Stream = "churn" if when == "before" else "renoise"
        return noise(stream, tuple(x.shape), step=step.index, repeat=step.repeat).to(x)

    latents = sample_matrix(
        x,
        rules.renoise(settings.sigmas),
        terms=[
            video_term(orbit, clip, noise, priors, settings),
            multiview_term(clip, cameras, noise, priors, settings),
        ],
        cameras=cameras,
        weights=rules.weights,
        guidance=rules.guidance,
        compose=rules.compose,
        solver=rules.solver,
        shard=shard_of(settings),
        noise=of_step,
        on_step=on_step,
    )
    pixels = decode(latents, priors.first_stage, settings.decode_chunk)
    return Sampled(ImageMatrix(pixels, cameras, scene.fps, latents), orbit, clip)


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
) -> Tensor:
    """The orbit of one picture by the multi-view prior alone, the picture itself in its own view: v 3 h w."""
    noise, settings = noise or partial(draw, seed), replace(settings, conv_blend=None)  # one column has no neighbours
    shape = (cameras.num_views, 1, *latent_shape(priors, picture[None]))
    term = multiview_term(picture[None], cameras, noise, priors, settings)
    latents = sample_one_axis(
        lambda k: noise("orbit", shape, step=k).to(picture), term, cameras, rules, settings, on_step=on_step
    )
    pixels = decode(latents, priors.multiview.decoder or priors.first_stage)[:, 0]
    pixels[cameras.input_view] = picture
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
) -> Tensor:
    """A clip that starts with a picture, by the video prior alone: f 3 h w."""
    noise = noise or partial(draw, seed)
    shape = (1, num_frames, *latent_shape(priors, picture[None]))
    still = repeat(picture, "c h w -> f c h w", f=num_frames)
    motion = STILL_MOTION if settings.motion_bucket_id is None else settings.motion_bucket_id
    term = video_term(picture[None], still, noise, priors, replace(settings, motion_bucket_id=motion))
    latents = sample_one_axis(
        lambda k: noise("clip", shape, step=k).to(picture), term, camera_ring(1), rules, settings, on_step=on_step
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
) -> Tensor:
    """Plain sampling with one prior, in 1 + settings.reinit passes: latents v f c h w."""

    def sample(x: Tensor) -> Tensor:
        return sample_matrix(
            initial_x(x, settings.sigmas[0]),
            once(settings.sigmas),
            terms=[term],
            cameras=cameras,
            weights=lambda *step: {term.name: alone(*step, term=term.name)[term.name]},
            guidance=lambda *step: {term.name: rules.guidance(*step)[term.name]},
            compose=linear(coefficients=convex),
            solver=rules.solver,
            shard=shard_of(settings),
            noise=lambda step, when: torch.zeros_like(x),
            on_step=on_step,
        )

    def sequence(x: Tensor) -> Tensor:
        return rearrange(x, "v f c h w -> c (v f) h w")

    first = noise(0)
    latents = sample(first)
    for k in range(settings.reinit):
        of_pass = [sequence(x) for x in (latents, first, noise(k + 1))]
        again = reinitialised(*of_pass, settings.sigmas[0], rules.low_pass(of_pass[0].shape[1:]))
        latents = sample(rearrange(again, "c (v f) h w -> v f c h w", v=len(first)))
    return latents


def shard_of(settings: Settings) -> Shard:
    """Sequences are spread over calls and processes; but columns that see each other go through one call, on one."""
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
        return Prediction(*(put(next(results), term.cut, *x.shape[:2]) if half else None for half in halves))

    return shard


def video_term(
    references: Tensor,  # v 3 h w, the picture each row is told
    clip: Tensor,  # f 3 h w, whose motion is measured
    noise: Draw,
    priors: Priors,
    settings: Settings,
) -> Term:
    """Rows under their references."""
    v, f = len(references), len(clip)
    motion = settings.motion_bucket_id
    motion = float(motion_bucket(clip)) if motion is None else motion
    facts = {"fps_id": settings.fps_id, "motion_bucket_id": motion, "cond_aug": settings.video_cond_aug}
    scalars = {name: torch.full((v, f), value, device=clip.device) for name, value in facts.items()}
    unit = noise("augmentation", tuple(references.shape), step=0)
    condition = bind_condition(priors.video, references, scalars, f, unit, priors.first_stage, settings.encode_chunk)
    return Term("video", rows(v, f), denoiser(priors.video, *condition))


def multiview_term(
    references: Tensor,  # f 3 h w, the input view's picture each column is told
    cameras: Cameras,
    noise: Draw,
    priors: Priors,
    settings: Settings,
) -> Term:
    """Columns under the frames of the input view, in the order in which the prior's azimuth grows."""
    v, f = cameras.num_views, len(references)
    azimuth = (settings.azimuth_sign * cameras.azimuth_rad).remainder(2 * math.pi)
    azimuth = torch.where(azimuth < 1e-6, 2 * math.pi, azimuth)  # the input view's is 2π, as published
    order = azimuth.argsort(stable=True)
    cut = columns(v, f)
    cut = Cut(cut.cells[:, order], cut.blend)
    angles = {"polars_rad": polar_rad(cameras.elevation_rad)[order], "azimuths_rad": azimuth[order]}
    scalars = {name: repeat(angle.to(references.device), "v -> f v", f=f) for name, angle in angles.items()}
    scalars["cond_aug"] = torch.full((f, v), settings.multiview_cond_aug, device=references.device)
    unit = noise("augmentation", tuple(references.shape), step=1)
    encoder = priors.first_stage
    condition = bind_condition(priors.multiview, references, scalars, v, unit, encoder, settings.encode_chunk)
    return Term("multiview", cut, denoiser(priors.multiview, *condition, blend_weight=settings.conv_blend))


@torch.no_grad()
def bind_condition(
    prior: Prior,
    references: Tensor,  # b 3 h w, in [0, 1]
    scalars: dict[str, Tensor],  # name -> b t
    length: int,
    noise: Tensor,  # b 3 h w, unit
    encoder: FirstStage,  # of priors that have none of their own
    chunk: int,  # pictures at once
) -> tuple[Condition, Condition]:
    """Conditional and unconditional halves of a term's sequences."""
    own, unit = None if prior.encoder is not None else encoder, noise.to(references)
    parts = [
        prior.condition(
            to_images(references[i]), unit[i], {name: scalars[name][i] for name, _ in prior.config.scalars}, length, own
        )
        for i in torch.arange(len(references)).split(chunk)
    ]
    cond, uncond = (Condition(*map(torch.cat, zip(*half, strict=True))) for half in zip(*parts, strict=True))
    return cond, uncond


@torch.no_grad()
def decode(
    latents: Tensor,  # v f c h w
    first_stage: FirstStage,
    chunk: int | None = None,  # frames at once; None: a whole row
) -> Tensor:
    """Pixels v f 3 h w, every rank decoding its share of the rows; a temporal decoder sees the frames of a chunk."""

    def row(index: Tensor) -> Tensor:
        clips = latents[index].flatten(0, 1).split(chunk or latents.shape[1])
        images = torch.cat([first_stage.decode(clip, num_frames=len(clip)) for clip in clips])
        return to_pixels(images).unflatten(0, (len(index), -1))

    return spread(row, len(latents))


def latent_shape(priors: Priors, pixels: Tensor) -> tuple[int, int, int]:
    """c h w of the latents of pixels ... h w."""
    config = priors.first_stage.config
    return config.channels, pixels.shape[-2] // config.factor, pixels.shape[-1] // config.factor


def to_images(pixels: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return pixels * 2 - 1


def to_pixels(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], in float32."""
    return ((images.float() + 1) / 2).clamp(0, 1)

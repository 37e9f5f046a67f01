"""From a scene to its image matrix: orbit or clip of reference, conditions, noise, joint sampling, decoding.

Plain Python: no configuration, no Lightning, no files. Axes: v views, f frames, c h w; pixels are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from einops import repeat
from torch import Tensor

from d2.data.scene import Scene
from d2.matrix import Cameras, ImageMatrix, camera_ring, columns, rows
from d2.noise import draw, step_noise
from d2.priors.first_stage import FirstStage
from d2.priors.prior import Condition, Prior, denoiser
from d2.priors.tiny import motion_bucket, polar_rad
from d2.rules.composition import convex, linear
from d2.rules.renoise import none as once
from d2.rules.weights import alone
from d2.sampling import (
    Compose,
    Schedule,
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


class Priors(NamedTuple):
    """The frozen networks of a run. Where a prior has no encoder of its own, conditions go through the first stage."""

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


@dataclass(frozen=True)
class Settings:
    """The plain numbers of sampling."""

    num_steps: int = 20
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    start: Literal["noise", "multiview"] = "noise"  # of the joint sampling: noise alone, or added to the orbit
    sequences_per_call: int | None = None
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
    on_step: Callable[[State], None] | None = None,
) -> Sampled:
    """Sample the V × F matrix of a scene; of a single picture, `make_clip` makes the clip first."""
    assert scene.truth is None, "a sampler is given scene.observed()"
    cameras, clip = scene.cameras, scene.pixels
    if not 0 <= settings.anchor_frame < len(clip):
        raise ValueError(f"scenes.anchor_frame={settings.anchor_frame}: the clip has frames 0 to {len(clip) - 1}")
    if orbit is None:
        orbit = make_orbit(clip[settings.anchor_frame], cameras, scene.seed, priors, rules, settings)
    shard = make_shard(sequences_per_call=settings.sequences_per_call)
    latent = latent_shape(priors, clip)
    noise = draw(scene.seed, "init", (cameras.num_views, len(clip), *latent)).to(clip)
    x = initial_x(noise, settings.sigmas[0])
    if settings.start == "multiview":
        z = priors.first_stage.encode(to_images(orbit), draw(scene.seed, "orbit", (len(orbit), *latent), step=-1).to(x))
        x = z[:, None] + settings.sigmas[0] * noise
    latents = sample_matrix(
        x,
        rules.renoise(settings.sigmas),
        terms=[
            video_term(orbit, clip, scene.seed, priors, settings),
            multiview_term(clip, cameras, scene.seed, priors, settings),
        ],
        cameras=cameras,
        weights=rules.weights,
        guidance=rules.guidance,
        compose=rules.compose,
        solver=rules.solver,
        shard=shard,
        noise=step_noise(scene.seed, x),
        on_step=on_step,
    )
    return Sampled(ImageMatrix(decode(latents, priors), cameras, scene.fps, latents), orbit, clip)


def make_orbit(
    picture: Tensor,  # 3 h w
    cameras: Cameras,
    seed: int,
    priors: Priors,
    rules: Rules,
    settings: Settings,
) -> Tensor:
    """The orbit of one picture by the multi-view prior alone, the picture itself in its own view: v 3 h w."""
    x = draw(seed, "orbit", (cameras.num_views, 1, *latent_shape(priors, picture[None]))).to(picture)
    term = multiview_term(picture[None], cameras, seed, priors, settings)
    pixels = sample_one_axis(x, term, cameras, priors, rules, settings)[:, 0]
    pixels[cameras.input_view] = picture
    return pixels


def make_clip(
    picture: Tensor,  # 3 h w
    num_frames: int,
    seed: int,
    priors: Priors,
    rules: Rules,
    settings: Settings,
) -> Tensor:
    """A clip that starts with a picture, by the video prior alone: f 3 h w."""
    x = draw(seed, "clip", (1, num_frames, *latent_shape(priors, picture[None]))).to(picture)
    still = repeat(picture, "c h w -> f c h w", f=num_frames)
    motion = STILL_MOTION if settings.motion_bucket_id is None else settings.motion_bucket_id
    term = video_term(picture[None], still, seed, priors, replace(settings, motion_bucket_id=motion))
    pixels = sample_one_axis(x, term, camera_ring(1), priors, rules, settings)[0]
    pixels[0] = picture
    return pixels


def sample_one_axis(
    x: Tensor,  # unit noise, v f c h w with one of v, f equal to 1
    term: Term,
    cameras: Cameras,
    priors: Priors,
    rules: Rules,
    settings: Settings,
) -> Tensor:
    """Plain sampling with one prior: pixels v f 3 h w."""
    latents = sample_matrix(
        initial_x(x, settings.sigmas[0]),
        once(settings.sigmas),
        terms=[term],
        cameras=cameras,
        weights=lambda step, cameras, num_frames: {
            term.name: alone(step, cameras, num_frames, term=term.name)[term.name]
        },
        guidance=lambda step, cameras, num_frames: {term.name: rules.guidance(step, cameras, num_frames)[term.name]},
        compose=linear(coefficients=convex),
        solver=rules.solver,
        shard=make_shard(sequences_per_call=settings.sequences_per_call),
        noise=step_noise(0, x),
    )
    return decode(latents, priors)


def video_term(
    references: Tensor,  # v 3 h w, the picture each row is told
    clip: Tensor,  # f 3 h w, whose motion is measured
    seed: int,
    priors: Priors,
    settings: Settings,
) -> Term:
    """Rows under their references."""
    v, f = len(references), len(clip)
    motion = settings.motion_bucket_id
    motion = float(motion_bucket(clip)) if motion is None else motion
    facts = {"fps_id": settings.fps_id, "motion_bucket_id": motion, "cond_aug": settings.video_cond_aug}
    scalars = {name: torch.full((v, f), value, device=clip.device) for name, value in facts.items()}
    condition = bind_condition(priors.video, references, scalars, f, (seed, 0), priors)
    return Term("video", rows(v, f), denoiser(priors.video, *condition))


def multiview_term(
    references: Tensor,  # f 3 h w, the input view's picture each column is told
    cameras: Cameras,
    seed: int,
    priors: Priors,
    settings: Settings,
) -> Term:
    """Columns under the frames of the input view."""
    v, f = cameras.num_views, len(references)
    angles = {"polars_rad": polar_rad(cameras.elevation_rad), "azimuths_rad": cameras.azimuth_rad}
    scalars = {name: repeat(angle.to(references.device), "v -> f v", f=f) for name, angle in angles.items()}
    scalars["cond_aug"] = torch.full((f, v), settings.multiview_cond_aug, device=references.device)
    condition = bind_condition(priors.multiview, references, scalars, v, (seed, 1), priors)
    return Term("multiview", columns(v, f), denoiser(priors.multiview, *condition))


def bind_condition(
    prior: Prior,
    references: Tensor,  # b 3 h w, in [0, 1]
    scalars: dict[str, Tensor],  # name -> b t
    length: int,
    stream: tuple[int, int],  # scene seed, which term
    priors: Priors,
) -> tuple[Condition, Condition]:
    """Conditional and unconditional halves of a term's sequences."""
    seed, which = stream
    noise = draw(seed, "augmentation", tuple(references.shape), step=which).to(references)
    wanted = {name: scalars[name] for name, _ in prior.config.scalars}
    encoder = priors.first_stage if prior.encoder is None else None
    with torch.no_grad():
        return prior.condition(to_images(references), noise, wanted, length, encoder)


@torch.no_grad()
def decode(
    latents: Tensor,  # v f c h w
    priors: Priors,
) -> Tensor:
    """Pixels v f 3 h w, every rank decoding its share of the rows as clips."""

    def row(index: Tensor) -> Tensor:
        clips = latents[index].flatten(0, 1)
        images = priors.first_stage.decode(clips, num_frames=latents.shape[1])
        return ((images + 1) / 2).clamp(0, 1).unflatten(0, (len(index), -1))

    return spread(row, len(latents))


def latent_shape(priors: Priors, pixels: Tensor) -> tuple[int, int, int]:
    """c h w of the latents of pixels ... h w."""
    config = priors.first_stage.config
    return config.channels, pixels.shape[-2] // config.factor, pixels.shape[-1] // config.factor


def to_images(pixels: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return pixels * 2 - 1

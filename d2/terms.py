"""The terms of a scene: each prior under its conditions, on its cut of the matrix.

Plain Python: no configuration, no Lightning, no files. Axes: v views, f frames, a anchor frames, b
sequences, t along a sequence, c h w; pixels are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from d2.errors import InputError
from d2.matrix import Cameras, Cut, column_windows, columns, rig_of, row_windows, rows, single_cells
from d2.noise import Stream
from d2.priors.camera_prior import CameraCondition, CameraPrior, CameraPriorConfig, camera_denoiser
from d2.priors.first_stage import FirstStage
from d2.priors.prior import Condition, Prior, PriorConfig, denoiser
from d2.priors.tiny import FRAMES, motion_bucket, polar_rad
from d2.sampling import Term
from d2.scene import Known
from d2.settings import Settings, Unary
from d2.views import bind_views


class Draw(Protocol):
    """Where noise comes from: `partial(draw, seed)`, or a record of it."""

    def __call__(
        self, stream: Stream, shape: tuple[int, ...], *, step: int = 0, repeat: int = 0
    ) -> Tensor: ...


class Priors(NamedTuple):
    """The frozen networks of a run. Where a prior has no encoder or decoder of its own, the first
    stage serves."""

    video: Prior
    multiview: Prior | CameraPrior
    first_stage: FirstStage
    cell: Prior | None = None  # of the tiny tier, trained on 4D pairs

    @property
    def present(self) -> list[nn.Module]:
        return [network for network in self if network is not None]


def joint_terms(
    clip: Tensor,  # f 3 h w, the input view
    orbits: Tensor,  # a v 3 h w, of settings.anchor_frames
    cameras: Cameras,
    noise: Draw,
    priors: Priors,
    settings: Settings,
    others: Known | None = None,  # beside the input's clip
) -> list[Term]:
    """The terms of joint sampling: rows, columns, and cells by themselves where settings.unary says
    so."""
    terms = [
        video_term(orbits, clip, noise, priors, settings),
        multiview_term(clip, cameras, noise, priors, settings, others, orbits),
    ]
    if settings.unary is not None:
        terms.append(unary_term(settings.unary, clip, orbits[0], cameras, noise, priors, settings))
    return terms


def video_term(
    orbits: Tensor,  # a v 3 h w, the pictures that rows are told
    clip: Tensor,  # f 3 h w, whose motion is measured
    noise: Draw,
    priors: Priors,
    settings: Settings,
) -> Term:
    """Rows under the orbit; in windows, each under the orbit of the anchor frame it starts at."""
    v, f, window = orbits.shape[1], len(clip), settings.video_window
    if window is None or window >= f:
        if len(orbits) > 1:
            raise InputError(
                f"scenes.anchor_frames={list(settings.anchor_frames)}: a whole row is told one"
                " picture; give one frame, or video.window=N"
            )
        cut = rows(v, f)
    else:
        cut = row_windows(v, f, window, settings.anchor_frames)
    unit = noise("augmentation", tuple(orbits.flatten(0, 1).shape), step=0)
    scalars = video_scalars(clip, cut.cells.shape[:2], settings, settings.video_cond_aug)
    references, first_stage = orbits.flatten(0, 1), priors.first_stage
    condition = bind_condition(
        priors.video,
        references,
        scalars,
        cut.cells.shape[1],
        unit,
        first_stage,
        settings.encode_chunk,
    )
    return Term("video", cut, denoiser(priors.video, *condition), priors.video.sigma_range)


def multiview_term(
    references: Tensor,  # f 3 h w, the input view's picture each column is told
    cameras: Cameras,
    noise: Draw,
    priors: Priors,
    settings: Settings,
    # further views that are known, of which only a camera prior can be told
    others: Known | None = None,
    orbits: Tensor | None = None,  # a v 3 h w, of which settings.told_orbit cells are told
) -> Term:
    """Columns under the frames of the input view, in the order in which the prior's azimuth
    grows."""
    if isinstance(priors.multiview, CameraPrior):
        return camera_term(
            priors.multiview, references, cameras, priors.first_stage, settings, others, orbits
        )
    if settings.told_orbit:
        raise InputError(
            f"multiview.told_orbit={settings.told_orbit}: this multi-view prior is told one"
            " picture; take multiview=seva or tiny_camera, or 0"
        )
    if others is not None:
        raise InputError(
            f"scenes.views: {1 + len(others.views)} known views, and this multi-view prior is told"
            " one picture; take multiview=seva or tiny_camera, or one clip"
        )
    check_cameras(priors.multiview.config, cameras)
    v, f = cameras.num_views, len(references)
    window = settings.multiview_window or v
    cut = (
        columns(v, f) if window >= v else column_windows(v, f, window, settings.multiview_dilation)
    )
    azimuth = prior_azimuth(cameras, settings)
    order = azimuth[cut.cells[..., 0]].argsort(dim=1, stable=True)
    cut = Cut(
        cut.cells.gather(1, order[..., None].expand(-1, -1, 2)),
        cut.blend.gather(1, order),
    )
    views, frame = cut.cells[..., 0], cut.cells[:, 0, 1]
    scalars = multiview_scalars(
        azimuth[views], cameras.elevation_rad[views], settings.multiview_cond_aug, references
    )
    unit = noise("augmentation", tuple(references.shape), step=1)
    condition = bind_condition(
        priors.multiview,
        references[frame],
        scalars,
        views.shape[1],
        unit[frame],
        priors.first_stage,
        settings.encode_chunk,
    )
    denoise = denoiser(priors.multiview, *condition, blend_weight=settings.conv_blend)
    return Term("multiview", cut, denoise, priors.multiview.sigma_range)


def check_cameras(prior: PriorConfig | CameraPriorConfig, cameras: Cameras) -> None:
    """Raise an InputError for cameras that a multi-view prior cannot be told."""
    if cameras.rig is not None and prior.cameras != "any":
        raise InputError(
            "cameras: this multi-view prior is told azimuths and elevations alone, on a sphere of"
            " radius 2; take multiview=seva or tiny_camera, or cameras.preset=ring without radius"
            " and fov_deg"
        )


def camera_term(
    prior: CameraPrior,
    clip: Tensor,  # f 3 h w, of the input view
    cameras: Cameras,
    first_stage: FirstStage,
    settings: Settings,
    others: Known | None = None,
    orbits: Tensor | None = None,  # a v 3 h w, of settings.anchor_frames
) -> Term:
    """Columns told their cameras, and their known cells: those of the input's row, and of other
    known views' rows.

    The input view comes first, which makes it the reference of the rays; then the other known ones,
    then the rest. Cells of the nearest orbit that are told besides stand behind them: of another
    moment, they are no cells of the column, and without the condition they are not there.
    """
    v, f = cameras.num_views, len(clip)
    if settings.multiview_window is not None or settings.conv_blend is not None:
        raise InputError(
            "multiview.window, multiview.conv_blend: this prior takes a column whole; leave both"
            " null"
        )
    views, pictures = [cameras.input_view], clip[:, None]
    if others is not None:
        views, pictures = (
            [*views, *others.views],
            torch.cat([pictures, others.pixels.movedim(0, 1)], dim=1),
        )
    order = [*views, *(view for view in range(v) if view not in views)]
    rig, known = rig_of(cameras), [view in views for view in order]
    further: list[int] = []
    if orbits is not None and settings.told_orbit:
        further = farthest(rig.poses[:, :3, 3], views, settings.told_orbit)
        apart = torch.arange(f)[:, None] - torch.tensor(settings.anchor_frames)
        told_orbits = orbits[apart.abs().argmin(dim=1).to(orbits.device)]  # f v 3 h w
        pictures = torch.cat([pictures, told_orbits[:, further]], dim=1)
    seen, known = rig.take([*order, *further]), [*known, *(True for _ in further)]
    parts = [
        bind_views(prior, first_stage, to_images(part), known, seen, rig.poses)[0]
        for part in pictures.split(settings.encode_chunk)
    ]
    condition = CameraCondition(*map(torch.cat, zip(*parts, strict=True)))
    told = torch.zeros(v, f, dtype=torch.bool)
    told[views] = True
    cells = columns(v, f).cells[:, order]
    cut = Cut(cells, torch.ones(cells.shape[:2]))
    denoise = camera_denoiser(prior, condition, condition.first(v).drop())
    return Term("multiview", cut, denoise, prior.sigma_range, told)


def farthest(
    positions: Tensor,  # v 3
    views: Sequence[int],
    count: int,
) -> list[int]:
    """Further views, one after the other each as far as can be from the nearest one chosen before;
    an InputError where there are not so many."""
    chosen = [*views]
    if count > len(positions) - len(views):
        raise InputError(
            f"multiview.told_orbit={count}: {len(positions)} views, of which {len(views)} are known"
            f" anyway; give at most {len(positions) - len(views)}"
        )
    for _ in range(count):
        distance = torch.cdist(positions, positions[chosen]).amin(dim=1)
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
    return chosen[len(views) :]


def unary_term(
    unary: Unary,
    clip: Tensor,  # f 3 h w, the input view
    orbit: Tensor,  # v 3 h w
    cameras: Cameras,
    noise: Draw,
    priors: Priors,
    settings: Settings,
) -> Term:
    """Cells as single images (`image_only_indicator` 1).

    Told its row's picture, a cell of the multi-view prior is told that picture as one of its own
    camera.
    """
    v, f = cameras.num_views, len(clip)
    anchor = settings.anchor_frames[0]
    references, axes = {
        "none": (clip[anchor : anchor + 1], "1 (v f)"),
        "anchor": (clip[anchor : anchor + 1], "1 (v f)"),
        "column": (clip, "f v"),
        "row": (orbit, "v f"),
    }[unary.told]
    own = settings.video_cond_aug if unary.prior == "video" else settings.multiview_cond_aug
    aug = own if unary.cond_aug is None else unary.cond_aug
    if unary.prior == "video":
        grid = video_scalars(clip, (v, f), settings, aug)
    else:
        azimuth = (
            torch.full((v,), 2 * math.pi)
            if unary.told == "row"
            else prior_azimuth(cameras, settings)
        )
        azimuth, elevation = (
            repeat(angle, "v -> v f", f=f) for angle in (azimuth, cameras.elevation_rad)
        )
        grid = multiview_scalars(azimuth, elevation, aug, clip)
        grid["frames"] = repeat((torch.arange(f) - anchor) * (FRAMES / f), "f -> v f", v=v).to(clip)
    scalars = {name: rearrange(value, f"v f -> {axes}") for name, value in grid.items()}
    unit = noise("augmentation", tuple(references.shape), step=2)
    prior = {"video": priors.video, "multiview": priors.multiview, "cell": priors.cell}[unary.prior]
    assert prior is not None, "Priors.cell is wanted"
    if isinstance(prior, CameraPrior):
        raise InputError(
            "unary.prior=multiview: a prior of any cameras has no such cells; take"
            " unary.prior=video"
        )
    length = scalars["cond_aug"].shape[1]
    halves = bind_condition(
        prior, references, scalars, length, unit, priors.first_stage, settings.encode_chunk
    )
    cond, uncond = (
        Condition(*(rearrange(part, f"{axes} ... -> (v f) 1 ...", v=v, f=f) for part in half))
        for half in halves
    )
    cond = uncond if unary.told == "none" else cond
    return Term(
        "unary",
        single_cells(v, f),
        denoiser(prior, cond, uncond, image_only=True),
        prior.sigma_range,
    )


def prior_azimuth(cameras: Cameras, settings: Settings) -> Tensor:
    """Azimuths as the multi-view prior counts them, the input view's 2π, as published: v."""
    azimuth = (settings.azimuth_sign * cameras.azimuth_rad).remainder(2 * math.pi)
    return torch.where(azimuth < 1e-6, 2 * math.pi, azimuth)


def video_scalars(
    clip: Tensor,  # f 3 h w
    shape: tuple[int, ...],
    settings: Settings,
    cond_aug: float,
) -> dict[str, Tensor]:
    """What a video prior is told of every cell."""
    motion = settings.motion_bucket_id
    motion = float(motion_bucket(clip)) if motion is None else motion
    facts = {"fps_id": settings.fps_id, "motion_bucket_id": motion, "cond_aug": cond_aug}
    return {
        name: torch.full(tuple(shape), value, device=clip.device) for name, value in facts.items()
    }


def multiview_scalars(
    azimuth_rad: Tensor,  # b t
    elevation_rad: Tensor,  # b t
    cond_aug: float,
    like: Tensor,
) -> dict[str, Tensor]:
    """What a multi-view prior is told of every cell."""
    angles = {"polars_rad": polar_rad(elevation_rad), "azimuths_rad": azimuth_rad}
    scalars = {name: angle.to(like.device) for name, angle in angles.items()}
    return scalars | {"cond_aug": torch.full(azimuth_rad.shape, cond_aug, device=like.device)}


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
            to_images(references[i]),
            unit[i],
            {name: scalars[name][i] for name, _ in prior.config.scalars},
            length,
            own,
        )
        for i in torch.arange(len(references)).split(chunk)
    ]
    cond, uncond = (
        Condition(*map(torch.cat, zip(*half, strict=True))) for half in zip(*parts, strict=True)
    )
    return cond, uncond


def to_images(pixels: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return pixels * 2 - 1

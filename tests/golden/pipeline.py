"""Checks of reference clips and of the whole program. Tolerances are those of the data's README."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from d2.matrix import camera_ring, columns, rows
from d2.pipeline import sample_scene
from d2.priors.prior import Condition, Prior, denoiser
from d2.reference import make_clip, make_orbit, sample_one_axis
from d2.rules import guidance, weights
from d2.rules.frequency import LowPass, low_pass, reinitialised
from d2.sampling import State, Term, initial_x
from d2.scene import Scene
from d2.terms import Draw, Priors, Settings, bind_condition
from golden.case import Case, load_engine
from golden.networks import expect, load_first_stage, load_prior
from golden.sampler import JOINT, blend_of, guider, joint_options, joint_rules

PUBLISHED = Settings(sigma_min=0.002, sigma_max=700.0)


def check_stage1(case: Case) -> None:
    """A clip in one pass; the noise that a second pass starts from; a clip in two passes."""
    given, length = case.group("input."), case.meta["num_frames"]
    prior = load_prior(case.folder, case.meta["weights"])
    is_row = "fps_id" in dict(prior.config.scalars)
    condition = Condition(*(given[f"cond.{part}"][None] for part in Condition._fields))
    cut = rows(1, length) if is_row else columns(length, 1)
    term = Term("video" if is_row else "multiview", cut, denoiser(prior, condition))
    keep = low_pass_of(case)
    curve = guider(case.meta["guider"])
    rules = joint_rules(JOINT, profile=weights.side_views, video=curve, multiview=curve)._replace(
        low_pass=keep
    )
    noises = [given[key].unsqueeze(0 if is_row else 1) for key in ("noise", "z_rand")]
    one = replace(PUBLISHED, num_steps=case.meta["num_steps"])
    for settings, name in ((one, "z"), (replace(one, reinit=1), "z_iter2")):
        seen: list[State] = []
        cameras = camera_ring(1 if is_row else length)
        z = sample_one_axis(noises.__getitem__, term, cameras, rules, settings, on_step=seen.append)
        assert len(seen) == (1 + settings.reinit) * settings.num_steps
        expect(z.flatten(0, 1), case.expected(name), 2e-5)
    z, noise, fresh = (
        x.movedim(1, 0).double() for x in (case.expected("z"), given["noise"], given["z_rand"])
    )
    again = reinitialised(z, noise, fresh, one.sigmas[0], keep(z.shape[1:]))
    expect(again.movedim(0, 1), case.expected("reinit"), 1e-7)


def low_pass_of(case: Case) -> LowPass:
    """The filter that the file says it was made with."""
    told = re.search(r"the (\w+) filter \(n=(\d+), d_s=d_t=([\d.]+),", case.meta["kind"])
    assert told, f"{case.stem} does not say which filter"
    cut = float(told[3])
    return partial(low_pass, kind=told[1], order=int(told[2]), space=cut, time=cut, published=True)


def check_pipeline(case: Case) -> None:
    """One picture to its matrix: clip, orbit, conditions, joint sampling, decoding, and the start
    from the orbit."""
    meta, given = case.meta, case.group("input.")
    priors, noise = load_priors(case), recorded(case)
    guiders = {
        name: guider_of(case, engine) for name, engine in (("video", "svd"), ("multiview", "sv3d"))
    }
    options = joint_options(meta["joint"])
    # of the orbit and the clip
    reference = joint_rules(JOINT, profile=weights.side_views, **guiders)
    profile = partial(weights.listed, values=given["view_weight"].tolist())
    rules = joint_rules(options, profile=profile, **guiders)
    settings = replace(
        PUBLISHED,
        num_steps=meta["num_steps"],
        video_cond_aug=meta["cond_aug"]["svd"],
        multiview_cond_aug=meta["cond_aug"]["sv3d"],
        fps_id=meta["fps_id"],
        motion_bucket_id=meta["motion_bucket_id"],
        keep_picture=False,
        decode_chunk=meta["decoding_t"],
        conv_blend=blend_of(options),
    )
    (picture,) = (given["image"].double() + 1) / 2
    cameras = camera_ring(
        meta["views"], torch.tensor(meta["elevation_deg"], dtype=torch.float64).deg2rad()
    )
    common = (0, priors, reference, settings)
    latents: list[State] = []
    orbit = make_orbit(picture.float(), cameras, *common, noise=noise, on_step=latents.append)
    expect(latents[-1].x[:, 0], case.expected("sv3d_ref_z"), 1e-4)
    expect(orbit, case.expected("ref_multiview"), 1e-4)
    clip = make_clip(picture.float(), meta["frames"], *common, noise=noise, on_step=latents.append)
    expect(latents[-1].x[0], case.expected("svd_ref_z"), 1e-4)
    expect(clip, case.expected("ref_video"), 1e-4)
    check_conditions(case, priors, orbit, clip)
    scene = Scene("golden", 0, clip, torch.ones(len(clip), 1, *clip.shape[2:]), cameras, 1.0)
    sampled = sample_scene(scene, priors, rules, settings, orbits=orbit[None], noise=noise)
    assert sampled.matrix.latents is not None
    expect(sampled.matrix.latents, case.expected("z"), 1e-4)
    expect(sampled.matrix.pixels[..., ::2, ::2], case.expected("images_every2"), 1e-4)
    nothing, start = rules._replace(renoise=lambda sigmas: []), replace(settings, start="multiview")
    begun = sample_scene(scene, priors, nothing, start, orbits=orbit[None], noise=noise)
    assert begun.matrix.latents is not None
    expect(
        begun.matrix.latents, initial_x(case.expected("noise_from_mv"), settings.sigmas[0]), 1e-4
    )


def check_conditions(case: Case, priors: Priors, orbit: Tensor, clip: Tensor) -> None:
    """What rows and columns are told of their pictures."""
    v, f, noise = len(orbit), len(clip), recorded(case)
    for name, prior, pictures, step in (
        ("svd", priors.video, orbit, 0),
        ("sv3d", priors.multiview, clip, 1),
    ):
        t = f if name == "svd" else v
        assert isinstance(prior, Prior)
        scalars = {key: torch.zeros(len(pictures), t) for key, _ in prior.config.scalars}
        scalars["cond_aug"] += case.meta["cond_aug"][name]
        unit = noise("augmentation", tuple(pictures.shape), step=step)
        cond, uncond = bind_condition(prior, pictures, scalars, t, unit, priors.first_stage, 2)
        expect(cond.crossattn[:, 0], case.expected(f"{name}.crossattn"), 1e-4)
        expect(cond.concat[:, 0], case.expected(f"{name}.concat"), 1e-4)
        assert not uncond.crossattn.any() and not uncond.concat.any()


def load_priors(case: Case) -> Priors:
    """Both tiny engines; each decodes its own reference, and SVD's first stage the matrix."""
    engines = case.meta["weights"]
    video, multiview = (
        load_prior.__wrapped__(case.folder, engines[name]) for name in ("svd", "sv3d")
    )
    stages = {
        name: load_first_stage(case.folder, engine, params_of(case, engine)["scale_factor"])
        for name, engine in engines.items()
    }
    multiview.decoder = stages["sv3d"]
    return Priors(video, multiview, stages["svd"])


def params_of(case: Case, engine: str) -> dict[str, Any]:
    return load_engine(case.folder, engine)["config"]["params"]


def guider_of(case: Case, name: str) -> guidance.Curve:
    """The guider in an engine's configuration."""
    return guider(
        params_of(case, case.meta["weights"][name])["sampler_config"]["params"]["guider_config"]
    )


def recorded(case: Case) -> Draw:
    """The noises of the file under the names of our streams; a draw that it does not hold is a
    KeyError."""
    noises = {name: noise.float() for name, noise in case.group("input.noise.").items()}
    records = [
        ("orbit", 0, noises["sv3d_ref"][:, None]),
        ("orbit", -1, noises["noise_from_mv_posterior"]),
        ("clip", 0, noises["svd_ref"][None]),
        ("init", 0, noises["joint"]),
        ("augmentation", 0, noises["svd_ref_aug"]),
        ("augmentation", 1, noises["sv3d_ref_aug"]),
        ("augmentation", 0, torch.cat([noises[f"svd_aug.{v}"] for v in range(case.meta["views"])])),
        (
            "augmentation",
            1,
            torch.cat([noises[f"sv3d_aug.{f}"] for f in range(case.meta["frames"])]),
        ),
        *(("renoise", i, noise) for i, noise in enumerate(noises["langevin"])),
    ]
    held = {(stream, step, tuple(noise.shape)): noise for stream, step, noise in records}
    return lambda stream, shape, *, step=0, repeat=0: held[stream, step, shape]

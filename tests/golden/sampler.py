"""Checks of the sampler's parts and of joint sampling, one function a kind of golden file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from d2.matrix import Cameras, camera_ring, columns, rows
from d2.priors.prior import Condition, denoiser
from d2.reference import shard_of
from d2.rules import composition, guidance, renoise, solver, weights
from d2.rules.bundle import Rules
from d2.sampling import Step, Term, initial_x, karras_sigmas, sample_matrix
from d2.terms import Settings
from golden.case import Case, Options
from golden.networks import expect, load_prior

VRS_STEPS = 10  # of the published program
JOINT = {  # its options of joint sampling, where a file names none
    "schedule": "constant",
    "scale": 0.6,
    "smin": 0.0,
    "smax": 1.0,
    "k": 15.0,
    "svd_cfg_warmup": False,
    "uc_type": "default",
    "svd_only_from": "inf",
    "s_churn": 0.0,
    "s_noise": 1.0,
    "conv_blend": False,
    "blend_weight": None,
}


def check_sigmas(case: Case) -> None:
    for name, p in case.meta["cases"].items():
        ours = karras_sigmas(
            p["n"], sigma_min=p["sigma_min"], sigma_max=p["sigma_max"], rho=p["rho"]
        )
        expect(torch.tensor(ours, dtype=torch.float64), case.expected(name), 1e-6)


def check_scale_schedule(case: Case) -> None:
    for entry in case.meta["cases"]:
        p = entry["params"]
        curve = curve_of(p["scale_type"], p["scale"], p["scale_min"], p["scale_max"], p["scale_k"])
        n = p["num_steps"]
        ours = [curve(Step(i, n, 0, 1, 1.0, 0.5)) for i in range(n)]
        difference = max(abs(a - b) for a, b in zip(ours, entry["values"], strict=True))
        assert difference < 1e-12, f"{p}: {difference:.2e} off"


def check_view_weight(case: Case) -> None:
    effective = torch.tensor(case.meta["effective"], dtype=torch.float64)
    ring = camera_ring(len(effective))
    assert (weights.side_views(ring) - effective).abs().max() < 1e-7
    listed = torch.tensor(case.meta["listed"], dtype=torch.float64)
    assert (weights.side_views(ring, depth=1.0) - listed).abs().max() < 1e-7


def check_guiders(case: Case) -> None:
    for name, p in case.meta["cases"].items():
        scale = guider(p)(p["num_frames"])
        expect(scale[None], case.tensors[f"output.{name}.scale"], 1e-6)
        uncond, cond = case.tensors[f"input.{name}.x"].chunk(2)
        along = scale.float().repeat(len(cond) // len(scale))[:, None, None, None]
        one = torch.ones(())
        of_uncond, of_cond = composition.convex({"video": one}, {"video": along})["video"]
        expect(of_uncond * uncond + of_cond * cond, case.tensors[f"output.{name}.guided"], 1e-6)


def guider(p: dict[str, Any]) -> guidance.Curve:
    """Our curve for an official guider's parameters, in a case or in an engine; a missing min_scale
    is 1."""
    if "target" in p:
        p = {"type": p["target"].rpartition(".")[2], **dict(p["params"].items())}
    unknown = p.keys() - {"type", "max_scale", "min_scale", "num_frames", "period", "period_fusing"}
    assert not unknown, f"{', '.join(sorted(unknown))}: no curve of ours is this guider"
    low, high = p.get("min_scale", 1.0), p["max_scale"]
    if p["type"] == "LinearPredictionGuider":
        return partial(guidance.linear, first=low, last=high)
    assert p["type"] == "TrianglePredictionGuider", f"{p['type']}: no curve of ours is this guider"
    periods = p.get("period", 1.0)
    periods = tuple(periods) if isinstance(periods, list) else (periods,)
    return partial(
        guidance.triangle, low=low, high=high, periods=periods, fuse=p.get("period_fusing", "max")
    )


def curve_of(kind: str, scale: float, low: float, high: float, k: float) -> weights.Curve:
    """Our curve for the official schedule's parameters."""
    return {
        "constant": partial(weights.constant, scale=scale),
        "linear": partial(weights.linear, low=low, high=high),
        "cosine": partial(weights.cosine, low=low, high=high),
        "logistic": partial(weights.logistic, low=low, high=high, middle=scale, steepness=k),
    }[kind]


def check_joint(case: Case) -> None:
    along_frames = f"linspace(1.5, 3.0, {case.meta['frames']}) over frames"
    assert case.meta["guiders"] == {"svd": along_frames, "sv3d": "2.5 for every view"}
    for name, spec in case.meta["cases"].items():
        check_joint_case(case, name, joint_options(case.meta["defaults"], spec["options"]))


def joint_options(*told: Options) -> dict[str, Any]:
    """The options of joint sampling: those told, later ones first, else the published program's."""
    given = {name: value for options in told for name, value in options.items()}
    unknown = given.keys() - JOINT.keys()
    assert not unknown, f"{', '.join(sorted(unknown))}: joint sampling does not apply this"
    return JOINT | given


def check_joint_case(case: Case, name: str, options: dict[str, Any]) -> None:
    v, f, n = (case.meta[key] for key in ("views", "frames", "num_steps"))
    assert case.tensors["input.noise"].shape[-2:] == (case.meta["height"], case.meta["width"])
    cameras = camera_ring(v)
    sigmas = karras_sigmas(n, sigma_min=0.002, sigma_max=700.0)
    expect(torch.tensor(sigmas, dtype=torch.float64), case.tensors["output.sigmas"], 1e-6)
    x0 = initial_x(case.tensors["input.noise"].float(), sigmas[0])
    expect(x0, case.tensors["output.x0"], 2e-5)
    curve = schedule_of(options)
    scales = [curve(Step(i, n, 0, 1, 1.0, 0.5)) for i in range(n)]
    if f"output.{name}.sv3d_scale" in case.tensors:
        last = float(options["svd_only_from"])
        only = [0.0 if i / (n - 1) > last else s for i, s in enumerate(scales)]
        expected = case.tensors[f"output.{name}.sv3d_scale"]
        assert min((torch.tensor(s) - expected).abs().max() for s in (scales, only)) < 1e-6
    rules = joint_rules(
        options,
        profile=profile(case),
        video=partial(guidance.linear, first=1.5, last=3.0),
        multiview=partial(guidance.constant, scale=2.5),
    )
    blend = blend_of(options)
    seen: dict[str, Tensor] = {}
    final = sample_matrix(
        x0,
        rules.renoise(sigmas),
        terms=terms(case, blend),
        cameras=cameras,
        weights=rules.weights,
        guidance=rules.guidance,
        compose=rules.compose,
        solver=rules.solver,
        shard=shard_of(Settings(sequences_per_call=2, conv_blend=blend)),
        noise=recorded(case, name),
        on_step=lambda state: seen.update({f"{state.step.index}.{state.step.repeat}": state.x}),
    )
    snapshots = case.group(f"output64.{name}.x_after.")
    for moment, expected in snapshots.items():
        expect(seen[moment], expected, 2e-5)
    expect(final, case.expected(f"{name}.final"), 2e-5)


def joint_rules(
    options: dict[str, Any],
    *,
    profile: weights.Profile,
    video: guidance.Curve,
    multiview: guidance.Curve,
) -> Rules:
    """Our rules for the official options of joint sampling; what concerns the networks is
    `blend_of`."""
    return Rules(
        renoise=partial(
            renoise.churned, steps=VRS_STEPS, s_churn=options["s_churn"], s_noise=options["s_noise"]
        ),
        weights=partial(
            weights.scheduled,
            curve=schedule_of(options),
            profile=profile,
            video_only_from=float(options["svd_only_from"]),
        ),
        guidance=partial(
            guidance.per_term,
            video=video,
            multiview=multiview,
            video_warmup=options["svd_cfg_warmup"],
        ),
        compose=composition.linear(
            coefficients=partial(composition.convex, uncond=uncond_of(options["uc_type"]))
        ),
        solver=solver.euler,
    )


def schedule_of(options: dict[str, Any]) -> weights.Curve:
    return curve_of(*(options[name] for name in ("schedule", "scale", "smin", "smax", "k")))


def blend_of(options: dict[str, Any]) -> float | None:
    """The share of a column itself in what its pixels attend to."""
    return options["blend_weight"] if options["conv_blend"] else None


def uncond_of(uc_type: str) -> str:
    return {"default": "default", "sv3d": "multiview", "svd": "video", "mean": "mean"}[uc_type]


def profile(case: Case) -> Callable[[Cameras], Tensor]:
    """The effective view weight: the file's own, or the published one."""
    if "input.view_weight" in case.tensors:
        return partial(weights.listed, values=case.tensors["input.view_weight"].tolist())
    return weights.side_views


def terms(case: Case, blend_weight: float | None) -> list[Term]:
    """Both tiny engines bound to the file's conditions."""
    v, f = case.meta["views"], case.meta["frames"]
    given = case.group("input.")

    def condition(name: str, count: int, length: int) -> Condition:
        crossattn = given[f"{name}.crossattn"].float()[:, None].expand(count, length, -1, -1)
        concat = given[f"{name}.concat"].float()[:, None].expand(count, length, -1, -1, -1)
        vector = given[f"{name}.vector"].float().expand(count, length, -1)
        return Condition(crossattn, concat, vector)

    engines = case.meta["weights"]
    video = denoiser(load_prior(case.folder, engines["svd"]), condition("svd", v, f))
    of_columns = condition("sv3d", f, v)
    multiview = denoiser(
        load_prior(case.folder, engines["sv3d"]), of_columns, blend_weight=blend_weight
    )
    return [Term("video", rows(v, f), video), Term("multiview", columns(v, f), multiview)]


def recorded(case: Case, name: str) -> Callable[[Step, str], Tensor]:
    """The noises of the file: one Langevin draw a level, or, with churn, all draws in their
    order."""
    ordered = case.tensors.get(f"input.{name}.noises")
    if ordered is None:
        return lambda step, when: case.tensors["input.langevin"][step.index].float()
    draws = iter(ordered.float())
    return lambda step, when: next(draws)

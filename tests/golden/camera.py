"""Checks of a prior of any cameras against Stable Virtual Camera's numbers, one function a kind of
golden file.

Tolerances are those of the data's README; weights, pictures and cameras lie in the files.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from d2 import cameras
from d2.cameras import Rig
from d2.data import framing
from d2.errors import InputError
from d2.nn.camera_unet import CameraUNet, CameraUNetConfig
from d2.nn.clip import ImageTower, ImageTowerConfig
from d2.priors import chunks, discrete_levels, rays
from d2.priors.camera_prior import CameraCondition, CameraPrior, CameraPriorConfig
from d2.sampling import State
from d2.views import Made, Recipe, make_views, sample_forward
from golden.case import Case, Options, load_engine, load_weights, relative_error
from golden.networks import expect, load

Y_UP = torch.tensor([0.0, -1, 0], dtype=torch.float64)


# --- networks -------------------------------------------------------------------------------------


def unet_config(engine: dict[str, Any]) -> CameraUNetConfig:
    p: dict[str, Any] = dict(engine["config"])
    # a default of calls; nothing to apply
    assert p.pop("num_frames") == 21 and p.pop("dropout", 0.0) == 0
    sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in p.items()}
    return CameraUNetConfig(joint=sizes.pop("unflatten_names"), **sizes)


def tower_config(engine: dict[str, Any]) -> ImageTowerConfig:
    p = engine["config"]
    return ImageTowerConfig(**p["vision_cfg"], embed_dim=p["embed_dim"])


@functools.cache
def load_prior(folder: Path, name: str, tower: str | None = None) -> CameraPrior:
    engine = load_engine(folder, tower) if tower else None
    small = ImageTowerConfig(
        layers=1, width=8, head_width=8, patch_size=8, image_size=8, mlp_ratio=1.0, embed_dim=1
    )
    sizes = tower_config(engine) if engine else small
    config = CameraPriorConfig(unet_config(load_engine(folder, name)), sizes, "table")
    prior = CameraPrior(config, with_tower=tower is not None)
    load(prior.unet, load_weights(folder, name))
    if tower and prior.tower:
        load(prior.tower, load_weights(folder, tower))
    return prior.eval().requires_grad_(False)


def check_engine(case: Case) -> None:
    """Every tensor of a tiny engine has its place; as many numbers as the file says."""
    towers = "vision_cfg" in case.meta["config"]
    network = ImageTower(tower_config(case.meta)) if towers else CameraUNet(unet_config(case.meta))
    load(network, load_weights(case.folder, case.stem))
    assert sum(p.numel() for p in network.parameters()) == case.meta["parameters"]


def check_unet(case: Case) -> None:
    given, meta = case.group("input."), case.meta
    assert meta["mode"] in ("plain", "percell")  # said by the inputs
    assert given["x"].shape[2:] == (meta["height"], meta["width"])
    assert len(given["x"]) == meta["clips"] * meta["num_frames"]
    unet = load_prior(case.folder, meta["weights"]).unet
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        inputs = (given[name].to(dtype) for name in ("x", "timesteps", "context", "dense"))
        expect(unet.to(dtype)(*inputs, num_cells=meta["num_frames"]), case.expected("y"), tolerance)
    unet.float()


def check_trace(case: Case) -> None:
    """Every block's output: where a network departs from the published one."""
    given, meta = case.group("input."), case.meta
    seen: dict[str, Tensor] = {}
    assert len(given["x"]) == meta["clips"] * meta["num_frames"]
    unet = load_prior(case.folder, meta["weights"]).unet
    names = {
        key.removeprefix("output64.") for key in case.tensors if key.startswith("output64.")
    } - {"y"}

    def keep(name: str, module: torch.nn.Module, given: Any, out: Tensor) -> None:
        seen[name] = out

    hooks = []
    for name in names:
        module = unet.get_submodule(name)
        last = list(module)[-1] if isinstance(module, torch.nn.ModuleList) else module
        hooks.append(last.register_forward_hook(functools.partial(keep, name)))
    inputs = (given[name].float() for name in ("x", "timesteps", "context", "dense"))
    expect(unet(*inputs, num_cells=meta["num_frames"]), case.expected("y"), 1e-5)
    for hook in hooks:
        hook.remove()
    assert seen.keys() == names
    for name, out in seen.items():
        if out.ndim == 4:
            down, across = (max(1, side // 2) for side in out.shape[2:])
            out = out[:, ::4, ::down, ::across]
        expect(out[: len(case.expected(name))], case.expected(name), 1e-5)


def check_denoiser(case: Case) -> None:
    prior, given = load_prior(case.folder, case.meta["weights"]), case.group("input.")
    condition = CameraCondition(
        *(given[name].float()[None] for name in ("crossattn", "known", "mask", "plucker"))
    )
    assert condition.rays.shape[1] == case.meta["num_frames"]
    told = {name: [level] * case.meta["num_frames"] for name, level in case.meta["sigmas"].items()}
    for name, indices in case.meta["index"].items():
        sigma = given[f"sigma.{name}"].double()
        assert name not in told or relative_error(torch.tensor(told[name]), sigma) < 1e-6
        scaling = discrete_levels.precondition_snapped(sigma)
        assert scaling.c_noise.tolist() == indices
        ordered = torch.stack([getattr(scaling, key) for key in case.meta["scaling_order"]])
        expect(ordered, case.expected(f"scaling.{name}"), 1e-6)
        out = prior(given[f"x.{name}"][None], sigma[None], condition)
        expect(out[0], case.expected(f"denoised.{name}"), 1e-5)


def check_image_tower(case: Case) -> None:
    tower = load(
        ImageTower(tower_config(load_engine(case.folder, case.meta["weights"]))),
        engine_weights(case),
    )
    for name, (height, width) in case.meta["sizes"].items():
        c, y, x, k = torch.meshgrid(*map(torch.arange, (3, height, width, 2)), indexing="ij")
        pixels = (3 * x * (c + 1) + 5 * y + x * y // 7 + 40 * k) % 256
        images = rearrange(pixels, "c h w k -> k c h w").float() / 255 * 2 - 1
        expect(
            tower.preprocess(images)[:, :, 3::16, 3::16],
            case.expected(f"preprocessed_sub.{name}"),
            2e-4,
        )
        embedding = tower(images)
        expect(embedding, case.expected(f"embedding.{name}"), 1e-5)
        expect(embedding.mean(dim=0), case.expected(f"crossattn.{name}"), 1e-5)


def engine_weights(case: Case) -> dict[str, Tensor]:
    return load_weights(case.folder, case.meta["weights"])


# --- levels, cameras, guidance --------------------------------------------------------------------


def check_sigmas(case: Case) -> None:
    ours = discrete_levels
    assert (case.meta["linear_start"], case.meta["linear_end"]) == (ours.BETA_START, ours.BETA_END)
    assert (case.meta["log_snr_shift"], case.meta["num_timesteps"]) == (
        ours.LOG_SNR_SHIFT,
        ours.NUM_LEVELS,
    )
    table = ours.table()
    for name in case.group("output64."):
        if name == "table":
            expect(table, case.expected(name), 1e-12)
            continue
        steps, _, shift = name.removeprefix("n").partition("_shift")
        levels = ours.own_sigmas(int(steps), float(shift) if shift else ours.LOG_SNR_SHIFT)
        expect(torch.tensor(levels, dtype=torch.float64), case.expected(name), 1e-12)
    for name, indices in case.meta["indices"].items():
        levels = torch.tensor(
            ours.own_sigmas(int(name.removeprefix("n")))[:-1], dtype=torch.float64
        )
        assert ours.snapped(levels).tolist() == indices


def check_step_noise(case: Case) -> None:
    """In float64; what float32 makes of it is the published program's, and ours never rounds so."""
    for name in case.group("output64.std64."):
        plan = discrete_levels.own_plan(int(name.removeprefix("n")))
        expect(torch.tensor([s.noise_before for s in plan]), case.expected(f"std64.{name}"), 1e-6)
        rounded = case.expected(f"std32.{name}")
        levels = torch.tensor(discrete_levels.own_sigmas(len(plan))[:-1])
        raised = levels.float() + discrete_levels.EXTRA
        expect((raised.square() - levels.square()).clamp(min=0).sqrt(), rounded, 1e-6)


def check_cameras(case: Case) -> None:
    given, meta = case.group("input."), case.meta
    tolerance = 1e-4 if case.stem.endswith("outlier") else 1e-6
    poses = rays.normalised(given["c2w_all"], given["c2w_all"][meta["chunk"]], meta["camera_scale"])
    every = rays.pluecker(poses, given["K"], meta["latent_height"], meta["latent_width"])
    if "output64.c2w" in case.tensors:
        expect(poses, case.expected("c2w"), tolerance)
    if "output64.plucker" in case.tensors:
        expect(every, case.expected("plucker"), tolerance)
    else:
        expect(every[::5, :, 4::16, 4::16], case.expected("plucker_sub"), tolerance)


def guider(p: dict[str, Any], poses: Tensor, intrinsics: Tensor, known: list[int]) -> Tensor:
    """Guidance of each cell by the guider that the file names."""
    flags = torch.zeros(len(poses), dtype=torch.bool)
    flags[known] = True
    if p["guider"] == "VanillaCFG":
        return torch.full((len(poses),), p["scale"], dtype=torch.float64)
    by = {"MultiviewCFG": rays.scale_by_camera, "MultiviewTemporalCFG": rays.scale_by_order}[
        p["guider"]
    ]
    return by(poses, intrinsics, flags, scale=p["scale"], low=p["cfg_min"])


def check_guiders(case: Case) -> None:
    given = case.group("input.")
    for name, p in case.meta["cases"].items():
        assert p["guider"] != "VanillaCFG" or p["cfg_min"] is None
        scale = guider(p, given[f"c2w.{p['c2w']}"], given[f"K.{p['K']}"], p["known"])
        assert len(scale) == p["num_frames"]
        expect(scale, case.expected(f"scale.{name}"), 1e-6)
        if f"output64.guided.{name}" in case.tensors:
            uncond, cond = given["x"].double().chunk(2)
            expect(
                uncond + scale[:, None, None, None] * (cond - uncond),
                case.expected(f"guided.{name}"),
                1e-6,
            )


def check_trajectories(case: Case) -> None:
    meta, fov, count = case.meta, cameras.FOV_RAD, case.meta["num_frames"]
    for name, (angle, aspect) in meta["K"].items():
        expect(
            cameras.lens(torch.tensor([angle]).double(), aspect), case.expected(f"K.{name}"), 1e-6
        )
    starts = {
        "eye": torch.eye(4, dtype=torch.float64),
        "start": case.tensors["input.start_c2w"].double(),
    }
    for name in case.group("output64.poses."):
        of, _, preset = name.partition(".")
        told, pose = meta["up"][of], starts[of]
        assert told is None or told == "minus the second column of start_c2w's rotation"
        start = cameras.Start(pose, torch.tensor(meta["look_at"][of]).double(), -pose[:3, 1], fov)
        path = cameras.preset_path(preset.replace("dolly ", "dolly-"), start, count)
        expect(path.poses, case.expected(f"poses.{name}"), 1e-6)
        expect(path.fov_rad, case.expected(f"fovs.{name}"), 1e-6)


def check_scene_normalisation(case: Case) -> None:
    poses = case.tensors["input.c2w"]
    for name in ("focus", "poses"):
        frame = cameras.scene_frame(poses, middle=name, up=Y_UP)
        expect(frame, case.expected(f"transform_{name}"), 1e-6)
        expect(cameras.in_frame(poses, frame), case.expected(f"c2w_{name}"), 1e-6)


def check_preprocess(case: Case) -> None:
    for name, p in case.meta["cases"].items():
        source = p["source"]
        rgba = rearrange(case.tensors[f"input.rgba.{source}"].double() / 255, "h w c -> 1 c h w")
        images = (rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]) * 2 - 1
        size, (height, width) = p["size"], images.shape[2:]
        if isinstance(size, int):
            size = framing.by_short_side(size, height, width, p["size_stride"])
        pixels = case.tensors[f"input.K.{source}"].double()
        unit = pixels / torch.tensor([[width], [height], [1]])
        for intrinsics, key in ((pixels, "K"), (unit, "K_of_normalised")):
            framed = framing.frame(
                images, intrinsics, (size[0], size[1]), mode=p["mode"], scale=p.get("scale", 1.0)
            )
            expect(framed.intrinsics, case.expected(f"{key}.{name}"), 1e-6)
            assert list(framed.pictures.shape[2:]) == p["result_hw"]
            expect(framed.pictures[..., 1::4, 1::4], case.expected(f"image_sub.{name}"), 1e-6)


# --- forwards of a scene --------------------------------------------------------------------------


def check_places(source: list[int], target: list[int], relative: list[float]) -> None:
    """In one long forward a target stands between the anchors whose numbers its place lies
    between."""
    nowhere = torch.eye(4).expand(1, 4, 4)  # places alone decide
    (chunk,) = chunks.cut_into_chunks(
        "interp", 100, nowhere, nowhere, input_orders=source, target_orders=target
    )
    assert sorted(s.index for s in chunk if not s.known) == list(range(len(target)))
    for place, slot in enumerate(chunk):
        if not slot.known:
            behind = [s.index for s in chunk[:place] if s.known]
            ahead = [s.index for s in chunk[place:] if s.known]
            assert max(behind, default=-math.inf) <= relative[slot.index]
            assert relative[slot.index] <= min(ahead, default=math.inf)


def check_chunking(case: Case) -> None:
    for entry in case.meta["cases"]:
        check_chunks(case, entry)
    for p in case.meta["relative_indices"]:
        check_places(p["source"], p["target"], p["relative"])
    for p in case.meta["anchor_numbers"]:
        names = {"num_prior_frames_ratio": "ratio", "num_prior_frames": "least"}
        told = dict(p["options"].items())
        strategy = told.pop("chunk_strategy", "nearest-gt")
        lengths, after = (as_pair(p[key]) for key in ("T", "T_after"))
        numbers = {names[key]: value for key, value in told.items()}
        plan = chunks.count_anchors(strategy, lengths, p["num_inputs"], p["num_targets"], **numbers)
        assert plan == (p["num_anchors"], *after), p
    for p in case.meta["anchor_indices"]:
        (strategy,) = (value for _, value in p["options"].items())
        even = strategy.startswith("interp")
        assert (
            chunks.among_frames(p["num_anchors"], p["inputs"], p["frames"], even=even)
            == p["anchors"]
        )


def as_pair(told: Any) -> tuple[Any, Any]:
    """Of both passes, where the file may give one number for both, alone or in a list."""
    return (told[0], told[-1]) if isinstance(told, list) else (told, told)


def check_chunks(case: Case, entry: Options) -> None:
    poses, length, task = case.tensors[f"input.{entry['cameras']}"], entry["T"], entry["task"]
    assert entry["name"]
    orders, always = entry["input_ords"], entry["gt_input_inds"]
    # the true inputs have no place on the path
    if orders is not None and task.startswith("img2trajvid"):
        orders = [math.nan if i in always else order for i, order in enumerate(orders)]
    names = {"pseudo_num_max": "most", "pseudo_num_ratio": "ratio"}
    cut = functools.partial(
        chunks.cut_into_chunks,
        entry["strategy"],
        length,
        poses[entry["inputs"]],
        poses[entry["tests"]],
        always=always,
        input_orders=orders,
        target_orders=entry["test_ords"],
        **{names[key]: value for key, value in entry["options"].items()},
    )
    if entry.get("assertion"):
        with pytest.raises(InputError, match="make more anchors"):
            cut()
        return
    found = cut()
    written = [
        [f"{'!' if slot.known else '>'}{slot.index:03d}" for slot in chunk] for chunk in found
    ]
    assert [chunk + ["NULL"] * (length - len(chunk)) for chunk in written] == entry["chunks"]
    lists = (entry[key] for key in ("input_inds", "input_sels", "test_inds", "test_sels", "padded"))
    for forward, *(inputs, at, tests, test_at, padded) in zip(
        chunks.forwards(found, length), *lists, strict=True
    ):
        own = [
            (slot, k)
            for k, (slot, o) in enumerate(zip(forward.slots, forward.own, strict=True))
            if o
        ]
        assert {(s.index, k) for s, k in own if s.known} == set(zip(inputs, at, strict=True))
        assert [(s.index, k) for s, k in own if not s.known] == list(
            zip(tests, test_at, strict=True)
        )
        pairs = zip(padded["input_map"], padded["test_map"], strict=True)
        filled = [
            chunks.Slot(True, inputs[i]) if i >= 0 else chunks.Slot(False, tests[j])
            for i, j in pairs
        ]
        assert list(forward.slots) == filled
        assert set(padded["input_sels"]) == {
            k for k, slot in enumerate(forward.slots) if slot.known
        } or at != sorted(at)
        assert padded["test_sels"] == [
            k for k, slot in enumerate(forward.slots) if not slot.known
        ] or at != sorted(at)


def check_loop(case: Case) -> None:
    prior, given, meta = (
        load_prior(case.folder, case.meta["weights"]),
        case.group("input."),
        case.meta,
    )
    t, size = meta["num_frames"], (meta["latent_height"], meta["latent_width"])
    known = torch.zeros(t, dtype=torch.bool)
    known[meta["known"]] = True
    poses = rays.normalised(given["c2w_all"], given["c2w_all"], meta["camera_scale"])
    every = rays.pluecker(poses, given["K"], *size)
    expect(poses, case.expected("c2w"), 1e-6)
    expect(every, case.expected("plucker"), 1e-6)
    n = meta["num_steps"]
    expect(torch.tensor(discrete_levels.own_sigmas(n)).double(), case.expected("sigmas"), 1e-6)
    churn = {key: meta[key] for key in ("s_churn", "s_tmin", "s_tmax", "s_noise")}
    plan = discrete_levels.own_plan(n, **churn)
    if meta.get("noise_scale") == 0 or "input.step_noise" not in case.tensors:
        plan = [step._replace(noise_before=0.0) for step in plan]
    mask = repeat(known.float(), "t -> 1 t 1 h w", h=size[0], w=size[1])
    crossattn = given["crossattn"].float().expand(1, t, 1, -1)
    condition = CameraCondition(crossattn, given["known"].float()[None], mask, every.float()[None])
    scales = guider(meta, poses, given["K"], meta["known"])
    seen: list[State] = []

    def noise(step: int | None) -> Tensor:
        return given["noise"].float() if step is None else given["step_noise"][step].float()

    z = sample_forward(prior, condition, scales, n, noise, plan=plan, on_step=seen.append)
    for key in case.group("output64."):
        name, _, index = key.partition(".")
        if name in ("x_after", "denoised"):
            state = seen[int(index)]
            expect(
                (state.x if name == "x_after" else state.denoised)[:, 0], case.expected(key), 2e-5
            )
    expect(z, case.expected("z"), 2e-5)


def check_pipeline(case: Case) -> None:
    meta, given = case.meta, case.group("input.")
    options, told = meta["options"], [made["guider"] for made in meta["forwards"]]
    assert meta["task"].startswith("img2") and options["encoding_t"] and options["decoding_t"]
    assert not options["sampler_verbose"] and told  # what of it would change nothing
    guiders = {1: "MultiviewCFG", 2: "MultiviewTemporalCFG"}
    types, scales = as_pair(options["guider_types"]), as_pair(options["cfg"])
    assert {guiders[t] for t in types} == set(told)
    strategy = {
        "second" if meta["two_pass"] else "alone": options.get("chunk_strategy", "nearest-gt")
    }
    recipe = Recipe(
        num_steps=options["num_steps"],
        length=as_pair(meta["T"]),
        scale=scales,
        low=options["cfg_min"],
        camera_scale=options["camera_scale"],
        **strategy,
    )
    known = meta["input_indices"]
    images = rearrange(given["images"].double() / 255 * 2 - 1, "k h w c -> k c h w").float()
    assert images.shape[2:] == (meta["H"], meta["W"])
    size = torch.tensor([[meta["W"]], [meta["H"]], [1]])
    rig = Rig(given["c2w"].double(), given["K"].double() / size)
    rest = [i for i in range(len(rig.poses)) if i not in known]
    assert len(rest) == meta["num_targets"]
    made: list[Made] = []

    def noise(forward: int, step: int | None, *, length: int) -> Tensor:
        found = given[f"noise.{forward}"] if step is None else given[f"step_noise.{forward}"][step]
        assert len(found) == length
        return found.float()

    views = make_views(
        load_prior(case.folder, meta["weights"], meta["image_tower"]),
        functools.partial(stub_encode, given["stub_encode"].float()),
        functools.partial(stub_decode, given["stub_decode"].float()),
        images,
        rig.take(known),
        rig.take(rest),
        recipe,
        noise,
        two_passes=meta["two_pass"],
        on_forward=made.append,
    )
    assert as_pair(meta["T_after"]) == recipe.length  # as long as there are fewer than nine inputs
    assert len(made) == len(meta["forwards"])
    for k, (ours, theirs) in enumerate(zip(made, meta["forwards"], strict=True)):
        check_forward(case, k, ours, theirs)
    if meta["two_pass"]:
        assert views.anchors is not None
        plan = chunks.count_anchors(recipe.second, recipe.length, len(known), len(rest))
        assert chunks.along_path(plan.count, len(known), len(rest)) == meta["anchor_indices"]
        expect(views.anchors[..., ::8, ::8], case.expected("first_pass.blocks"), 1e-4)
    expect(views.images[..., ::8, ::8], case.expected("result.blocks"), 1e-4)


def check_forward(case: Case, k: int, ours: Made, theirs: Options) -> None:
    """What one forward was told, and what it made."""
    assert [i for i, slot in enumerate(ours.forward.slots) if slot.known] == theirs["known"]
    known = torch.tensor(ours.forward.known)
    condition = ours.condition
    intrinsics, low = torch.eye(3).expand(len(known), 3, 3), case.meta["options"]["cfg_min"]
    p = {"guider": theirs["guider"], "scale": theirs["scale"], "cfg_min": low}
    expect(ours.scales, guider(p, ours.poses, intrinsics, theirs["known"]), 1e-6)
    expect(ours.poses, case.expected(f"c2w.{k}"), 1e-6)
    expect(condition.rays[0], case.expected(f"plucker.{k}"), 1e-6)
    expect(condition.crossattn[0, 0, 0], case.expected(f"crossattn.{k}"), 1e-4)
    expect(condition.known[0], case.expected(f"known.{k}"), 1e-4)
    expect(ours.latents, case.expected(f"z.{k}"), 1e-4)
    for name, half in (("cond", condition), ("uncond", condition.drop())):
        if f"output64.{name}.concat.{k}" in case.tensors:
            expect(
                torch.cat([half.mask, half.rays], dim=2)[0],
                case.expected(f"{name}.concat.{k}"),
                1e-6,
            )


def stub_encode(matrix: Tensor, images: Tensor) -> Tensor:
    means = reduce(images, "n c (h a) (w b) -> n c h w", "mean", a=8, b=8)
    return 0.18215 * torch.einsum("d c, n c h w -> n d h w", matrix, means)


def stub_decode(matrix: Tensor, latents: Tensor) -> Tensor:
    pixels = torch.einsum("c d, n d h w -> n c h w", matrix, latents / 0.18215)
    return repeat(pixels, "n c h w -> n c (h a) (w b)", a=8, b=8)

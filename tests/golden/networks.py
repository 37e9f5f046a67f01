"""Checks of the networks, one function a kind of golden file. Tolerances are those of the data's
README."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from d2.nn.autoencoder import Autoencoder, ModeEncoder
from d2.nn.clip import ImageTower
from d2.nn.embedding import sinusoidal
from d2.nn.video_unet import Attention, Blend, VideoUNet
from d2.priors.first_stage import FirstStage, FirstStageConfig
from d2.priors.precondition import precondition
from d2.priors.prior import Condition, Prior, denoiser
from d2.priors.sv3d import SV3D_P, SV3D_U
from d2.priors.svd import SVD_XT
from golden import official
from golden.case import Case, cut, load_engine, load_weights, relative_error

FIRST_STAGE = "first_stage_model."  # how its keys begin
FLOAT64 = 1e-8  # in float64 a wrong epsilon or a rounded sinusoid shows that float32 hides


def check_unet(case: Case) -> None:
    given, meta = case.group("input."), case.meta
    # all said by the inputs
    assert meta["mode"] in ("plain", "image_only", "perframe_t", "perframe_context")
    assert given["x"].shape[2:] == (meta["height"], meta["width"])
    assert len(given["x"]) == meta["clips"] * meta["num_video_frames"]
    unet = VideoUNet(official.unet_config(load_engine(case.folder, meta["weights"])))
    load(unet, cut(load_weights(case.folder, meta["weights"]), meta["prefix"]))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, FLOAT64)):
        inputs = (given[name].to(dtype) for name in ("x", "timesteps", "context", "y"))
        image_only = given["image_only_indicator"]
        out = unet.to(dtype)(*inputs, num_frames=meta["num_video_frames"], image_only=image_only)
        expect(out, case.tensors["output64" if "output64" in case.tensors else "output"], tolerance)
    if given["image_only_indicator"].any():
        check_unary(case)


def check_unary(case: Case) -> None:
    """Frames flagged as single images, each a term's sequence of its own: what the reference made
    of them in a clip."""
    prior, given = load_prior(case.folder, case.meta["weights"]), case.group("input.")
    levels = (4 * given["timesteps"].double()).exp()
    channels = prior.config.unet.out_channels
    scaling = precondition(levels[:, None, None, None, None])
    scaled, concat = given["x"][:, None].split((channels, given["x"].shape[1] - channels), dim=2)
    condition = Condition(given["context"][:, None], concat, given["y"][:, None])
    x = (scaled / scaling.c_in).float()
    denoise = denoiser(prior, condition, image_only=True)
    for i in given["image_only_indicator"].flatten().nonzero()[:, 0].split(1):
        denoised = denoise(x[i], levels[i].item(), i, (False, True)).cond
        assert denoised is not None
        network = (denoised - scaling.c_skip[i] * x[i]) / scaling.c_out[i]
        expect(network[:, 0], case.tensors["output64"][i], 2e-5)


def check_denoiser(case: Case) -> None:
    prior = load_prior(case.folder, case.meta["weights"])
    given = {name: as_clips(x, case.meta["clips"]) for name, x in case.group("input.").items()}
    condition = Condition(given["crossattn"], given["concat"], given["vector"])
    assert given["crossattn"].shape[1] == case.meta["num_video_frames"]
    order = case.meta["scaling_order"]
    for sigma in case.meta["sigmas"]:
        name = f"sigma_{sigma:g}"
        scaling = precondition(torch.tensor(sigma, dtype=torch.float64))._asdict()
        torch.testing.assert_close(
            torch.stack([scaling[key] for key in order]),
            case.tensors[f"scaling64.{name}"],
            rtol=1e-12,
            atol=1e-15,
        )
        x = given[f"x.{name}"]
        out = prior(x, torch.full(x.shape[:2], sigma), condition)
        expect(out.flatten(0, 1), case.expected(name), 1e-5)


def check_vae_decode(case: Case) -> None:
    stage = load_first_stage(case.folder, case.meta["weights"], case.meta["scale_factor"])
    z = case.tensors["input.z"]
    assert case.meta["prefix"] == FIRST_STAGE and len(z) == case.meta["frames"]
    for name in case.group("output."):
        length = len(z) if name == "chunk_all" else int(name.removeprefix("chunk_"))
        out = torch.cat([stage.decode(chunk, num_frames=len(chunk)) for chunk in z.split(length)])
        expect(out, case.expected(name), 1e-5)


def check_vae_encode(case: Case) -> None:
    engine = load_engine(case.folder, case.meta["weights"])
    weights = cut(load_weights(case.folder, case.meta["weights"]), case.meta["prefix"])
    image, config = case.tensors["input.image"], official.conditioning_encoder_config(engine)
    whole = load(Autoencoder(config), weights)
    alone = load(
        ModeEncoder(config),
        {k: w for k, w in weights.items() if k.startswith(("encoder.", "quant_conv."))},
    )
    mode = case.expected("mode")
    expect(torch.cat(whole.moments(image), dim=1), case.expected("moments"), 1e-5)
    expect(alone(image), mode, 1e-5)
    expect(alone.double()(image.double()), mode, FLOAT64)
    if "input.first_stage_noise" in case.tensors:
        stage = load_first_stage(
            case.folder, case.meta["weights"], engine["config"]["params"]["scale_factor"]
        )
        expect(torch.cat(stage.moments(image), dim=1), case.expected("first_stage_moments"), 1e-5)
        noise = case.tensors["input.first_stage_noise"]
        expect(stage.encode(image, noise), case.expected("first_stage_z"), 1e-5)


def check_first_stage(case: Case) -> None:
    """A first stage whose weights lie in the file itself; no scale factor."""
    autoencoder = Autoencoder(official.first_stage_config(case.meta["config"]))
    load(autoencoder, case.group(case.meta["prefix"]))
    given, outputs = case.group("input."), case.group("output.")
    decoded = [name for name in outputs if name.startswith("decoded")]
    assert decoded, f"{case.stem} has no decoded images"
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, FLOAT64)):
        autoencoder.to(dtype)
        for name in decoded:
            frames = re.search(r"timesteps_(\d+)$", name)
            out = autoencoder.decode(
                given["z"].to(dtype), num_frames=int(frames[1]) if frames else 1
            )
            expect(out, case.expected(name), tolerance)
        if "image" in given:
            expect(
                torch.cat(autoencoder.moments(given["image"].to(dtype)), 1),
                case.expected("moments"),
                tolerance,
            )


def check_conditioner(case: Case) -> None:
    prior, t = load_prior(case.folder, case.meta["weights"]), case.meta["num_frames"]
    given = case.group("input.")
    # of which it takes some
    told = {name: case.meta.get(name) for name in ("fps_id", "motion_bucket_id", "cond_aug")}

    def scalar(name: str) -> Tensor:  # b t
        values = (
            given[name]
            if name in given
            else torch.full((t,), float(told[name]), dtype=torch.float64)
        )
        return values.expand(len(given["image"]), t)

    scalars = {name: scalar(name) for name, _ in prior.config.scalars}
    assert list(scalars) == case.meta["vector_order"]
    halves = prior.condition(given["image"], given["noise"], scalars, t)
    for half, condition in zip(("cond", "uncond"), halves, strict=True):
        for name, value in condition._asdict().items():
            expect(value.flatten(0, 1), case.tensors[f"output.{half}.{name}"], 2e-5)
            exact = case.tensors.get(f"output64.{half}.{name}.unrepeated")
            if exact is not None:
                expect(
                    value.flatten(0, 1)[: len(exact)] if name == "vector" else value[:, 0],
                    exact,
                    2e-5,
                )


def check_image_tower(case: Case) -> None:
    tower = ImageTower(official.tower_config(case.meta["open_clip_config"]))
    load(tower, cut(load_weights(case.folder, case.meta["weights"]), case.meta["prefix"]))
    repeats = re.search(r"repeated (\d+)x(\d+)", case.meta["kind"])
    assert repeats, f"{case.stem} does not say how often its pixels are repeated"
    image = case.tensors["input.image_u8_blocks"].float() / 255 * 2 - 1
    for axis, times in zip((2, 3), repeats.groups(), strict=True):
        image = image.repeat_interleave(int(times), axis)
    for name in case.group("output."):
        stride = re.fullmatch(r"preprocessed_every(\d+)", name)
        if stride:
            expect(
                tower.preprocess(image)[:, :, :: int(stride[1]), :: int(stride[1])],
                case.expected(name),
                2e-4,
            )
        else:
            expect(tower(image), case.expected(name), 1e-5)


def check_scalar_embeddings(case: Case) -> None:
    for name, dim in case.meta["outdim"].items():
        expect(sinusoidal(case.tensors[f"input.{name}"], dim), case.expected(name), 2e-5)
    ours = {"svd_xt": SVD_XT, "sv3d_p": SV3D_P, "sv3d_u": SV3D_U}
    for name, layout in case.meta["vector_layout"].items():
        assert [list(part) for part in ours[name].scalars] == layout


def check_conv_blend(case: Case) -> None:
    """Time-synchronised self-attention; rows of x are ordered (half, frame, view), and a clip of
    ours is a frame."""
    cases = {name: p for name, p in case.meta["cases"].items() if isinstance(p, dict)}
    for name, p in cases.items():
        x, blend = case.tensors[f"input.{name}.x"], Blend(p["blend_weight"], p["frames"])
        attention = Attention(p["channels"], p["channels"], p["channels"] // p["heads"])
        load(attention, case.group(f"weights.{name}."))
        assert x.shape[1] == p["tokens"], x.shape
        mixed = blend.mix(x, p["views"])
        expect(mixed, case.expected(f"{name}.blended"), 1e-5)
        expect(attention(x, mixed), case.expected(f"{name}.attention"), 1e-5)
        expect(attention(x, x), case.expected(f"{name}.attention_without_blend"), 1e-5)


def expect(out: Tensor, reference: Tensor, tolerance: float) -> None:
    error = relative_error(out, reference)
    assert error < tolerance, f"{error:.2e} off"


def load(network: Any, weights: dict[str, Tensor]) -> Any:
    """The same network with these weights, every one of them used, frozen."""
    network.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    return network.eval().requires_grad_(False)


@functools.cache
def load_prior(folder: Path, name: str) -> Prior:
    """The prior of a tiny engine: UNet, image tower and conditioning encoder."""
    engine, weights = load_engine(folder, name), load_weights(folder, name)
    tower, _ = official.find_embedder(engine, "FrozenOpenCLIPImagePredictionEmbedder")
    encoder, _ = official.find_embedder(engine, "VideoPredictionEmbedderWithEncoder")
    sources = {
        "unet.": "model.diffusion_model.",
        "tower.": f"conditioner.embedders.{tower}.open_clip.model.visual.",
        "encoder.encoder.": f"conditioner.embedders.{encoder}.encoder.encoder.",
        "encoder.quant_conv.": f"conditioner.embedders.{encoder}.encoder.quant_conv.",
    }
    state = {
        ours + key: w for ours, theirs in sources.items() for key, w in cut(weights, theirs).items()
    }
    return load(Prior(official.prior_config(engine)), state)


def load_first_stage(folder: Path, name: str, scale_factor: float) -> FirstStage:
    params = load_engine(folder, name)["config"]["params"]
    stage = FirstStage(
        FirstStageConfig(official.first_stage_config(params["first_stage_config"])),
        scale=scale_factor,
    )
    load(stage.autoencoder, cut(load_weights(folder, name), FIRST_STAGE))
    return stage.eval().requires_grad_(False)


def as_clips(x: Tensor, clips: int) -> Tensor:
    return rearrange(x, "(b t) ... -> b t ...", b=clips)

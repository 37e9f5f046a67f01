"""Our numbers are those of the reference implementation, on whatever golden files lie in the
folder.

The folder is $D2_PARITY_DIR, else golden/data, which ships with the tests. Sizes, configurations,
options and cases are read from the files, so other data of the same kinds runs through the same
checks; an option that a check does not read fails it.
"""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.case import FOLDER, SHIPPED, Case, Options, read_case
from golden.sampler import JOINT, joint_rules

from d2.matrix import camera_ring
from d2.rules import guidance, weights
from d2.sampling import Step

CHECKS = {  # kind -> module and function, imported when needed
    "sigmas": "golden.sampler:check_sigmas",
    "scale_schedule": "golden.sampler:check_scale_schedule",
    "view_weight": "golden.sampler:check_view_weight",
    "guiders": "golden.sampler:check_guiders",
    "joint": "golden.sampler:check_joint",
    "unet": "golden.networks:check_unet",
    "denoiser": "golden.networks:check_denoiser",
    "vae_decode": "golden.networks:check_vae_decode",
    "vae_encode": "golden.networks:check_vae_encode",
    "vae": "golden.networks:check_first_stage",
    "conditioner": "golden.networks:check_conditioner",
    "image_tower": "golden.networks:check_image_tower",
    "scalar_embeddings": "golden.networks:check_scalar_embeddings",
    "preprocess": "golden.preprocess:check_preprocess",
    "conv_blend": "golden.networks:check_conv_blend",
    "frequency": "golden.frequency:check_frequency",
    "stage1": "golden.pipeline:check_stage1",
    "pipeline": "golden.pipeline:check_pipeline",
}
CAMERA_CHECKS = {  # of a folder with Stable Virtual Camera's numbers
    "unet": "golden.camera:check_unet",
    "unet_b_trace": "golden.camera:check_trace",
    "sigmas": "golden.camera:check_sigmas",
    "step_noise": "golden.camera:check_step_noise",
    "denoiser": "golden.camera:check_denoiser",
    "cameras": "golden.camera:check_cameras",
    "guiders": "golden.camera:check_guiders",
    "trajectories": "golden.camera:check_trajectories",
    "scene_normalisation": "golden.camera:check_scene_normalisation",
    "image_tower": "golden.camera:check_image_tower",
    "preprocess": "golden.camera:check_preprocess",
    "chunking": "golden.camera:check_chunking",
    "loop": "golden.camera:check_loop",
    "pipeline": "golden.camera:check_pipeline",
    "tiny_seva": "golden.camera:check_engine",
}
KIND_TEXTS = {  # how the `kind` of a file begins, for files whose name says nothing
    "EDMDiscretization": "sigmas",
    "ScaleScheduler": "scale_schedule",
    "view weight": "view_weight",
    "guiders": "guiders",
    "joint sampling": "joint",
    "VideoUNet forward": "unet",
    "Denoiser": "denoiser",
    "decode_first_stage": "vae_decode",
    "conditioning image encoder": "vae_encode",
    "stand-alone first stage": "vae",
    "get_condition": "conditioner",
    "image tower": "image_tower",
    "ConcatTimestepEmbedderND": "scalar_embeddings",
    "reference preprocessing": "preprocess",
    "reference clip generation": "stage1",
    "whole pipeline": "pipeline",
    "frequency filters": "frequency",
    "time-synchronised self-attention": "conv_blend",
}


def stems() -> list[str]:
    """Names of the files with golden numbers; engines and inventories of keys are not such."""
    metas = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    return [stem for stem, meta in metas.items() if "kind" in meta or "keys" not in meta]


def checks_of(folder: Path) -> dict[str, str]:
    """The checks of a folder's files: names of kinds mean another thing beside a network of any
    cameras."""
    return CAMERA_CHECKS if any(folder.glob("tiny_seva*")) else CHECKS


def kind_of(stem: str, text: str, checks: dict[str, str] = CHECKS) -> str | None:
    """The kind whose name the stem begins with (the longest such), else the one that its text
    begins like."""
    named = [kind for kind in checks if stem == kind or stem.startswith(f"{kind}_")]
    told = [kind for beginning, kind in KIND_TEXTS.items() if text.startswith(beginning)]
    return max(named, key=len) if named else (told[0] if told else None)


@pytest.mark.parametrize(
    "stem", stems() or [pytest.param("none", marks=pytest.mark.xfail(strict=True))]
)
def test_golden(stem: str) -> None:
    check(read_case(stem, FOLDER))


def check(case: Case) -> None:
    checks = checks_of(case.folder)
    kind = kind_of(case.stem, case.meta.get("kind", ""), checks)
    assert kind is not None, f"{case.stem}: unknown kind {case.meta.get('kind')!r}; give it a check"
    module, function = checks[kind].split(":")
    with torch.no_grad():
        getattr(importlib.import_module(module), function)(case)
    ignored = list(case.meta.unread())
    assert not ignored, (
        f"{case.stem}: {', '.join(ignored)}: the check of {kind} does not apply this"
    )


def test_an_unknown_kind_has_no_check() -> None:
    assert kind_of("something_else", "a kind nobody has heard of") is None
    assert kind_of("mine", "VideoUNet forward") == kind_of("unet_mine", "") == "unet"
    assert kind_of("vae_decode_mine", "") == "vae_decode"


def test_there_are_golden_files() -> None:
    assert stems(), f"{FOLDER} holds no golden file"


def test_an_option_that_no_check_applies_fails() -> None:
    case = read_case("unet_svd_image_only", SHIPPED)
    case.meta["temperature"] = 1.0
    with pytest.raises(AssertionError, match="temperature: the check of unet does not apply this"):
        check(case)


def test_the_pipeline_applies_the_options_of_joint_sampling() -> None:
    """Another option than the file was made with has another result."""
    case = read_case("pipeline_v5f4", SHIPPED)
    case.meta["joint"] = Options({"schedule": "cosine", "uc_type": "mean"})
    with pytest.raises(AssertionError, match="off"):
        check(case)


def test_joint_sampling_refuses_an_option_that_it_does_not_apply() -> None:
    case = read_case("pipeline_v5f4", SHIPPED)
    case.meta["joint"] = Options({"schedule": "cosine", "temperature": 1.0})
    with pytest.raises(AssertionError, match="temperature: joint sampling does not apply this"):
        check(case)


@pytest.mark.parametrize(
    "option", [{"svd_cfg_warmup": True}, {"svd_only_from": 0.0}, {"schedule": "linear"}]
)
def test_the_rules_of_joint_sampling_follow_their_options(option: dict[str, Any]) -> None:
    step, curve = Step(1, 3, 0, 1, sigma=1.0, sigma_next=0.5), partial(guidance.constant, scale=2.5)

    def fields(options: dict[str, Any]) -> list[float]:
        rules = joint_rules(options, profile=weights.side_views, video=curve, multiview=curve)
        cells = (rule(step, camera_ring(4), 2)["video"] for rule in (rules.weights, rules.guidance))
        return [value for field in cells for value in field.flatten().tolist()]

    assert fields(JOINT | option) != fields(JOINT)

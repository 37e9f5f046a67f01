"""The metrics of `d2 evaluate` and of `d2 sample` with their networks, from local files alone."""

from __future__ import annotations

import torch

from d2.errors import InputError
from d2.files import asset
from d2.metrics import features
from d2.metrics.clip import load_clip
from d2.metrics.image import LPIPS_FILES, ImageDistance, load_lpips, load_shift_tolerant_lpips
from d2.metrics.suite import METRICS, PERCEPTUAL, Suite
from d2.metrics.video_sets import TRAVERSALS, refuse_short
from d2.settings import Metrics

FEATURE_FILES = {  # network -> its place in checkpoints/
    "world4d-encoder": "tiny_video_encoder.safetensors",
    "i3d": "i3d_pretrained_400.pt",
    "i3d_torchscript": "i3d_torchscript.pt",
    "videomae": "videomae",
}


def load_suite(metrics: Metrics, device: torch.device | str) -> Suite:
    """Load the metrics asked for with their networks; an InputError names what is unknown or
    missing."""
    device = torch.device(device)
    asked = ("metrics", metrics.names, METRICS), ("traversals", metrics.traversals, TRAVERSALS)
    for key, given, known in asked:
        if not given or not set(given) <= set(known):
            raise InputError(f"{key}={list(given)}: choose from [{', '.join(known)}]")
    names = [name for name in METRICS if name in metrics.names]
    if metrics.features is None and "legacy" in names:
        raise InputError(
            "metrics=[legacy]: compares video features; name a network with features=i3d"
        )
    names = [name for name in names if name != "video" or metrics.features]
    if not names:
        raise InputError(
            "metrics=[video], features=null: nothing is left to measure; name a network or more"
            " metrics"
        )
    wants_video = bool({"video", "legacy"} & set(names))
    images, texts = [], {}
    if "clip" in names:
        if metrics.clip_file is None:
            raise InputError(
                "clip.file=null: metrics=[clip] needs a file of weights; give clip.file and"
                " clip.model"
            )
        clip = load_clip(metrics.clip_file, metrics.clip_model, device)
        images.append(clip.images)
        if metrics.clip_text is not None:
            texts[clip.images.name] = clip.texts([metrics.clip_text])[0].cpu()
    if "efficientnet" in names:
        images.append(features.load_efficientnet_lite0(device))
    places = features.load_efficientnet_lite0(device) if "features_3d" in names else None
    distances = tuple(load_distance(name, device) for name in PERCEPTUAL if name in names)
    video = load_video_features(metrics, device) if wants_video else None
    return Suite(tuple(names), metrics.traversals, video, tuple(images), distances, texts, places)


def suite_of_matrix(
    metrics: Metrics, num_views: int, num_frames: int, device: torch.device | str
) -> Suite:
    """Load the suite for matrices of one size; an InputError where they are too small for its
    networks."""
    suite = load_suite(metrics, device)
    if suite.video is not None:
        refuse_short(suite.video, suite.traversals, num_views, num_frames)
    return suite


def load_video_features(metrics: Metrics, device: torch.device) -> features.FeatureNetwork:
    """The feature network of videos, from its file in checkpoints/ unless told."""
    name = metrics.features
    assert name is not None
    if metrics.features_resize is not None and not name.startswith("i3d"):
        raise InputError(
            f"features_resize={metrics.features_resize}: {name} has its own; leave it null"
        )
    path = metrics.features_file or asset("checkpoints") / FEATURE_FILES[name]
    if not path.exists():
        ways = (
            "put it there, name another with features_file=FILE, or leave videos out with"
            " features=null"
        )
        raise InputError(f"features={name}: {path} is not there; {ways}")
    resize = (
        features.CONSISTENT4D if metrics.features_resize == "consistent4d" else features.STYLEGAN_V
    )
    if name == "i3d":
        return features.load_i3d(path, device, resize)
    if name == "i3d_torchscript":
        return features.load_i3d_torchscript(path, device, resize)
    return (
        features.load_videomae(path, device)
        if name == "videomae"
        else features.load_video_encoder(path, device)
    )


def load_distance(name: str, device: torch.device) -> ImageDistance:
    backbone = "alex" if name.endswith("alex") else "vgg"
    if name.startswith("st_"):
        return load_shift_tolerant_lpips(backbone, device)
    return load_lpips(backbone, asset("checkpoints") / LPIPS_FILES[backbone], device)

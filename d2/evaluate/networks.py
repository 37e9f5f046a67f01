"""The metrics of `d2 evaluate` and of `d2 sample` with their networks, from local files alone."""

from __future__ import annotations

from pathlib import Path

import torch

from d2.config.schema import EvaluateConfig, SampleConfig
from d2.errors import InputError
from d2.files import asset
from d2.metrics import features
from d2.metrics.clip import load_clip
from d2.metrics.image import LPIPS_FILES, ImageDistance, load_lpips, load_shift_tolerant_lpips
from d2.metrics.suite import METRICS, PERCEPTUAL, Suite
from d2.metrics.video_sets import TRAVERSALS, refuse_short

FEATURE_FILES = {  # network -> its place in checkpoints/
    "world4d-encoder": "tiny_video_encoder.safetensors",
    "i3d": "i3d_pretrained_400.pt",
    "i3d_torchscript": "i3d_torchscript.pt",
    "videomae": "videomae",
}


def load_suite(config: EvaluateConfig, device: torch.device) -> Suite:
    """The metrics asked for and their networks; a ValueError names what is unknown or missing."""
    for key, given, known in (("metrics", config.metrics, METRICS), ("traversals", config.traversals, TRAVERSALS)):
        if not given or not set(given) <= set(known):
            raise InputError(f"{key}={given}: choose from [{', '.join(known)}]")
    metrics = [name for name in METRICS if name in config.metrics]
    if config.features is None and "legacy" in metrics:
        raise InputError("metrics=[legacy]: compares video features; name a network with features=i3d")
    metrics = [name for name in metrics if name != "video" or config.features]
    if not metrics:
        raise InputError("metrics=[video], features=null: nothing is left to measure; name a network or more metrics")
    wants_video = bool({"video", "legacy"} & set(metrics))
    images, texts = [], {}
    if "clip" in metrics:
        if config.clip.file is None:
            raise InputError("clip.file=null: metrics=[clip] needs a file of weights; give clip.file and clip.model")
        clip = load_clip(Path(config.clip.file), config.clip.model, device)
        images.append(clip.images)
        if config.clip.text is not None:
            texts[clip.images.name] = clip.texts([config.clip.text])[0].cpu()
    if "efficientnet" in metrics:
        images.append(features.load_efficientnet_lite0(device))
    places = features.load_efficientnet_lite0(device) if "features_3d" in metrics else None
    distances = tuple(load_distance(name, device) for name in PERCEPTUAL if name in metrics)
    video = load_video_features(config, device) if wants_video else None
    return Suite(tuple(metrics), tuple(config.traversals), video, tuple(images), distances, texts, places)


def sample_suite(
    config: SampleConfig, num_views: int, num_frames: int, device: torch.device | str = "cpu"
) -> Suite | None:
    """What `d2 sample` measures of its scenes, as `d2 evaluate` would; `reference` brings `consistency` with it.

    A ValueError names the file that is missing, or the matrix too small for the feature network. None: nothing.
    """
    if not config.metrics:
        return None
    metrics = [*config.metrics, *(["consistency"] if "reference" in config.metrics else [])]
    same = EvaluateConfig(
        metrics=metrics, features=config.features, features_file=config.features_file, clip=config.clip
    )
    suite = load_suite(same, torch.device(device))
    if suite.video is not None:
        refuse_short(suite.video, suite.traversals, num_views, num_frames)
    return suite


def load_video_features(config: EvaluateConfig, device: torch.device) -> features.FeatureNetwork:
    """The feature network of videos, from its file in checkpoints/ unless told."""
    name = config.features
    assert name is not None
    if config.features_resize is not None and not name.startswith("i3d"):
        raise InputError(f"features_resize={config.features_resize}: {name} has its own; leave it null")
    path = Path(config.features_file) if config.features_file else asset("checkpoints") / FEATURE_FILES[name]
    if not path.exists():
        ways = "put it there, name another with features_file=FILE, or leave videos out with features=null"
        raise InputError(f"features={name}: {path} is not there; {ways}")
    resize = features.CONSISTENT4D if config.features_resize == "consistent4d" else features.STYLEGAN_V
    if name == "i3d":
        return features.load_i3d(path, device, resize)
    if name == "i3d_torchscript":
        return features.load_i3d_torchscript(path, device, resize)
    return features.load_videomae(path, device) if name == "videomae" else features.load_video_encoder(path, device)


def load_distance(name: str, device: torch.device) -> ImageDistance:
    backbone = "alex" if name.endswith("alex") else "vgg"
    if name.startswith("st_"):
        return load_shift_tolerant_lpips(backbone, device)
    return load_lpips(backbone, asset("checkpoints") / LPIPS_FILES[backbone], device)

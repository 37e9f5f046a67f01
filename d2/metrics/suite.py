"""All figures of one object, and of a set of objects, under one choice of metrics and networks.

Axes: v views, f frames, n pictures or videos, c h w, d features. `matrix` means v f 3 h w, pixels
in [0, 1], on white.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from d2.matrix import Cameras
from d2.metrics.clip import (
    image_similarity,
    matrix_embeddings,
    neighbour_similarity,
    text_similarity,
)
from d2.metrics.consistency import consistency_metrics, self_figures
from d2.metrics.energy import energy_score, object_disc
from d2.metrics.features import FeatureNetwork, feature_maps
from d2.metrics.figures import ALL, JOINT, Figure
from d2.metrics.frechet import paired_logit_distance
from d2.metrics.image import ImageDistance, image_figures, picture_psnr
from d2.metrics.intervals import Interval
from d2.metrics.photometric import Seen, feature_metrics, neighbours, photometric_metrics
from d2.metrics.reference import reference_metrics
from d2.metrics.set_intervals import set_difference, set_interval
from d2.metrics.video_sets import figure_name, matrix_features
from d2.scene import Truth

PERCEPTUAL = ("lpips_alex", "lpips_vgg", "st_lpips_alex", "st_lpips_vgg")
IMAGE_NETWORKS = ("clip", "efficientnet")
METRICS = (
    *("reference", "consistency", "self_psnr", "video", "energy", "legacy", "features_3d"),
    *IMAGE_NETWORKS,
    *PERCEPTUAL,
)
NEED_TRUTH = frozenset(METRICS) - {"consistency", "self_psnr", *IMAGE_NETWORKS}
# v f 3 h w -> the same, as a scene fitted to it says it
Refit = Callable[[Tensor, Cameras], Tensor | None]


class Suite(NamedTuple):
    """What is measured, and by which networks."""

    metrics: tuple[str, ...]  # of METRICS
    traversals: tuple[str, ...]  # of the video sets
    video: FeatureNetwork | None
    images: tuple[FeatureNetwork, ...]
    distances: tuple[ImageDistance, ...]
    texts: Mapping[str, Tensor]  # image network -> the text's features, d
    places: FeatureNetwork | None = None  # of metrics=[features_3d]: one that has maps


class Measured(NamedTuple):
    """What is kept of one object under one method; its pixels are not."""

    figures: list[Figure]
    features: dict[str, Tensor]  # "sampled/f", "true/f", …: n d
    shape: tuple[int, int, int, int]  # views, frames, height, width


def measure(
    samples: Sequence[Tensor],  # v f 3 h w each
    truth: Truth | None,
    suite: Suite,
    *,
    true: Mapping[str, Tensor],  # `encoded` of the truth's pixels; empty where there is none
    masked: bool,  # whether the truth's masks are known; else they are no part of any figure
    input_view: int | None,  # None: no view is told apart as seen
    pairs: Sequence[Seen] | None,  # `seen_pairs` of the truth
    # None: not those of d2, so that the object's disc is not known beforehand
    cameras: Cameras | None,
    refit: Refit | None = None,  # of metrics=[self_psnr]
    scene: str = "",  # its name
    variant: str = JOINT,  # what sampled
) -> Measured:
    """The figures of every sample, those of all samples together, and the features that set
    distances need."""
    found: list[tuple[str, str, float]] = []  # sample, metric, value
    features: dict[str, list[Tensor]] = {}
    for index, sample in enumerate(samples):
        own = encoded(sample, suite)
        for name, value in own.items():
            features.setdefault(f"sampled/{name}", []).append(value.flatten(0, -2))
        figures = dict(_figures(sample, truth, suite, masked=masked, input_view=input_view))
        if truth is not None and pairs is not None and "consistency" in suite.metrics:
            figures |= photometric_metrics(sample, truth, pairs)
        if truth is not None and pairs is not None and suite.places is not None:
            both = (feature_maps(suite.places, pixels) for pixels in (sample, truth.pixels))
            errors = feature_metrics(*both, pairs)
            figures |= {f"{name}[{suite.places.name}]": value for name, value in errors.items()}
        figures |= dict(_feature_figures(own, true, suite))
        if "self_psnr" in suite.metrics:
            assert refit is not None and cameras is not None
            figures |= self_figures(sample, refit(sample, cameras), truth if masked else None)
        found += [(str(index), name, value) for name, value in figures.items()]
    if "energy" in suite.metrics:
        assert truth is not None
        mask = object_disc(*truth.pixels.shape[-2:]) if cameras is not None else None
        energy = energy_score(torch.stack(list(samples)), truth.pixels, mask)
        names = ("energy", "energy_error", "energy_spread")
        found += [(ALL, name, value) for name, value in zip(names, energy, strict=True)]
    kept = {name: torch.cat(values) for name, values in features.items()}
    rows = [
        Figure(variant=variant, scene=scene, sample=k, metric=name, value=value)
        for k, name, value in found
    ]
    num_views, num_frames, _, height, width = samples[0].shape
    true_features = {f"true/{name}": value.flatten(0, -2) for name, value in true.items()}
    return Measured(rows, kept | true_features, (num_views, num_frames, height, width))


def seen_pairs(suite: Suite, truth: Truth | None, cameras: Cameras | None) -> list[Seen] | None:
    """What neighbouring views see of each other, once for all samples; None where no figure wants
    it or can have it."""
    wanted = "consistency" in suite.metrics or suite.places is not None
    return (
        neighbours(truth, cameras) if wanted and truth is not None and cameras is not None else None
    )


def set_figures(
    objects: Sequence[Mapping[str, Tensor]],  # the features of each, as in `Measured`
    suite: Suite,
    *,
    seed: int,  # of the bootstrap
    variant: str = JOINT,
) -> list[Figure]:
    """Fréchet and kernel distances between the sampled and the true sets of videos and of pictures,
    with intervals."""
    figures = []
    for metric, distance, name in _set_names(suite):
        sides = sets_of(objects, name)
        if sides is not None:
            mean, low, high, n = set_interval(*sides, distance, seed=seed)
            figures.append(
                Figure(
                    variant=variant, sample=ALL, metric=metric, value=mean, low=low, high=high, n=n
                )
            )
    return figures


def set_differences(
    objects: Sequence[Mapping[str, Tensor]],  # the features of each, as in `Measured`
    others: Sequence[Mapping[str, Tensor]],  # those of another evaluation of the same objects
    suite: Suite,
    *,
    seed: int,  # of the bootstrap
) -> dict[str, Interval]:
    """How much every distance between sets differs from the other evaluation's."""
    differences = {}
    for metric, distance, name in _set_names(suite):
        a, b = sets_of(objects, name), sets_of(others, name)
        if a is not None and b is not None:
            differences[metric] = set_difference(a, b, distance, seed=seed)
    return differences


def sets_of(
    objects: Sequence[Mapping[str, Tensor]], name: str
) -> tuple[list[Tensor], list[Tensor]] | None:
    """The sampled and the true features of every object; None where one has none."""
    names = f"sampled/{name}", f"true/{name}"
    if not objects or not all(side in features for side in names for features in objects):
        return None
    sampled, true = ([features[side] for features in objects] for side in names)
    return sampled, true


def without_truth(suite: Suite) -> Suite:
    """What is left for a scene without truth in a run that measures the others against theirs:
    picture features, and the matrix against its own fit."""
    metrics = tuple(name for name in suite.metrics if name in ("self_psnr", *IMAGE_NETWORKS))
    return suite._replace(metrics=metrics, video=None, distances=())


def encoded(
    matrix: Tensor,  # v f 3 h w
    suite: Suite,
) -> dict[str, Tensor]:
    """Features of videos n d by traversal, of pictures v f d by network."""
    found = {
        network.name: matrix_embeddings(network, matrix).float().cpu() for network in suite.images
    }
    if suite.video is None:
        return found
    wanted = suite.traversals if "video" in suite.metrics else ("f",)
    wanted = tuple(dict.fromkeys((*wanted, "f"))) if "legacy" in suite.metrics else wanted
    return found | matrix_features(matrix, suite.video, traversals=wanted)


def _figures(
    sample: Tensor,
    truth: Truth | None,
    suite: Suite,
    *,
    masked: bool,
    input_view: int | None,
) -> Iterator[tuple[str, float]]:
    """Of one sample, from its pixels."""
    if "reference" in suite.metrics or suite.distances:
        assert truth is not None
        pictures = sample.flatten(0, 1), truth.pixels.flatten(0, 1)
        if "reference" in suite.metrics:
            for name, value in reference_metrics(sample, truth, input_view or 0).items():
                needs_masks = "_masked" in name or name.startswith("sharpness")
                if (masked or not needs_masks) and (
                    input_view is not None or not name.endswith("_unseen")
                ):
                    yield name, value
            yield "psnr_pictures", float(picture_psnr(*pictures).double().mean())
        each = image_figures(*pictures, suite.distances) if suite.distances else {}
        for distance in suite.distances:
            yield distance.name, float(each[distance.name].mean())
    if "consistency" in suite.metrics:
        yield from consistency_metrics(sample, None if truth is None else truth.pixels).items()


def _feature_figures(
    own: Mapping[str, Tensor],
    true: Mapping[str, Tensor],
    suite: Suite,
) -> Iterator[tuple[str, float]]:
    """Of one sample, from its features and the truth's."""
    for network in suite.images:
        features = own[network.name]
        if true:
            yield (
                f"similarity[{network.name}]",
                float(image_similarity(features, true[network.name]).mean()),
            )
        for axis, value in neighbour_similarity(features).items():
            yield f"neighbour_{axis}[{network.name}]", value
        if network.name in suite.texts:
            yield (
                f"text[{network.name}]",
                float(text_similarity(features, suite.texts[network.name]).mean()),
            )
    if "legacy" in suite.metrics:
        assert suite.video is not None
        yield (
            f"paired_logits_f[{suite.video.name}]",
            float(paired_logit_distance(own["f"], true["f"]).mean()),
        )


def _set_names(suite: Suite) -> Iterator[tuple[str, str, str]]:
    """Figure, kind of distance and name of the features of every distance between sets."""
    if suite.video is not None and "video" in suite.metrics:
        network = suite.video.name
        for name in suite.traversals:
            yield figure_name("f", name, network), "frechet", name
            yield figure_name("k", name, network), "kernel", name
    for network in (each.name for each in suite.images):
        yield f"fid[{network}]", "frechet", network
        yield f"kid[{network}]", "kernel", network

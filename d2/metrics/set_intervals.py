"""Bootstrap intervals of distances between two sets of features: scenes are resampled, with all
their members.

Axes: s scenes, r resamples, n, m members of a set, d features.

A distance between sets is no mean of anything, so each resample has a distance of its own. Those
are made from sums that every scene brings once, in float64: a resample is a row of counts, and none
is ever laid out.

A resample holds each scene as often as it was drawn, about 63 % of them at all. The Fréchet
distance of fewer different members is larger, so the resamples' distances lie above the value
itself; their spread around their own mean is put around the value. It says how much the value would
vary with other scenes, as many as these, and nothing of the bias that the value itself has for
being measured on so few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from d2.metrics.frechet import KERNEL_DEGREE, frechet_distance, kernel_distance
from d2.metrics.intervals import LEVEL, Interval, bounds, draws

NUM_RESAMPLES = 400  # each wants two eigenvalue problems of d × d
# features of more have no interval of the Fréchet distance: minutes, and gigabytes of sums
MAX_DIM = 512
CHUNK = 20  # resamples at a time

Resamples = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor | None]


def scene_counts(num_scenes: int, seed: int, num_resamples: int = NUM_RESAMPLES) -> Tensor:  # r s
    """How often every resample holds every scene."""
    drawn = torch.from_numpy(draws(num_scenes, seed, num_resamples))
    return torch.zeros_like(drawn).scatter_add_(1, drawn, torch.ones_like(drawn))


def set_interval(
    sampled: Sequence[Tensor],  # n d of each scene
    true: Sequence[Tensor],  # m d of each scene, in the same order
    distance: str,  # frechet | kernel
    *,
    seed: int,
    level: float = LEVEL,
) -> Interval:
    """The distance between the sets of all scenes, and its bounds; those are NaN for one scene or
    above `MAX_DIM`."""
    value, resamples = _distances(sampled, true, distance, scene_counts(len(true), seed))
    return _around(
        value, resamples, len(true), level, least=0.0 if distance == "frechet" else -math.inf
    )


def set_difference(
    a: tuple[Sequence[Tensor], Sequence[Tensor]],  # sampled and true sets of each scene
    b: tuple[Sequence[Tensor], Sequence[Tensor]],  # of the same scenes in the same order
    distance: str,  # frechet | kernel
    *,
    seed: int,
    level: float = LEVEL,
) -> Interval:
    """The distance of a minus that of b and its bounds; every resample has the same scenes on both
    sides."""
    assert len(a[1]) == len(b[1]), f"{len(a[1])} and {len(b[1])} scenes cannot be paired"
    counts = scene_counts(len(a[1]), seed)
    (value_a, of_a), (value_b, of_b) = (_distances(*side, distance, counts) for side in (a, b))
    resamples = None if of_a is None or of_b is None else of_a - of_b
    return _around(value_a - value_b, resamples, len(a[1]), level, least=-math.inf)


def frechet_resamples(
    sampled: Sequence[Tensor],  # n d of each scene
    true: Sequence[Tensor],  # m d of each scene
    counts: Tensor,  # r s
) -> Tensor | None:  # r; None above MAX_DIM
    """`frechet_distance` of every resample, from the scenes' sums and sums of squares."""
    if sampled[0].shape[1] > MAX_DIM:
        return None
    # differences of large sums would lose digits
    centre = torch.cat([*sampled, *true]).double().mean(dim=0)
    sums = [_moments(side, centre) for side in (sampled, true)]
    parts = []
    for part in counts.double().split(CHUNK):
        (mean_a, covariance_a), (mean_b, covariance_b) = (_gaussians(part, *side) for side in sums)
        values, vectors = torch.linalg.eigh(covariance_a)
        root = vectors * values.clamp(min=0).sqrt()[:, None]  # root rootᵀ is the covariance
        overlap = (
            torch.linalg.eigvalsh(root.mT @ covariance_b @ root).clamp(min=0).sqrt().sum(dim=-1)
        )
        traces = sum(
            covariance.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
            for covariance in (covariance_a, covariance_b)
        )
        parts.append((mean_a - mean_b).square().sum(dim=-1) + traces - 2 * overlap)
    return torch.cat(parts).clamp(min=0)


def kernel_resamples(
    sampled: Sequence[Tensor],  # n d of each scene
    true: Sequence[Tensor],  # m d of each scene
    counts: Tensor,  # r s
) -> Tensor:  # r
    """`kernel_distance` of every resample; a pair of a member and its own copy is left out as it is
    with itself."""
    a, b = ([features.double() for features in side] for side in (sampled, true))
    weights = counts.double()
    cross, cross_pairs = _pairs(weights, _block_sums(a, b), _block_sizes(a, b))
    value = -2 * cross / cross_pairs
    for side in (a, b):
        own = torch.stack([_kernel(x, x).trace() for x in side])
        sizes = _block_sizes(side, side)
        within, pairs = _pairs(
            weights, _block_sums(side, side) - own.diag(), sizes - sizes.diag().sqrt().diag()
        )
        value = value + within / pairs
    return value


DISTANCES: dict[str, tuple[Callable[[Tensor, Tensor], float], Resamples]] = {
    "frechet": (frechet_distance, frechet_resamples),
    "kernel": (kernel_distance, kernel_resamples),
}


def _distances(
    sampled: Sequence[Tensor],
    true: Sequence[Tensor],
    distance: str,
    counts: Tensor,  # r s
) -> tuple[float, Tensor | None]:
    of_sets, of_resamples = DISTANCES[distance]
    value = of_sets(torch.cat(list(sampled)), torch.cat(list(true)))
    return value, (
        None if len(true) < 2 or math.isnan(value) else of_resamples(sampled, true, counts)
    )


def _around(value: float, resamples: Tensor | None, n: int, level: float, least: float) -> Interval:
    if resamples is None:
        return Interval(value, math.nan, math.nan, n)
    resamples = resamples[resamples.isfinite()]  # the same video again and again makes no pair
    low, high = bounds((resamples - resamples.mean()).numpy(), level)
    return Interval(value, max(least, value + low), value + high, n)


def _moments(
    parts: Sequence[Tensor],  # n d each
    centre: Tensor,  # d
) -> tuple[Tensor, Tensor, Tensor]:  # s, s d, s d d
    centred = [part.double() - centre for part in parts]
    sizes = torch.tensor([float(len(part)) for part in parts], dtype=torch.float64)
    return (
        sizes,
        torch.stack([x.sum(dim=0) for x in centred]),
        torch.stack([x.T @ x for x in centred]),
    )


def _gaussians(
    counts: Tensor,  # r s
    sizes: Tensor,  # s
    sums: Tensor,  # s d
    squares: Tensor,  # s d d
) -> tuple[Tensor, Tensor]:  # r d, r d d
    members = (counts @ sizes)[:, None]
    mean = counts @ sums / members
    second = (counts @ squares.flatten(1)).unflatten(1, squares.shape[1:])
    covariance = second - members[..., None] * mean[:, :, None] * mean[:, None, :]
    return mean, covariance / (members[..., None] - 1)


def _pairs(
    counts: Tensor,  # r s
    sums: Tensor,  # s s
    sizes: Tensor,  # s s
) -> tuple[Tensor, Tensor]:  # r each
    """The sum over all pairs of every resample, and how many there are."""
    return ((counts @ sums) * counts).sum(dim=1), ((counts @ sizes) * counts).sum(dim=1)


def _block_sums(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:  # s s
    """The kernel summed over the pairs of every two scenes."""
    scene = torch.repeat_interleave(torch.arange(len(b)), torch.tensor([len(x) for x in b]))
    everyone = torch.cat(list(b))
    sums = torch.zeros(len(a), len(b), dtype=torch.float64)
    for row, x in zip(sums, a, strict=True):
        row.index_add_(0, scene, _kernel(x, everyone).sum(dim=0))
    return sums


def _block_sizes(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:  # s s
    n, m = (torch.tensor([float(len(x)) for x in side], dtype=torch.float64) for side in (a, b))
    return n[:, None] * m


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** KERNEL_DEGREE

"""Distances between two sets of feature vectors: Fréchet, kernel, and the paired-logit number of an
older script.

Axes: n, m members of a set, d features. Everything is computed in float64 and without randomness.
Small sets are the rule here: covariances of rank n - 1 < d are never formed, let alone inverted or
multiplied and then rooted, so there is no complex residue to throw away and no constant to add to a
diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor

KERNEL_DEGREE = 3  # of (x·y / d + 1)^3 (Bińkowski et al. 2018)


def frechet_distance(
    a: Tensor,  # n d
    b: Tensor,  # m d
) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets (Dowson and Landau 1982; FID,
    FVD).

    |μa - μb|² + tr Σa + tr Σb - 2 tr (Σa Σb)^½ with unbiased covariances; at least 0. The last
    trace is the nuclear norm of A Bᵀ, where Σa = Aᵀ A and A holds the centred members over √(n -
    1): exact for any n, m and d. NaN where a set has fewer than two members, or holds a NaN.
    """
    a, b = _checked(a, b)
    if min(len(a), len(b)) < 2 or not (a.isfinite().all() and b.isfinite().all()):
        return torch.nan
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    return _distance(a.mean(dim=0) - b.mean(dim=0), root_a, root_b)


def gaussian_frechet_distance(
    mean_a: Tensor,  # d
    covariance_a: Tensor,  # d d
    mean_b: Tensor,  # d
    covariance_b: Tensor,  # d d
) -> float:
    """The same of two Gaussians that are given. Eigenvalues below zero, which are rounding, count
    as zero."""
    root_a, root_b = (
        _symmetric_root(covariance.double()) for covariance in (covariance_a, covariance_b)
    )
    return _distance(mean_a.double() - mean_b.double(), root_a, root_b)


def kernel_distance(
    a: Tensor,  # n d
    b: Tensor,  # m d
) -> float:
    """Unbiased squared MMD of the kernel (x·y / d + 1)³ (KID, KVD; Gretton et al. 2012, equation
    3).

    Its mean is 0 for two sets of one distribution, so it can be negative; its bias does not depend
    on the set's size. NaN where a set has fewer than two members, or holds a NaN.
    """
    a, b = _checked(a, b)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        return torch.nan
    kernel_aa, kernel_bb, kernel_ab = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    within_a = (kernel_aa.sum() - kernel_aa.trace()) / (n * (n - 1))
    within_b = (kernel_bb.sum() - kernel_bb.trace()) / (m * (m - 1))
    return float(within_a + within_b - 2 * kernel_ab.mean())


def paired_logit_distance(
    a: Tensor,  # n d, logits of one video a row
    b: Tensor,  # n d, of the video it is compared with
) -> Tensor:  # n, float64
    """What Consistent4D's `compute_fvd.py` prints of two videos: |a - b|² + (sd a - sd b)²,
    labelled as what it is.

    Not a Fréchet distance between sets: NumPy before 2.2 took the one row of logits that the script
    calls a set for d observations of one variable, so its "covariance" is the variance (ddof 1)
    over the logits, and its root a number. From NumPy 2.2 on the script gives NaN. Its tables are
    means over an object's views, then over objects.
    """
    a, b = _checked(a, b)
    assert len(a) == len(b), f"{len(a)} and {len(b)} videos cannot be paired"
    return (a - b).square().sum(dim=1) + (a.std(dim=1) - b.std(dim=1)).square()


def _distance(
    shift: Tensor,  # d
    root_a: Tensor,  # k d, with rootᵀ root the covariance
    root_b: Tensor,  # l d
) -> float:
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = shift.square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return float(distance.clamp(min=0))  # below zero by rounding alone


def _covariance_root(members: Tensor) -> Tensor:  # min(n, d) d
    root = (members - members.mean(dim=0)) / (len(members) - 1) ** 0.5
    return root if len(root) <= root.shape[1] else torch.linalg.qr(root, mode="r").R


def _symmetric_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return values.clamp(min=0).sqrt()[:, None] * vectors.T


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** KERNEL_DEGREE


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    assert a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1], (
        f"sets of shapes {tuple(a.shape)} and {tuple(b.shape)}"
    )
    return a.double(), b.double()

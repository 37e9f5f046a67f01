"""Laws of the distances between sets of features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from d2.metrics.frechet import (
    frechet_distance,
    gaussian_frechet_distance,
    kernel_distance,
    paired_logit_distance,
)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(seed: int, n: int, d: int) -> Tensor:
    """A set whose directions have very different variances, and whose mean is not 0."""
    return normal(seed, n, d) @ (normal(seed + 1, d, d) * torch.logspace(0, -3, d)) + normal(
        seed + 2, d
    )


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(dim=0), torch.cov(x.T)


def textbook(a: Tensor, b: Tensor) -> float:
    """|Δμ|² + tr Σa + tr Σb - 2 Σ √λ(Σa Σb), by the eigenvalues of the product, in NumPy."""
    (mean_a, cov_a), (mean_b, cov_b) = (tuple(m.numpy() for m in moments(x)) for x in (a, b))
    roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0))
    return float(
        ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum()
    )


def test_known_gaussians():
    """Covariances that share their axes: the distance is |Δμ|² + Σ (sd a - sd b)²."""
    axes = torch.linalg.qr(normal(0, 6, 6)).Q
    sd_a, sd_b = (
        torch.tensor([0, 1e-4, 1, 2, 3, 50.0]).double(),
        torch.tensor([0, 2e-4, 0, 2, 5, 10.0]).double(),
    )
    shift = normal(1, 6)
    cov_a, cov_b = (axes * sd.square() @ axes.T for sd in (sd_a, sd_b))
    want = float(shift.square().sum() + (sd_a - sd_b).square().sum())
    assert gaussian_frechet_distance(shift, cov_a, torch.zeros(6), cov_b) == pytest.approx(
        want, abs=1e-6
    )


def test_gaussians_in_the_plane_whose_axes_differ():
    """For 2 × 2 matrices tr (Σa Σb)^½ = √(tr Σa Σb + 2 √(det Σa det Σb))."""
    a, b = (x.T @ x for x in (normal(2, 2, 2), normal(3, 2, 2)))
    root = (torch.trace(a @ b) + 2 * (torch.det(a) * torch.det(b)).sqrt()).sqrt()
    want = float(torch.trace(a + b) - 2 * root)
    assert gaussian_frechet_distance(torch.zeros(2), a, torch.zeros(2), b) == pytest.approx(
        want, abs=1e-6
    )


@pytest.mark.parametrize(
    ("n", "m", "d"), [(200, 150, 12), (5, 9, 40), (3, 300, 40), (2, 2, 400), (13, 13, 13)]
)
def test_sets_agree_with_their_moments_and_with_the_textbook(n: int, m: int, d: int):
    a, b = spread(0, n, d), spread(10, m, d)
    got = frechet_distance(a, b)
    assert got == pytest.approx(gaussian_frechet_distance(*moments(a), *moments(b)), rel=1e-6)
    # the textbook roots rounding: hence its tolerance
    assert got == pytest.approx(textbook(a, b), rel=1e-4)
    assert got == frechet_distance(a, b) and got == pytest.approx(frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(2, 400), (16, 400), (500, 20)])
def test_identical_sets_give_nothing(n: int, d: int):
    a = 30 * spread(0, n, d)
    assert 0 <= frechet_distance(a, a) < 1e-6
    assert (
        0
        <= frechet_distance(a, a[torch.randperm(n, generator=torch.Generator().manual_seed(0))])
        < 1e-6
    )
    assert 0 <= frechet_distance(a, a.float().double()) < 1e-3


def test_a_shift_costs_its_square_and_a_scale_its_spread():
    a = spread(0, 10, 30)
    shift = normal(5, 30)
    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)
    centred = a - a.mean(dim=0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(
        4 * float(torch.cov(a.T).trace()), rel=1e-9
    )


def test_a_rotation_changes_nothing():
    a, b = spread(0, 7, 20), spread(4, 9, 20)
    turn = torch.linalg.qr(normal(6, 20, 20)).Q
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_a_set_of_one_has_no_answer():
    for distance in (frechet_distance, kernel_distance):
        assert math.isnan(distance(normal(0, 1, 4), normal(1, 5, 4)))
        assert math.isnan(distance(torch.full((3, 4), math.nan), normal(1, 5, 4)))


def test_kernel_distance_is_torchmetrics_where_that_is_defined():
    """Its function takes two sets of one size only."""
    a, b = normal(0, 20, 30), 0.5 + normal(1, 20, 30)
    assert kernel_distance(a, b) == pytest.approx(float(poly_mmd(a, b)), abs=1e-12)


def test_kernel_distance_is_unbiased_at_any_size():
    """Over many draws of one distribution its mean is 0, for sets of 3 and 8; with the diagonal it
    would not be."""
    draws = torch.tensor(
        [kernel_distance(normal(2 * i, 3, 5), normal(2 * i + 1, 8, 5)) for i in range(1500)]
    )
    assert abs(float(draws.mean())) < 3 * float(draws.std()) / 1500**0.5
    apart = torch.tensor(
        [kernel_distance(normal(2 * i, 3, 5), 1 + normal(2 * i + 1, 8, 5)) for i in range(300)]
    )
    assert float(apart.mean()) > 10 * float(apart.std()) / 300**0.5


def test_paired_logits_are_the_published_formula():
    """The script's own steps, by NumPy, with its set of one read as it used to be: d observations
    of one variable."""
    a, b = 4 * normal(0, 5, 400), normal(1, 5, 400) + 1
    for x, y, got in zip(a.numpy(), b.numpy(), paired_logit_distance(a, b), strict=True):
        var_x, var_y = np.cov(x), np.cov(y)
        want = ((x - y) ** 2).sum() + var_x + var_y - 2 * np.sqrt(var_x * var_y)
        assert float(got) == pytest.approx(want, abs=1e-9)
        assert float(got) == pytest.approx(
            ((x - y) ** 2).sum() + (x.std(ddof=1) - y.std(ddof=1)) ** 2, abs=1e-9
        )
    assert paired_logit_distance(a, a).tolist() == [0] * 5

"""Laws of the energy score."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2.data.world4d import scene
from d2.metrics.energy import energy_score, object_disc

H = 12
D = 3 * H * H


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, 3, H, H, generator=torch.Generator().manual_seed(seed))


def mean_norm(d: int) -> float:
    """Mean length of a standard normal vector of d values, over √d."""
    return math.sqrt(2 / d) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_gaussians_have_the_known_value(scale: float):
    """X ~ N(0, s²), y ~ N(0, 1): E|X - y| = √(1 + s²) m and E|X - X'| = √2 s m."""
    scores = [energy_score(scale * normal(i, 8), normal(1000 + i)) for i in range(40)]
    error, spread = (
        sum(values) / 40 for values in zip(*((s.error, s.spread) for s in scores), strict=True)
    )
    assert error == pytest.approx(math.sqrt(1 + scale**2) * mean_norm(D), rel=0.01)
    assert spread == pytest.approx(scale / math.sqrt(2) * mean_norm(D), rel=0.01)
    assert all(s.score == s.error - s.spread for s in scores)


def test_the_true_distribution_has_the_least_score():
    def mean_score(scale: float, shift: float) -> float:
        return (
            sum(
                energy_score(scale * normal(i, 8) + shift, normal(1000 + i)).score
                for i in range(20)
            )
            / 20
        )

    best = mean_score(1, 0)
    assert all(
        mean_score(*other) > best + 0.01
        for other in [(0.5, 0), (0.7, 0), (1.5, 0), (2, 0), (1, 0.5), (0, 0)]
    )


def test_blur_wins_at_psnr_and_loses_here():
    """Samples of the truth's own distribution, blurred more and more: nearer to the truth, and
    scored worse."""

    def blurred(x: Tensor, times: int) -> Tensor:
        for _ in range(times):
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="circular"), 3, stride=1)
        return x

    errors, scores = [], []
    for times in range(4):
        results = [energy_score(blurred(normal(i, 6), times), normal(1000 + i)) for i in range(10)]
        errors.append(sum(r.error for r in results))
        scores.append(sum(r.score for r in results))
    assert errors == sorted(errors, reverse=True) and scores == sorted(scores)


def test_the_score_is_exact_on_two_samples_by_hand():
    samples = torch.stack([torch.zeros(3, H, H), torch.full((3, H, H), 0.6)])
    result = energy_score(samples, torch.full((3, H, H), 0.2))
    assert result == pytest.approx(((0.2 + 0.4) / 2 - 0.3, 0.3, 0.3), abs=1e-6)


def test_the_mask_is_all_that_counts():
    samples, truth = normal(0, 3, 2, 2), normal(9, 2, 2)
    mask = torch.zeros(H, H, dtype=torch.bool)
    mask[2:7, 3:5] = True
    inside = energy_score(samples, truth, mask)
    outside = torch.where(mask, samples, 5 * normal(4, 3, 2, 2))
    assert energy_score(outside, truth, mask) == inside
    assert energy_score(samples[..., 2:7, 3:5], truth[..., 2:7, 3:5]) == pytest.approx(
        inside, abs=1e-12
    )


def test_one_sample_has_an_error_and_no_score():
    result = energy_score(normal(0, 1), normal(1))
    assert result.error > 0 and math.isnan(result.spread) and math.isnan(result.score)


def test_the_disc_holds_whatever_can_be_seen_and_not_the_corners():
    disc = object_disc(64, 64)
    assert 0.5 < disc.float().mean() < 0.65 and not disc[0, 0]
    assert disc.equal(disc.T) and disc.equal(disc.flip(0))
    assert object_disc(64, 96)[:, 16:80].equal(disc)
    truth = scene("test", 0, num_views=4, num_frames=4, size=64).truth
    assert truth is not None and not (truth.masks[:, :, 0] > 0)[..., ~disc].any()

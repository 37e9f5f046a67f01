"""Laws of the prior bound to its conditions."""

from __future__ import annotations

import pytest
import torch
from small_prior import CHANNELS, CONFIG, SIZE, random_condition, small_prior
from torch import Tensor, nn

from d2.priors.prior import denoiser

B, T = 3, 4
ALL = torch.arange(B)
SIGMA = 1.7


def noisy(seed: int = 5) -> Tensor:
    return SIGMA * torch.randn(
        B, T, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)
    )


def moved(a: Tensor | None, b: Tensor | None) -> list[list[bool]]:
    """Which elements b t of two results differ."""
    assert a is not None and b is not None
    return ((a - b).abs().amax(dim=(2, 3, 4)) > 1e-5).tolist()


def test_halves_are_the_same_asked_together_or_apart() -> None:
    denoise = denoiser(small_prior(), random_condition(B, T))
    both, uncond, cond = (
        denoise(noisy(), SIGMA, ALL, h) for h in ((True, True), (True, False), (False, True))
    )
    assert uncond.cond is None and cond.uncond is None
    torch.testing.assert_close(uncond.uncond, both.uncond, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cond.cond, both.cond, rtol=1e-5, atol=1e-5)
    assert all(all(row) for row in moved(both.uncond, both.cond))  # the condition says something


def test_halves_are_the_network_under_each_condition() -> None:
    prior, cond, uncond = small_prior(), random_condition(B, T), random_condition(B, T, seed=1)
    sigma = torch.full((B, T), SIGMA)
    got = denoiser(prior, cond, uncond)(noisy(), SIGMA, ALL, (True, True))
    torch.testing.assert_close(got.cond, prior(noisy(), sigma, cond), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.uncond, prior(noisy(), sigma, uncond), rtol=1e-5, atol=1e-5)
    dropped = denoiser(prior, cond)(noisy(), SIGMA, ALL, (True, False)).uncond
    torch.testing.assert_close(dropped, prior(noisy(), sigma, cond.drop()), rtol=1e-5, atol=1e-5)


def test_dropping_the_condition_keeps_only_the_scalars() -> None:
    cond = random_condition(B, T)
    dropped = cond.drop()
    assert not dropped.crossattn.any() and not dropped.concat.any()
    assert torch.equal(dropped.vector, cond.vector)


def test_some_sequences_are_denoised_under_their_own_conditions() -> None:
    denoise = denoiser(small_prior(), random_condition(B, T))
    some = torch.tensor([2, 0])
    whole, part = (
        denoise(noisy(), SIGMA, ALL, (True, True)),
        denoise(noisy()[some], SIGMA, some, (True, True)),
    )
    for half, of_part in zip(whole, part, strict=True):
        assert half is not None
        torch.testing.assert_close(of_part, half[some], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("image_only", [True, False])
def test_image_only_makes_elements_independent(image_only: bool) -> None:
    """Of the elements 1 of all sequences, only they themselves hear; else their whole sequence
    does."""
    denoise = denoiser(small_prior(), random_condition(B, T), image_only=image_only)
    x, changed = noisy(), noisy()
    changed[:, 1] += noisy(seed=6)[:, 1]
    halves = (denoise(y, SIGMA, ALL, (True, True)) for y in (x, changed))
    for before, after in zip(*halves, strict=True):
        assert moved(before, after) == [[not image_only or t == 1 for t in range(T)]] * B


def test_sequences_never_hear_each_other() -> None:
    denoise = denoiser(small_prior(), random_condition(B, T))
    x, changed = noisy(), noisy()
    changed[1] += noisy(seed=6)[1]
    before, after = (denoise(y, SIGMA, ALL, (False, True)).cond for y in (x, changed))
    assert moved(before, after) == [[b == 1] * T for b in range(B)]


@pytest.mark.parametrize("sigma", [1e-3, 1e3])
def test_the_network_is_not_believed_where_x_says_all_and_alone_believed_where_it_says_nothing(
    sigma: float,
) -> None:
    x = noisy() * max(sigma, 1) / SIGMA
    cond = denoiser(small_prior(), random_condition(B, T))(x, sigma, ALL, (False, True)).cond
    assert cond is not None
    if sigma < 1:
        torch.testing.assert_close(cond, x, rtol=0, atol=0.02)
    else:
        assert cond.abs().max() < 0.02 * x.abs().max()


class Mean(nn.Module):
    """An encoder that says the mean colour of a picture everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3)).reshape(-1, 1, 1, 1).expand(-1, CHANNELS, SIZE, SIZE)


def test_conditions_repeat_the_picture_along_the_sequence_and_noise_only_what_is_encoded() -> None:
    prior, aug = small_prior(), torch.tensor([[0.0] * T, [0.5] * T, [2.0] * T])
    images = torch.full((B, 3, 8, 8), 0.25)
    noise = torch.tensor([3.0, -1.0, 1.0])[:, None, None, None].expand_as(images)
    cond, uncond = prior.condition(images, noise, {"cond_aug": aug}, T, encoder=Mean())
    assert cond.crossattn.shape == (B, T, 1, 6) and cond.concat.shape == (
        B,
        T,
        CHANNELS,
        SIZE,
        SIZE,
    )
    assert cond.vector.shape == (B, T, sum(width for _, width in CONFIG.scalars))
    torch.testing.assert_close(cond.concat[..., 0, 0, 0], 0.25 + aug * noise[:, :1, 0, 0])
    torch.testing.assert_close(cond.crossattn, cond.crossattn[:1, :1].expand_as(cond.crossattn))
    assert cond.crossattn.any() and not torch.equal(cond.vector[0], cond.vector[1])
    assert (
        torch.equal(uncond.vector, cond.vector)
        and not uncond.concat.any()
        and not uncond.crossattn.any()
    )

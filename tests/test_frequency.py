"""Laws of the low-pass masks, of mixing, and of further passes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from d2.matrix import camera_ring, columns, rows
from d2.noise import draw
from d2.reference import sample_one_axis
from d2.rules import composition, guidance, renoise, solver, weights
from d2.rules.bundle import Rules
from d2.rules.frequency import low_pass, mix, reinitialised
from d2.sampling import Prediction, Term
from d2.terms import Settings

KINDS = ("butterworth", "gaussian", "ideal", "box")
SIZES = [(5, 8, 6), (4, 7, 5), (9, 9, 9), (1, 4, 4), (3, 4, 6, 5)]


def unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reversed_frequencies(mask: Tensor) -> Tensor:
    """The mask at -k in the place of k."""
    axes = tuple(range(mask.ndim))
    return mask.flip(axes).roll((1,) * mask.ndim, axes)


def wave(sizes: tuple[int, ...], numbers: tuple[int, ...]) -> Tensor:
    """A cosine of so many periods along each axis."""
    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) / n for n in sizes), indexing="ij")
    return (
        torch.stack([2 * math.pi * k * g for k, g in zip(numbers, grid, strict=True)])
        .sum(dim=0)
        .cos()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_mask_is_even_and_passes_the_constant_whatever_the_sizes(
    kind: str, sizes: tuple[int, ...]
) -> None:
    mask = low_pass(sizes, kind=kind, space=0.5, time=0.3)
    assert mask.shape == sizes and mask.min() >= 0 and mask.max() == mask.flatten()[0] == 1
    torch.testing.assert_close(reversed_frequencies(mask), mask, rtol=0, atol=1e-15)
    odd = any(n % 2 and n > 1 for n in sizes)
    published = low_pass(sizes, kind=kind, space=0.5, time=0.3, published=True)
    if odd and kind in ("butterworth", "gaussian"):  # the fault that our masks are without
        assert (
            reversed_frequencies(published) - published
        ).abs().max() > 1e-3 and published.flatten()[0] < 1


@pytest.mark.parametrize("kind", ("butterworth", "gaussian"))
def test_the_published_mask_is_ours_where_all_sizes_are_even(kind: str) -> None:
    ours, published = (low_pass((4, 8, 6), kind=kind, published=p) for p in (False, True))
    torch.testing.assert_close(ours, published, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("butterworth", 0.5), ("gaussian", math.exp(-0.5)), ("ideal", 1.0), ("box", 1.0)],
)
def test_at_the_cut_off_and_beyond_it(kind: str, expected: float) -> None:
    """Along every axis: with 16 samples, frequency 2 of 8 is a quarter of the highest."""
    mask = low_pass((16, 16, 16), kind=kind, space=0.25, time=0.5)
    assert mask[4, 0, 0].item() == pytest.approx(expected)
    assert (
        mask[0, 2, 0].item()
        == mask[0, 0, 2].item()
        == mask[0, -2, 0].item()
        == pytest.approx(expected)
    )
    assert mask[5, 0, 0] < expected and mask[0, 3, 0] < expected and mask[0, 0, -3] < expected
    assert low_pass((16, 16, 16), kind=kind, time=0).any().item() is False


def test_a_sequence_of_one_is_a_picture_and_an_axis_of_one_is_none() -> None:
    torch.testing.assert_close(low_pass((1, 5, 6, 4)), low_pass((5, 6, 4))[None])
    torch.testing.assert_close(low_pass((5, 1, 6, 4)), low_pass((5, 6, 4))[:, None])


def test_mixing_takes_low_waves_of_one_and_high_waves_of_the_other() -> None:
    sizes = (6, 9, 8)
    slow, fast = wave(sizes, (0, 1, 1)), wave(sizes, (2, 3, 0))
    mask = low_pass(sizes, kind="ideal", space=0.4, time=0.4)
    torch.testing.assert_close(mix(slow + fast, 5 * slow + 3 * fast, mask), slow + 3 * fast)


@pytest.mark.parametrize("sizes", SIZES)
def test_what_one_mixture_leaves_the_other_takes(sizes: tuple[int, ...]) -> None:
    a, b, mask = unit(2, *sizes), unit(2, *sizes, seed=1), low_pass(sizes)
    torch.testing.assert_close(mix(a, b, mask) + mix(b, a, mask), a + b)
    torch.testing.assert_close(mix(a, a, mask), a)
    # real, as the mask is even: nothing is thrown away with an imaginary part
    spectrum = torch.fft.fftn(a[0]) * mask
    assert torch.fft.ifftn(spectrum).imag.abs().max() < 1e-12


def test_reinitialised_noise_is_unit_noise_that_remembers() -> None:
    sizes, sigma = (8, 16, 16), 2.0
    z, noise, fresh = (unit(4, *sizes, seed=s) for s in range(3))
    mask = low_pass(sizes, kind="ideal", space=0.5, time=0.5)
    again = reinitialised(z, noise, fresh, sigma, mask)
    assert again.std().item() == pytest.approx(1, abs=0.02)
    low = torch.fft.fftn(again, dim=(1, 2, 3)) * mask
    torch.testing.assert_close(
        low, torch.fft.fftn((z + sigma * noise) / 5**0.5, dim=(1, 2, 3)) * mask
    )


@pytest.mark.parametrize("along_frames", [True, False])
def test_a_further_pass_starts_from_the_result_of_the_pass_before(along_frames: bool) -> None:
    """A prior that always says the same picture, so that each pass ends in it."""
    t, h, w = 5, 4, 6
    shape = (1, t, 2, h, w) if along_frames else (t, 1, 2, h, w)
    picture = unit(2, h, w).float()
    begun: list[Tensor] = []

    def denoise(
        x: Tensor, sigma: float, sequences: Tensor, halves: tuple[bool, bool]
    ) -> Prediction:
        if sigma == settings.sigmas[0]:
            begun.append(x[0] / (1 + sigma**2) ** 0.5)  # t c h w
        return Prediction(*(picture.expand_as(x) if half else None for half in halves))

    name, cut = ("video", rows(1, t)) if along_frames else ("multiview", columns(t, 1))
    curve = partial(guidance.constant, scale=2.0)
    rules = Rules(
        renoise.none,
        partial(weights.alone, term=name),
        partial(guidance.per_term, video=curve, multiview=curve),
        composition.linear(coefficients=composition.convex),
        solver.euler,
    )
    settings = Settings(num_steps=2, sigma_max=3.0, reinit=2)

    def noise(k: int) -> Tensor:
        return draw(0, "clip", shape, step=k)

    cameras = camera_ring(1 if along_frames else t)
    result = sample_one_axis(noise, Term(name, cut, denoise), cameras, rules, settings)
    torch.testing.assert_close(result, picture.expand(shape), rtol=1e-4, atol=1e-4)
    noises = [noise(k).flatten(0, 1).movedim(1, 0) for k in range(3)]
    expected = [noises[0]]
    for fresh in noises[1:]:
        end = picture[:, None].expand_as(fresh)
        expected.append(reinitialised(end, noises[0], fresh, 3.0, low_pass((t, h, w))))
    for got, wanted in zip(begun, expected, strict=True):
        torch.testing.assert_close(got.movedim(1, 0), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "round"}, "kind=round"),
        ({"order": 0}, "order=0"),
        ({"space": -1.0}, "space=-1"),
        ({}, r"\[4, 4\]"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        low_pass((3, 4, 4) if wrong else (4, 4), **wrong)

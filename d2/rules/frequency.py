"""Frequencies of a sequence of latents: low-pass masks, mixing, and the noise that a further pass
starts from.

FreeInit (Wu et al. 2023, arXiv 2312.07537) samples again from noise whose low frequencies remember
the first result. A mask lies as torch.fft.fftn lays out its frequencies, the constant first. Axes:
c, then t... (t, or v f), then h w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from d2.errors import InputError

LowPass = Callable[[Sequence[int]], Tensor]  # sizes of t... h w -> mask


def low_pass(
    sizes: Sequence[int],  # of t... h w
    *,
    kind: str = "butterworth",
    order: int = 4,  # of a Butterworth filter
    space: float = 0.25,  # cut-off along h and w, in units of the highest frequency
    time: float = 0.25,  # cut-off along the axes before them
    published: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """How much of each frequency passes: t... h w, float64, 1 at the constant and even; 0 where a
    cut-off is 0.

    The published masks are others, which `published` gives: where a size is odd their centre lies
    half a frequency off the constant, `ideal` cuts at sqrt(2 · space), `box` reaches one frequency
    further down than up, as far in w as in h by number.
    """
    if kind not in ("butterworth", "gaussian", "ideal", "box"):
        raise InputError(f"low_pass.kind={kind}: choose butterworth, gaussian, ideal or box")
    if len(sizes) < 3 or order < 1 or space < 0 or time < 0:
        raise InputError(
            f"low_pass.order={order}, space={space}, time={time}, sizes={list(sizes)}: "
            "give order ≥ 1, cut-offs ≥ 0, and the sizes of t h w or of v f h w"
        )
    if space == 0 or time == 0:
        return torch.zeros(*sizes, dtype=torch.float64, device=device)
    cuts = [time] * (len(sizes) - 2) + [space] * 2
    # 0, 1 … -1
    waves = [torch.fft.fftfreq(n, 1 / n, dtype=torch.float64, device=device).round() for n in sizes]
    axes = [
        2 * (k + n // 2) / n - 1 if published else 2 * k / n
        for k, n in zip(waves, sizes, strict=True)
    ]
    frequency = torch.meshgrid(*axes, indexing="ij")  # -1 … 1
    square = sum((space / cut * f).square() for f, cut in zip(frequency, cuts, strict=True))
    assert isinstance(square, Tensor)
    if kind == "butterworth":
        return 1 / (1 + (square / space**2) ** order)
    if kind == "gaussian":
        return (-square / (2 * space**2)).exp()
    if kind == "ideal":
        return (square <= (2 * space if published else space**2)).double()
    if not published:
        return (
            torch.stack([f.abs() <= cut for f, cut in zip(frequency, cuts, strict=True)])
            .all(dim=0)
            .double()
        )
    halves = [round(n // 2 * cut) for n, cut in zip([*sizes[:-1], sizes[-2]], cuts, strict=True)]
    inside = [(-half <= k) & (k < half) for k, half in zip(waves, halves, strict=True)]
    return torch.stack(torch.meshgrid(*inside, indexing="ij")).all(dim=0).double()


def mix(
    low: Tensor,  # ... t... h w
    high: Tensor,  # ... t... h w
    mask: Tensor,  # t... h w, as `low_pass` gives it
) -> Tensor:  # ... t... h w
    """The frequencies of `low` that pass the mask, and the rest of `high`'s."""
    axes = tuple(range(-mask.ndim, 0))
    spectrum = torch.fft.fftn(low - high, dim=axes) * mask.to(low)
    return high + torch.fft.ifftn(spectrum, dim=axes).real


def reinitialised(
    latents: Tensor,  # c t... h w, the result of a pass
    noise: Tensor,  # c t... h w, unit, which that pass started from
    fresh: Tensor,  # c t... h w, unit
    sigma: float,  # level at which passes start
    mask: Tensor,  # t... h w
) -> Tensor:  # c t... h w
    """Unit noise for the next pass: the result noised to σ as the pass began, its high frequencies
    fresh."""
    return mix((latents + sigma * noise) / math.sqrt(1 + sigma**2), fresh, mask)

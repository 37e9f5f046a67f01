"""How close a sampled matrix is to the truth, where the truth is known.

Axes: v views, f frames, n cells, c h w. Pixels are in [0, 1], on white.

PSNR alone rewards blur: the mean of all plausible pictures scores higher than any one of them. So
the fidelity figures (psnr, ssim) come with the two that a blur or a mean cannot win: `sharpness`,
and the retrieval shares `own_view` and `own_frame`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from d2.scene import Truth

# a pixel shows the object where coverage, or any channel's distance from white, exceeds this
VISIBLE = 0.05
# pixels, in both axes and the diagonals: the mask also holds the rim just outside the object
DILATION = 2
# dB, an error of 1e-5: at the rounding of float32, and a number that JSON can hold
PSNR_CAP = 100.0
POOLED_NAMES = ("psnr", "ssim", "psnr_masked", "ssim_masked", "sharpness", "own_view", "own_frame")


class Cells(NamedTuple):
    """What pooling over some of the cells needs: each cell's own sums. All are v f."""

    pixels: Tensor  # number of values, three a pixel
    masked: Tensor  # the same within the mask
    error: Tensor  # squared, summed
    masked_error: Tensor
    ssim: Tensor  # mean over the image, as torchmetrics has it: without a border of half a window
    masked_ssim: Tensor  # summed over the map
    energy: Tensor  # of the sample's gradient within the mask
    true_energy: Tensor
    own_view: Tensor  # 1 where the nearest of the frame's true views is the cell's own
    own_frame: Tensor  # 1 where the nearest of the view's true frames is the cell's own


def reference_metrics(
    sample: Tensor,  # v f 3 h w
    truth: Truth,
    input_view: int,
) -> dict[str, float]:
    """The figures of one matrix, each over all cells and, as NAME_unseen, over the views other than
    the input's.

    psnr, psnr_masked: 10 log10(1 / MSE) in dB, the MSE pooled over the (masked) pixels of the
    cells; at most 100.
    ssim, ssim_masked: mean over the cells, and mean of the SSIM map over the masked pixels.
    sharpness: gradient energy of the sample over that of the truth within the mask; 1 is ideal,
    less is blur.
    own_view, own_frame: share of cells nearest (MSE, whole image) to their own truth among that
    frame's true views or that view's true frames; chance is 1/V and 1/F. True pictures that
    coincide share the hit.
    NaN where there is nothing to measure: no unseen view, nothing visible, a sample that is NaN.
    """
    cells = measure_cells(sample, truth)
    every = torch.ones(sample.shape[:2], dtype=torch.bool, device=sample.device)
    unseen = every.clone()
    unseen[input_view] = False
    return pool(cells, every) | {
        f"{name}_unseen": value for name, value in pool(cells, unseen).items()
    }


def reference_tables(
    sample: Tensor,  # v f 3 h w
    truth: Truth,
) -> list[dict[str, str | int | float]]:
    """The same figures for every view and for every frame, in long format: axis, index, metric,
    value."""
    cells = measure_cells(sample, truth)
    view, frame = torch.meshgrid(
        *(torch.arange(n, device=sample.device) for n in sample.shape[:2]), indexing="ij"
    )
    return [*_long_rows(cells, "view", view), *_long_rows(cells, "frame", frame)]


def measure_cells(
    sample: Tensor,  # v f 3 h w
    truth: Truth,
) -> Cells:
    """Measure every cell once."""
    assert sample.shape == truth.pixels.shape, f"sample {sample.shape}, truth {truth.pixels.shape}"
    x, y = sample.float(), truth.pixels.float().to(sample.device)
    mask = object_mask(x, truth.masks.to(sample.device))
    # One row at a time: at 21 × 25 × 576² the filtered copies of a whole matrix are tens of
    # gigabytes.
    rows = [_row_sums(*row) for row in zip(x, y, mask, strict=True)]
    return Cells(
        *(torch.stack(column) for column in zip(*rows, strict=True)),
        own_view=rearrange(
            _own(rearrange(x, "v f ... -> f v ..."), rearrange(y, "v f ... -> f v ...")),
            "f v -> v f",
        ),
        own_frame=_own(x, y),
    )


def pool(
    cells: Cells,
    where: Tensor,  # v f, bool
) -> dict[str, float]:
    """The figures `POOLED_NAMES` over a choice of cells."""
    chosen = Cells(*(value[where] for value in cells))
    energy, true_energy = chosen.energy.sum(), chosen.true_energy.sum()
    values = (
        _psnr(chosen.error.sum() / chosen.pixels.sum()),
        chosen.ssim.mean(),
        _psnr(chosen.masked_error.sum() / chosen.masked.sum()),
        chosen.masked_ssim.sum() / chosen.masked.sum(),
        energy / true_energy if true_energy > 0 else torch.nan,
        chosen.own_view.mean(),
        chosen.own_frame.mean(),
    )
    return {name: float(value) for name, value in zip(POOLED_NAMES, values, strict=True)}


def object_mask(
    sample: Tensor,  # v f 3 h w
    masks: Tensor,  # v f 1 h w, true coverage in [0, 1]
) -> Tensor:  # v f 1 h w, bool
    """Where the object is, or is painted: its true mask together with the sample's non-white
    pixels, dilated.

    The union is taken over all cells of the matrix, each cell with its own: what one cell shows is
    no part of another's mask. A ghost far from the object therefore counts as an error, and an
    object that is missing too.
    """
    visible = (masks > VISIBLE) | (sample < 1 - VISIBLE).any(dim=2, keepdim=True)
    flat = rearrange(visible.float(), "v f 1 h w -> (v f) 1 h w")
    dilated = F.max_pool2d(flat, 2 * DILATION + 1, stride=1, padding=DILATION) > 0
    return rearrange(dilated, "(v f) 1 h w -> v f 1 h w", v=len(sample))


def gradient_energy(
    images: Tensor,  # n 3 h w
    mask: Tensor,  # n 1 h w, bool
) -> Tensor:  # n
    """Sum of squared differences between neighbours, across and down, where both lie in the
    mask."""
    across = images.diff(dim=-1).square() * (mask[..., 1:] & mask[..., :-1])
    down = images.diff(dim=-2).square() * (mask[..., 1:, :] & mask[..., :-1, :])
    return across.sum(dim=(1, 2, 3)) + down.sum(dim=(1, 2, 3))


def _row_sums(
    x: Tensor,  # f 3 h w
    y: Tensor,  # f 3 h w
    mask: Tensor,  # f 1 h w, bool
) -> tuple[Tensor, ...]:  # f each: the fields of `Cells` up to the retrieval
    image = (1, 2, 3)
    error = (x - y).square()
    ssim = structural_similarity_index_measure(
        x, y, data_range=1.0, reduction="none", return_full_image=True
    )
    assert isinstance(ssim, tuple)
    return (
        torch.full((len(x),), x[0].numel(), device=x.device),
        x.shape[1] * mask.sum(dim=image),
        error.sum(dim=image),
        (error * mask).sum(dim=image),
        ssim[0],
        (ssim[1] * mask).sum(dim=image),
        gradient_energy(x, mask),
        gradient_energy(y, mask),
    )


def _own(
    sample: Tensor,  # a n 3 h w
    truth: Tensor,  # a n 3 h w
) -> Tensor:  # a n
    """For each of the n sampled pictures: is its own the nearest of the n true ones? Ties share the
    hit."""
    # The formula |x|² - 2xy + |y|² would lose the small differences between neighbouring frames to
    # rounding.
    distance = torch.cdist(
        sample.flatten(2), truth.flatten(2), compute_mode="donot_use_mm_for_euclid_dist"
    )
    nearest = (distance == distance.amin(dim=-1, keepdim=True)).float()
    own = torch.diagonal(nearest, dim1=-2, dim2=-1)
    return own / nearest.sum(dim=-1)  # a NaN is nearest to nothing, and stays NaN


def _psnr(mse: Tensor) -> Tensor:
    """torchmetrics' PSNR from a pooled MSE: that of one value whose error is the root."""
    return peak_signal_noise_ratio(mse.sqrt(), torch.zeros_like(mse), data_range=1.0).clamp(
        max=PSNR_CAP
    )


def _long_rows(cells: Cells, axis: str, index: Tensor) -> Iterable[dict[str, str | int | float]]:
    for i in range(int(index.max()) + 1):
        for name, value in pool(cells, index == i).items():
            yield {"axis": axis, "index": i, "metric": name, "value": value}

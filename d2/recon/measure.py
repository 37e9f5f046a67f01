"""How good a fitted scene is: on the cells it was fitted to, on held ones, and where the world is
known, between them.

Axes: p pictures, v views, f frames, c h w. Pixels are in [0, 1], on white. PSNR is in dB, pooled
over the pixels; it comes with sharpness, since a blur has a good PSNR, and with retrieval where the
pictures are a whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor

from d2.metrics.image import ImageDistance
from d2.metrics.reference import Cells, measure_cells, pool
from d2.recon.capture import Capture
from d2.recon.gaussians import Pinholes
from d2.recon.rasterize import Rendered
from d2.scene import Truth

Render = Callable[[Pinholes, Tensor], Rendered]  # cameras and times of b pictures
CHUNK = 8  # pictures rendered at once


@torch.no_grad()
# p 3 h w, on the CPU
def render_pictures(render: Render, cameras: Pinholes, times: Tensor) -> Tensor:
    """Any number of pictures, some at a time."""
    parts = torch.arange(len(times), device=times.device).split(CHUNK)
    return torch.cat(
        [render(cameras.of(part), times[part]).colour.clamp(0, 1).cpu() for part in parts]
    )


def fit_figures(
    rendered: Tensor,  # p 3 h w
    capture: Capture,
    held: Tensor,  # p, bool
    distances: Sequence[ImageDistance] = (),
) -> dict[str, float]:
    """train_NAME on the fitted pictures, held_NAME on the held, for psnr, psnr_masked, ssim,
    sharpness, the distances and, of a whole matrix, own_view and own_frame; self_psnr,
    self_psnr_masked and self_sharpness on all: how nearly a 4D scene can say what the matrix
    says."""
    cells, whole = picture_cells(rendered, capture.pixels, capture.masks, capture)
    every = pool(cells, torch.ones_like(held))
    figures = {f"self_{name}": every[name] for name in ("psnr", "psnr_masked", "sharpness")}
    for side, where in (("train", ~held), ("held", held)):
        if where.any():
            figures |= {
                f"{side}_{name}": value
                for name, value in pool(cells, where).items()
                if _told(name, whole)
            }
            pair = rendered[where], capture.pixels.cpu()[where]
            figures |= {f"{side}_{each.name}": float(each.call(*pair).mean()) for each in distances}
    return figures


def between_figures(
    name: str,  # of the figures
    rendered: Tensor,  # v f 3 h w
    truth: Truth,
    neighbours: Tensor,  # v f 3 h w
) -> dict[str, float]:
    """NAME_psnr, NAME_psnr_masked, NAME_sharpness of pictures between those of the matrix, and the
    same of the mean of each one's two neighbours in the matrix, as NAME_neighbours_…: what needs no
    scene."""
    figures = {}
    for prefix, pixels in ((name, rendered), (f"{name}_neighbours", neighbours)):
        cells = measure_cells(pixels, truth)
        pooled = pool(cells, torch.ones(pixels.shape[:2], dtype=torch.bool))
        figures |= {f"{prefix}_{key}": pooled[key] for key in ("psnr", "psnr_masked", "sharpness")}
    return figures


def picture_cells(
    rendered: Tensor, pixels: Tensor, masks: Tensor, capture: Capture
) -> tuple[Cells, bool]:
    """Every picture measured (fields p), and whether they are a whole matrix, view by view."""
    count, frames = len(pixels), capture.num_frames
    whole = count == capture.num_views * frames and torch.equal(
        (capture.view * frames + capture.frame).cpu(), torch.arange(count)
    )
    shape = {"f": frames if whole else 1}
    ours, true, mask = (
        rearrange(x.cpu(), "(v f) c h w -> v f c h w", **shape) for x in (rendered, pixels, masks)
    )
    cells = measure_cells(ours, Truth(true, mask, torch.zeros_like(mask)))
    return Cells(*(value.flatten() for value in cells)), whole


def _told(name: str, whole: bool) -> bool:
    return whole or not name.startswith("own_")

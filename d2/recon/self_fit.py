"""A matrix against its own fit: how nearly one scene of moving Gaussians can say what the matrix
says.

A figure of 4D consistency that needs no truth. The fit is always that of the default recipe, so
that numbers of different runs mean the same. It costs as much as `d2 reconstruct`: at 8 × 8 cells
of 64 pixels, a minute of a core.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2.config.recipe import Recipe
from d2.errors import InputError
from d2.matrix import Cameras, ImageMatrix
from d2.recon.capture import capture_matrix
from d2.recon.fit import SceneFit
from d2.recon.measure import render_pictures
from d2.recon.motion import cubic_bspline
from d2.recon.run import rasterizer

RECIPE, MOTION, SEED = Recipe(), cubic_bspline, 0


@torch.inference_mode(False)  # matrices are sampled and measured inside one
@torch.enable_grad()
def fitted_matrix(
    pixels: Tensor,  # v f 3 h w, in [0, 1], on white
    cameras: Cameras,
) -> Tensor | None:  # v f 3 h w, on the CPU
    """The cells of the scene that is fitted to a matrix; None where none can be: too few views,
    nothing to be seen."""
    placed = Cameras(cameras.azimuth_rad.clone(), cameras.elevation_rad.clone(), cameras.input_view)
    try:
        capture = capture_matrix(ImageMatrix(pixels.clone(), placed, fps=1.0))
    except InputError:
        return None
    draw = rasterizer(RECIPE.rasterizer, pixels.device)
    fit = SceneFit(capture, RECIPE, MOTION, draw, SEED).to(pixels.device)
    configured = fit.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for step in range(RECIPE.max_steps):
        optimizer.zero_grad()
        fit.step_loss(step)[0].backward()
        optimizer.step()
        schedule.step()
    rendered = render_pictures(fit.render, capture.cameras, capture.frame.float())
    return rendered.unflatten(0, pixels.shape[:2])

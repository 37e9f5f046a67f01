"""Every number of a fit: `recon.NAME` of the configuration, and a Python user's
`Recipe(NAME=…)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from d2.config.bounds import bounded, chosen


@dataclass
class Recipe:
    """How a scene is fitted to a matrix; the rates are Adam's, per step."""

    # cells kept from the fit, to measure it on: diagonal | views:[…] | frames:[…]; null: none
    hold: Any = None
    num_gaussians: int | None = bounded(
        None, 1, 10_000_000
    )  # null: 1500 at 64 pixels, growing as the side to the power 1.4
    sh_degree: int = bounded(1, 0, 1)  # of the colours' spherical harmonics: 0 | 1
    # voxels a side of the visual hull that the Gaussians start on
    hull_resolution: int = bounded(64, 8, 512)
    max_steps: int = bounded(800, 1, 1_000_000)  # optimiser steps
    cells_per_step: int = bounded(4, 1, 1024)  # pictures rendered at each
    lr_position: float = bounded(2e-3, 0, 1)  # where cameras see a ball of 0.58; grows with it
    lr_motion: float = bounded(4e-3, 0, 1)  # of the control points, likewise, and the quaternion's
    lr_quaternion: float = bounded(1e-2, 0, 1)
    lr_log_scale: float = bounded(1e-2, 0, 1)
    lr_opacity: float = bounded(3e-2, 0, 1)  # of its logit
    lr_colour: float = bounded(1e-2, 0, 1)
    plateau: float = bounded(0.2, 0, 0.99)  # share of the steps before the rates fall
    lr_end: float = bounded(0.03, 1e-6, 1)  # share of the rates at the last step
    ssim_weight: float = bounded(0.2, 0, 1)  # of 1 − SSIM; mean |difference| has 1 minus it
    mask_weight: float = bounded(0.1, 0, 100)  # of mean |coverage − mask|
    motion_weight: float = bounded(0.2, 0, 100)  # of how much the motions of neighbours differ
    num_neighbours: int = bounded(6, 1, 1000)  # nearest Gaussians at the start
    input_weight: float = bounded(1.0, 0, 1000)  # of the input view's pictures, against the others'
    rasterizer: str = chosen("auto", "torch", "gsplat")  # torch | gsplat; auto: gsplat on CUDA
    save_every_seconds: float = bounded(60.0, 0, 1_000_000)  # a state to go on from
    motion: Any = None  # how Gaussians move: {_target_: function, its keywords}

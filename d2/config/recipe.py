"""Every number of a fit: `recon.NAME` of the configuration, and a Python user's `Recipe(NAME=…)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Recipe:
    """How a scene is fitted to a matrix; the rates are Adam's, per step."""

    hold: Any = None  # cells kept from the fit, to measure it on: diagonal | views:[…] | frames:[…]; null: none
    num_gaussians: int | None = None  # null: 1500 at 64 pixels, growing as the side to the power 1.4
    sh_degree: int = 1  # of the colours' spherical harmonics: 0 | 1
    hull_resolution: int = 64  # voxels a side of the visual hull that the Gaussians start on
    max_steps: int = 800  # optimiser steps
    cells_per_step: int = 4  # pictures rendered at each
    lr_position: float = 2e-3  # world units
    lr_motion: float = 4e-3  # of the control points of position and quaternion
    lr_quaternion: float = 1e-2
    lr_log_scale: float = 1e-2
    lr_opacity: float = 3e-2  # of its logit
    lr_colour: float = 1e-2
    lr_end: float = 0.03  # share of the rates at the last step; they are constant for a fifth of the steps
    ssim_weight: float = 0.2  # of 1 − SSIM; mean |difference| has 1 minus it
    mask_weight: float = 0.1  # of mean |coverage − mask|
    motion_weight: float = 0.2  # of how much the motions of neighbours differ
    num_neighbours: int = 6  # nearest Gaussians at the start
    input_weight: float = 1.0  # of the input view's pictures, against the others'
    rasterizer: str = "auto"  # torch | gsplat; auto: gsplat on CUDA
    save_every_seconds: float = 60.0  # a state to go on from
    motion: Any = None  # how Gaussians move: {_target_: function, its keywords}

"""The fit of a scene to its pictures.

Axes: p pictures, b pictures of a step, n Gaussians, c h w.
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from d2.config.recipe import Recipe
from d2.matrix import FOV_Y_DEG, RADIUS
from d2.recon.capture import Capture, held_cells
from d2.recon.gaussians import Pinholes
from d2.recon.hull import common_ball, hull_points
from d2.recon.motion import Motion
from d2.recon.rasterize import Rasterize, Rendered
from d2.recon.scene import MovingGaussians, nearest

# Gaussians that are enough at 64 pixels, and how their number grows: 4000 at 128
SIDE, COUNT, GROWTH = 64, 1500, 1.4
# world units: the ball that the cameras of a matrix see, for which the rates are told
BALL = RADIUS * math.sin(math.radians(FOV_Y_DEG) / 2)


class SceneFit(L.LightningModule):
    """A scene, and one step of its fit to the pictures that are not held."""

    neighbours: Tensor  # n num_neighbours, of every Gaussian at the start

    def __init__(
        self, capture: Capture, recipe: Recipe, motion: Motion, rasterize: Rasterize, seed: int
    ):
        super().__init__()
        self.recipe, self.rasterize, self.seed = recipe, rasterize, seed
        self.capture = capture.of(~held_cells(recipe.hold, capture))
        centre, radius = common_ball(self.capture.cameras)
        self.unit = radius / BALL  # lengths of this world, so that its scale does not matter
        self.scene = start_scene(self.capture, recipe, motion, seed, centre, radius)
        self.register_buffer(
            "neighbours", nearest(self.scene.means.detach(), recipe.num_neighbours)[1]
        )

    @property
    def background(self) -> Tensor:
        return torch.ones(3, device=self.device)

    def render(self, cameras: Pinholes, times: Tensor) -> Rendered:
        """The scene at times b, seen from cameras b."""
        return self.rasterize(self.scene(times), cameras, self.background)

    def setup(self, stage: str) -> None:
        self.capture = self.capture.to(self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, psnr = self.step_loss(self.global_step)
        self.log("train/psnr", psnr)
        self.log("train/loss", loss)
        return loss

    def step_loss(self, step: int) -> tuple[Tensor, Tensor]:
        """The loss of a step, and the PSNR of its pictures in dB."""
        cells = self.capture.of(self.cells(step))
        rendered = self.render(cells.cameras, cells.frame.to(cells.pixels))
        error = (rendered.colour.detach() - cells.pixels).square().mean()
        return self.loss(rendered, cells), -10 * error.log10()

    def cells(self, step: int) -> Tensor:
        """The pictures of a step: every picture comes once before any comes again; a function of
        (seed, step)."""
        count, wanted = len(self.capture.view), self.recipe.cells_per_step
        places = range(step * wanted, (step + 1) * wanted)
        orders = {turn: self.order(turn) for turn in {place // count for place in places}}
        return torch.stack([orders[place // count][place % count] for place in places]).to(
            self.device
        )

    def order(self, turn: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
        return torch.randperm(len(self.capture.view), generator=generator)

    def loss(self, rendered: Rendered, cells: Capture) -> Tensor:
        r = self.recipe
        weight = torch.ones_like(cells.pixels[:, 0, 0, 0])
        if cells.input_view is not None:
            weight = torch.where(cells.view == cells.input_view, r.input_weight, weight)
        difference = (rendered.colour - cells.pixels).abs().mean(dim=(1, 2, 3))
        unlike = 1 - ssim(rendered.colour, cells.pixels)
        outside = (rendered.alpha - cells.masks).abs().mean(dim=(1, 2, 3))
        each = (1 - r.ssim_weight) * difference + r.ssim_weight * unlike + r.mask_weight * outside
        return (weight * each).mean() + r.motion_weight * self.unsteadiness()

    def unsteadiness(self) -> Tensor:
        """How much the control points of neighbours differ, in lengths of the world."""
        controls = self.scene.mean_controls
        if not controls.numel():
            return controls.sum()
        apart = (controls[self.neighbours] - controls[:, None]) / self.unit  # n neighbour k 3
        return (apart.square().sum(-1) + 1e-8).sqrt().mean()

    def configure_optimizers(self) -> Any:
        r, scene = self.recipe, self.scene
        rates = [
            (scene.means, self.unit * r.lr_position),
            (scene.mean_controls, self.unit * r.lr_motion),
            (scene.quat_controls, r.lr_motion),
            (scene.quats, r.lr_quaternion),
            (scene.log_scales, r.lr_log_scale),
            (scene.opacity_logits, r.lr_opacity),
            (scene.sh, r.lr_colour),
        ]
        groups = [
            {"params": [parameter], "lr": rate} for parameter, rate in rates if parameter.numel()
        ]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.share_of_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def share_of_rate(self, step: int) -> float:
        """1 on the plateau, then down to `lr_end` by the same factor every step."""
        done = step / self.recipe.max_steps
        plateau = self.recipe.plateau
        return self.recipe.lr_end ** max(0.0, (done - plateau) / (1 - plateau))


def start_scene(
    capture: Capture, recipe: Recipe, motion: Motion, seed: int, centre: Tensor, radius: float
) -> MovingGaussians:
    """Gaussians at rest on the boundary of the visual hull of the middle frame, within the ball of
    `common_ball`."""
    n = recipe.num_gaussians or default_count(capture.cameras)
    frames = capture.frame.unique()
    middle = frames[(frames - (capture.num_frames - 1) / 2).abs().argmin()]
    points, colours = hull_points(
        capture.of(capture.frame == middle), recipe.hull_resolution, centre, radius
    )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(max(n, len(points)), generator=generator)[:n] % len(points)
    points = points[chosen]
    points = points + 1e-3 * radius / BALL * torch.randn(points.shape, generator=generator).to(
        points
    )
    scene = MovingGaussians(motion, capture.num_frames, n, recipe.sh_degree).to(points.device)
    scene.start(points, colours[chosen], nearest(points, 3)[0].mean(dim=-1))
    return scene


def default_count(cameras: Pinholes) -> int:
    """How many Gaussians pictures of a size want."""
    return round(COUNT * (max(cameras.height, cameras.width) / SIDE) ** GROWTH / 100) * 100


def ssim(
    x: Tensor,  # b c h w
    y: Tensor,  # b c h w
) -> Tensor:  # b
    """Mean structural similarity (Wang et al. 2004) under a Gaussian window of 11 pixels and
    deviation 1.5."""
    place = torch.arange(11, device=x.device, dtype=x.dtype) - 5
    window = (-place.square() / (2 * 1.5**2)).exp()
    window = window / window.sum()
    channels = x.shape[1]
    stack = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    kernel = window.expand(5 * channels, 1, -1)
    stack = F.conv2d(stack, kernel[..., None, :], padding=(0, 5), groups=5 * channels)
    stack = F.conv2d(stack, kernel[..., None], padding=(5, 0), groups=5 * channels)
    mean_x, mean_y, xx, yy, xy = stack.split(channels, dim=1)
    a, b = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + a) * (2 * (xy - mean_x * mean_y) + b)
    bottom = (mean_x.square() + mean_y.square() + a) * (
        xx - mean_x.square() + yy - mean_y.square() + b
    )
    return (top / bottom).mean(dim=(1, 2, 3))

"""Random Gaussians, and a dense renderer that is written as the formula: what the rasterisers are
tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from d2.matrix import camera_ring
from d2.recon.gaussians import Gaussians, Pinholes, project, ring_pinholes

WHITE = torch.ones(3)


def random_gaussians(count: int, *, pictures: int = 1, sh: int = 4, seed: int = 0) -> Gaussians:
    """Gaussians in the ball of radius 0.4, the same in every picture; float64."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    means = (
        0.4
        * torch.rand(count, 1, generator=g, dtype=torch.float64)
        * torch.nn.functional.normalize(draw(count, 3))
    )
    each = (
        means,
        draw(count, 4),
        0.03 * (0.5 * draw(count, 3)).exp(),
        draw(count).sigmoid(),
        0.3 * draw(count, sh, 3),
    )
    return Gaussians(*(x.expand(pictures, *x.shape) for x in each))


def cameras(size: int, pictures: int = 1, elevation_rad: float = 0.3) -> Pinholes:
    """The first cameras of a ring of five; float64."""
    ring = ring_pinholes(camera_ring(5, elevation_rad), size).of(torch.arange(pictures))
    return ring._replace(
        world_to_camera=ring.world_to_camera.double(),
        focal=ring.focal.double(),
        centre=ring.centre.double(),
    )


def dense(
    gaussians: Gaussians, pinholes: Pinholes, background: Tensor, cut: float = 0.0
) -> tuple[Tensor, ...]:
    """Every Gaussian at every pixel, picture by picture, front to back in a loop: colour, alpha,
    depth."""
    seen = project(gaussians, pinholes)
    sides = (torch.arange(side).to(seen.depth) + 0.5 for side in (pinholes.height, pinholes.width))
    y, x = torch.meshgrid(*sides, indexing="ij")
    pictures = []
    for b in range(len(seen.depth)):
        light = torch.ones(pinholes.height, pinholes.width, dtype=seen.depth.dtype)
        colour, depth = torch.zeros(3, *light.shape, dtype=light.dtype), torch.zeros_like(light)
        for i in seen.depth[b].argsort().tolist():
            dx, dy = x - seen.centre[b, i, 0], y - seen.centre[b, i, 1]
            xx, xy, yy = seen.conic[b, i]
            alpha = (
                gaussians.opacities[b, i] * (-0.5 * (xx * dx**2 + yy * dy**2) - xy * dx * dy).exp()
            )
            alpha = torch.where(alpha < cut, 0, alpha.clamp(max=0.999))
            colour = colour + light * alpha * seen.colour[b, i, :, None, None]
            depth = depth + light * alpha * seen.depth[b, i]
            light = light * (1 - alpha)
        pictures.append((colour + light * background[:, None, None], 1 - light[None], depth[None]))
    return tuple(torch.stack(part) for part in zip(*pictures, strict=True))


def one_gaussian(mean: Tensor, scale: float, opacity: float, colour: Tensor) -> Gaussians:
    """A ball of one colour, as a set of one Gaussian."""
    sh = ((colour - 0.5) * 2 * math.sqrt(math.pi)).reshape(1, 1, 1, 3)
    quat = torch.tensor([[[1.0, 0, 0, 0]]], dtype=torch.float64)
    scales = torch.full((1, 1, 3), scale, dtype=torch.float64)
    return Gaussians(
        mean.reshape(1, 1, 3), quat, scales, torch.full((1, 1), opacity, dtype=torch.float64), sh
    )


def together(*sets: Gaussians) -> Gaussians:
    return Gaussians(*(torch.cat(parts, dim=1) for parts in zip(*sets, strict=True)))

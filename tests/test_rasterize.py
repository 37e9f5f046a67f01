"""The rasterisers: closed forms, a dense twin, gradients, and gsplat as an independent
implementation."""

from __future__ import annotations

import math

import pytest
import torch
from moving_gaussians import WHITE, cameras, dense, one_gaussian, random_gaussians, together
from torch import Tensor

from d2.matrix import FOV_Y_DEG, RADIUS, camera_ring
from d2.recon.gaussians import BLUR, Gaussians, Pinholes, project, ring_pinholes
from d2.recon.rasterize import rasterize, rasterize_gsplat

SIZE = 16
FOCAL = SIZE / 2 / math.tan(math.radians(FOV_Y_DEG) / 2)
RED, BLUE = (torch.tensor(c, dtype=torch.float64) for c in ((0.9, 0.1, 0.2), (0.1, 0.3, 0.8)))


def front(size: int = SIZE) -> Pinholes:
    """One camera on the x axis, which looks along −x; y is to its left... of the world's axes, z
    up."""
    ring = ring_pinholes(camera_ring(4), size).of(torch.tensor([3]))
    return ring._replace(
        world_to_camera=ring.world_to_camera.double(),
        focal=ring.focal.double(),
        centre=ring.centre.double(),
    )


def footprint(scale: float, distance: float, opacity: float) -> Tensor:
    """α of a ball on the optical axis, at every pixel: the Jacobian there is focal / distance times
    the identity."""
    variance = (scale * FOCAL / distance) ** 2 + BLUR
    place = torch.arange(SIZE, dtype=torch.float64) + 0.5 - SIZE / 2
    return opacity * (-0.5 * (place[:, None] ** 2 + place[None] ** 2) / variance).exp()


def test_one_gaussian_is_its_closed_form() -> None:
    ball = one_gaussian(torch.zeros(3, dtype=torch.float64), 0.1, 0.7, RED)
    colour, alpha, depth = rasterize(ball, front(), WHITE.double(), cut=0)
    expected = footprint(0.1, RADIUS, 0.7)
    torch.testing.assert_close(alpha[0, 0], expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        colour[0], expected * RED[:, None, None] + (1 - expected), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(depth[0, 0], expected * RADIUS, atol=1e-9, rtol=0)


@pytest.mark.parametrize("red_in_front", [True, False])
def test_two_overlapping_gaussians_hide_each_other_by_depth_and_not_by_their_order(
    red_in_front: bool,
) -> None:
    near, far = (torch.tensor([x, 0, 0], dtype=torch.float64) for x in (0.3, -0.2))
    red_at, blue_at = (near, far) if red_in_front else (far, near)
    pair = together(one_gaussian(red_at, 0.1, 0.6, RED), one_gaussian(blue_at, 0.2, 0.8, BLUE))
    colour, alpha, _ = rasterize(pair, front(), WHITE.double(), cut=0)
    red, blue = (
        footprint(0.1, RADIUS - float(red_at[0]), 0.6),
        footprint(0.2, RADIUS - float(blue_at[0]), 0.8),
    )
    first, second = ((red, RED), (blue, BLUE)) if red_in_front else ((blue, BLUE), (red, RED))
    left = (1 - red) * (1 - blue)
    expected = (
        first[0] * first[1][:, None, None]
        + (1 - first[0]) * second[0] * second[1][:, None, None]
        + left
    )
    torch.testing.assert_close(colour[0], expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(alpha[0, 0], 1 - left, atol=1e-9, rtol=0)


def test_a_point_lies_where_the_camera_sees_it() -> None:
    # from +x, counter-clockwise is to the right; z is up
    point = torch.tensor([0.0, 0.2, 0.1], dtype=torch.float64)
    centre = project(one_gaussian(point, 0.01, 0.5, RED), front()).centre[0, 0]
    expected = torch.tensor(
        [SIZE / 2 + FOCAL * 0.2 / RADIUS, SIZE / 2 - FOCAL * 0.1 / RADIUS], dtype=torch.float64
    )
    torch.testing.assert_close(centre, expected, atol=1e-5, rtol=0)


def test_the_projected_covariance_is_the_jacobians() -> None:
    gaussians, pinholes = random_gaussians(20), cameras(SIZE)

    def pixel(point: Tensor) -> Tensor:
        there = pinholes.world_to_camera[0, :3, :3] @ point + pinholes.world_to_camera[0, :3, 3]
        return there[:2] / there[2] * pinholes.focal[0] + pinholes.centre[0]

    seen = project(gaussians, pinholes)
    for i in range(20):
        w, x, y, z = torch.nn.functional.normalize(gaussians.quats[0, i], dim=0)
        turned = [  # q v q* of the three axes, by the quaternion product
            v
            + 2 * w * torch.linalg.cross(u, v)
            + 2 * torch.linalg.cross(u, torch.linalg.cross(u, v))
            for u in [torch.stack([x, y, z])]
            for v in torch.eye(3, dtype=torch.float64)
        ]
        axes = torch.stack(turned, dim=-1) * gaussians.scales[0, i]
        jacobian = torch.autograd.functional.jacobian(pixel, gaussians.means[0, i])
        assert isinstance(jacobian, Tensor)
        covariance = jacobian @ axes @ axes.mT @ jacobian.mT + BLUR * torch.eye(
            2, dtype=torch.float64
        )
        xx, xy, yy = seen.conic[0, i]
        conic = torch.stack([torch.stack([xx, xy]), torch.stack([xy, yy])])
        torch.testing.assert_close(
            conic @ covariance, torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("cut", [0.0, 1 / 255])
# 13: the last tiles stick out
@pytest.mark.parametrize(("size", "count", "sh"), [(16, 40, 4), (13, 90, 1)])
def test_tiles_are_the_dense_twin(size: int, count: int, sh: int, cut: float) -> None:
    gaussians, pinholes = random_gaussians(count, pictures=2, sh=sh), cameras(size, 2)
    background = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    for ours, twin in zip(
        rasterize(gaussians, pinholes, background, cut=cut),
        dense(gaussians, pinholes, background, cut),
        strict=True,
    ):
        torch.testing.assert_close(ours, twin, atol=1e-9, rtol=0)


def test_single_precision_is_near_enough() -> None:
    gaussians, pinholes = random_gaussians(200), cameras(32)
    single = Gaussians(*(x.float() for x in gaussians))
    in_single = pinholes._replace(
        world_to_camera=pinholes.world_to_camera.float(),
        focal=pinholes.focal.float(),
        centre=pinholes.centre.float(),
    )
    ours, twin = (
        rasterize(single, in_single, WHITE, cut=0),
        dense(gaussians, pinholes, WHITE.double()),
    )
    torch.testing.assert_close(ours.colour.double(), twin[0], atol=1e-4, rtol=0)


def test_gradients_are_those_of_finite_differences() -> None:
    gaussians, pinholes = random_gaussians(4), cameras(6)

    def picture(*parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(rasterize(Gaussians(*parts), pinholes, WHITE.double(), cut=0))

    assert torch.autograd.gradcheck(
        picture, tuple(x.clone().requires_grad_() for x in gaussians), atol=1e-6
    )


def test_what_is_behind_the_camera_or_out_of_sight_is_not_drawn() -> None:
    behind = one_gaussian(torch.tensor([3.0, 0, 0], dtype=torch.float64), 0.1, 0.9, RED)
    aside = one_gaussian(torch.tensor([0.0, 3.0, 0], dtype=torch.float64), 0.1, 0.9, RED)
    for gaussians in (behind, aside, together(behind, aside)):
        assert torch.equal(
            rasterize(gaussians, front(), WHITE.double()).colour,
            torch.ones(1, 3, SIZE, SIZE).double(),
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gsplat rasterises on CUDA only")
def test_gsplat_is_the_same_rasteriser() -> None:
    pytest.importorskip("gsplat")
    gaussians, pinholes = random_gaussians(300, pictures=3), cameras(64, 3)
    gaussians = Gaussians(*(x.float().cuda() for x in gaussians))
    pinholes = pinholes._replace(
        world_to_camera=pinholes.world_to_camera.float().cuda(),
        focal=pinholes.focal.float().cuda(),
        centre=pinholes.centre.float().cuda(),
    )
    for ours, theirs in zip(
        rasterize(gaussians, pinholes, WHITE.cuda()),
        rasterize_gsplat(gaussians, pinholes, WHITE.cuda()),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)

"""Photometric consistency: nothing but shading and rounding on the truth, and far more where views
are confused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2.data import world4d
from d2.matrix import FOV_Y_DEG, RADIUS, Cameras, camera_positions, camera_ring
from d2.metrics.photometric import NAMES, camera_axes, neighbours, photometric_metrics
from d2.scene import Truth

BALL = 0.4  # radius


def metrics_of(sample: Tensor, truth: Truth, cameras: Cameras) -> dict[str, float]:
    return photometric_metrics(sample, truth, neighbours(truth, cameras))


@pytest.fixture(scope="module")
def scene() -> tuple[Truth, Cameras]:
    found = world4d.scene("test", 0, num_views=8, num_frames=2, size=48)
    assert found.truth is not None
    return found.truth, found.cameras


def ball(cameras: Cameras, *, size: int, frames: int = 1) -> tuple[Truth, Tensor]:
    """A ball in the middle by its closed form, and where its surface is, v f h w 3; the cameras
    look at the origin."""
    position = camera_positions(cameras)
    ahead = -F.normalize(position, dim=-1)
    right = F.normalize(
        torch.linalg.cross(ahead, torch.tensor([0.0, 0, 1], dtype=torch.float64).expand_as(ahead))
    )
    down = torch.linalg.cross(ahead, right)
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    tangent = math.tan(math.radians(FOV_Y_DEG / 2))
    ray = ahead[:, None, None] + tangent * (
        x[..., None] * right[:, None, None] + y[..., None] * down[:, None, None]
    )  # v h w 3, one unit along the optical axis
    along, norm = (ray * position[:, None, None]).sum(-1), ray.square().sum(-1)
    root = along.square() - norm * (RADIUS**2 - BALL**2)
    depth = torch.where(root > 0, (-along - root.clamp(min=0).sqrt()) / norm, math.inf)
    surface = position[:, None, None] + torch.where(root > 0, depth, 0.0)[..., None] * ray
    depth, mask, surface = (
        z[:, None].repeat_interleave(frames, 1) for z in (depth, root > 0, surface)
    )
    return (
        Truth(
            torch.ones(*depth.shape[:2], 3, size, size), mask[:, :, None].float(), depth[:, :, None]
        ),
        surface,
    )


def painted(truth: Truth, surface: Tensor) -> Tensor:
    """Every point of the surface in a colour of its own, on white."""
    colour = (0.5 + surface / (2 * BALL) * 0.9).movedim(-1, 2)
    return torch.where(truth.masks > 0, colour, 1.0).float()


@pytest.mark.parametrize("elevation_deg", [-20.0, 0.0, 35.0])
def test_a_painted_ball_agrees_with_itself(elevation_deg: float) -> None:
    """Colour is a linear function of the place: what is left is a pixel's curvature and shrinks
    with its square."""
    cameras = camera_ring(6, math.radians(elevation_deg))
    errors = []
    for size in (32, 64):
        truth, surface = ball(cameras, size=size)
        found = metrics_of(painted(truth, surface), truth, cameras)
        assert found["photometric_seen"] > 0.25
        errors.append(found["photometric_error"])
    assert errors[1] < 5e-4 and errors[1] < 0.5 * errors[0]


def test_views_of_different_colours_differ_by_them() -> None:
    """The known answer: five steps of 0.1 around the ring and one of 0.5 that closes it."""
    cameras = camera_ring(6)
    truth, surface = ball(cameras, size=64)
    right = painted(truth, surface)
    constant = torch.arange(6.0)[:, None, None, None, None].expand_as(right) / 10
    found = metrics_of(constant, truth, cameras)
    assert found["photometric_error"] == pytest.approx((5 * 0.1 + 0.5) / 6, rel=1e-4)
    assert found["photometric_psnr"] == pytest.approx(
        -10 * math.log10((5 * 0.01 + 0.25) / 6), rel=1e-4
    )
    assert metrics_of(right.flip(0), truth, cameras)["photometric_error"] > 0.1


def test_the_axes_are_those_of_a_camera() -> None:
    cameras = camera_ring(5, 0.4)
    axes = camera_axes(cameras)
    torch.testing.assert_close(axes @ axes.mT, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    assert torch.linalg.det(axes).tolist() == pytest.approx([1.0] * 5)
    assert torch.allclose(
        camera_positions(cameras) + RADIUS * axes[:, 2], torch.zeros(3, dtype=torch.float64)
    )
    # down is down, right is level
    assert (axes[:, 1, 2] < 0).all() and axes[:, 0, 2].abs().max() == 0


def test_the_truth_is_near_its_floor_and_confused_views_are_not(
    scene: tuple[Truth, Cameras],
) -> None:
    truth, cameras = scene
    right = metrics_of(truth.pixels, truth, cameras)
    assert right["photometric_error"] < 0.05 and right["photometric_psnr"] > 22
    assert right["photometric_ratio"] == 1 and 0.3 < right["photometric_seen"] < 0.9
    swapped = truth.pixels.clone()
    swapped[[2, 3]] = swapped[[3, 2]]
    errors = [
        metrics_of(pixels, truth, cameras)["photometric_ratio"]
        for pixels in (truth.pixels, swapped, truth.pixels.roll(1, 0), truth.pixels.flip(0))
    ]
    assert errors == sorted(errors) and errors[1] > 2


def test_frames_out_of_step_are_seen(scene: tuple[Truth, Cameras]) -> None:
    """Every other view a moment later: each view is a good picture, and no two neighbours agree."""
    truth, cameras = scene
    late = truth.pixels.clone()
    late[::2] = late[::2].flip(1)
    assert metrics_of(late, truth, cameras)["photometric_ratio"] > 1.2


def test_the_ring_has_no_first_view_and_frames_no_order(scene: tuple[Truth, Cameras]) -> None:
    truth, cameras = scene
    right = metrics_of(truth.pixels, truth, cameras)
    turned = cameras._replace(
        azimuth_rad=cameras.azimuth_rad.roll(3), elevation_rad=cameras.elevation_rad.roll(3)
    )
    moved = Truth(*(part.roll(3, 0).flip(1) for part in truth))
    assert metrics_of(moved.pixels, moved, turned) == pytest.approx(right, rel=1e-6)


def test_what_lies_outside_the_object_does_not_count(scene: tuple[Truth, Cameras]) -> None:
    truth, cameras = scene
    other = torch.where(truth.masks > 0.999, truth.pixels, torch.rand(truth.pixels.shape))
    assert metrics_of(other, truth, cameras) == metrics_of(truth.pixels, truth, cameras)


def test_nothing_to_compare_is_nan(scene: tuple[Truth, Cameras]) -> None:
    truth, cameras = scene
    alone = Truth(*(part[:1] for part in truth))
    one = cameras._replace(
        azimuth_rad=cameras.azimuth_rad[:1], elevation_rad=cameras.elevation_rad[:1], input_view=0
    )
    empty = truth._replace(
        masks=torch.zeros_like(truth.masks), depth=torch.full_like(truth.depth, math.inf)
    )
    for found in (metrics_of(alone.pixels, alone, one), metrics_of(truth.pixels, empty, cameras)):
        assert list(found) == list(NAMES) and all(math.isnan(value) for value in found.values())

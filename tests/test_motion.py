"""Motions: what a curve of control points can and cannot do."""

from __future__ import annotations

import pytest
import torch

from d2.recon.motion import cubic_bspline, rest
from d2.recon.scene import MovingGaussians


@pytest.mark.parametrize(("num_frames", "controls"), [(1, 4), (2, 4), (8, 6), (25, 14)])
def test_a_spline_has_about_a_control_point_every_two_frames(
    num_frames: int, controls: int
) -> None:
    times = torch.linspace(0, num_frames - 1, 97, dtype=torch.float64)
    shares = cubic_bspline(times, num_frames)
    assert shares.shape == (97, controls) and (shares >= 0).all()
    # a common shift is a shift
    torch.testing.assert_close(shares.sum(-1), torch.ones(97, dtype=torch.float64))


def test_a_spline_follows_every_cubic() -> None:
    times = torch.linspace(0, 7, 50, dtype=torch.float64)
    for power in range(4):
        curve = (times**power)[:, None]
        shares = cubic_bspline(times, 8)
        controls = torch.linalg.lstsq(shares, curve).solution
        torch.testing.assert_close(shares @ controls, curve, atol=1e-9, rtol=1e-9)


def test_a_spline_has_continuous_acceleration() -> None:
    times = torch.linspace(0, 7, 7001, dtype=torch.float64)
    acceleration = cubic_bspline(times, 8).diff(n=2, dim=0) / 1e-6
    # 1e-3 frames apart; a velocity that jumps would give 100
    assert acceleration.diff(dim=0).abs().max() < 0.01


def test_rest_does_not_move() -> None:
    scene = MovingGaussians(rest, 8, 3, 1)
    torch.nn.init.normal_(scene.means)
    torch.nn.init.normal_(scene.quats)
    now, then = scene(torch.tensor([0.0])), scene(torch.tensor([6.5]))
    assert all(torch.equal(a, b) for a, b in zip(now, then, strict=True))
    assert scene.mean_controls.numel() == 0

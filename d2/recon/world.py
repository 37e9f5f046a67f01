"""Figures between the pictures of a matrix, on scenes of world4d, where any angle at any time is
known."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from d2.data import world4d
from d2.data.creature import elevation_at, sample_creatures
from d2.matrix import Cameras, ImageMatrix, camera_ring
from d2.recon.gaussians import ring_pinholes
from d2.recon.measure import Render, between_figures, render_pictures
from d2.scene import Truth


def world_scene(name: str, cameras: Cameras) -> tuple[world4d.Split, int] | None:
    """Which scene of world4d a matrix is of: its name says so and its cameras are those of that
    scene; else None."""
    match = re.fullmatch(r"(test|validation)_(\d{4})", name)
    if match is None or cameras.rig is not None:
        return None
    split, index = match[1], int(match[2])
    ring = camera_ring(cameras.num_views)
    elevation = elevation_at(sample_creatures(split, [index]), ring.azimuth_rad)[0]  # type: ignore[arg-type]
    same = all(
        torch.allclose(ours.double().cpu(), theirs, atol=1e-5)
        for ours, theirs in (
            (cameras.azimuth_rad, ring.azimuth_rad),
            (cameras.elevation_rad, elevation),
        )
    )
    return (split, index) if same else None  # type: ignore[return-value]


def world_figures(
    render: Render,
    matrix: ImageMatrix,
    split: world4d.Split,
    index: int,
    device: torch.device,
) -> dict[str, float]:
    """angle_… half-way between neighbouring azimuths, time_… half-way between frames; see
    `between_figures`."""
    num_views, num_frames, _, size, _ = matrix.pixels.shape
    turned, between = world4d.half_way(
        split, index, num_views=num_views, num_frames=num_frames, size=size
    )
    pixels = matrix.pixels.float().cpu()
    steady = torch.arange(num_frames, dtype=torch.float32)
    figures = _figures("angle", render, turned, steady, (pixels + pixels.roll(1, 0)) / 2, device)
    if num_frames == 1:
        return figures
    return figures | _figures(
        "time", render, between, steady[:-1] + 0.5, (pixels[:, 1:] + pixels[:, :-1]) / 2, device
    )


def _figures(
    name: str,
    render: Render,
    views: world4d.Views,
    times: Tensor,  # f
    neighbours: Tensor,  # v f 3 h w
    device: torch.device,
) -> dict[str, float]:
    truth = Truth(views.pixels[0], views.masks[0], views.depth[0])
    num_views, num_frames, _, size, _ = truth.pixels.shape
    cameras = ring_pinholes(
        Cameras(views.azimuth_rad[0], views.elevation_rad[0], num_views - 1), size
    )
    cameras = cameras.to(device).of(
        torch.arange(num_views, device=device).repeat_interleave(num_frames)
    )
    pictures = render_pictures(render, cameras, times.repeat(num_views).to(device))
    return between_figures(name, pictures.unflatten(0, (num_views, num_frames)), truth, neighbours)

"""A scene of moving Gaussians: the thing that is fitted, shown and exported.

Axes: n Gaussians, t times, k control points, s spherical harmonics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2.recon.gaussians import SH_0, Gaussians
from d2.recon.motion import Motion

START_OPACITY = 0.5
COVER = 0.6  # first scale, of the distance to the neighbours: the surface closes


class MovingGaussians(nn.Module):
    """n Gaussians with one shape, opacity and colour each, whose position and quaternion follow a
    motion."""

    def __init__(self, motion: Motion, num_frames: int, num_gaussians: int, sh_degree: int):
        super().__init__()
        self.motion, self.num_frames = motion, num_frames
        n, k = num_gaussians, motion(torch.zeros(1), num_frames).shape[1]
        self.means = nn.Parameter(torch.zeros(n, 3))  # world units, at rest
        self.quats = nn.Parameter(torch.zeros(n, 4))  # (w, x, y, z), of any length
        self.log_scales = nn.Parameter(torch.zeros(n, 3))
        self.opacity_logits = nn.Parameter(torch.zeros(n))
        self.sh = nn.Parameter(torch.zeros(n, (sh_degree + 1) ** 2, 3))
        self.mean_controls = nn.Parameter(torch.zeros(n, k, 3))  # added to the means
        self.quat_controls = nn.Parameter(torch.zeros(n, k, 4))

    def forward(
        self,
        times: Tensor,  # t, in frames
    ) -> Gaussians:  # t n
        """The scene at some times."""
        shares = self.motion(times, self.num_frames)
        count = len(times)
        return Gaussians(
            self.means + torch.einsum("t k, n k i -> t n i", shares, self.mean_controls),
            self.quats + torch.einsum("t k, n k i -> t n i", shares, self.quat_controls),
            self.log_scales.exp().expand(count, -1, -1),
            self.opacity_logits.sigmoid().expand(count, -1),
            self.sh.expand(count, -1, -1, -1),
        )

    @torch.no_grad()
    def start(
        self,
        points: Tensor,  # n 3
        colours: Tensor,  # n 3
        spacing: Tensor,  # n, distance to the neighbours
    ) -> None:
        """Round Gaussians at rest on given points."""
        self.means.copy_(points)
        self.quats[:, 0] = 1
        self.log_scales.copy_((COVER * spacing).log()[:, None].expand(-1, 3))
        self.opacity_logits.fill_(torch.logit(torch.tensor(START_OPACITY)))
        self.sh[:, 0] = (colours - 0.5) / SH_0


def nearest(
    points: Tensor,  # n 3
    count: int,
    *,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:  # n count twice
    """Distances and indices of the nearest other points."""
    parts = [
        torch.cdist(part, points).topk(min(count + 1, len(points)), largest=False)
        for part in points.split(chunk)
    ]
    distance, index = (torch.cat(part)[:, 1:] for part in zip(*parts, strict=True))
    return distance, index

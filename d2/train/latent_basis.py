"""The basis of an autoencoder's latents: rotated and scaled so that squared error there is squared
error of pixels.

An autoencoder trained for reconstruction spreads what a picture shows evenly over its channels.
Diffusion wants the opposite: variance that falls off from channel to channel as it does in
pictures, so that the coarse is decided at high noise levels and the fine at low ones. Axes: n
images, c h w.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from d2.priors.first_stage import FirstStage
from d2.train.data import to_images

APART = 3  # cells between those changed at once, so that their pixels do not overlap


@torch.no_grad()
def orient(
    stage: FirstStage,
    pixels: Tensor,  # n 3 h w, uint8
) -> Tensor:  # c c, what takes old latents' deviations to new ones
    """Choose the basis in which a small change of any channel, by the same amount, changes pixels
    alike.

    With M the mean of JᵀJ over the creature's cells (J: pixels by the channels of one cell) and C
    the covariance of z there, the basis is Uᵀ M^½, U the eigenvectors of M^½ C M^½ in falling
    order: pictures come back as before. Latents then have mean 0 and, over all cells and channels,
    mean variance 1.
    """
    assert stage.basis is not None
    z = torch.cat([stage.moments(to_images(part))[0] for part in pixels.split(256)])
    # n 1 h w
    seen = F.max_pool2d((pixels < 247).any(dim=1, keepdim=True).float(), stage.config.factor) > 0
    on_creature = z.movedim(1, -1)[seen[:, 0]]
    e, v = torch.linalg.eigh(pixel_metric(stage, z[:256], seen[:256]).double())
    root = (v * e.clamp(min=1e-6 * float(e[-1])).sqrt()) @ v.T
    _, u = torch.linalg.eigh(root @ torch.cov(on_creature.T.double()) @ root)
    before = stage.scale[:, None] * stage.basis
    stage.basis.copy_(u.flip(1).T @ root)
    variance, mean = torch.var_mean(z, dim=(0, 2, 3), keepdim=True)
    stage.shift.copy_(mean.flatten())
    spread = einsum(stage.basis, z - mean, "new old, n old h w -> n new h w")
    stage.scale.fill_(float(spread.var(dim=(0, 2, 3)).mean()) ** -0.5)
    return stage.scale[:, None] * stage.basis @ torch.linalg.inv(before)


def pixel_metric(
    stage: FirstStage,
    z: Tensor,  # n c h w, before scaling
    where: Tensor,  # n 1 h w, bool: cells to average over
) -> Tensor:  # c c
    """Mean of JᵀJ of the decoder, J by finite differences of a tenth of a standard deviation, many
    cells at a time."""
    sparse = torch.zeros_like(where[:1])
    sparse[..., 1::APART, 1::APART] = True
    chosen = (where & sparse).float()
    near = F.interpolate(
        F.max_pool2d(chosen, APART, stride=1, padding=APART // 2), scale_factor=stage.config.factor
    )
    step = 0.1 * float(z.std())
    base = stage.decode_z(z)
    rows = []
    for channel in range(z.shape[1]):
        moved = z.clone()
        moved[:, channel : channel + 1] += step * chosen
        rows.append(((stage.decode_z(moved) - base) / step * near).flatten())
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T / chosen.sum()

"""The basis of an autoencoder's latents: rotated and scaled so that squared error there is squared error of pixels.

An autoencoder trained for reconstruction spreads what a picture shows evenly over its channels. Diffusion wants the
opposite: variance that falls off from channel to channel as it does in pictures, so that the coarse is decided at high
noise levels and the fine at low ones. Axes: n images, c h w.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2.data.datamodule import to_images
from d2.priors.first_stage import FirstStage

APART = 3  # cells between those changed at once, so that their pixels do not overlap


@torch.no_grad()
def orient(
    stage: FirstStage,
    pixels: Tensor,  # n 3 h w, uint8
) -> Tensor:  # c c, what takes old latents' deviations to new ones
    """Change the basis of z so that a small change of any channel, by the same amount, changes pixels alike.

    With M the mean of JᵀJ over the creature's cells (J: pixels by the channels of one cell) and C the covariance of z
    there, new z = Uᵀ M^½ z, U the eigenvectors of M^½ C M^½ in falling order. The change is absorbed by the last
    convolution of the encoder and the first of the decoder: pictures come back as before. Latents then have mean 0
    and, over all cells and channels, mean variance 1. The variances of the posterior become their means.
    """
    assert not stage.config.autoencoder.quant_conv
    z, logvar = (torch.cat(parts) for parts in zip(*map(stage.moments, map(to_images, pixels.split(256))), strict=True))
    seen = F.max_pool2d((pixels < 247).any(dim=1, keepdim=True).float(), stage.config.factor) > 0  # n 1 h w
    on_creature = z.movedim(1, -1)[seen[:, 0]]
    e, v = torch.linalg.eigh(pixel_metric(stage, z[:256], seen[:256]).double())
    root = (v * e.clamp(min=1e-6 * float(e[-1])).sqrt()) @ v.T
    _, u = torch.linalg.eigh(root @ torch.cov(on_creature.T.double()) @ root)
    change = (u.flip(1).T @ root).to(z)
    encoder, decoder = stage.autoencoder.encoder.conv_out, stage.autoencoder.decoder.conv_in
    assert encoder.bias is not None
    mean, _ = encoder.weight.chunk(2)
    bias, _ = encoder.bias.chunk(2)
    variance = change.square() @ logvar.exp().mean(dim=(0, 2, 3))
    encoder.weight.copy_(torch.cat([torch.einsum("ij,jckl->ickl", change, mean), torch.zeros_like(mean)]))
    encoder.bias.copy_(torch.cat([change @ bias, variance.log()]))
    decoder.weight.copy_(torch.einsum("ojkl,ji->oikl", decoder.weight, torch.linalg.inv(change)))
    old_scale = stage.scale.clone()
    standardise(stage, torch.einsum("ij,njhw->nihw", change, z))
    return stage.scale[:, None] * change / old_scale


def standardise(
    stage: FirstStage,
    z: Tensor,  # n c h w
) -> None:
    """Set shift and scale: mean 0 in every channel, and one scale for all, so that their mean variance is 1."""
    variance, mean = torch.var_mean(z, dim=(0, 2, 3))
    stage.scale.fill_(float(variance.mean()) ** -0.5)
    stage.shift.copy_(mean)


def pixel_metric(
    stage: FirstStage,
    z: Tensor,  # n c h w, before scaling
    where: Tensor,  # n 1 h w, bool: cells to average over
) -> Tensor:  # c c
    """Mean of JᵀJ of the decoder, J by finite differences of a tenth of a standard deviation, many cells at a time."""
    sparse = torch.zeros_like(where[:1])
    sparse[..., 1::APART, 1::APART] = True
    chosen = (where & sparse).float()
    near = F.interpolate(F.max_pool2d(chosen, APART, stride=1, padding=APART // 2), scale_factor=stage.config.factor)
    step = 0.1 * float(z.std())

    def images(z: Tensor) -> Tensor:
        return F.pixel_shuffle(stage.autoencoder.decode(z, 1), stage.config.unshuffle)

    base = images(z)
    rows = []
    for channel in range(z.shape[1]):
        moved = z.clone()
        moved[:, channel : channel + 1] += step * chosen
        rows.append(((images(moved) - base) / step * near).flatten())
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T / chosen.sum()

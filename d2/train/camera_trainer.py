"""Training of the tiny prior of any cameras: frozen scenes from anywhere, of which one to three
cells are known.

Axes: b sequences, t cells, c h w.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from d2.cameras import lens
from d2.matrix import FOV_Y_DEG
from d2.priors.camera_prior import CameraCondition, CameraPrior
from d2.priors.rays import pluecker
from d2.settings import LossConfig, OptimizerConfig
from d2.train.data import to_images
from d2.train.prior_trainer import Trained, draw_sigma, validation_noise

KNOWN = (1, 1, 2, 3)  # cells that are known, each in a quarter of the batches


class CameraTrainer(Trained):
    """EDM training on the cells that are not known; the first cell always is, and is the reference
    of the rays. Which one comes first is drawn anew for every batch.
    """

    network: CameraPrior
    ema: CameraPrior

    def __init__(self, network: CameraPrior, optimizer: OptimizerConfig, loss: LossConfig):
        super().__init__(network, "camera", optimizer)
        self.loss = loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        b, t = batch["latents"].shape[:2]
        order = torch.randperm(t).to(self.device)
        batch = {name: part[:, order] for name, part in batch.items()}
        known = min(KNOWN[int(torch.randint(len(KNOWN), (1,)))], t - 1)
        condition = condition_of(self.network, batch, known)
        dropped = torch.rand(b, device=self.device) < self.loss.drop
        condition = where(dropped, condition.drop(), condition)
        value = self.v_loss(
            self.network, batch["latents"], condition, draw_sigma(self.loss, b).to(self.device)
        )
        self.log("train/loss", value)
        return value

    def v_loss(
        self,
        network: CameraPrior,
        x0: Tensor,  # b t c h w
        condition: CameraCondition,
        sigma: Tensor,  # b
        noise: Tensor | None = None,
    ) -> Tensor:
        """(σ²+1)/σ² · |D(x0 + σn) − x0|², mean over the cells that are not known (Karras et al.
        2022, eq. 8)."""
        noise = torch.randn_like(x0) if noise is None else noise
        s = sigma[:, None, None, None, None]
        denoised = network(x0 + s * noise, sigma[:, None].expand(x0.shape[:2]), condition)
        error = ((s**2 + 1) / s**2 * (denoised - x0).square()).mean(dim=(2, 3, 4))
        wanted = 1 - condition.mask[:, :, 0, 0, 0]
        return (error * wanted).sum() / wanted.sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The EMA network's loss in every band of sigma with one known cell, on fixed noise."""
        condition, b = condition_of(self.ema, batch, 1), len(batch["latents"])
        for name, sigma, noise in validation_noise(batch["latents"], batch_idx):
            value = self.v_loss(self.ema, batch["latents"], condition, sigma, noise)
            self.log(name, value, batch_size=b)


def condition_of(network: CameraPrior, batch: dict[str, Tensor], known: int) -> CameraCondition:
    """What the sequences of a batch are told whose first cells are known."""
    latents, poses = batch["latents"], batch["poses"].double().cpu()
    b, t, _, h, w = latents.shape
    intrinsics = lens(torch.full((t,), math.radians(FOV_Y_DEG), dtype=torch.float64))
    placed = torch.stack([network.placed(p, p) for p in poses])
    every = torch.vmap(lambda p: pluecker(p, intrinsics, h, w))(placed).to(latents)
    mask = latents.new_zeros(b, t, 1, h, w)
    mask[:, :known] = 1
    embedded = network.embed(to_images(batch["pixels"][:, :known]))
    return CameraCondition(
        embedded[:, None, None].expand(-1, t, -1, -1), latents * mask, mask, every
    )


def where(chosen: Tensor, these: CameraCondition, those: CameraCondition) -> CameraCondition:
    """Some sequences' conditions from one, the others' from another; `chosen` b, bool."""
    pairs = zip(these, those, strict=True)
    return CameraCondition(
        *(torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs)
    )

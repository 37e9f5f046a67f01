"""Training of the tiny tier: the autoencoder, then both priors under the EDM loss with SVD's
v-preconditioning.

Axes: b sequences, t along a sequence, c h w.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2.priors.first_stage import FirstStage
from d2.priors.prior import Condition, Prior
from d2.priors.tiny import FPS_ID, polar_rad
from d2.settings import LossConfig, OptimizerConfig
from d2.train.data import to_images
from d2.train.latent_basis import orient
from d2.train.muon import Muon

BANDS = (0.0, 0.1, 1.0, 10.0, 188.0, float("inf"))  # of sigma; published VRS works above 188


def lr_factor(step: int, config: OptimizerConfig) -> float:
    """Learning rate at `step` as a share of `lr`."""
    return max(
        0.0,
        min(1.0, (step + 1) / config.warmup_steps, (config.max_steps - step) / config.decay_steps),
    )


class Trained(L.LightningModule):
    """What the autoencoder's and the priors' training share: the optimiser and an exponential
    moving average."""

    def __init__(self, network: nn.Module, kind: str, optimizer: OptimizerConfig):
        super().__init__()
        self.network, self.kind = network, kind
        self.ema = copy.deepcopy(network).requires_grad_(False)
        self.optimizer = optimizer
        self.phases: list[
            dict[str, Any]
        ] = []  # see going_on.py; they are kept in checkpoints and in the weights' header

    def configure_optimizers(self) -> Any:
        c = self.optimizer
        kind = Muon if c.muon else torch.optim.AdamW
        optimizer = kind(
            self.network.parameters(), c.lr, betas=c.betas, weight_decay=c.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, c))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """A step's noise depends on (seed, step, rank) alone, as its batch does: a resumed run goes
        on alike."""
        torch.manual_seed(hash((self.trainer.datamodule.seed, self.global_step, self.global_rank)))  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """The optimiser's state is that of the checkpoint, its numbers are those of this run."""
        c, optimizer, schedule = (
            self.optimizer,
            self.optimizers(use_pl_optimizer=False),
            self.lr_schedulers(),
        )
        assert isinstance(optimizer, torch.optim.Optimizer) and isinstance(
            schedule, torch.optim.lr_scheduler.LambdaLR
        )
        schedule.base_lrs = [c.lr] * len(optimizer.param_groups)
        for group in optimizer.param_groups:
            group |= {"betas": c.betas, "weight_decay": c.weight_decay, "initial_lr": c.lr}
            group["lr"] = c.lr * lr_factor(schedule.last_epoch, c)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Average after every step, before anything can save it."""
        super().optimizer_step(*args, **kwargs)
        step = self.global_step + 1
        decay = min(self.optimizer.ema_decay, (1 + step) / (10 + step))
        averages, own = self.ema.state_dict().values(), self.network.state_dict().values()
        torch._foreach_lerp_(list(averages), list(own), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["phases"] = self.phases


class AutoencoderTrainer(Trained):
    """KL autoencoder on single pictures: squared error, heavier on the creature, and a light KL
    term.

    For the last `decoder_steps` the latents are settled: the encoder is frozen, its basis chosen,
    and the decoder alone learns to keep edges and to bear the noise that samplers leave. Noise and
    edges in the encoder's own training would flatten the latents' spectrum, and priors denoise such
    latents worse. Where all steps are the decoder's, latents stay as they are, and so do priors
    trained on them.
    """

    network: FirstStage
    ema: FirstStage

    def __init__(
        self,
        network: FirstStage,
        optimizer: OptimizerConfig,
        *,
        decoder_steps: int = 0,
        edge_weight: float = 0.0,
        latent_noise: float = 0.0,  # largest standard deviation of what is added before decoding
        kl_weight: float = 1e-4,
    ):
        super().__init__(network, "autoencoder", optimizer)
        self.decoder_steps, self.kl_weight = decoder_steps, kl_weight
        self.edge_weight, self.latent_noise = edge_weight, latent_noise

    @property
    def settled(self) -> bool:
        """Whether the latents may no longer change."""
        return self.global_step >= self.optimizer.max_steps - self.decoder_steps

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.global_step and self.global_step == self.optimizer.max_steps - self.decoder_steps:
            self.settle()
        self.network.autoencoder.encoder.requires_grad_(not self.settled)

    def settle(self) -> None:
        """Bring the averaged autoencoder's latents to the basis that priors are trained in, and go
        on from there."""
        data = self.trainer.datamodule.train  # type: ignore[attr-defined]
        pictures = torch.stack([data[i] for i in range(0, len(data), max(1, len(data) // 4096))])
        orient(self.ema, pictures.to(self.device))
        self.network.load_state_dict(self.ema.state_dict())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        images = to_images(batch)
        mean, logvar = self.network.moments(images)
        z = mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn_like(mean)
        latents = self.network.scaled(z)
        if self.settled and self.latent_noise:
            spread = self.latent_noise * torch.rand(len(latents), 1, 1, 1, device=latents.device)
            latents = latents + spread * torch.randn_like(latents)
        error = self.network.decode(latents) - images
        weight = 1 + 3 * creature(batch).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = (weight * (4 * error.square() + 0.2 * error.abs())).mean()
        if self.settled and self.edge_weight:
            loss = loss + self.edge_weight * F.mse_loss(edges(error + images), edges(images))
        self.log("train/loss", loss)
        self.log("train/kl", kl)
        return loss + self.kl_weight * kl

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        there = creature(batch)
        error = (
            self.ema.decode(self.ema(to_images(batch))).clamp(-1, 1) - to_images(batch)
        ).square() / 4
        self.log("val/psnr_masked", -10 * torch.log10(error.masked_select(there).mean()))


def edges(
    images: Tensor,  # n 3 h w
) -> Tensor:
    """Root of the gradient energy in windows of 8 × 8 pixels, which squared error alone leaves too
    low: n 3 h' w'."""
    dx, dy = images[..., 1:, 1:] - images[..., 1:, :-1], images[..., 1:, 1:] - images[..., :-1, 1:]
    return (F.avg_pool2d(dx.square() + dy.square(), 8, stride=4) + 1e-4).sqrt()


def creature(
    pixels: Tensor,  # n 3 h w, uint8
) -> Tensor:
    """Pixels that are not background, grown by two: n 1 h w, bool."""
    there = (pixels < 247).any(dim=1, keepdim=True).float()
    return F.max_pool2d(there, 5, stride=1, padding=2) > 0


class PriorTrainer(Trained):
    """EDM training of a prior on sequences, and on single images with the temporal branch switched
    off.

    A batch holds sequences; the last `loss.singles` of them give one element each, and these stand
    side by side as sequences whose temporal branch is off. Of pairs all are single images.
    """

    network: Prior
    ema: Prior
    first_stage: FirstStage

    def __init__(
        self,
        network: Prior,
        first_stage: FirstStage,
        kind: Literal["video", "multiview", "cell"],
        optimizer: OptimizerConfig,
        loss: LossConfig,
    ):
        super().__init__(network, kind, optimizer)
        object.__setattr__(self, "first_stage", first_stage)  # frozen and not part of the weights
        self.loss = loss

    def on_fit_start(self) -> None:
        self.first_stage.to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        cond_aug = self.draw_cond_aug(len(batch["latents"]))
        condition = self.condition(
            self.network, batch, cond_aug, torch.randn(batch["reference"].shape, device=self.device)
        )
        keep = (torch.rand(len(cond_aug), device=self.device) > self.loss.drop).float()[
            :, None, None, None
        ]
        condition = condition._replace(
            crossattn=condition.crossattn * keep, concat=condition.concat * keep[..., None]
        )
        x0, told, sigma, flags, wanted = self.packed(batch["latents"], condition)
        loss = self.v_loss(x0, told, sigma, flags)
        n = len(batch["latents"]) - self.loss.singles
        self.log("train/loss", (loss if self.kind == "cell" else loss[:n]).mean())
        return (loss * wanted).sum() / wanted.sum()

    def packed(
        self,
        x0: Tensor,  # b t c h w
        condition: Condition,
    ) -> tuple[Tensor, Condition, Tensor, Tensor, Tensor]:
        """Sequences, then single images side by side, t to a row: x0, condition, and b' t each of
        levels, of flags of single images, and of what counts."""
        t, n = x0.shape[1], 0 if self.kind == "cell" else len(x0) - self.loss.singles
        if self.kind == "cell":  # every cell by itself
            cells = [part.flatten(0, 1) for part in (x0, *condition)]
        else:
            chosen = torch.arange(n, len(x0)), torch.randint(t, (self.loss.singles,))
            cells = [part[chosen] for part in (x0, *condition)]
        m = len(cells[0])
        place = torch.arange(-(-m // t) * t)
        these = place.clamp(max=m - 1)  # the last, repeated, fills a row
        x0, *told = (
            torch.cat([part[:n], cell[these].unflatten(0, (-1, t))]) if m else part
            for part, cell in zip((x0, *condition), cells, strict=True)
        )
        levels = draw_sigma(self.loss, n)[:, None].expand(n, t), draw_sigma(self.loss, m)
        sigma = torch.cat([levels[0], levels[1][these].view(-1, t)])
        flags, wanted = torch.zeros(sigma.shape), torch.ones(sigma.shape)
        flags[n:], wanted[n:] = 1, (place < m).float().view(-1, t)
        return x0, Condition(*told), sigma.to(x0), flags.to(x0), wanted.to(x0)

    def v_loss(
        self,
        x0: Tensor,  # b t c h w
        condition: Condition,
        sigma: Tensor,  # b t
        image_only: Tensor,  # b t, 1 where the temporal branch is off
        *,
        network: Prior | None = None,
        noise: Tensor | None = None,  # b t c h w
    ) -> Tensor:  # b t
        """(σ²+1)/σ² · |D(x0 + σn) − x0|² of every element, the error of v (Karras et al. 2022, eq.
        8)."""
        noise = torch.randn_like(x0) if noise is None else noise
        s = sigma[:, :, None, None, None]
        denoised = (network or self.network)(x0 + s * noise, sigma, condition, image_only)
        return ((s**2 + 1) / s**2 * (denoised - x0).square()).mean(dim=(2, 3, 4))

    def condition(
        self, network: Prior, batch: dict[str, Tensor], cond_aug: Tensor, noise: Tensor
    ) -> Any:
        """The condition of every sequence of a batch."""
        t = batch["latents"].shape[1]
        scalars = sequence_scalars(self.kind, batch, cond_aug, t)
        return network.condition(
            to_images(batch["reference"]), noise, scalars, t, self.first_stage
        )[0]

    def draw_cond_aug(self, b: int) -> Tensor:
        """Standard deviations of the noise on the reference pictures: b."""
        c = self.loss
        aug = (c.cond_aug_log_mean + c.cond_aug_log_std * torch.randn(b)).exp().clamp(max=1.0)
        return torch.where(torch.rand(b) < c.cond_aug_zero, 0.0, aug).to(self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The EMA network's loss in every band of sigma, on fixed noise."""
        b = len(batch["latents"])
        clean = (
            torch.zeros(b, device=self.device),
            torch.zeros(batch["reference"].shape, device=self.device),
        )
        condition = self.condition(self.ema, batch, *clean)
        flags = batch["latents"].new_full(batch["latents"].shape[:2], float(self.kind == "cell"))
        for name, sigma, noise in validation_noise(batch["latents"], batch_idx):
            levels = sigma[:, None].expand(flags.shape)
            value = self.v_loss(
                batch["latents"], condition, levels, flags, network=self.ema, noise=noise
            )
            self.log(name, value.mean(), batch_size=b)


def validation_noise(
    latents: Tensor,  # b ...
    batch: int,  # which of the validation set's
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """For every band of sigma the figure's name, levels b and noise b ..., the same at every
    validation."""
    g = torch.Generator().manual_seed(batch)
    edges = (0.01, *BANDS[1:-1], 700.0)
    for low, high in pairwise(edges):
        span = torch.tensor(high / low).log()
        sigma = (torch.rand(len(latents), generator=g) * span).exp() * low
        noise = torch.randn(latents.shape, generator=g)
        yield f"val/loss_{low:g}_{high:g}", sigma.to(latents.device), noise.to(latents.device)


def draw_sigma(c: LossConfig, b: int) -> Tensor:
    """Noise levels: b."""
    low = (c.log_sigma_mean + c.log_sigma_std * torch.randn(b)).exp()
    span = torch.tensor(c.high_max / c.high_min).log()
    high = c.high_min * (span * torch.rand(b)).exp()
    return torch.where(torch.rand(b) < c.high_share, high, low.clamp(min=0.002))


def sequence_scalars(
    kind: str, batch: dict[str, Tensor], cond_aug: Tensor, t: int
) -> dict[str, Tensor]:
    """The scalar conditions of training sequences: name -> b t."""
    scalars = {"cond_aug": cond_aug[:, None].expand(-1, t)}
    if kind == "video":
        scalars["fps_id"] = torch.full_like(scalars["cond_aug"], FPS_ID)
        scalars["motion_bucket_id"] = batch["motion_bucket_id"][:, None].expand(-1, t)
    else:
        scalars["polars_rad"] = polar_rad(batch["elevation_rad"])
        scalars["azimuths_rad"] = batch["azimuth_rad"]
    if kind == "cell":
        scalars["frames"] = batch["frame"]
    return scalars

"""Training of the video encoder, between whose features the Fréchet distances on world4d are taken.

A linear head reads three things off every frame's embedding, so that the embedding holds them, and
a video's, which is the mean, moves with them: how blurred and noisy it is, in what order its frames
come, and what they show. As the priors, it is trained on frozen orbits and single-camera clips of
training scenes: diagonals and rasters are new to it.

Axes: b videos, t frames, c h w, n scenes, k targets. Pixels are in [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from d2.data import world4d
from d2.data.creature import sample_creatures
from d2.nn.video_encoder import VideoEncoder
from d2.settings import OptimizerConfig
from d2.train.data import ViewSet, kept
from d2.train.prior_trainer import Trained

MAX_BLUR, MAX_NOISE = 2.0, 0.25  # standard deviations: in pixels, and of what is added to them
KERNEL_RADIUS = 6  # pixels, three standard deviations of the widest blur
SHORTEST = 4  # frames of a video in training
# targets, as `targets` stacks them
BLOCKS = {"blur": 1, "noise": 1, "order": 4, "colour": 6, "angle": 3, "gait": 2}
# of their mean errors
WEIGHTS = {"blur": 2.0, "noise": 2.0, "order": 4.0, "colour": 1.0, "angle": 2.0, "gait": 1.0}
RIDGE = 0.01  # of the mean variance: directions of less than that hold nothing that was asked for
Batch = dict[str, Tensor]


class Videos(Dataset):
    """The orbits, then the clips of the same scenes, with what is to be read off them; a list of
    indices gives a batch."""

    def __init__(self, orbits: ViewSet, clips: ViewSet, split: world4d.Split):
        self.sets, self.facts = (orbits, clips), facts_of_views(orbits, split)

    def __len__(self) -> int:
        return sum(len(views.pixels) for views in self.sets)

    def __getitem__(self, index: int | list[int]) -> Batch:
        if isinstance(index, list):
            return default_collate([self[i] for i in index])
        kind, scene = divmod(index, len(self.facts))
        views = self.sets[kind]
        azimuth, elevation = (
            torch.from_numpy(a[scene].copy()) for a in (views.azimuth_rad, views.elevation_rad)
        )
        colour, cycles, heading = self.facts[scene].split([6, 3, 1])
        frequency, start, still = cycles
        frames = torch.arange(len(azimuth)) / len(azimuth)
        gait = (
            2
            * torch.pi
            * (start + frequency * (still.expand(len(frames)) if kind == 0 else frames))
        )
        turned = heading - azimuth
        return {
            "pixels": torch.from_numpy(views.pixels[scene].copy()),  # t 3 h w, uint8
            "orbit": torch.tensor(kind == 0),
            "colour": colour,
            "angle": torch.stack([turned.sin(), turned.cos(), 3 * elevation], dim=-1),  # t 3
            "gait": torch.stack([gait.sin(), gait.cos()], dim=-1),  # t 2
        }


def facts_of_views(views: ViewSet, split: world4d.Split) -> Tensor:
    """Both colours of the body; the gait's cycles a clip, its start, the orbit's moment; the
    heading: n 10, kept."""

    def make() -> np.ndarray:
        parts = [
            sample_creatures(split, part.tolist())
            for part in torch.arange(len(views.pixels)).split(256)
        ]
        facts = [
            torch.cat(
                [
                    c.colours[:, 0].flatten(1),
                    torch.stack([c.frequency, c.start, c.still_time, c.yaw], 1),
                ],
                dim=1,
            )
            for c in parts
        ]
        return torch.cat(facts).float().numpy()

    return torch.from_numpy(np.load(kept(views.folder / "facts.npy", make)))


class Reader(nn.Module):
    """A video encoder and the head that reads its frames' embeddings; of the two the encoder alone
    is kept."""

    def __init__(self, encoder: VideoEncoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.dim, sum(BLOCKS.values()))

    def forward(
        self,
        videos: Tensor,  # b t 3 h w
    ) -> Tensor:  # b t k
        maps = self.encoder.encode_images(rearrange(videos, "b t c h w -> (b t) c h w"))
        return self.head(
            self.encoder.embed_frames(rearrange(maps, "(b t) c h w -> b t c h w", b=len(videos)))
        )


class EncoderTrainer(Trained):
    """Squared errors of what is read off videos that were corrupted at random."""

    network: Reader
    ema: Reader

    def __init__(self, network: Reader, optimizer: OptimizerConfig):
        super().__init__(network, "video_encoder", optimizer)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        videos, wanted = corrupted(batch)
        errors = block_means((self.network(videos) - wanted).square())
        for name in ("blur", "noise", "order"):
            self.log(f"train/{name}", errors[name])
        loss = sum((WEIGHTS[name] * error for name, error in errors.items()), videos.new_zeros(()))
        self.log("train/loss", loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(batch_idx)  # fixed corruptions
            videos, wanted = corrupted(batch, shortest=batch["pixels"].shape[1])
        self.seen.append((self.ema(videos).mean(dim=1), wanted.mean(dim=1)))

    def on_validation_epoch_end(self) -> None:
        """The share of every block's variance over videos that is read off: 1 is all, 0 what the
        mean explains."""
        told, wanted = (torch.cat(part) for part in zip(*self.seen, strict=True))
        errors = block_means((told - wanted).square())
        spreads = block_means((wanted - wanted.mean(dim=0)).square())
        for name, error in errors.items():
            self.log(f"val/{name}", 1 - error / spreads[name])

    @torch.no_grad()
    def whiten(self, videos: Dataset, count: int = 2048) -> None:
        """Centre the averaged encoder's embeddings of `count` corrupted videos, and give them unit
        covariance.

        Without, few directions of great spread, colours and blur among them, hide what is read off
        the others. The head takes it back, so that what is read does not change.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            total = len(videos)  # type: ignore[arg-type]
            chosen = torch.randint(total, (min(count, total),)).split(16)
            batches = (videos[part.tolist()] for part in chosen)
            found = [self.ema.encoder(corrupted(batch)[0].to(self.device)) for batch in batches]
        mean, covariance = torch.cat(found).mean(dim=0), torch.cat(found).mT.cov()
        root, inverse = ridged_roots(covariance)
        encoder, head = self.ema.encoder, self.ema.head
        head.bias.add_(head.weight @ mean)
        head.weight.copy_(head.weight @ root)
        encoder.head.bias.copy_(inverse @ (encoder.head.bias - mean))
        encoder.head.weight.copy_(inverse @ encoder.head.weight)


def ridged_roots(
    covariance: Tensor,  # d d
) -> tuple[Tensor, Tensor]:  # d d each
    """The symmetric root of a covariance whose small eigenvalues are lifted, and the inverse of
    this root."""
    values, vectors = torch.linalg.eigh(covariance.double())
    scale = (values.clamp(min=0) + RIDGE * values.mean()).sqrt()
    return ((vectors * scale) @ vectors.mT).to(covariance), ((vectors / scale) @ vectors.mT).to(
        covariance
    )


def block_means(
    values: Tensor,  # ... k
) -> dict[str, Tensor]:
    """The mean over each block of targets."""
    return {
        name: part.mean()
        for name, part in zip(BLOCKS, values.split(list(BLOCKS.values()), dim=-1), strict=True)
    }


# --- corruption -----------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """What is done to a batch of videos."""

    order: Tensor  # b t: the frames shown, in their order
    blur: Tensor  # b, standard deviation in pixels
    noise: Tensor  # b, standard deviation


def corrupted(batch: Batch, *, shortest: int = SHORTEST) -> tuple[Tensor, Tensor]:
    """Videos b t 3 h w and their targets b t k: shortened together; some reversed, displaced,
    blurred, made noisy."""
    count, frames = batch["pixels"].shape[:2]
    drawn = Drawn(
        *(part.to(batch["pixels"].device) for part in draw(count, frames, shortest=shortest))
    )
    videos = shown(batch["pixels"], drawn.order).float() / 255
    if (some := drawn.blur > 0).any():
        videos[some] = blurred(videos[some], drawn.blur[some])
    videos = videos + drawn.noise[:, None, None, None, None] * torch.randn_like(videos)
    return videos.clamp(0, 1), targets(batch, drawn, frames)


def shown(
    values: Tensor,  # b t ...
    order: Tensor,  # b t
) -> Tensor:  # b t ...
    """Every video's frames in its own order."""
    return values[torch.arange(len(values), device=values.device)[:, None], order]


def draw(count: int, frames: int, *, shortest: int) -> Drawn:
    """Half of the videos of a batch come reversed, half displaced, half blurred, half noisy, and
    all equally long."""
    length = int(torch.randint(min(shortest, frames), frames + 1, ()))
    order = int(torch.randint(frames - length + 1, ())) + torch.arange(length).expand(count, -1)
    order = torch.where(torch.rand(count, 1) < 0.5, order, order.flip(1))
    order = torch.stack(
        [displaced(row, float(share)) for row, share in zip(order, _strengths(count), strict=True)]
    )
    return Drawn(
        order, MAX_BLUR * _strengths(count).square(), MAX_NOISE * _strengths(count).square()
    )


def displaced(
    order: Tensor,  # t
    share: float,
) -> Tensor:  # t
    """The same frames, of which a share, drawn at random, change places."""
    chosen = torch.randperm(len(order))[: round(share * len(order))]
    out = order.clone()
    out[chosen] = order[chosen[torch.randperm(len(chosen))]]
    return out


def blurred(
    videos: Tensor,  # b t 3 h w
    blur: Tensor,  # b, standard deviation in pixels; 0 for none
) -> Tensor:  # b t 3 h w
    """Every video under a Gaussian of its own; pictures go on beyond their borders as they end
    there."""
    b, t, c = videos.shape[:3]
    tap = torch.arange(-KERNEL_RADIUS, KERNEL_RADIUS + 1, device=videos.device)
    kernel = (-0.5 * (tap / blur.clamp(min=1e-3)[:, None]).square()).exp()
    kernel = (kernel / kernel.sum(dim=1, keepdim=True))[:, None, None]  # b 1 1 tap
    x = F.pad(rearrange(videos, "b t c h w -> (t c) b h w"), [KERNEL_RADIUS] * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, kernel, groups=b), kernel.mT, groups=b)
    return rearrange(x, "(t c) b h w -> b t c h w", t=t, c=c)


def targets(batch: Batch, drawn: Drawn, frames: int) -> Tensor:  # b t k
    """What is to be read off, each near unit spread. Strengths enter by their root, so that the
    weak ones count."""
    b, t = drawn.order.shape
    orbit = batch["orbit"].float()[:, None, None]
    around, along = (steps(drawn.order, ring) for ring in (frames, None))
    parts = {
        "blur": 2 * (drawn.blur / MAX_BLUR).sqrt()[:, None, None].expand(b, t, 1),
        "noise": 2 * (drawn.noise / MAX_NOISE).sqrt()[:, None, None].expand(b, t, 1),
        "order": torch.cat([orbit * around, (1 - orbit) * along], dim=-1),
        "colour": 3 * (batch["colour"] - 0.5)[:, None].expand(b, t, -1),
        "angle": shown(batch["angle"], drawn.order),
        "gait": shown(batch["gait"], drawn.order),
    }
    return torch.cat([parts[name] for name in BLOCKS], dim=-1)


def steps(
    order: Tensor,  # b t
    ring: int | None,
) -> Tensor:  # b t 2
    """Mean step to a frame and from it on, and mean size of these steps less 1; around a ring the
    shorter way."""
    step = order.diff(dim=1)
    if ring is not None:
        step = (step + ring // 2) % ring - ring // 2
    both = torch.stack([step, step.abs() - 1], dim=-1).float()
    return (torch.cat([both[:, :1], both], dim=1) + torch.cat([both, both[:, -1:]], dim=1)) / 2


def _strengths(count: int) -> Tensor:  # in [0, 1], half of them 0
    return torch.rand(count) * (torch.rand(count) < 0.5)

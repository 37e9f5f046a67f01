"""Training data: world4d rendered once into memory-mapped files, and batches drawn from them.

A set of views is N sequences of T pictures: frozen orbits for the multi-view prior, single-camera
clips for the video prior; neither holds more than one axis of a matrix. Pairs, a first picture and
a few cells from anywhere, are 4D data, for the unary term that is a ceiling.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from d2.data import world4d
from d2.files import in_turn, write_array, write_text

Kind = Literal["orbits", "clips", "pairs", "walks"]
CPU = torch.device("cpu")
SHARD = 256  # scenes rendered, and recorded as done, at a time
# processes that render on an accelerator: one of them draws creatures slower than it shades them
PER_ACCELERATOR = 4


class ViewSet(NamedTuple):
    """N sequences of T pictures on disk."""

    pixels: np.ndarray  # n t 3 h w, uint8, memory-mapped
    elevation_rad: np.ndarray  # n t
    azimuth_rad: np.ndarray  # n t
    frame: np.ndarray  # n t, of pairs; else 0
    folder: Path
    poses: np.ndarray | None = None  # n t 4 4, of walks


def render_shard(
    shard: int,
    *,
    folder: Path,
    kind: Kind,
    split: world4d.Split,
    num_scenes: int,
    device: torch.device = CPU,
) -> int:
    """Render one shard into the open files of `folder`."""
    files = open_files(folder, "r+")
    indices = range(shard * SHARD, min((shard + 1) * SHARD, num_scenes))
    span = slice(indices.start, indices.stop)
    if kind == "walks":
        assert files.poses is not None
        pixels, poses = world4d.walks(split, list(indices), device=device)
        files.pixels[span] = (pixels * 255).round().to(torch.uint8).cpu().numpy()
        files.poses[span] = poses.numpy()
        return shard
    if kind == "pairs":
        views, frame = world4d.pairs(split, list(indices), device=device)
        files.frame[span] = frame.numpy()
    else:
        draw = world4d.static_orbits if kind == "orbits" else world4d.clips
        views = draw(split, list(indices), device=device)
    files.pixels[span] = (views.pixels * 255).round().to(torch.uint8).cpu().numpy()
    files.elevation_rad[span] = views.elevation_rad.numpy()
    files.azimuth_rad[span] = views.azimuth_rad.numpy()
    return shard


def open_files(folder: Path, mode: Literal["r", "r+"]) -> ViewSet:
    """Map the arrays of a folder."""
    pixels, elevation, azimuth = (
        np.load(folder / f"{name}.npy", mmap_mode=mode)
        for name in ("pixels", "elevation_rad", "azimuth_rad")
    )
    frame = folder / "frame.npy"
    frames = np.load(frame, mmap_mode=mode) if frame.exists() else np.zeros_like(azimuth)
    path = folder / "poses.npy"
    poses = np.load(path, mmap_mode=mode) if path.exists() else None
    return ViewSet(pixels, elevation, azimuth, frames, folder, poses)


def rendered(
    cache: Path,
    kind: Kind,
    split: world4d.Split,
    num_scenes: int,
    *,
    length: int = 8,
    size: int = 64,
    device: torch.device = CPU,
) -> ViewSet:
    """The first `num_scenes` scenes of a split, rendered once; an interrupted rendering goes on.

    Every core renders, or a few processes on the accelerator do.
    """
    folder = cache / f"world4d-{world4d.WORLD_VERSION}" / f"{split}_{kind}_{num_scenes}"
    if not (folder / "done.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with in_turn(folder):  # of several processes the others wait, and find it done
            if not (folder / "done.json").exists():
                _render(folder, kind, split, num_scenes, length, size, device)
    return open_files(folder, "r")


def _render(
    folder: Path,
    kind: Kind,
    split: world4d.Split,
    num_scenes: int,
    length: int,
    size: int,
    device: torch.device,
) -> None:
    progress = folder / "progress.json"
    if not progress.exists():
        angles = (num_scenes, length)
        shapes = {
            "pixels": (*angles, 3, size, size),
            "elevation_rad": angles,
            "azimuth_rad": angles,
        }
        if kind == "pairs":
            shapes["frame"] = angles
        if kind == "walks":
            shapes["poses"] = (*angles, 4, 4)
        for name, shape in shapes.items():
            dtype = {"pixels": np.uint8, "poses": np.float64}.get(name, np.float32)
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape).flush()
        write_text(progress, "[]")
    done = set(json.loads(progress.read_text()))
    todo = [s for s in range(-(-num_scenes // SHARD)) if s not in done]
    work = partial(
        render_shard,
        folder=folder,
        kind=kind,
        split=split,
        num_scenes=num_scenes,
        device=device,
    )
    # one thread a process; a single shard is not worth another process
    spawn = get_context("spawn")
    processes = os.cpu_count() if device == CPU else PER_ACCELERATOR
    with ProcessPoolExecutor(processes, spawn, torch.set_num_threads, (1,)) as pool:
        for shard in map(work, todo) if len(todo) == 1 else pool.map(work, todo):
            done.add(shard)
            write_text(progress, json.dumps(sorted(done)))
    progress.rename(folder / "done.json")


@torch.no_grad()
def encoded(
    views: ViewSet, first_stage: nn.Module, name: str, *, device: torch.device = CPU
) -> np.ndarray:
    """Latents of every picture, float16, n t c h w, made once for the first stage called `name`."""

    def make() -> np.ndarray:
        chunks, stage = [], first_stage.to(device)
        for start in range(0, len(views.pixels), 64):
            pixels = torch.from_numpy(views.pixels[start : start + 64].copy())
            images = to_images(pixels.to(device))
            latents = stage(images.flatten(0, 1)).unflatten(0, images.shape[:2])
            chunks.append(latents.half().cpu().numpy())
        return np.concatenate(chunks)

    return np.load(kept(views.folder / f"latents_{name}.npy", make), mmap_mode="r")


def kept(path: Path, make: Callable[[], np.ndarray]) -> Path:
    """The file of an array that is made once, by the first process that wants it."""
    if not path.exists():
        with in_turn(path.parent):
            if not path.exists():
                write_array(path, make())
    return path


def to_images(pixels: Tensor) -> Tensor:
    """uint8 pixels to images in [-1, 1]."""
    return pixels.float() / 127.5 - 1


class Sequences(Dataset):
    """Sequences of latents with their reference pictures and scalar conditions; a list of indices
    gives a batch of them."""

    def __init__(self, views: ViewSet, latents: np.ndarray, motion: Tensor, reference: int):
        self.views, self.latents, self.motion, self.reference = views, latents, motion, reference

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int | list[int]) -> dict[str, Tensor]:
        return {
            "latents": torch.from_numpy(self.latents[index].astype(np.float32)),  # t c h w
            "reference": torch.from_numpy(self.views.pixels[index, self.reference].copy()),  # 3 h w
            "motion_bucket_id": self.motion[index],
            "elevation_rad": torch.from_numpy(self.views.elevation_rad[index].copy()),  # t
            "azimuth_rad": torch.from_numpy(self.views.azimuth_rad[index].copy()),  # t
            "frame": torch.from_numpy(self.views.frame[index].copy()),  # t
        }


class Walks(Dataset):
    """Frozen scenes from anywhere: latents, pictures and poses of all cells of a sequence; a list
    of indices gives a batch of them."""

    def __init__(self, views: ViewSet, latents: np.ndarray):
        self.views, self.latents = views, latents

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int | list[int]) -> dict[str, Tensor]:
        assert self.views.poses is not None
        return {
            "latents": torch.from_numpy(self.latents[index].astype(np.float32)),  # t c h w
            "pixels": torch.from_numpy(self.views.pixels[index].copy()),  # t 3 h w
            "poses": torch.from_numpy(self.views.poses[index].copy()),  # t 4 4
        }


class Pictures(Dataset):
    """Single pictures of a set of views: n·t of 3 h w, uint8; a list of indices gives a batch."""

    def __init__(self, *sets: ViewSet):
        self.sets = sets
        self.length = sets[0].pixels.shape[1]

    def __len__(self) -> int:
        return sum(len(s.pixels) for s in self.sets) * self.length

    def __getitem__(self, index: int | list[int]) -> Tensor:
        if isinstance(index, list):
            return torch.stack([self[i] for i in index])
        sequence, element = divmod(index, self.length)
        for views in self.sets:
            if sequence < len(views.pixels):
                return torch.from_numpy(views.pixels[sequence, element].copy())
            sequence -= len(views.pixels)
        raise IndexError(index)


class RandomBatches(Sampler[list[int]]):
    """Endless batches of indices; a rank's batch k depends on (seed, k, rank) alone, so that a
    resumed run goes on."""

    def __init__(self, length: int, batch_size: int, *, seed: int, start: int, rank: int = 0):
        self.length, self.batch_size, self.seed, self.start, self.rank = (
            length,
            batch_size,
            seed,
            start,
            rank,
        )

    def __iter__(self) -> Iterator[list[int]]:
        for k in count(self.start):
            yield (
                np.random.default_rng((self.seed, k, self.rank))
                .integers(self.length, size=self.batch_size)
                .tolist()
            )


class WorldData(L.LightningDataModule):
    """Batches for training a tiny network: endless random training batches, the whole validation
    set in order.

    A dataset indexed by a list gives a batch, so that arrays are gathered by one call each.
    """

    def __init__(self, train: Dataset, validation: Dataset, *, batch_size: int, seed: int):
        super().__init__()
        self.train, self.validation, self.batch_size, self.seed = (
            train,
            validation,
            batch_size,
            seed,
        )

    def train_dataloader(self) -> DataLoader:
        start, rank = (
            (self.trainer.global_step, self.trainer.global_rank) if self.trainer else (0, 0)
        )
        size = len(self.train)  # type: ignore[arg-type]
        batches = RandomBatches(size, self.batch_size, seed=self.seed, start=start, rank=rank)
        return DataLoader(self.train, batch_size=None, sampler=batches)

    def val_dataloader(self) -> DataLoader:
        batches = BatchSampler(SequentialSampler(self.validation), self.batch_size, False)  # type: ignore[arg-type]
        return DataLoader(self.validation, batch_size=None, sampler=batches)

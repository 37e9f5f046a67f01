"""Matrices as they lie in folders: of ours, of Consistent4D, of anybody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from d2.files import write_tensors
from d2.io import write_png
from d2.matrix import camera_ring

LAYOUTS = ("ours", "consistent4d", "frames")


def pictures_of(matrix: Tensor) -> Tensor:
    """What 8 bits keep of it."""
    return (matrix * 255).round() / 255


def write_frames(folder: Path, row: Tensor) -> None:
    for frame, pixels in enumerate(row):
        write_png(folder / f"{frame}.png", pixels)


def write_object(
    folder: Path,
    matrix: Tensor,  # v f 3 h w
    layout: str,
    truth: Tensor | None = None,  # v f 3 h w, beside a matrix of ours
    masks: Tensor | None = None,  # v f 1 h w; None: everywhere
) -> None:
    if layout != "ours":
        for view, row in enumerate(matrix):
            write_frames(folder / f"{'eval_' if layout == 'consistent4d' else 'view'}{view}", row)
        return
    ring = camera_ring(len(matrix))
    angles = {"azimuth_rad": ring.azimuth_rad, "elevation_rad": ring.elevation_rad}
    facts = {"fps": "8.0", "input_view": str(ring.input_view)}
    write_tensors(folder / "matrix.safetensors", {"pixels": _bytes(matrix), **angles}, facts)
    if truth is not None:
        masks = torch.ones_like(truth[:, :, :1]) if masks is None else masks
        layers = {
            "pixels": _bytes(truth),
            "masks": _bytes(masks),
            "depth": torch.ones_like(truth[:, :, :1]),
        }
        write_tensors(folder / "truth.safetensors", layers, {})


def write_run(root: Path, matrices: Mapping[str, Tensor], *, error: float = 0.1) -> None:
    """A run of ours whose samples are the truth with another picture mixed in."""
    for seed, (name, truth) in enumerate(matrices.items()):
        noise = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed))
        masks = torch.zeros_like(truth[:, :, :1])
        masks[..., 4:12, 4:12] = 1
        white = truth * masks + (1 - masks)
        write_object(root / name, white + error * (noise - white) * masks, "ours", white, masks)


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)

"""A matrix on disk: pictures, videos, tensors, cameras; whatever is written comes complete or not
at all.

Axes: v views, f frames, t video frames, c h w. Pixels are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from d2.cameras import Rig
from d2.errors import InputError
from d2.files import (
    csv_text,
    read_tensors,
    staged,
    staged_folder,
    write_json,
    write_tensors,
    write_text,
)
from d2.matrix import FOV_Y_DEG, Cameras, ImageMatrix, camera_to_world
from d2.scene import Truth

WATCHABLE = 256  # pixels of the longer side below which a video is enlarged by a whole factor
# pixels of the longer side above which a grid's cells are averaged down by a whole factor
GRID_LIMIT = 4096
# between the cells of a grid; pictures are on white, so the lines are not
GUTTER, GUTTER_GREY = 2, 0.8
DNERF_SCALE = 2.0  # of positions, for readers that look between the distances 2 and 6
QUALITY = 7  # of 10, imageio-ffmpeg's scale: x264 crf 15, visually lossless


# --- a scene's outputs ----------------------------------------------------------------------------


def write_matrix(
    folder: Path, matrix: ImageMatrix, truth: Truth | None, metadata: Mapping[str, str]
) -> None:
    """One scene's result: tensors, row videos and pictures, grid, preview, cameras. Replaces
    `folder` if it is there.

    `metadata` (seed, world version, …) goes into the headers of the safetensors files. A page or
    metrics of the scene are written into `folder` afterwards.
    """
    num_views, num_frames, _, height, width = matrix.pixels.shape
    assert height == width, f"the cameras are square, the pixels {height}×{width}"
    cameras = matrix.cameras
    facts = {"fps": repr(float(matrix.fps)), "input_view": str(cameras.input_view)}
    tensors = {
        "pixels": _to_uint8(matrix.pixels),
        "azimuth_rad": cameras.azimuth_rad.double(),
        "elevation_rad": cameras.elevation_rad.double(),
        **({} if cameras.rig is None else cameras.rig._asdict()),
    }
    if matrix.latents is not None:
        tensors["latents"] = matrix.latents.half()
    digits = max(2, len(str(num_frames - 1)), len(str(num_views - 1)))
    views = [f"rows/view_{view:0{digits}}" for view in range(num_views)]
    paths = [[f"{view}/{frame:0{digits}}.png" for frame in range(num_frames)] for view in views]

    with staged_folder(folder) as partial:
        write_tensors(partial / "matrix.safetensors", tensors, {**metadata, **facts})
        if truth is not None:
            masks = _to_uint8(truth.masks)
            layers = {
                "pixels": _to_uint8(truth.pixels),
                "masks": masks,
                "depth": truth.depth.float(),
            }
            write_tensors(partial / "truth.safetensors", layers, metadata)
        for view, row in enumerate(matrix.pixels):
            for frame, pixels in enumerate(row):
                # D-NeRF's reader takes the last for alpha
                opaque = torch.cat([pixels, torch.ones_like(pixels[:1])])
                write_png(partial / paths[view][frame], opaque)
            write_video(partial / f"{views[view]}.mp4", row, matrix.fps)
        write_grid(partial / "grid.png", matrix.pixels, truth.pixels if truth else None)
        write_video(
            partial / "preview.mp4", preview_frames(matrix.pixels, cameras.input_view), matrix.fps
        )
        write_transforms(partial / "transforms.json", cameras, num_frames, matrix.fps, width, paths)
        write_dnerf(partial, cameras, num_frames, paths)


def read_matrix(path: Path) -> ImageMatrix:
    """What `write_matrix` wrote, from its folder or from the file itself: pixels to 1/255, latents
    to half precision, cameras exactly. ValueError for a file that lacks something."""
    path = path / "matrix.safetensors" if path.is_dir() else path
    tensors, metadata = read_tensors(path)
    lacking = [name for name in ("pixels", "azimuth_rad", "elevation_rad") if name not in tensors]
    lacking += [name for name in ("input_view", "fps") if name not in metadata]
    if lacking:
        raise InputError(
            f"{path}: not a matrix, it lacks {', '.join(lacking)}; give one of d2 sample"
        )
    rig = (
        Rig(tensors["poses"], tensors["intrinsics"])
        if {"poses", "intrinsics"} <= tensors.keys()
        else None
    )
    cameras = Cameras(
        tensors["azimuth_rad"], tensors["elevation_rad"], int(metadata["input_view"]), rig
    )
    latents = tensors["latents"].float() if "latents" in tensors else None
    return ImageMatrix(tensors["pixels"].float() / 255, cameras, float(metadata["fps"]), latents)


def read_truth(folder: Path) -> Truth | None:
    """The truth beside a matrix, where it is known."""
    path = folder / "truth.safetensors"
    if not path.exists():
        return None
    tensors, _ = read_tensors(path)
    return Truth(tensors["pixels"].float() / 255, tensors["masks"].float() / 255, tensors["depth"])


# --- one file -------------------------------------------------------------------------------------


def write_disagreement(
    folder: Path,
    sigma: Tensor,  # n
    distance: Tensor,  # n v f, NaN where unknown
) -> None:
    """disagreement.safetensors, and disagreement.csv with its mean over the matrix; nothing where
    there is none."""
    if not len(sigma):
        return
    write_tensors(folder / "disagreement.safetensors", {"sigma": sigma, "distance": distance}, {})
    means = zip(sigma.tolist(), distance.cpu().flatten(1).nanmean(dim=1).tolist(), strict=True)
    rows = [
        {"step": i, "sigma": f"{s:.6g}", "video_multiview": f"{mean:.6g}"}
        for i, (s, mean) in enumerate(means)
    ]
    write_text(folder / "disagreement.csv", csv_text(rows))


def write_png(
    path: Path,
    pixels: Tensor,  # c h w: 3 of colour, 4 with alpha
) -> None:
    with staged(path) as partial:
        Image.fromarray(rearrange(_to_uint8(pixels), "c h w -> h w c").numpy()).save(
            partial, format="PNG"
        )


def write_video(
    path: Path,
    frames: Tensor,  # t 3 h w
    fps: float,
) -> None:
    """mp4 (h264, yuv420p: plays everywhere). Small frames are enlarged, nearest, to about 256; odd
    sides get a line."""
    assert len(frames) > 0 and fps > 0
    factor = max(1, math.ceil(WATCHABLE / max(frames.shape[-2:])))
    frames = repeat(_to_uint8(frames), "t c h w -> t c (h i) (w j)", i=factor, j=factor)
    height, width = frames.shape[-2:]
    # yuv420p wants even sides
    frames = frames[..., [*range(height), *[height - 1] * (height % 2)], :]
    frames = frames[..., [*range(width), *[width - 1] * (width % 2)]]
    size = (width + width % 2, height + height % 2)
    output = ["-movflags", "+faststart", "-f", "mp4"]
    with staged(path) as partial:
        encoder = imageio_ffmpeg.write_frames(
            str(partial),
            size,
            fps=fps,  # pyright: ignore[reportArgumentType]  (any number will do)
            codec="libx264",
            quality=QUALITY,
            macro_block_size=1,
            output_params=output,
        )
        with closing(encoder):
            encoder.send(None)
            for frame in frames:
                encoder.send(np.ascontiguousarray(rearrange(frame, "c h w -> h w c").numpy()))
        if not partial.exists() or not partial.stat().st_size:
            raise OSError(f"{path}: ffmpeg wrote no video")


def write_grid(
    path: Path,
    pixels: Tensor,  # v f 3 h w
    truth: Tensor | None = None,  # v f 3 h w
) -> None:
    """Views down, frames across, thin grey lines between; the truth to the right of it behind a
    wider line."""
    num_frames, (height, width) = pixels.shape[1], pixels.shape[-2:]
    halves = [pixels] if truth is None else [pixels, truth]
    factor = math.ceil(max(pixels.shape[0] * height, len(halves) * num_frames * width) / GRID_LIMIT)
    drawn = []
    for half in halves:
        cells = F.avg_pool2d(rearrange(half.cpu().float(), "v f c h w -> (v f) c h w"), factor)
        cells = F.pad(cells, (GUTTER, 0, GUTTER, 0), value=GUTTER_GREY)
        sheet = rearrange(cells, "(v f) c h w -> c (v h) (f w)", f=num_frames)
        drawn.append(F.pad(sheet, (0, GUTTER, 0, GUTTER), value=GUTTER_GREY))
    wide_line = torch.full((3, drawn[0].shape[1], 4 * GUTTER), GUTTER_GREY)
    write_png(
        path, drawn[0] if truth is None else torch.cat([drawn[0], wide_line, drawn[1]], dim=-1)
    )


def write_transforms(
    path: Path,
    cameras: Cameras,
    num_frames: int,
    fps: float,
    size: int,
    frame_paths: Sequence[Sequence[str]],  # v × f, relative to the file
) -> None:
    """transforms.json as nerfstudio reads it: pinhole numbers in pixels, one camera and time a
    picture.

    `transform_matrix` is camera to world, OpenGL axes (x right, y up, looking along −z); `time`
    runs from 0 to 1.
    """
    fov = math.radians(FOV_Y_DEG)
    focal = size / 2 / math.tan(fov / 2)
    matrices = camera_to_world(cameras).tolist()
    lenses = (
        [{}] * len(matrices)
        if cameras.rig is None
        else [in_pixels(k, size) for k in cameras.rig.intrinsics]
    )
    frames = [
        {
            "file_path": frame_path,
            "transform_matrix": matrix,
            "time": frame / max(1, num_frames - 1),
            **lens,
        }
        for matrix, lens, row in zip(matrices, lenses, frame_paths, strict=True)
        for frame, frame_path in zip(range(num_frames), row, strict=True)
    ]
    if cameras.rig is not None:
        write_json(
            path, {"camera_model": "OPENCV", "w": size, "h": size, "fps": fps, "frames": frames}
        )
        return
    pinhole = {
        "camera_model": "OPENCV",
        "camera_angle_x": fov,
        "camera_angle_y": fov,
        "fl_x": focal,
        "fl_y": focal,
    }
    centre = {"cx": size / 2, "cy": size / 2, "w": size, "h": size}
    write_json(path, {**pinhole, **centre, "fps": fps, "frames": frames})


def in_pixels(intrinsics: Tensor, size: int) -> dict[str, float]:
    """Normalised intrinsics (3 3) as the numbers of a frame of transforms.json."""
    (fl_x, _, cx), (_, fl_y, cy), _ = (size * intrinsics).tolist()
    return {"fl_x": fl_x, "fl_y": fl_y, "cx": cx, "cy": cy}


def write_dnerf(
    folder: Path,
    cameras: Cameras,
    num_frames: int,
    frame_paths: Sequence[Sequence[str]],  # v × f, relative to the folder
) -> None:
    """transforms_{train,val,test}.json as readers of D-NeRF's data sets want them (Pumarola et al.
    2020).

    There `file_path` has no suffix, `time` starts at 0, and readers hard-code the distances 2 and 6
    between which they look: so positions are scaled by 2 and the object lies 3 to 5 away. Nothing
    is held out, all three hold every picture: a sampled matrix is data to be fitted, and no truth
    to be tested on.
    """
    angle = math.radians(FOV_Y_DEG)
    if cameras.rig is not None:
        angle = 2 * math.atan(0.5 / float(cameras.rig.intrinsics[0, 0, 0]))
        if not torch.allclose(cameras.rig.intrinsics, cameras.rig.intrinsics[:1], atol=1e-9):
            return  # these tables have one angle for all
    matrices = camera_to_world(cameras)
    matrices[:, :3, 3] *= DNERF_SCALE
    frames = [
        {
            "file_path": f"./{Path(frame_path).with_suffix('')}",
            "time": frame / max(1, num_frames - 1),
        }
        | {"transform_matrix": matrix}
        for matrix, row in zip(matrices.tolist(), frame_paths, strict=True)
        for frame, frame_path in zip(range(num_frames), row, strict=True)
    ]
    for split in ("train", "val", "test"):
        write_json(folder / f"transforms_{split}.json", {"camera_angle_x": angle, "frames": frames})


# --- the orbit, as matrices and as a film ---------------------------------------------------------


def preview_cells(num_views: int, num_frames: int, input_view: int) -> list[tuple[int, int]]:
    """The (view, frame) of every picture of the preview: a closed round by steps of at most one
    view and one frame.

    Time stands still at frame 0 for one turn from the input view; then it runs to the end and back,
    as often as the second turn lasts.
    """
    still = [(input_view + step, 0) for step in range(num_views)]
    period = 2 * (num_frames - 1)  # there and back
    length = period * math.ceil(num_views / period) if period else 0
    times = [min(step % period, -step % period) for step in range(length)]
    moving = [(input_view + num_views * step // length, time) for step, time in enumerate(times)]
    return [(view % num_views, frame) for view, frame in still + moving]


def preview_frames(
    pixels: Tensor,  # v f 3 h w
    input_view: int = -1,
) -> Tensor:  # t 3 h w
    """The preview: an orbit at frozen time, then one while time runs; every view and every frame
    comes."""
    cells = preview_cells(pixels.shape[0], pixels.shape[1], input_view)
    return torch.stack([pixels[view, frame] for view, frame in cells])


# --- helpers --------------------------------------------------------------------------------------


def _to_uint8(pixels: Tensor) -> Tensor:
    return (pixels.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)

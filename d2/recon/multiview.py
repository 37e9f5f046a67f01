"""A matrix as 4DGaussians' multi-view folder (hustvl/4DGaussians, scene/multipleview_dataset.py),
for its training.

cam01/frame_00001.jpg …            view by view, frame by frame, from 1
sparse_/cameras.bin, images.bin    COLMAP's: one PINHOLE camera, one image a view
points3D_multipleview.ply          points with colours to start on
poses_bounds_multipleview.npy      LLFF's poses with near and far, of the film that it renders
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d2.errors import InputError
from d2.files import staged_folder
from d2.recon.capture import Capture
from d2.recon.gaussians import SH_0
from d2.recon.scene import MovingGaussians

PINHOLE = 1  # COLMAP's number of the model with fx, fy, cx, cy
QUALITY = 98  # of JPEG: the reader hard-codes the suffix


@torch.no_grad()
def write_multiview(folder: Path, capture: Capture, scene: MovingGaussians) -> None:
    """Write the folder anew. InputError for pictures that are no whole matrix."""
    count = capture.num_views * capture.num_frames
    places = (capture.view * capture.num_frames + capture.frame).cpu()
    if not torch.equal(places.sort().values, torch.arange(count)):
        raise InputError("exports=[multiview]: wants every view at every frame; leave it out")
    first = torch.stack(
        [(places == v * capture.num_frames).nonzero()[0, 0] for v in range(capture.num_views)]
    )
    poses = capture.cameras.to(torch.device("cpu")).of(first).world_to_camera.double()
    with staged_folder(folder) as partial:
        for place, pixels in zip(places.tolist(), capture.pixels.cpu(), strict=True):
            view, frame = divmod(place, capture.num_frames)
            path = partial / f"cam{view + 1:02}" / f"frame_{frame + 1:05}.jpg"
            path.parent.mkdir(exist_ok=True)
            picture = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            Image.fromarray(picture).save(path, quality=QUALITY, subsampling=0)
        write_colmap(partial / "sparse_", capture, poses)
        start = scene(torch.zeros(1, device=scene.means.device))
        colours = (start.sh[0, :, 0] * SH_0 + 0.5).clamp(0, 1)
        write_points(partial / "points3D_multipleview.ply", start.means[0], colours)
        np.save(partial / "poses_bounds_multipleview.npy", llff_poses(poses, capture))


def write_colmap(folder: Path, capture: Capture, poses: Tensor) -> None:
    """cameras.bin and images.bin; every view has the camera of the first picture. `poses` v 4 4
    world to camera."""
    folder.mkdir()
    cameras = capture.cameras
    pinhole = [*cameras.focal[0].tolist(), *cameras.centre[0].tolist()]
    header = struct.pack("<QiiQQ", 1, 1, PINHOLE, cameras.width, cameras.height)
    (folder / "cameras.bin").write_bytes(header + struct.pack("<4d", *pinhole))
    images = [struct.pack("<Q", len(poses))]
    for number, pose in enumerate(poses, start=1):
        placed = (*quaternion(pose[:3, :3]).tolist(), *pose[:3, 3].tolist())
        name = f"image{number}.jpg".encode() + b"\0"  # the reader takes the view's number out of it
        images.append(struct.pack("<i7di", number, *placed, 1) + name + struct.pack("<Q", 0))
    (folder / "images.bin").write_bytes(b"".join(images))


def quaternion(turn: Tensor) -> Tensor:  # 3 3 -> 4, (w, x, y, z), w not negative
    """The quaternion of a rotation: the main eigenvector of Bar-Itzhack's symmetric matrix
    (2000)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = turn.double().tolist()
    rows = [
        [xx - yy - zz, xy + yx, xz + zx, zy - yz],
        [xy + yx, yy - xx - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    x, y, z, w = torch.linalg.eigh(torch.tensor(rows, dtype=torch.float64)).eigenvectors[:, -1]
    found = torch.stack([w, x, y, z])
    return found if w >= 0 else -found


def llff_poses(poses: Tensor, capture: Capture) -> np.ndarray:  # v 17
    """LLFF's: a 3 × 5 matrix of the axes down, right, backward, the position, and height, width,
    focal; near, far."""
    camera_to_world = torch.linalg.inv(poses)[:, :3]
    right, down, ahead, position = camera_to_world.unbind(-1)
    cameras = capture.cameras
    size = torch.tensor(
        [cameras.height, cameras.width, float(cameras.focal[0, 0])], dtype=torch.float64
    )
    axes = torch.stack([down, right, -ahead, position, size.expand(len(poses), 3)], dim=-1)
    away = position.norm(dim=-1, keepdim=True)
    return torch.cat([axes.flatten(1), 0.5 * away, 1.5 * away], dim=1).numpy()


def write_points(path: Path, points: Tensor, colours: Tensor) -> None:
    """A .ply of points n 3 in world units and colours n 3 in [0, 1], with normals, as the reader
    wants them."""
    kinds = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    table = np.zeros(len(points), dtype=[*kinds, ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    for axis, name in enumerate(("x", "y", "z")):
        table[name] = points[:, axis].cpu().numpy()
    for channel, name in enumerate(("red", "green", "blue")):
        table[name] = (colours[:, channel] * 255).round().byte().cpu().numpy()
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {name}" for name, _ in kinds]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")] + ["end_header\n"]
    path.write_bytes("\n".join(header).encode() + table.tobytes())

"""A scene on disk: `scene.safetensors`, and a numbered sequence of .ply files that any 3D Gaussian
viewer opens.

Axes: n Gaussians, f frames, s spherical harmonics. Everything is in the matrix's world: z is up,
lengths in its units.
"""

from __future__ import annotations

import inspect
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from d2.errors import InputError
from d2.files import read_tensors, staged, staged_folder, write_tensors
from d2.recon import motion as motions
from d2.recon.gaussians import Gaussians
from d2.recon.motion import Motion
from d2.recon.scene import MovingGaussians

FORMAT = "d2 moving gaussians 1"


def write_scene(path: Path, scene: MovingGaussians, fps: float) -> None:
    """The scene as it was fitted: its parameters by name, and its motion, frames and fps in the
    header."""
    facts = {"format": FORMAT, "motion": json.dumps(motion_named(scene.motion))}
    facts |= {"num_frames": str(scene.num_frames), "fps": repr(float(fps))}
    write_tensors(path, scene.state_dict(), facts)


def read_scene(path: Path, motion: Motion | None = None) -> tuple[MovingGaussians, float]:
    """What `write_scene` wrote: the scene and its fps. A `motion` that is not d2's own has to be
    given.

    ValueError for a file that is not such a scene.
    """
    tensors, facts = read_tensors(path)
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{path}: its format is {facts.get('format')!r}, not {FORMAT!r}; reconstruct it again"
        )
    motion = motion or motion_of(json.loads(facts["motion"]), path)
    sh = tensors["sh"]
    scene = MovingGaussians(motion, int(facts["num_frames"]), len(sh), math.isqrt(sh.shape[1]) - 1)
    scene.load_state_dict(tensors)
    return scene, float(facts["fps"])


def motion_named(motion: Motion) -> dict[str, object]:
    """A motion's name and numbers, as they go into a file."""
    function, numbers = (
        (motion.func, motion.keywords) if isinstance(motion, partial) else (motion, {})
    )
    return {"name": function.__name__, **numbers}


def motion_of(named: dict[str, object], path: Path) -> Motion:
    """The motion of d2/recon/motion.py that a file names."""
    own = {
        name: f
        for name, f in vars(motions).items()
        if inspect.isfunction(f) and f.__module__ == motions.__name__
    }
    name = str(named.pop("name"))
    if name not in own:
        raise InputError(
            f"{path}: its motion {name} is none of {', '.join(own)}; give it to read_scene"
        )
    return partial(own[name], **named)


def write_ply_sequence(folder: Path, scene: MovingGaussians) -> None:
    """frame_0000.ply, …: the scene at every frame. Replaces `folder` if it is there."""
    digits = max(4, len(str(scene.num_frames - 1)))
    with staged_folder(folder) as partial_folder, torch.no_grad():
        for frame in range(scene.num_frames):
            slice_ = scene(torch.tensor([float(frame)], device=scene.means.device))
            write_ply(partial_folder / f"frame_{frame:0{digits}}.ply", slice_)


def write_ply(path: Path, gaussians: Gaussians) -> None:
    """One set of Gaussians in the layout of Kerbl et al. 2023: binary, float32.

    x y z, nx ny nz (zero), f_dc_0‥2, f_rest_… (channel by channel), opacity (its logit), scale_0‥2
    (their logarithms), rot_0‥3 (w x y z, of length 1).
    """
    means, quats, scales, opacities, sh = (x[0].detach().cpu().float() for x in gaussians)
    columns = {
        "x y z": means,
        "nx ny nz": torch.zeros_like(means),
        _numbered("f_dc", 3): sh[:, 0],
        _numbered("f_rest", 3 * (sh.shape[1] - 1)): sh[:, 1:].mT.flatten(1),
        "opacity": torch.logit(opacities)[:, None],
        "scale_0 scale_1 scale_2": scales.log(),
        "rot_0 rot_1 rot_2 rot_3": torch.nn.functional.normalize(quats, dim=-1),
    }
    names = [name for names in columns for name in names.split()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(means)}"]
    header += [f"property float {name}" for name in names] + ["end_header\n"]
    table = torch.cat(list(columns.values()), dim=1).numpy().astype("<f4")
    with staged(path) as partial_path:
        partial_path.write_bytes("\n".join(header).encode() + table.tobytes())


def read_ply(path: Path) -> Gaussians:
    """One set of Gaussians from a file of that layout."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode("ascii", "replace").split("\n")
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    count = next((int(line.split()[2]) for line in lines if line.startswith("element vertex ")), 0)
    if (
        "format binary_little_endian 1.0" not in lines
        or len(body) != 4 * count * len(names)
        or "rot_3" not in names
    ):
        raise InputError(
            f"{path}: not a .ply of 3D Gaussians in float32; give one of d2 reconstruct"
        )
    table = torch.from_numpy(np.frombuffer(body, "<f4").reshape(count, len(names)).copy())

    def columns(prefix: str) -> Tensor:
        return table[:, [i for i, name in enumerate(names) if name.startswith(prefix)]]

    means = table[:, [names.index(axis) for axis in "xyz"]]
    sh = torch.cat([columns("f_dc_")[:, None], columns("f_rest_").unflatten(1, (3, -1)).mT], dim=1)
    opacities = columns("opacity")[:, 0].sigmoid()
    return Gaussians(
        *(x[None] for x in (means, columns("rot_"), columns("scale_").exp(), opacities, sh))
    )


def _numbered(name: str, count: int) -> str:
    return " ".join(f"{name}_{i}" for i in range(count))

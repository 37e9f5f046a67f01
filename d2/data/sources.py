"""Where a job's scenes come from: world4d, or a folder of the user's. A scene is read when its turn comes.

Axes: v views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset

from d2.data import world4d
from d2.data.folder import list_clips, read_clip, scene_name
from d2.data.matting import cut_out
from d2.data.preprocess import preprocess_clip
from d2.errors import InputError
from d2.matrix import Cameras, MatrixSize, camera_ring
from d2.scene import Scene

SEED_STRIDE = 1_000_003  # between the noise streams of neighbouring `seed`s
FOLDER_ELEVATION_DEG = 10.0  # of a user's own camera when not given, as in the published program


class Source(NamedTuple):
    """Scenes that have not been read: which they are, and what is made of each."""

    kind: str  # world4d | folder
    split: world4d.Split  # of world4d
    path: Path | None  # of a folder's scenes
    first: int  # index of the first scene
    count: int | None  # None: all of a folder's
    seed: int  # shifts every scene's own seed
    size: MatrixSize
    fps: float
    start: int  # first frame taken
    stride: int  # every n-th after it
    image_frame_ratio: float | None  # larger side of the object's box over the frame's; None keeps the scale
    cameras: Cameras  # of a folder's scenes; those of world4d bring their own
    cut_out: bool  # whether RGB frames of a folder are matted
    matting_model: Path | None  # None: the one that rembg keeps

    @property
    def has_truth(self) -> bool:
        return self.kind == "world4d"


class Unread(NamedTuple):
    """A scene of a source before it is read."""

    name: str
    read: Callable[[], Scene]  # raises an InputError where a file is at fault


def list_scenes(source: Source) -> list[Unread]:
    """Name the scenes of a source in their order; an InputError where there are none."""
    if source.kind == "world4d":
        assert source.count is not None
        indices = range(source.first, source.first + source.count)
        return [Unread(f"{source.split}_{i:04d}", partial(read_world, source, i)) for i in indices]
    assert source.path is not None
    clips = list_clips(source.path)
    chosen = list(enumerate(clips))[source.first :][: source.count]
    if not chosen:
        raise InputError(f"scenes.first={source.first}: {source.path} has {len(clips)} scenes")
    return [Unread(scene_name(clip), partial(read_folder, source, clip, i)) for i, clip in chosen]


def read_world(source: Source, index: int) -> Scene:
    """Render a test or validation scene of world4d, with its truth."""
    num_views, num_frames, size = source.size
    scene = world4d.scene(source.split, index, num_views=num_views, num_frames=num_frames, size=size, fps=source.fps)
    return scene._replace(seed=scene.seed + SEED_STRIDE * source.seed)


def read_folder(source: Source, path: Path, index: int) -> Scene:
    """Read a user's clip or picture."""
    clip = read_clip(path, num_frames=source.size.num_frames, start=source.start, stride=source.stride)
    if source.cut_out:
        clip = cut_out(clip, model=source.matting_model)
    pixels, masks = preprocess_clip(clip, size=source.size.picture, image_frame_ratio=source.image_frame_ratio)
    seed = index + SEED_STRIDE * source.seed
    return Scene(clip.name, seed, pixels, masks, source.cameras, source.fps)


class Stream(IterableDataset[Scene]):
    """Reads scenes one after another; of those that cannot be read it notes why, and goes on with the next."""

    def __init__(self, scenes: Sequence[Unread]):
        self.scenes = scenes
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[Scene]:
        self.failures.clear()
        for scene in self.scenes:
            try:
                read = scene.read()
            except InputError as error:
                self.failures.append(str(error))
                continue
            yield read
            del read  # before the next is read


def refuse_unreadable(source: Source) -> None:
    """Raise what is wrong with the first of a folder's scenes where none of them can be read."""
    if source.kind == "world4d":
        return
    stream = Stream(list_scenes(source))
    if next(iter(stream), None) is None:
        raise InputError(stream.failures[0])


def make_cameras(elevation_deg: Any, azimuth_deg: list[float] | None, num_views: int) -> Cameras:
    """Make the cameras of a user's scene: one elevation or one a view, on an even ring or at given azimuths.

    An InputError names the key with too few or impossible angles.
    """
    elevation = FOLDER_ELEVATION_DEG if elevation_deg is None else elevation_deg
    listed = elevation if isinstance(elevation, list) else [elevation] * num_views
    if len(listed) != num_views or not all(isinstance(e, (int, float)) and -90 < e < 90 for e in listed):
        raise InputError(
            f"cameras.elevation_deg={elevation}: give one number, or one a view ({num_views}), between -90 and 90"
        )
    ring = camera_ring(num_views, torch.deg2rad(torch.tensor(listed, dtype=torch.float64)))
    if azimuth_deg is None:
        return ring
    if len(azimuth_deg) != num_views or not math.isclose(azimuth_deg[-1], 360):
        raise InputError(
            f"cameras.azimuth_deg={azimuth_deg}: give one number a view ({num_views}), the last, the input view's, 360"
        )
    return ring._replace(azimuth_rad=torch.deg2rad(torch.tensor(azimuth_deg, dtype=torch.float64)))

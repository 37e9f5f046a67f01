"""Where a job's scenes come from: world4d, or a folder of the user's. A scene is read when its turn
comes.

Axes: v views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import IterableDataset

from d2.data import world4d
from d2.data.camera_file import read_table, read_views, square_clip
from d2.data.folder import list_clips, read_clip, scene_name
from d2.data.matting import cut_out
from d2.data.preprocess import preprocess_clip
from d2.data.rigs import Wanted, make_cameras
from d2.errors import InputError
from d2.matrix import Cameras, MatrixSize
from d2.scene import Scene

SEED_STRIDE = 1_000_003  # between the noise streams of neighbouring `seed`s


class SceneSource(NamedTuple):
    """Scenes that have not been read: which they are, and what is made of each."""

    kind: str  # world4d | folder | views: one scene of several clips
    split: world4d.Split  # of world4d
    path: Path | None  # of a folder's scenes
    first: int  # index of the first scene
    count: int | None  # None: all of a folder's
    seed: int  # shifts every scene's own seed
    size: MatrixSize
    fps: float
    start: int  # first frame taken
    stride: int  # every n-th after it
    # larger side of the object's box over the frame's; None keeps the scale
    image_frame_ratio: float | None
    cameras: Cameras  # of a folder's scenes; views bring their own
    path_wanted: Wanted | None  # of world4d's scenes; None: their own rings
    camera_file: Path | None  # that these cameras come from
    cut_out: bool  # whether RGB frames of a folder are matted
    matting_model: Path | None  # None: the one that rembg keeps

    @property
    def has_truth(self) -> bool:
        return self.kind == "world4d"


class Unread(NamedTuple):
    """A scene of a source before it is read."""

    name: str
    read: Callable[[], Scene]  # raises an InputError where a file is at fault


def list_scenes(source: SceneSource) -> list[Unread]:
    """Name the scenes of a source in their order; an InputError where there are none."""
    if source.kind == "world4d":
        assert source.count is not None
        indices = range(source.first, source.first + source.count)
        return [Unread(f"{source.split}_{i:04d}", partial(read_world, source, i)) for i in indices]
    assert source.path is not None
    if source.kind == "views":
        return [Unread(scene_name(source.path), partial(read_known_views, source))]
    clips = list_clips(source.path)
    chosen = list(enumerate(clips))[source.first :][: source.count]
    if not chosen:
        raise InputError(f"scenes.first={source.first}: {source.path} has {len(clips)} scenes")
    return [Unread(scene_name(clip), partial(read_user, source, clip, i)) for i, clip in chosen]


def read_world(source: SceneSource, index: int) -> Scene:
    """Render a test or validation scene of world4d, with its truth; a path starts at its own
    elevation unless another is wanted."""
    num_views, num_frames, size = source.size
    wanted, cameras = source.path_wanted, None
    if wanted is not None:
        if wanted.elevation_deg is None:
            own = world4d.own_elevation_deg(source.split, index)
            wanted = wanted._replace(elevation_deg=own)
        cameras = make_cameras(wanted, num_views)
    scene = world4d.scene(
        source.split,
        index,
        num_views=num_views,
        num_frames=num_frames,
        size=size,
        fps=source.fps,
        cameras=cameras,
    )
    return scene._replace(seed=scene.seed + SEED_STRIDE * source.seed)


def read_user(source: SceneSource, path: Path, index: int) -> Scene:
    """Read a user's clip or picture."""
    clip = read_clip(
        path, num_frames=source.size.num_frames, start=source.start, stride=source.stride
    )
    if source.cut_out:
        clip = cut_out(clip, model=source.matting_model)
    # what is known of a lens holds for the picture as it was taken
    if source.camera_file is not None:
        table, view = read_table(source.camera_file), source.cameras.input_view
        pixels, masks = square_clip(clip, source.size.picture, table, view)
    else:
        pixels, masks = preprocess_clip(
            clip, size=source.size.picture, image_frame_ratio=source.image_frame_ratio
        )
    seed = index + SEED_STRIDE * source.seed
    return Scene(clip.name, seed, pixels, masks, source.cameras, source.fps)


def read_known_views(source: SceneSource) -> Scene:
    """Read several synchronised clips of one scene, with their cameras and those that are
    wanted."""
    assert source.path is not None
    frames, size = source.size.num_frames, source.size.picture
    views = read_views(
        source.path, num_frames=frames, start=source.start, stride=source.stride, size=size
    )
    seed, name = SEED_STRIDE * source.seed, scene_name(source.path)
    return Scene(
        name, seed, views.pixels, views.masks, views.cameras, source.fps, others=views.others
    )


class Stream(IterableDataset[Scene]):
    """Reads scenes one after another; of those that cannot be read it notes why, and goes on with
    the next."""

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


def refuse_unreadable(source: SceneSource) -> None:
    """Raise what is wrong with the first of a folder's scenes where none of them can be read."""
    if source.kind == "world4d":
        return
    stream = Stream(list_scenes(source))
    if next(iter(stream), None) is None:
        raise InputError(stream.failures[0])

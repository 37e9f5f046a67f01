"""Folders of sampled matrices and of their truth, by anybody: what `d2 evaluate` reads.

Axes: v views, f frames, c h w. An object lies in a folder of its own, whose layout is told by what
is in it:

    ours          matrix.safetensors, and truth.safetensors beside it
    consistent4d  eval_VIEW/FRAME.png; what else is there is passed over
    frames        VIEW/FRAME.png
    videos        VIEW.mp4, or another kind of film that media.py reads

A root is a folder of objects, or one object itself. Views and frames are told by the last number in
their names, so that a missing one is seen; by the whole name where a number is lacking or comes
twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from d2.data.media import (
    FAINT,
    VIDEO_SUFFIXES,
    is_film,
    is_frame,
    natural,
    read_film,
    read_picture,
    visible,
)
from d2.errors import InputError
from d2.io import read_matrix, read_truth

MATRIX, TRUTH = "matrix.safetensors", "truth.safetensors"
SHOWN = 8  # a message lists so many of a kind and counts the rest
Key = int | str  # of a view or a frame


class Pictures(NamedTuple):
    """All that is known of a matrix."""

    pixels: Tensor  # v f 3 h w in [0, 1], on white
    masks: Tensor | None  # v f 1 h w, coverage
    depth: Tensor | None  # v f 1 h w
    input_view: int | None


class Candidate(NamedTuple):
    """One object to be evaluated."""

    name: str
    samples: tuple[Path, ...]  # a folder each
    truth: Path | None


class Found(NamedTuple):
    """The objects that are complete, and one line for each that is not."""

    objects: list[Candidate]
    failures: list[str]


def find_objects(
    sampled: Sequence[Path],
    truth: Path | None,
    *,
    needs_truth: bool,
    names: Sequence[str] | None = None,
) -> Found:
    """Pair the objects under one or several roots of samples with those under the truth's root, and
    check the grids.

    `needs_truth`: an object without it is a failure. `names`: those objects alone. A ValueError
    says that a root is not there or holds no object.
    """
    roots = [_objects(root) for root in sampled]
    true = {} if truth is None else _objects(truth)
    if truth is not None and all(layout_of(root) is not None for root in (truth, *sampled)):
        # single objects are a pair, whatever they are called
        roots = [dict.fromkeys(true, path) for path in sampled]
    known = sorted(set(chain(true if needs_truth else (), *roots)), key=natural)
    if unknown := sorted(set(names or ()) - set(known)):
        raise InputError(f"objects={unknown}: not found; there are {_shown(known)}")
    objects, failures = [], []
    for name in known if names is None else names:
        absent = [
            str(place) for place, root in zip(sampled, roots, strict=True) if name not in root
        ]
        where = true.get(name)
        if where is not None and layout_of(where) == "ours" and not (where / TRUTH).exists():
            where = None
        if absent:
            failures.append(
                f"{name}: not in {_shown(absent)}; sample it, or choose others with objects=[…]"
            )
        elif needs_truth and where is None:
            failures.append(
                f"{name}: no truth; add it, or take metrics=[consistency], which needs none"
            )
        else:
            candidate = Candidate(name, tuple(root[name] for root in roots), where)
            faults = _faults(candidate)
            failures += [f"{name}: {'; '.join(faults)}"] if faults else []
            objects += [] if faults else [candidate]
    return Found(objects, failures)


def layout_of(folder: Path) -> str | None:
    """The layout of one object's folder; None if it holds no object."""
    if not folder.is_dir():
        return None
    if (folder / MATRIX).exists() or (folder / TRUTH).exists():
        return "ours"
    views = _picture_folders(folder)
    if any(re.fullmatch(r"eval_\d+", view.name) for view in views):
        return "consistent4d"
    return "frames" if views else ("videos" if _videos(folder) else None)


def files_of(folder: Path, *, truth: bool) -> list[Path]:
    """The files that a figure of this object depends on."""
    match layout_of(folder):
        case "ours":
            return [folder / (TRUTH if truth else MATRIX)]
        case "videos":
            return list(_videos(folder))
        case _:
            return [file for row in _cells(folder).values() for file in row.values()]


def read_sample(folder: Path) -> Pictures:
    """A sampled matrix; a ValueError names the file that is damaged or of another size."""
    if layout_of(folder) != "ours":
        return _read(folder)
    matrix = read_matrix(folder)
    return Pictures(matrix.pixels, None, None, matrix.cameras.input_view)


def read_true(folder: Path) -> Pictures:
    """A true matrix; its masks are its alpha channel where it is no folder of ours."""
    if layout_of(folder) != "ours":
        return _read(folder)
    truth = read_truth(folder)
    assert truth is not None, f"{folder}: was there a moment ago"
    return Pictures(truth.pixels, truth.masks, truth.depth, None)


# --- what lies in a folder ------------------------------------------------------------------------


def _objects(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give a run's output_dir, or a folder of objects")
    if layout_of(root) is not None:
        return {root.resolve().name: root}
    found = {
        path.name: path for path in visible(root) if path.is_dir() and layout_of(path) is not None
    }
    if not found:
        raise InputError(
            f"{root}: holds no object; put OBJECT/{MATRIX}, OBJECT/VIEW/FRAME.png,"
            " OBJECT/eval_VIEW/FRAME.png or OBJECT/VIEW.mp4 there"
        )
    return found


def _picture_folders(folder: Path) -> list[Path]:
    """Views: folders of pictures and nothing deeper, so that an object with a preview in it is
    none."""
    return [path for path in visible(folder) if path.is_dir() and _is_view(visible(path))]


def _is_view(entries: list[Path]) -> bool:
    if not any(map(is_frame, entries)) or any(path.name in (MATRIX, TRUTH) for path in entries):
        return False
    return not any(map(is_frame, chain(*(path.rglob("*") for path in entries if path.is_dir()))))


def _videos(folder: Path) -> list[Path]:
    """Videos, or, where there are none, pictures that move."""
    entries = visible(folder)
    videos = [path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    return videos or list(filter(is_film, entries))


def _keyed(paths: Iterable[Path]) -> dict[Key, Path]:
    """Paths in their order by number, or by name where numbers do not tell them apart."""
    paths = list(paths)
    numbers = [re.findall(r"\d+", path.stem) for path in paths]
    if all(numbers) and len({int(each[-1]) for each in numbers}) == len(paths):
        return dict(
            sorted((int(each[-1]), path) for each, path in zip(numbers, paths, strict=True))
        )
    return {path.name: path for path in sorted(paths, key=lambda path: natural(path.name))}


def _cells(folder: Path) -> dict[Key, dict[Key, Path]]:
    """View -> frame -> file."""
    views = _picture_folders(folder)
    if layout_of(folder) == "consistent4d":
        views = [view for view in views if re.fullmatch(r"eval_\d+", view.name)]
    return {key: _keyed(filter(is_frame, visible(view))) for key, view in _keyed(views).items()}


def _grid(folder: Path, *, truth: bool) -> dict[Key, set[Key] | None]:
    """View -> its frames; None where only decoding would tell."""
    match layout_of(folder):
        case "ours":
            path = folder / (TRUTH if truth else MATRIX)
            try:
                with safe_open(path, framework="pt") as file:
                    num_views, num_frames, *_ = file.get_slice("pixels").get_shape()
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path.name} cannot be read ({error})") from error
            return {view: set(range(num_frames)) for view in range(num_views)}
        case "videos":
            return dict.fromkeys(_keyed(_videos(folder)))
        case _:
            return {view: set(row) for view, row in _cells(folder).items()}


def _faults(candidate: Candidate) -> list[str]:
    """What is missing or too many: of the truth against its own union, of a sample against the
    truth or its own."""
    try:
        true = None if candidate.truth is None else _grid(candidate.truth, truth=True)
        grids = [_grid(folder, truth=False) for folder in candidate.samples]
    except ValueError as error:
        return [str(error)]
    faults = [] if true is None else _differences("the truth", true, _union(true))
    for folder, grid in zip(candidate.samples, grids, strict=True):
        whose = "the sample" if len(grids) == 1 else f"the sample in {folder.parent.name}"
        faults += _differences(whose, grid, _union(grid) if true is None else _union(true))
    return faults


def _union(grid: dict[Key, set[Key] | None]) -> dict[Key, set[Key] | None]:
    frames = set[Key]().union(*(row for row in grid.values() if row is not None))
    return {view: None if row is None else frames for view, row in grid.items()}


def _differences(
    whose: str, grid: dict[Key, set[Key] | None], wanted: dict[Key, set[Key] | None]
) -> list[str]:
    lines = [
        ("lacks view", wanted.keys() - grid.keys()),
        ("has too many: view", grid.keys() - wanted.keys()),
    ]
    for view, row in grid.items():
        expected = wanted.get(view)
        if row is not None and expected is not None:
            lines += [(f"view {view} lacks frame", expected - row)]
            lines += [(f"view {view} has too many: frame", row - expected)]
    return [
        f"{whose}: {what} {_shown(sorted(map(str, keys), key=natural))}"
        for what, keys in lines
        if keys
    ]


# --- pictures -------------------------------------------------------------------------------------


def _read(folder: Path) -> Pictures:
    """Pictures or videos, on white; coverage where anything has been cut out."""
    if layout_of(folder) == "videos":
        rows = [
            [(path, each) for each in read_film(path).pictures]
            for path in _keyed(_videos(folder)).values()
        ]
    else:
        rows = [
            [(path, read_picture(path)) for path in row.values()] for row in _cells(folder).values()
        ]
    first, rgba = rows[0][0]
    for path, other in chain(*rows):
        if other.shape != rgba.shape:
            sizes = f"{_place(path)} is {_size(other)}, {_place(first)} {_size(rgba)}"
            raise InputError(f"frames of two sizes: {sizes}; give all one size")
    if len({len(row) for row in rows}) > 1:
        raise InputError(
            f"views of {_shown(sorted({str(len(row)) for row in rows}))} frames; give all one"
            " length"
        )
    pixels = torch.from_numpy(np.stack([np.stack([cell for _, cell in row]) for row in rows]))
    colour, alpha = (
        rearrange(pixels, "v f h w c -> v f c h w").float().div(255).split([3, 1], dim=2)
    )
    cut_out = bool((pixels[..., 3] < FAINT).any())
    return Pictures(colour * alpha + (1 - alpha), alpha if cut_out else None, None, None)


def _place(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _size(rgba: np.ndarray) -> str:
    return f"{rgba.shape[1]}×{rgba.shape[0]}"


def _shown(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")

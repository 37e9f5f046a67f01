"""The sets of videos in an image matrix, their features, and the Fréchet and kernel distances
between two such sets.

Axes: v views, f frames, b videos, t along a video, c h w, d features. `matrix` means v f 3 h w,
pixels in [0, 1].

The four traversals of SV4D (Xie et al. 2024), the last of them in both its orders. A figure carries
the name of the feature network: `fvd_f[i3d-400]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor

from d2.errors import InputError
from d2.matrix import Cut, columns, diagonals, raster, rows, take
from d2.metrics.features import FeatureNetwork, embed_videos, encode_images
from d2.metrics.frechet import frechet_distance, kernel_distance


def raster_columns(num_views: int, num_frames: int) -> Cut:
    """All cells as one sequence, frame by frame, every other column backwards."""
    cut = raster(num_frames, num_views)
    return cut._replace(cells=cut.cells.flip(-1))


TRAVERSALS: dict[str, Callable[[int, int], Cut]] = {
    "f": rows,  # FVD-F: one video a view, along the frames
    "v": columns,  # FVD-V: one a frame, along the views
    "diag": diagonals,  # FVD-Diag: one a starting view, on by one view a frame, around the ring
    "4d": raster,  # FV4D: one a matrix, view by view, there and back
    "4d_columns": raster_columns,  # FV4D in its other order: frame by frame
}


def video_sets(
    matrix: Tensor,  # v f ...
) -> dict[str, Tensor]:
    """The videos of every traversal, b t ..., by its name in `TRAVERSALS`."""
    return {
        name: take(matrix, traversal(*matrix.shape[:2])) for name, traversal in TRAVERSALS.items()
    }


def matrix_features(
    matrix: Tensor,  # v f 3 h w
    network: FeatureNetwork,
    *,
    traversals: Sequence[str] = tuple(TRAVERSALS),
    chunk: int = 64,  # pictures at a time
) -> dict[str, Tensor]:
    """Features b d of every traversal's videos. A cell is encoded once, however many videos it is
    in.

    A ValueError names a traversal whose videos are too short for the network.
    """
    num_views, num_frames = matrix.shape[:2]
    refuse_short(network, traversals, num_views, num_frames)
    cuts = {name: TRAVERSALS[name](num_views, num_frames) for name in traversals}
    cells = encode_images(network, rearrange(matrix, "v f c h w -> (v f) c h w"), chunk=chunk)
    encoded = cells.unflatten(0, (num_views, num_frames))
    return {
        name: embed_videos(network, take(encoded, cut), chunk=chunk) for name, cut in cuts.items()
    }


def refuse_short(
    network: FeatureNetwork, traversals: Sequence[str], num_views: int, num_frames: int
) -> None:
    """Raises a ValueError that names the traversals whose videos are too short for the network."""
    lengths = {name: TRAVERSALS[name](num_views, num_frames).cells.shape[1] for name in traversals}
    short = [
        f"{name} ({length})" for name, length in lengths.items() if length < network.min_frames
    ]
    if short:
        least = f"needs at least {network.min_frames} frames"
        raise InputError(
            f"{network.name}: {least}; leave out {', '.join(short)} or name another feature network"
        )


def set_features(
    matrices: Iterable[Tensor],  # v f 3 h w each
    network: FeatureNetwork,
    *,
    traversals: Sequence[str] = tuple(TRAVERSALS),
    chunk: int = 64,  # pictures at a time
) -> dict[str, Tensor]:
    """The same of many matrices, one after the other: features n d by traversal."""
    return joined(
        [
            matrix_features(matrix, network, traversals=traversals, chunk=chunk)
            for matrix in matrices
        ]
    )


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One set a traversal out of those of several matrices; a set's order does not matter to any
    distance."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def video_distances(
    sampled: Mapping[str, Tensor],  # n d by traversal
    true: Mapping[str, Tensor],  # m d by traversal
    network_name: str,
) -> dict[str, float]:
    """`fvd_f[NETWORK]`, `fvd_v`, `fvd_diag`, `fv4d`, `fv4d_columns`, and the kernel distances
    `kvd_f` … `kv4d` beside.

    NaN where a set holds fewer than two videos: one matrix has one raster.
    """
    assert sampled.keys() == true.keys(), f"traversals {sorted(sampled)} and {sorted(true)}"
    figures: dict[str, float] = {}
    for name in sampled:
        figures[figure_name("f", name, network_name)] = frechet_distance(sampled[name], true[name])
        figures[figure_name("k", name, network_name)] = kernel_distance(sampled[name], true[name])
    return figures


def figure_name(distance: str, traversal: str, network_name: str) -> str:
    """`fvd_diag[i3d-400]` of "f" and "diag", `kv4d[i3d-400]` of "k" and "4d"."""
    stem = f"{distance}v{traversal}" if traversal.startswith("4d") else f"{distance}vd_{traversal}"
    return f"{stem}[{network_name}]"

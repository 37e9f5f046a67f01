"""Laws of the traversals of a matrix and of the distances between sets of their videos."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_encoder import random_matrix, small_encoder
from torch import Tensor

from d2.metrics.features import FeatureNetwork, embed_videos, encode_images
from d2.metrics.video_sets import (
    TRAVERSALS,
    figure_name,
    joined,
    matrix_features,
    set_features,
    video_distances,
    video_sets,
)

V, N = 4, 5
NAME = "world4d-encoder"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> FeatureNetwork:
    return small_encoder(tmp_path_factory.mktemp("encoder"))


def matrices(start: int, count: int = 6) -> list[Tensor]:
    return [random_matrix(start + i, V, N) for i in range(count)]


def distances(a: list[Tensor], b: list[Tensor], network: FeatureNetwork) -> dict[str, float]:
    return video_distances(set_features(a, network), set_features(b, network), network.name)


def fvd(a: list[Tensor], b: list[Tensor], network: FeatureNetwork) -> dict[str, float]:
    figures = distances(a, b, network)
    return {name: figures[figure_name("f", name, NAME)] for name in TRAVERSALS}


def transposed(sets: list[Tensor]) -> list[Tensor]:
    return [matrix.transpose(0, 1) for matrix in sets]


def test_every_traversal_shows_every_cell_once():
    cells = torch.arange(V * N).reshape(V, N)
    for name, videos in video_sets(cells).items():
        assert sorted(videos.flatten().tolist()) == list(range(V * N)), name


def test_the_traversals_by_hand():
    sets = {
        name: videos.tolist()
        for name, videos in video_sets(torch.tensor([[0, 1, 2], [10, 11, 12]])).items()
    }
    assert sets == {
        "f": [[0, 1, 2], [10, 11, 12]],
        "v": [[0, 10], [1, 11], [2, 12]],
        "diag": [[0, 11, 2], [10, 1, 12]],  # around the ring of two views
        "4d": [[0, 1, 2, 12, 11, 10]],
        "4d_columns": [[0, 10, 11, 1, 2, 12]],
    }


def test_features_are_those_of_the_videos_themselves(network: FeatureNetwork):
    """Each cell is encoded once and shared; the same comes out of every video by itself."""
    matrix = matrices(0, 1)[0]
    features = matrix_features(matrix, network)
    assert network.embed is not None
    for name, videos in video_sets(matrix).items():
        for video, feature in zip(videos, features[name], strict=True):
            alone = network.embed(network.encode(video)[None])[0]
            torch.testing.assert_close(feature, alone, rtol=1e-4, atol=1e-5)


def test_the_size_of_the_chunks_changes_nothing(network: FeatureNetwork):
    matrix = matrices(0, 1)[0]
    whole, chunked = matrix_features(matrix, network), matrix_features(matrix, network, chunk=2)
    for name in TRAVERSALS:
        torch.testing.assert_close(whole[name], chunked[name], rtol=1e-4, atol=1e-5)


def test_columns_of_a_matrix_are_rows_of_its_transpose(network: FeatureNetwork):
    a, b = matrices(0), matrices(100)
    plain, turned = fvd(a, b, network), fvd(transposed(a), transposed(b), network)
    assert (plain["v"], plain["f"], plain["4d_columns"], plain["4d"]) == (
        turned["f"],
        turned["v"],
        turned["4d"],
        turned["4d_columns"],
    )
    assert plain["v"] != plain["f"]


def test_identical_sets_give_nothing_and_others_something(network: FeatureNetwork):
    a = matrices(0)
    assert all(abs(value) < 1e-6 for value in fvd(a, a[::-1], network).values())
    darker = [matrix * 0.5 for matrix in a]
    assert all(value > 1e-3 for value in fvd(a, darker, network).values())


def test_displaced_frames_do_not_touch_the_columns_and_displaced_views_not_the_rows(
    network: FeatureNetwork,
):
    a = matrices(0)
    frames = fvd(a, [matrix[:, [3, 0, 4, 1, 2]] for matrix in a], network)
    views = fvd(a, [matrix[[2, 0, 3, 1]] for matrix in a], network)
    assert frames["v"] < 1e-6 and min(frames[name] for name in ("f", "diag", "4d")) > 1e-4
    assert views["f"] < 1e-6 and min(views[name] for name in ("v", "diag", "4d")) > 1e-4


def test_time_reversal_is_seen(network: FeatureNetwork):
    a = matrices(0)
    reversed_frames = fvd(a, [matrix.flip(1) for matrix in a], network)
    assert reversed_frames["v"] < 1e-6 and reversed_frames["f"] > 1e-5


def test_sets_of_many_matrices_are_joined_sets(network: FeatureNetwork):
    a = matrices(0, 2)
    both = set_features(a, network)
    assert {name: tuple(features.shape) for name, features in both.items()} == {
        "f": (2 * V, 12),
        "v": (2 * N, 12),
        "diag": (2 * V, 12),
        "4d": (2, 12),
        "4d_columns": (2, 12),
    }
    parts = joined([matrix_features(matrix, network) for matrix in a])
    assert all(both[name].equal(parts[name]) for name in TRAVERSALS)


def test_every_figure_names_its_network(network: FeatureNetwork):
    figures = distances(matrices(0, 2), matrices(9, 2), network)
    stems = [
        "fvd_f",
        "fvd_v",
        "fvd_diag",
        "fv4d",
        "fv4d_columns",
        "kvd_f",
        "kvd_v",
        "kvd_diag",
        "kv4d",
        "kv4d_columns",
    ]
    assert sorted(figures) == sorted(f"{stem}[world4d-encoder]" for stem in stems)


def test_one_matrix_has_no_distance_between_rasters(network: FeatureNetwork):
    figures = distances(matrices(0, 1), matrices(9, 1), network)
    assert math.isnan(figures[f"fv4d[{NAME}]"]) and math.isnan(figures[f"kv4d[{NAME}]"])
    assert math.isfinite(figures[f"fvd_f[{NAME}]"])


def test_videos_that_are_too_short_are_named(network: FeatureNetwork):
    hungry = network._replace(min_frames=5)
    with pytest.raises(
        ValueError, match=r"at least 5 frames; leave out v \(4\) or name another"
    ) as error:
        matrix_features(matrices(0, 1)[0], hungry)
    assert "\n" not in str(error.value)
    assert set(matrix_features(matrices(0, 1)[0], hungry, traversals=("f", "4d"))) == {"f", "4d"}


def test_a_network_of_pictures_has_no_videos(network: FeatureNetwork, tmp_path: Path):
    pictures = network._replace(embed=None)
    encoded = encode_images(pictures, torch.rand(4, 3, 16, 16))
    with pytest.raises(ValueError, match="sees single pictures"):
        embed_videos(pictures, encoded[None])

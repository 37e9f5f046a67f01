"""What the video metrics can and cannot see: exact invariances for any weights, responses with the
shipped ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from script import script
from small_encoder import random_matrix, small_encoder
from torch import Tensor

from d2.data import world4d
from d2.files import asset
from d2.metrics.features import FeatureNetwork, load_video_encoder
from d2.metrics.video_sets import joined, video_distances

study = script(asset("experiments") / "metric_response" / "study.py")

Damage = Callable[[Tensor, torch.Generator], Tensor]
FRECHET = ("f", "v", "diag", "4d", "4d_columns")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> FeatureNetwork:
    """Random weights."""
    return small_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def matrices() -> list[Tensor]:
    return [random_matrix(seed, 6, 6) for seed in range(6)]


def distances(network: FeatureNetwork, matrices: list[Tensor], damage: Damage) -> dict[str, float]:
    """Fréchet distances of the damaged matrices to themselves, by traversal."""
    true = joined(study.features_of(matrices, network, lambda matrix, _: matrix))
    found = video_distances(joined(study.features_of(matrices, network, damage)), true, "x")
    return {name: found[study.figure_name("f", name, "x")] for name in FRECHET}


# --- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "stay"),
    [
        (partial(study.displaced_frames, strength=0.5), {"v"}),
        (partial(study.displaced_frames, strength=1.0), {"v"}),
        (partial(study.reversed_time, strength=1.0), {"v"}),
        (partial(study.displaced_views, strength=0.5), {"f"}),
        (partial(study.displaced_views, strength=1.0), {"f"}),
        (lambda matrix, _: matrix.roll(2, dims=0), {"f", "diag"}),  # diagonals wrap around the ring
        (lambda matrix, _: matrix, set(FRECHET)),
    ],
)
def test_a_set_that_stays_has_no_distance_and_others_have(
    network: FeatureNetwork, matrices: list[Tensor], damage: Damage, stay: set[str]
) -> None:
    found = distances(network, matrices, damage)
    floor = 1e-9  # of features near 1: rounding, in float64
    assert {name for name, value in found.items() if value < floor} == stay
    assert min((value for name, value in found.items() if name not in stay), default=1) > 1e-6


def test_the_mirror_of_a_damage_swaps_rows_and_columns(
    network: FeatureNetwork, matrices: list[Tensor]
) -> None:
    """Displaced views are displaced frames of the transpose, scene by scene."""
    views = distances(network, matrices, partial(study.displaced_views, strength=0.5))
    transposed = [matrix.transpose(0, 1) for matrix in matrices]
    frames = distances(network, transposed, partial(study.displaced_frames, strength=0.5))
    for name, mirror in (("f", "v"), ("v", "f"), ("4d", "4d_columns"), ("4d_columns", "4d")):
        assert views[name] == pytest.approx(frames[mirror], rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_that_is_displaced_is_exact(share: float) -> None:
    for seed in range(10):
        order = study.displaced(8, share, torch.Generator().manual_seed(seed))
        assert sorted(order.tolist()) == list(range(8)) and (
            order != torch.arange(8)
        ).sum() == round(8 * share)


def test_damage_is_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    grey = torch.full((2, 2, 3, 33, 33), 0.5)
    noisy = study.noise(grey, generator, strength=0.05)
    assert (noisy - grey).std() == pytest.approx(0.05, rel=0.05) and abs(
        (noisy - grey).mean()
    ) < 1e-3
    torch.testing.assert_close(study.blur(grey, generator, strength=1.5), grey)
    point = torch.zeros(1, 1, 3, 33, 33)
    point[..., 16, 16] = 1
    spread = study.blur(point, generator, strength=1.5)
    variance = (spread.sum(dim=-1) * (torch.arange(33.0) - 16).square()).sum(dim=-1)
    assert variance == pytest.approx(1.5**2, rel=0.01)
    there = random_matrix(0, 2, 4)
    assert torch.equal(study.reversed_time(there, generator, strength=1.0), there.flip(1))
    assert torch.equal(study.reversed_time(there, generator, strength=0.0), there)


def test_truth_of_other_scenes_is_of_other_scenes() -> None:
    for half, other in study.halves(10):
        assert sorted(half + other) == list(range(10)) and len(half) == 5


def test_the_table_says_what_rises_and_what_stays() -> None:
    def results(damage: str, strength: float, value: float) -> list[Any]:
        return [
            study.Result(damage, strength, against, figure, value, 0.0)
            for against in ("same", "others")
            for figure in (*study.figures("f").values(), *study.figures("k").values())
        ]

    found = results("none", 0.0, 0.0)
    for damage, (_, strengths) in study.DAMAGES.items():
        series = {"blur": (1, 2, 3, 4), "noise": (1, 2, 1, 3)}.get(damage, (0, 0, 0, 0))
        for strength, value in zip(strengths, series, strict=True):
            found += results(damage, strength, float(value))
    lines = {
        line.split("|")[1].strip(): line
        for line in study.tables(found).splitlines()
        if line.startswith("|")
    }
    assert (
        lines["blur, same"].count("| rises") == 10
        and lines["noise, others"].count("3 of 4 steps up") == 10
    )
    assert lines["reversed time, same"].count("| stays") == 10


# --- with the shipped weights ---------------------------------------------------------------------


@pytest.mark.slow
def test_blur_and_noise_raise_all_distances() -> None:
    """On few and small matrices; experiments/metric_response has the whole study."""
    shipped = load_video_encoder(Path(study.WEIGHTS))
    matrices = [
        world4d.full_matrix("test", [i], num_views=4, num_frames=4).pixels[0] for i in range(6)
    ]
    for damage, weak, strong in ((study.blur, 0.5, 1.5), (study.noise, 0.03, 0.15)):
        some, more = (
            distances(shipped, matrices, partial(damage, strength=s)) for s in (weak, strong)
        )
        for name in FRECHET:
            assert 1e-4 < some[name] < more[name], (damage.__name__, name)

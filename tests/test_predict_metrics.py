"""Metrics inside the predict loop of `d2 sample`: the arithmetic of `d2 evaluate`, whatever ranks
do which scene."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_encoder import random_matrix, save_small_encoder, small_encoder
from torch import Tensor
from torch.utils.data import DataLoader

from d2 import cli
from d2.config import command_line
from d2.data import world4d
from d2.data.sources import Stream, list_scenes
from d2.matrix import camera_ring
from d2.metrics.clip import matrix_embeddings, neighbour_similarity
from d2.metrics.features import FeatureNetwork, Resize
from d2.metrics.figures import ALL
from d2.metrics.intervals import means
from d2.metrics.metric import METRIC_NAMES, matrix_metrics
from d2.metrics.suite import Suite
from d2.metrics.table import by_method
from d2.metrics.video_sets import TRAVERSALS, set_features, video_distances
from d2.networks import load_priors
from d2.resolve import resolve
from d2.sample.matrix_sampler import BASELINES, MatrixSampler
from d2.sample.measure import Measure, measure_scene, run_figures
from d2.sample.write import Origin, Write
from d2.scene import Scene
from d2.trainer import Devices, make_trainer

Predict = Callable[..., Path]
SMALL = [
    "sampler.num_steps=2",
    "sampler.sequences_per_call=1",
    "matrix.num_views=3",
    "matrix.num_frames=3",
]
METHODS = ["joint", *BASELINES, "true_orbit_repeated", "autoencoder_ceiling"]
IMAGE_NAMES = ["similarity[patches]", "neighbour_frames[patches]", "neighbour_views[patches]"]


def patches() -> FeatureNetwork:
    """A network of pictures that is none: the mean colours of 2 × 2 patches."""

    def encode(images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    resize = Resize(64, "bilinear", antialias=True, crop=True)
    return FeatureNetwork("patches", "", "", resize, "x", 1, None, 12, encode, None)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    metrics = ("reference", "consistency", "video", "clip")
    return Suite(metrics, tuple(TRAVERSALS), small_encoder(tmp_path), (patches(),), (), {})


@pytest.fixture
def predict(
    small_networks: None, small_weights: list[str], suite: Suite, tmp_path: Path
) -> Predict:
    """A predict loop over four scenes with the callback, in so many processes: the run's folder."""

    def run(world: int, *, baselines: bool = False) -> Path:
        line = [*small_weights, *SMALL, "scenes.count=4", f"baselines={baselines}"]
        given = command_line.composed("sample", line)
        job = resolve(given.config, given.text, given.name, given.label)
        module = MatrixSampler(job, load_priors(job.networks))
        folder = tmp_path / f"world_{world}"
        measure = Measure(lambda _: suite, folder)
        write = Write(folder, measure, Origin(folder.name, "rule", 7, "", {}, dict), pages=False)
        devices = Devices("cpu", world, "ddp_fork" if world > 1 else "auto")
        loader = DataLoader(Stream(list_scenes(job.source)), batch_size=None)
        make_trainer(devices, folder, [], [measure, write]).predict(
            module, loader, return_predictions=False
        )
        return folder

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def sets_of(folder: Path) -> list[dict[str, str]]:
    return [row for row in rows_of(folder / "results.csv") if row["scene"] == "all"]


def numbers(row: dict[str, str]) -> dict[str, float]:
    """What a line of either table measures; an empty bound is none."""
    names = ("run", "variant", "scene", "seed", "metric", "method", "config", "weights", "commit")
    return {key: float(value or "nan") for key, value in row.items() if key not in names}


def truth_of(scene: Scene) -> Any:
    assert scene.truth is not None
    return scene.truth


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_tables(predict: Predict) -> None:
    """Four scenes: one process has none of the fourth round, and features come together in the
    order of scenes."""
    one = predict(1)
    for world in (2, 3):
        many = predict(world)
        for name in ("metrics.csv", "results.csv"):
            mine, theirs = rows_of(one / name), rows_of(many / name)
            assert len(mine) == len(theirs) > 0
            for a, b in zip(mine, theirs, strict=True):
                assert numbers(a) == pytest.approx(numbers(b), abs=1e-6, rel=1e-6, nan_ok=True)
                names = ("scene", "method", "variant", "seed", "metric")
                assert [a.get(name) for name in names] == [b.get(name) for name in names]


def test_the_tables_hold_every_scene_once_and_every_set(predict: Predict) -> None:
    folder = predict(1, baselines=True)
    rows, sets = rows_of(folder / "metrics.csv"), sets_of(folder)
    assert [(row["method"], row["scene"]) for row in rows] == [
        (m, f"test_000{i}") for m in METHODS for i in range(4)
    ]
    assert list(rows[0]) == ["scene", "method", *METRIC_NAMES, *IMAGE_NAMES]
    variants = ["rule", *METHODS[1:]]
    assert [row["variant"] for row in sets] == [
        m for m in variants for _ in range(2 * len(TRAVERSALS) + 2)
    ]
    joint = {row["metric"]: row for row in sets if row["variant"] == "rule"}
    fvd, fid = joint["fvd_f[world4d-encoder]"], joint["fid[patches]"]
    assert (fvd["n"], fvd["seed"], fvd["run"], fid["n"]) == ("4", "7", "world_1", "4")
    assert float(fvd["low"]) < float(fvd["value"]) < float(fvd["high"])


def test_the_figures_are_those_of_d2_evaluate(
    predict: Predict, suite: Suite, tmp_path: Path
) -> None:
    """Which reads the same pictures from the run's files, where they have 8 bits."""
    folder, out, encoder = predict(1), tmp_path / "evaluated", tmp_path / "encoder.safetensors"
    save_small_encoder(encoder)
    assert (
        cli.run(
            [
                "evaluate",
                f"run={folder}",
                f"output_dir={out}",
                f"features_file={encoder}",
                "trainer=cpu",
            ]
        )
        == 0
    )
    evaluated = {
        (row["object"], row["metric"]): float(row["value"]) for row in rows_of(out / "results.csv")
    }
    joint = [row for row in rows_of(folder / "metrics.csv") if row["method"] == "joint"]
    for row in joint:
        own = {name: float(row[name]) for name in METRIC_NAMES}
        theirs = {name: evaluated[row["scene"], name] for name in METRIC_NAMES}
        assert own == pytest.approx(theirs, rel=2e-2, abs=2e-2, nan_ok=True)
    sets = [row for row in sets_of(folder) if "[world4d-encoder]" in row["metric"]]
    assert len(sets) == 2 * len(TRAVERSALS)
    for row in sets:
        assert float(row["value"]) == pytest.approx(
            evaluated["all", row["metric"]], rel=2e-2, abs=1e-4
        )


def scene(index: int, *, truth: bool = True) -> Scene:
    made = world4d.scene("test", index, num_views=3, num_frames=4, size=16)
    return made if truth else made._replace(truth=None)


def test_measuring_is_what_the_functions_say(suite: Suite) -> None:
    scenes = [scene(i) for i in range(3)]
    samples = [random_matrix(i, 3, 4) for i in range(3)]
    figures = run_figures(
        suite, [measure_scene(suite, {"joint": samples[i]}, scenes[i]) for i in range(3)]
    )
    table = by_method(figures)["joint"]
    for i, made in enumerate(scenes):
        wanted = matrix_metrics(samples[i], truth_of(made), made.cameras)
        assert {name: table[made.name][name] for name in METRIC_NAMES} == pytest.approx(
            wanted, nan_ok=True
        )
        near = neighbour_similarity(matrix_embeddings(suite.images[0], samples[i]))
        assert table[made.name]["neighbour_views[patches]"] == pytest.approx(near["views"])
    assert suite.video is not None
    sides = [
        set_features(side, suite.video)
        for side in (samples, [truth_of(each).pixels for each in scenes])
    ]
    wanted = video_distances(sides[0], sides[1], suite.video.name)
    assert {name: table[ALL][name] for name in wanted} == pytest.approx(wanted)
    psnr = [table[made.name]["psnr"] for made in scenes]
    assert means(figures, seed=0)["joint"]["psnr"].mean == pytest.approx(sum(psnr) / 3)


def test_a_scene_without_truth_has_what_needs_none_and_is_in_no_set(suite: Suite) -> None:
    scenes = [scene(i, truth=i != 1) for i in range(3)]
    measured = [
        measure_scene(suite, {"joint": random_matrix(i, 3, 4)}, each)
        for i, each in enumerate(scenes)
    ]
    figures = run_figures(suite, measured)
    assert set(by_method(figures)["joint"][scenes[1].name]) == {
        "neighbour_frames[patches]",
        "neighbour_views[patches]",
    }
    sets = [figure for figure in figures if figure.scene == ALL]
    assert sets == [f for f in run_figures(suite, [measured[0], measured[2]]) if f.scene == ALL]
    assert {figure.n for figure in sets} == {2} and means(figures, seed=0)["joint"]["psnr"].n == 2


def test_nothing_measured_nothing_in_the_tables(suite: Suite) -> None:
    alone = measure_scene(
        suite._replace(metrics=("reference", "consistency"), video=None, images=()), {}, scene(0)
    )
    assert alone == {} and run_figures(None, [alone]) == []


def test_camera_figures_follow_the_scene() -> None:
    """The input view is the cameras', not the last one by chance."""
    made, sample = scene(0), random_matrix(0, 3, 4)
    figures = partial(matrix_metrics, sample, truth_of(made))
    turned = camera_ring(3)._replace(input_view=0)
    assert figures(made.cameras)["psnr_unseen"] != figures(turned)["psnr_unseen"]
    assert figures(made.cameras)["psnr"] == figures(turned)["psnr"]


# --- the command ----------------------------------------------------------------------------------


def test_the_command_measures_videos(d2_sample: Callable[..., int], tmp_path: Path) -> None:
    save_small_encoder(tmp_path / "encoder.safetensors")
    line = [
        "metrics=[reference,video]",
        f"features_file={tmp_path / 'encoder.safetensors'}",
        "scenes.count=2",
    ]
    assert d2_sample(*line, "logger=csv", "pages=true") == 0
    out = tmp_path / "out"
    assert list(rows_of(out / "metrics.csv")[0]) == ["scene", "method", *METRIC_NAMES]
    sets = {row["metric"]: row for row in sets_of(out)}
    assert len(sets) == 2 * len(TRAVERSALS) and sets["fv4d[world4d-encoder]"]["n"] == "2"
    logged = [row["set/fvd_f[world4d-encoder]"] for row in rows_of(out / "log" / "metrics.csv")]
    assert [value for value in logged if value] == [sets["fvd_f[world4d-encoder]"]["value"]]
    assert "fvd f[world4d-encoder]" in (out / "index.html").read_text()
    assert d2_sample("scenes.count=2") == 0 and not sets_of(out)  # of the run before
    assert load_file(out / "test_0000" / "matrix.safetensors")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["metrics=[reference,video]", "features_file=none.safetensors"], "none.safetensors"),
        (
            ["metrics=[video]", "features=i3d", "features_file=none.pt"],
            "none.pt is not there; put it",
        ),
        (["metrics=[clip]"], "clip.file=null: metrics=[clip] needs a file of weights"),
        (
            ["metrics=[clip]", "clip.file=none.pt"],
            "none.pt: no such file; put open_clip's weights of ViT-B-32 there",
        ),
        (["metrics=[energy]"], "choose from [reference, self_psnr, video, clip], or [] for none"),
        (["metrics=[video]", "features=c3d"], "features=c3d: choose world4d-encoder or i3d"),
    ],
)
def test_what_is_missing_stops_the_run_at_its_start(
    line: list[str],
    says: str,
    d2_sample: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert d2_sample(*line) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert says in said and said.startswith("d2: ") and not (tmp_path / "out").exists()


def test_matrices_too_small_for_the_network_are_refused_before_they_are_sampled(
    d2_sample: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_small_encoder(tmp_path / "encoder.safetensors")
    line = [
        "metrics=[video]",
        f"features_file={tmp_path / 'encoder.safetensors'}",
        "matrix.num_frames=1",
    ]
    assert d2_sample(*line) == 2
    said = capfd.readouterr().err
    assert "needs at least 2 frames; leave out f (1), diag (1)" in said and said.count("\n") == 1

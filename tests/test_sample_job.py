"""`d2 sample` from end to end, with random weights: what is written, and what the result depends on
and what not."""

from __future__ import annotations

import csv
import dataclasses
import gc
import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from d2.commands.runs import runs_of
from d2.config import command_line
from d2.data import sources, world4d
from d2.data.sources import list_scenes
from d2.io import read_matrix, read_truth
from d2.job import Job
from d2.metrics.metric import METRIC_NAMES
from d2.networks import load_priors
from d2.resolve import resolve
from d2.sample import write
from d2.sample.matrix_sampler import MatrixSampler, SceneResult
from d2.sample.write import Write
from d2.scene import Scene

Run = Callable[..., int]
SCRIPT = str(Path(sys.executable).with_name("d2"))
NAME = "test_0000"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as f:
        return list(csv.DictReader(f))


def bits(folder: Path, name: str = NAME) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "matrix.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def sampler(
    small_networks: None, small_weights: list[str]
) -> Callable[..., tuple[MatrixSampler, Scene]]:
    """The module and the scene of a command line."""

    def make(*overrides: str) -> tuple[MatrixSampler, Scene]:
        short = ["sampler.num_steps=2", "matrix.num_views=3", "matrix.num_frames=3"]
        given = command_line.composed("sample", [*small_weights, *short, *overrides])
        job = resolve(given.config, given.text, given.name, given.label)
        return MatrixSampler(job, load_priors(job.networks)), list_scenes(job.source)[0].read()

    return make


# --- what is written ------------------------------------------------------------------------------


def test_a_run_writes_everything(d2_sample: Run, tmp_path: Path) -> None:
    assert d2_sample("baselines=true", "pages=true", "scenes.count=2", "scenes.first=20000001") == 0
    out = tmp_path / "out"
    names = ["test_20000001", "test_20000002"]
    assert {p.name for p in out.iterdir()} == {
        "metrics.csv",
        "results.csv",
        "config.yaml",
        "index.html",
        "log",
        *names,
    }
    files = {"matrix.safetensors", "truth.safetensors", "rows", "grid.png", "preview.mp4"}
    files |= {"disagreement.csv", "disagreement.safetensors"}
    for name in names:
        cameras = {
            "transforms.json",
            *(f"transforms_{split}.json" for split in ("train", "val", "test")),
        }
        assert {p.name for p in (out / name).iterdir()} == files | cameras | {
            "index.html",
            "metrics.json",
        }
        assert len(list((out / name / "rows").glob("*.mp4"))) == 3
        assert len(list((out / name / "rows").glob("*/*.png"))) == 9
        assert (
            name in (out / "index.html").read_text()
            and "<html" in (out / name / "index.html").read_text()
        )
        assert len(json.loads((out / name / "transforms.json").read_text())["frames"]) == 9

    matrix, truth = read_matrix(out / names[1]), read_truth(out / names[1])
    scene = world4d.scene("test", 20_000_002, num_views=3, num_frames=3, size=64)
    assert truth is not None and scene.truth is not None
    assert (truth.pixels - scene.truth.pixels).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(matrix.cameras.elevation_rad, scene.cameras.elevation_rad)
    assert matrix.pixels.shape == (3, 3, 3, 64, 64) and matrix.latents is not None
    assert matrix.latents.isfinite().all() and matrix.pixels.std() > 0.01

    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["sampler"]["num_steps"] == 2 and config["scenes"]["first"] == 20000001
    assert f"# world: {world4d.WORLD_VERSION}" in (out / "config.yaml").read_text()


def test_every_method_and_scene_comes_once_in_the_table(d2_sample: Run, tmp_path: Path) -> None:
    assert d2_sample("baselines=true", "scenes.count=2") == 0
    rows = rows_of(tmp_path / "out" / "metrics.csv")
    methods = ["joint", "published_rule", "columns_alone", "rows_alone", "repeat_orbit"]
    methods += ["show_input", "true_orbit_repeated", "autoencoder_ceiling"]
    assert [(r["method"], r["scene"]) for r in rows] == [
        (m, f"test_000{i}") for m in methods for i in range(2)
    ]
    assert list(rows[0]) == ["scene", "method", *METRIC_NAMES]
    for row in rows:
        kept = json.loads((tmp_path / "out" / row["scene"] / "metrics.json").read_text())[
            row["method"]
        ]
        for name in METRIC_NAMES:
            assert float(row[name]) == kept[name] or (
                math.isnan(float(row[name])) and kept[name] is None
            )


def test_no_metrics_no_table(d2_sample: Run, tmp_path: Path) -> None:
    assert d2_sample("metrics=[]") == 0
    assert (
        not (tmp_path / "out" / "metrics.csv").exists()
        and (tmp_path / "out" / NAME / "truth.safetensors").exists()
    )


def test_a_second_run_replaces_the_first(
    d2_sample: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert d2_sample("pages=true") == 0
    first = bits(tmp_path / "out")
    capfd.readouterr()
    assert d2_sample("seed=1") == 0
    assert not same(first, bits(tmp_path / "out"))
    # nothing of the first is left in a scene's folder
    assert not (tmp_path / "out" / NAME / "index.html").exists()
    said = capfd.readouterr()
    assert said.out == "" and said.err == "sampling test_0000 (1 of 1)\n"


def test_memory_does_not_grow_with_the_scenes(
    d2_sample: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty scenes with pages and all methods: after the last there are no more tensors than after
    the second.

    Of the scenes themselves three are there at most, one that is sampled, one that the loop read
    ahead, one that ends.
    """
    held: dict[int, int] = {}
    read: list[weakref.ref[torch.Tensor]] = []
    own, read_world = Write.on_predict_batch_end, sources.read_world

    def watched(source: sources.SceneSource, index: int) -> Scene:
        scene = read_world(source, index)
        read.append(weakref.ref(scene.pixels))
        assert sum(pixels() is not None for pixels in read) <= 3
        return scene

    def counted(
        self: Write, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, *more: Any
    ) -> None:
        own(self, trainer, module, outputs, batch, batch_idx, *more)
        if batch_idx in (1, 19):
            gc.collect()
            tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
            held[batch_idx] = sum(
                {
                    t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors
                }.values()
            )

    monkeypatch.setattr(sources, "read_world", watched)
    monkeypatch.setattr(Write, "on_predict_batch_end", counted)
    monkeypatch.setattr(write, "write_matrix", lambda *_: None)  # films take seconds
    small = ["sampler.num_steps=1", "matrix.num_views=2", "matrix.num_frames=2", "renoise=none"]
    assert d2_sample(*small, "scenes.count=20", "baselines=true", "pages=true") == 0
    assert held[19] - held[1] < 2 * 2 * 3 * 64 * 64 * 4  # bytes of one matrix
    assert len(read) == 20


# --- what a result depends on ---------------------------------------------------------------------


def test_the_seed_decides_the_bits(d2_sample: Run, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("a", "b", "c", "d")]
    lines = ([], ["pages=true", "scenes.count=2"], ["seed=1"], ["sampler.start=multiview"])
    for place, line in zip(places, lines, strict=True):
        assert d2_sample(f"output_dir={place}", *line) == 0
    a, b, c, d = (bits(place) for place in places)
    assert same(a, b)  # whatever else is sampled or written
    assert not torch.equal(a["latents"], c["latents"]) and not torch.equal(
        a["latents"], d["latents"]
    )
    assert torch.equal(a["azimuth_rad"], c["azimuth_rad"])


class Untouchable:
    """A truth that may be carried, but not looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the sampler looked at the truth's {name}")


def test_the_sampler_never_sees_the_truth(
    sampler: Callable[..., tuple[MatrixSampler, Scene]],
) -> None:
    def latents(truth: Any) -> dict[str, torch.Tensor]:
        module, scene = sampler()
        result = module.predict_step(scene._replace(truth=truth), 0)
        assert result.sampled.matrix.latents is not None
        return {
            "joint": result.sampled.matrix.latents,
            "orbit": result.sampled.orbits,
            **result.baselines,
        }

    module, scene = sampler()
    assert scene.truth is not None
    nan = scene.truth._make(torch.full_like(layer, math.nan) for layer in scene.truth)
    own = latents(scene.truth)
    assert (
        same(own, latents(nan)) and same(own, latents(None)) and same(own, latents(Untouchable()))
    )
    assert all(value.isfinite().all() for value in own.values())


def test_the_size_of_a_call_changes_nothing(
    sampler: Callable[..., tuple[MatrixSampler, Scene]],
) -> None:
    results: list[SceneResult] = []
    for size in ("1", "2", "null"):
        module, scene = sampler("baselines=false", f"sampler.sequences_per_call={size}")
        results.append(module.predict_step(scene, 0))
    one, two, together = (r.sampled.matrix.latents for r in results)
    assert one is not None and two is not None and together is not None
    # x begins at 80
    assert (one - together).abs().max() < 1e-4 and (two - together).abs().max() < 1e-4


def test_the_orbit_is_made_from_the_anchor_frame(
    sampler: Callable[..., tuple[MatrixSampler, Scene]],
) -> None:
    sampled = {}
    for anchor in (0, 1):
        module, scene = sampler("baselines=false", f"scenes.anchor_frame={anchor}")
        result = module.predict_step(scene, 0)
        sampled[anchor] = result.sampled.matrix.latents
        assert torch.equal(result.sampled.orbits[0, scene.cameras.input_view], scene.pixels[anchor])
    assert not torch.equal(sampled[0], sampled[1])


def test_every_condition_matters(sampler: Callable[..., tuple[MatrixSampler, Scene]]) -> None:
    module, scene = sampler("baselines=false")
    usual = module.predict_step(scene, 0).sampled.matrix.latents
    for line in (
        "video.motion_bucket_id=200",
        "video.fps_id=30",
        "video.cond_aug=0.5",
        "multiview.cond_aug=0.5",
    ):
        module, scene = sampler("baselines=false", line)
        assert not torch.equal(usual, module.predict_step(scene, 0).sampled.matrix.latents), line
    module, scene = sampler("baselines=false")
    tilted = scene._replace(
        cameras=scene.cameras._replace(elevation_rad=scene.cameras.elevation_rad + 0.5)
    )
    assert not torch.equal(usual, module.predict_step(tilted, 0).sampled.matrix.latents)


def test_the_published_rule_is_sampled_beside_any_other(
    small_networks: None, small_weights: list[str], tmp_path: Path
) -> None:
    """It is another run's joint sample, of the same noise and conditions; a published run has
    none."""

    def job_of(*words: str) -> Job:
        out = f"output_dir={tmp_path}"
        line = [*small_weights, "matrix.num_views=3", "matrix.num_frames=3", out, *words]
        [job] = runs_of(command_line.composed("sample", line))
        return job

    assert job_of("preset=official_short").published is None
    assert job_of("baselines=false").published is None
    job = job_of("sampler.num_steps=2")
    assert job.published is not None
    [scene] = (source.read() for source in list_scenes(job.source))
    beside = MatrixSampler(job, load_priors(job.networks)).predict_step(scene, 0)
    alone = dataclasses.replace(job, rules=job.published, published=None, baselines=False)
    published = MatrixSampler(alone, load_priors(job.networks)).predict_step(scene, 0)
    assert beside is not None and published is not None
    assert torch.equal(published.sampled.matrix.pixels, beside.baselines["published_rule"])
    assert not torch.equal(published.sampled.matrix.pixels, beside.sampled.matrix.pixels)


def test_alone_a_prior_is_all_that_counts(
    sampler: Callable[..., tuple[MatrixSampler, Scene]],
) -> None:
    """Columns alone are those of a run whose weights are all multi-view, and never ask the video
    prior."""
    module, scene = sampler()
    result = module.predict_step(scene, 0)
    alone, scene = sampler("baselines=false", "weights=multiview")
    alone.priors.video.forward = None  # type: ignore[assignment]
    assert torch.equal(
        alone.predict_step(scene, 0).sampled.matrix.pixels, result.baselines["columns_alone"]
    )
    assert not torch.equal(result.baselines["columns_alone"], result.baselines["rows_alone"])


# --- what a user brings ---------------------------------------------------------------------------


def discs(count: int) -> list[Image.Image]:
    """A disc that moves to the right, on white."""
    frames = []
    for frame in range(count):
        image = Image.new("RGB", (48, 48), (255, 255, 255))
        ImageDraw.Draw(image).ellipse((8 + 4 * frame, 12, 24 + 4 * frame, 32), fill=(200, 30, 30))
        frames.append(image)
    return frames


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with a GIF, a picture, a video and a folder of frames."""
    folder = tmp_path / "inputs"
    (folder / "numbered").mkdir(parents=True)
    for index, image in enumerate(discs(3)):
        image.save(folder / "numbered" / f"frame_{index:02}.png")
    discs(1)[0].save(folder / "picture.png")
    first, *others = discs(4)
    first.save(folder / "animated.gif", save_all=True, append_images=others)
    film = imageio_ffmpeg.write_frames(str(folder / "film.mp4"), (48, 48), macro_block_size=1)
    film.send(None)
    for image in discs(4):
        film.send(np.asarray(image).copy())
    film.close()
    return folder


def test_every_kind_of_input_is_sampled(d2_sample: Run, inputs: Path, tmp_path: Path) -> None:
    assert d2_sample("scenes=folder", f"scenes.path={inputs}", "cameras.elevation_deg=20") == 0
    out = tmp_path / "out"
    assert {p.parent.name for p in out.glob("*/grid.png")} == {
        "animated",
        "film",
        "numbered",
        "picture",
    }
    for folder in out.glob("*/grid.png"):
        matrix = read_matrix(folder.parent)
        assert matrix.pixels.shape == (3, 3, 3, 64, 64)
        assert torch.rad2deg(matrix.cameras.elevation_rad) == pytest.approx([20.0] * 3)
        assert read_truth(folder.parent) is None
        assert json.loads((folder.parent / "metrics.json").read_text()) == {}
    assert not (out / "metrics.csv").exists()  # no truth, no figures


def test_a_scene_is_the_same_wherever_a_run_begins(
    d2_sample: Run, inputs: Path, tmp_path: Path
) -> None:
    assert (
        d2_sample("scenes=folder", f"scenes.path={inputs}", f"output_dir={tmp_path / 'all'}") == 0
    )
    line = ["scenes.first=2", "scenes.count=1", f"output_dir={tmp_path / 'one'}"]
    assert d2_sample("scenes=folder", f"scenes.path={inputs}", *line) == 0
    assert same(bits(tmp_path / "all", "numbered"), bits(tmp_path / "one", "numbered"))
    assert not (tmp_path / "one" / "film").exists()


def test_a_single_picture_becomes_a_clip_that_starts_with_it(
    sampler: Callable[..., tuple[MatrixSampler, Scene]], inputs: Path
) -> None:
    module, scene = sampler(
        "baselines=false", "scenes=folder", f"scenes.path={inputs / 'picture.png'}"
    )
    assert len(scene.pixels) == 1
    clip = module.predict_step(scene, 0).sampled.clip
    assert torch.equal(clip[0], scene.pixels[0]) and not torch.equal(clip[0], clip[1])


# --- studies and sweeps ---------------------------------------------------------------------------


VARIANTS = "+variants={whole:['renoise=none'],columns:['renoise=none','weights=multiview']}"


def test_a_study_writes_its_tables_and_goes_on_where_it_stopped(
    d2_sample: Run, tmp_path: Path, predicted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["scenes.count=2", "baselines=true", "compare_to=whole"]
    assert d2_sample(VARIANTS, *line) == 0
    out = tmp_path / "out"
    assert predicted == ["whole"] * 2 + ["columns"] * 2

    results = rows_of(out / "results.csv")
    assert {r["run"] for r in results} == {"whole", "columns"} and len(
        {r["weights"] for r in results}
    ) == 1
    assert len(results[0]["weights"]) == 12
    baselines = ["columns_alone", "rows_alone", "repeat_orbit", "show_input"]
    methods = ["whole", "columns", *baselines, "true_orbit_repeated", "autoencoder_ceiling"]
    assert sorted({r["variant"] for r in results}) == sorted(methods)
    assert len(results) == len(methods) * 2 * len(METRIC_NAMES) + 4 * 2  # what four of them cost
    for variant in ("whole", "columns"):
        for row in (r for r in rows_of(out / variant / "metrics.csv") if r["method"] == "joint"):
            for name in METRIC_NAMES:
                (value,) = [
                    r["value"]
                    for r in results
                    if (r["variant"], r["metric"]) == (variant, name) and row["scene"] == r["scene"]
                ]
                assert value == row[name]
    table = (out / "table.md").read_text()
    assert "Paired differences from whole." in table and all(
        f"| {name} " in table for name in methods
    )
    plot = (out / "plot.svg").read_text()
    assert plot.startswith("<svg") and all(f"<title>{name}: " in plot for name in methods)

    assert d2_sample(VARIANTS, *line) == 0
    assert predicted == ["whole"] * 2 + ["columns"] * 2  # both were there
    assert d2_sample(VARIANTS.replace("=multiview", "=video"), *line) == 0
    assert predicted == ["whole"] * 2 + ["columns"] * 4  # one has changed
    (out / "whole" / "results.csv").unlink()
    assert d2_sample(VARIANTS.replace("=multiview", "=video"), *line) == 0
    assert predicted == ["whole"] * 2 + ["columns"] * 4 + ["whole"] * 2  # one was lost


def test_a_study_is_made_anew_for_other_weights(
    d2_sample: Run, small_weights: list[str], tmp_path: Path, predicted: list[str]
) -> None:
    copy = tmp_path / "video.safetensors"
    copy.write_bytes(Path(small_weights[0].partition("=")[2]).read_bytes())
    line = ["+variants={a:[]}", f"video.checkpoint={copy}"]
    assert d2_sample(*line) == 0
    raw = bytearray(copy.read_bytes())
    raw[-1] ^= 1
    copy.write_bytes(bytes(raw))
    assert d2_sample(*line) == 0
    assert predicted == ["a", "a"]


def test_variants_are_compared_under_the_same_conditions(d2_sample: Run, tmp_path: Path) -> None:
    """A variant of a study is a run of its own, but for the orbit, which comes from the study's
    rules."""
    assert d2_sample("+variants={a:[],b:[]}") == 0
    assert same(bits(tmp_path / "out" / "a"), bits(tmp_path / "out" / "b"))
    assert d2_sample(f"output_dir={tmp_path / 'alone'}") == 0
    assert same(bits(tmp_path / "out" / "a"), bits(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            ["+variants={a:['scenes.count=3']}"],
            "variants.a: changes scenes, which all variants share",
        ),
        (["+variants={a:['seed=3']}"], "variants.a: changes seed"),
        (["+variants={a:['weights=nosuch']}"], "weights=nosuch: no such choice"),
        (["+variants={a:[]}", "compare_to=b"], "compare_to=b: choose one of the variants, a"),
        (["+variants={a:[]}", "metrics=[]"], "metrics=[]: a study compares figures"),
        (["variants=[a,b]"], "variants"),
    ],
)
def test_a_bad_study_is_refused(
    line: list[str], says: str, d2_sample: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert d2_sample(*line) == 2
    err = capfd.readouterr().err
    assert says in err and err.startswith("d2: ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_sweep_writes_a_run_a_point(
    d2_sample: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = list(sys.argv)
    assert d2_sample("-m", "weights=constant,linear") == 0
    assert sys.argv == own
    places = [tmp_path / "out" / str(point) for point in range(2)]
    for place, curve in zip(places, ("constant", "linear"), strict=True):
        config = yaml.safe_load((place / "config.yaml").read_text())
        assert config["weights"]["curve"]["_target_"].endswith(curve) and config[
            "output_dir"
        ] == str(place)
    assert not same(bits(places[0]), bits(places[1]))
    assert d2_sample(f"output_dir={tmp_path / 'alone'}", "weights=linear") == 0
    assert same(bits(places[1]), bits(tmp_path / "alone"))
    # nothing where the command was given
    assert {p.name for p in tmp_path.iterdir()} == {"out", "alone"}


def test_a_sweep_of_which_a_point_fails_keeps_the_others(
    d2_sample: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert d2_sample("-m", "scenes.anchor_frame=0,3") == 3
    assert "d2: scenes.anchor_frame=3: the clip has frames 0 to 2\n" in capfd.readouterr().err
    assert bits(tmp_path / "out" / "0")


# --- loggers and other processes ------------------------------------------------------------------


def test_figures_go_to_the_csv_logger(d2_sample: Run, tmp_path: Path) -> None:
    assert d2_sample("scenes.count=2", "logger=csv") == 0
    rows = rows_of(tmp_path / "out" / "log" / "metrics.csv")
    own = [r for r in rows_of(tmp_path / "out" / "metrics.csv") if r["method"] == "joint"]
    logged = [float(r["scene/psnr_masked"]) for r in rows if r["scene/psnr_masked"]]
    assert logged == [float(r["psnr_masked"]) for r in own]
    means = [float(r["mean/psnr_masked"]) for r in rows if r["mean/psnr_masked"]]
    assert means == [pytest.approx(sum(logged) / 2)]
    hparams = yaml.safe_load((tmp_path / "out" / "log" / "hparams.yaml").read_text())
    assert hparams["sampler"]["num_steps"] == 2


@pytest.mark.slow
def test_two_processes_make_the_bits_of_one(tiny_weights: list[str], tmp_path: Path) -> None:
    """Each denoises its share of the sequences of both scenes, and writes one of the scenes."""
    short = [
        "sampler.num_steps=2",
        "matrix.num_views=3",
        "matrix.num_frames=3",
        "sampler.sequences_per_call=1",
    ]
    line = [*tiny_weights, *short, "scenes.count=2", "baselines=false", "reconstruct=false"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    places = {
        "one": ["trainer=cpu"],
        "two": [
            "trainer=ddp",
            "trainer.devices=2",
            "trainer.accelerator=cpu",
            "trainer.parallel=matrix",
        ],
    }
    for place, trainer in places.items():
        command = [SCRIPT, "sample", *line, *trainer, f"output_dir={tmp_path / place}"]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=500
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "" and "Warning" not in done.stderr
        assert done.stderr == "sampling test_0000 (1 of 2)\nsampling test_0001 (2 of 2)\n"
    for name in ("test_0000", "test_0001"):
        assert same(bits(tmp_path / "one", name), bits(tmp_path / "two", name))
        assert sorted(p.name for p in (tmp_path / "one" / name).iterdir()) == sorted(
            p.name for p in (tmp_path / "two" / name).iterdir()
        )
    assert rows_of(tmp_path / "one" / "metrics.csv") == rows_of(tmp_path / "two" / "metrics.csv")
    assert rows_of(tmp_path / "one" / "log" / "metrics.csv") == rows_of(
        tmp_path / "two" / "log" / "metrics.csv"
    )
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two"}

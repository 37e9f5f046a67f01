"""`d2 report`: one page of any set of runs; what it says is what the runs hold, and it asks the
network for nothing."""

from __future__ import annotations

import base64
import csv
import io
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from d2 import cli
from d2.metrics.figures import ALL, COST, Figure, hash_of, write_figures
from d2.metrics.intervals import bootstrap_mean, paired_difference
from d2.report.charts import Axis, Point, nice, pareto_front, scatter
from d2.study.report import badness, read_runs

SCENES = [f"validation_{i:04d}" for i in range(6)]
METRICS = ("psnr_masked", "sharpness", "own_view_unseen", "own_frame_unseen")


def figure(variant: str, metric: str, scene: str, seed: int = 0) -> float:
    """Any number, the same for the same question."""
    return random.Random(f"{variant} {metric} {scene} {seed}").uniform(0.5, 1.5) + (
        10 if "psnr" in metric else 0
    )


def write_run(
    folder: Path,
    variants: dict[str, float],  # name -> cost
    *,
    seeds: Sequence[int] = (0,),
    scenes: Sequence[str] = tuple(SCENES),
    inside: bool = True,  # a folder a variant, as a study has it; else the folder is the run itself
) -> Path:
    """What `d2 sample` leaves, without the sampling."""
    rows = []
    for number, (variant, cost) in enumerate(variants.items()):
        for seed in seeds:
            place = folder / variant / f"seed_{seed}" if inside else folder
            text = f"variant: {variant}\nseed: {seed}\n"
            place.mkdir(parents=True)
            (place / "config.yaml").write_text(text)
            for index, scene in enumerate(scenes):
                (place / scene).mkdir()
                Image.new("RGB", (900, 450), (40 * index, 90, 60 * number)).save(
                    place / scene / "grid.png"
                )
                lines = [
                    f"{i},{sigma},{0.1 * (i + 1) + 0.01 * seed}"
                    for i, sigma in enumerate((80.0, 8.0, 0.8))
                ]
                (place / scene / "disagreement.csv").write_text(
                    "\n".join(["step,sigma,video_multiview", *lines]) + "\n"
                )
                own = {metric: figure(variant, metric, scene, seed) for metric in METRICS} | {
                    COST: cost
                }
                made = {"config": hash_of(text), "weights": "123456789abc", "commit": "abc"}
                run = place.relative_to(folder).as_posix() if inside else folder.name
                names = {"run": run, "variant": variant, "scene": scene, **made}
                rows += [
                    Figure(**names, metric=name, value=value, sample=str(seed))
                    for name, value in own.items()
                ]
                if len(seeds) > 1 and seed == seeds[-1]:
                    energy = figure(variant, "energy", scene) / 10
                    rows.append(
                        Figure(
                            **{**names, "run": variant}, metric="energy", value=energy, sample=ALL
                        )
                    )
    rows += [
        Figure(variant="show_input", scene=scene, metric="psnr_masked", value=3.0, sample="0")
        for scene in scenes
    ]
    write_figures(folder / "results.csv", rows)
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_run(
        tmp_path / "study", {"slow": 4000, "fast & <b>bold</b>": 1000, "middle": 2000}, seeds=(0, 1)
    )


def report(*overrides: str, out: Path) -> str:
    assert cli.run(["report", *overrides, f"output_dir={out}"]) == 0
    return (out / "index.html").read_text(encoding="utf-8")


def plain(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.split("</header>")[1]).split())


def cell(page: str, row: str, column: str, table: int = 0) -> str:
    """The text in a table of the page."""
    body = re.findall(r"<table>(.*?)</table>", page, re.DOTALL)[table]
    head = re.findall(r'<th scope="col">(.*?)</th>', body)
    for line in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)
        if cells[0] == row:
            return cells[head.index(column)]
    raise AssertionError(f"no row {row}")


# --- what it says ---------------------------------------------------------------------------------


def test_the_table_holds_means_over_scenes_of_means_over_seeds(study: Path, tmp_path: Path) -> None:
    page = report(f"runs=[{study}]", out=tmp_path / "report")
    values = [
        sum(figure("slow", "psnr_masked", scene, seed) for seed in (0, 1)) / 2 for scene in SCENES
    ]
    wanted = bootstrap_mean(values, seed=0)
    assert (
        cell(page, "1 slow", "psnr masked, dB")
        == f"{wanted.mean:.2f} [{wanted.low:.2f}, {wanted.high:.2f}]"
    )
    assert cell(page, "1 slow", "N") == "6" and cell(page, "1 slow", "cell evaluations") == "4000"
    assert cell(page, "4 show_input", "cell evaluations") == "–"
    wanted = bootstrap_mean([figure("slow", "energy", scene) / 10 for scene in SCENES], seed=0)
    assert cell(page, "1 slow", "energy").startswith(f"{wanted.mean:.4f} [")


def test_differences_are_paired(study: Path, tmp_path: Path) -> None:
    page = report(f"runs=[{study}]", "compare_to=slow", out=tmp_path / "report")
    a, b = (
        [sum(figure(variant, "sharpness", scene, seed) for seed in (0, 1)) / 2 for scene in SCENES]
        for variant in ("middle", "slow")
    )
    wanted = paired_difference(a, b, seed=0)
    shown = cell(page, "3 middle", "sharpness", table=1)
    assert shown == f"{wanted.mean:+.2f} [{wanted.low:+.2f}, {wanted.high:+.2f}]"
    with pytest.raises(AssertionError):
        cell(page, "1 slow", "sharpness", table=1)
    assert "Paired differences from slow" in plain(page)


def test_psnr_never_stands_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"run": 10}, inside=False)
    page = report(f"runs=[{run}]", "quality=psnr_masked", out=tmp_path / "report")
    charts = re.findall(r'<svg class="chart"[^>]*aria-label="(\w+)"', page)
    compared = ["psnr_masked", "sharpness", "own_view_unseen", "own_frame_unseen"]
    # by themselves, against the cost, against sigma
    assert charts == [*compared, COST, *compared, "video_multiview"]
    head = re.findall(r'<th scope="col">(.*?)</th>', page)
    assert {"psnr masked, dB", "sharpness", "own view unseen"} <= set(head)
    for said in re.findall(r"<figcaption>(.*?)</figcaption>", page):
        assert "psnr masked" in said and "sharpness" in said and "own frame unseen" in said


def test_runs_that_share_a_name_keep_theirs_apart(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"rule": 10, "own": 20})
    b = write_run(tmp_path / "b", {"rule": 30}, scenes=SCENES[:3])
    runs = read_runs({str(a): a, str(b): b})
    assert {figure.variant for figure in runs.figures} == {
        "a/rule",
        "b/rule",
        "own",
        "a/show_input",
        "b/show_input",
    }
    assert runs.places["b/rule"] == [b / "rule" / "seed_0"] and runs.places["own"] == [
        a / "own" / "seed_0"
    ]
    page = report(f"runs=[{a},{b}]", "compare_to=a/rule", out=tmp_path / "report")
    assert cell(page, "4 b/rule", "N", table=1) == "3"  # the scenes that both have
    held = list(csv.DictReader((tmp_path / "report" / "results.csv").open()))
    assert {row["variant"] for row in held} == {figure.variant for figure in runs.figures}


def test_best_and_worst_scenes_stand_side_by_side(study: Path, tmp_path: Path) -> None:
    page = report(f"runs=[{study}]", "shown_scenes=1", out=tmp_path / "report")
    names = ["slow", "fast & <b>bold</b>", "middle"]
    mean = {s: sum(figure(v, "energy", s) for v in names) for s in SCENES}
    best, worst = min(SCENES, key=lambda s: mean[s]), max(SCENES, key=lambda s: mean[s])
    assert re.findall(r"<h3>(.*?)</h3>", page) == [f"best: {best}", f"worst: {worst}"]
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)
    assert len(pictures) == 2 * 3
    for place, data in enumerate(pictures):
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.size == (640, 320)
        red = 40 * SCENES.index(best if place < 3 else worst)
        pixel = image.getpixel((300, 100))
        assert isinstance(pixel, tuple) and abs(pixel[0] - red) <= 3
    none = report(f"runs=[{study}]", "shown_scenes=0", out=tmp_path / "none")
    assert "<figure>" not in none and "Best and worst" not in plain(none)


def test_curves_against_sigma_are_means_over_scenes_and_seeds(study: Path, tmp_path: Path) -> None:
    page = report(f"runs=[{study}]", out=tmp_path / "report")
    assert len(re.findall(r'<g class="curve" data-variant="\d">', page)) == 3
    for file in study.rglob("disagreement.csv"):
        file.unlink()
    assert "Disagreement" not in plain(report(f"runs=[{study}]", out=tmp_path / "report"))


def test_text_is_escaped_and_nothing_is_fetched(study: Path, tmp_path: Path) -> None:
    page = report(f"runs=[{study}]", "compare_to=slow", out=tmp_path / "report")
    assert "<b>bold</b>" not in page and "fast &amp; &lt;b&gt;bold&lt;/b&gt;" in page
    bare = re.sub(r"data:image/[^\"]*", "", page).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//\w+\.\w|@import|url\(", bare)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ([], "runs=[]: give folders"),
        (["runs=[nosuch]"], "nosuch/results.csv: no such file"),
        (
            ["runs=[STUDY]", "compare_to=nosuch"],
            "compare_to=nosuch: choose one of the variants, slow",
        ),
        (["runs=[STUDY]", "quality=nosuch"], "quality=nosuch: no such figure; choose"),
        (["runs=[STUDY]", "shown_scenes=-1"], "shown_scenes=-1: out of range"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    line: list[str], says: str, study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = [word.replace("STUDY", str(study)) for word in line]
    assert cli.run(["report", *line, f"output_dir={tmp_path / 'report'}"]) == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1 and not (tmp_path / "report").exists()


def test_a_table_of_other_columns_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.csv").write_text("table,variant,setting,value\na,b,c,1\n")
    assert cli.run(["report", f"runs=[{tmp_path}]", f"output_dir={tmp_path / 'report'}"]) == 2
    assert "has columns" in capfd.readouterr().err


# --- charts ---------------------------------------------------------------------------------------


def test_the_front_is_what_nothing_beats() -> None:
    points = [
        (3.0, 1.0),
        (1.0, 5.0),
        (2.0, 3.0),
        (2.5, 3.5),
        (4.0, 1.0),
        (2.0, 4.0),
        (0.5, math.nan),
    ]
    assert pareto_front(points) == [1, 2, 0]
    assert pareto_front([]) == []


def test_what_is_better() -> None:
    assert badness("psnr_masked", 12) < badness("psnr_masked", 11)
    assert badness("energy", 0.1) < badness("energy", 0.2)
    assert badness("sharpness", 1.0) < badness("sharpness", 1.2) < badness("sharpness", 0.5)
    assert badness("sharpness", 2.0) == pytest.approx(badness("sharpness", 0.5))


def test_points_are_drawn_where_they_belong() -> None:
    points = [Point(1, "a", 100, 2.0, 1.0, 3.0), Point(2, "b", 200, 4.0, 3.0, 5.0)]
    drawn = scatter("quality", points, x_label="cost", badness=lambda y: -y)
    (ax, ay), (bx, by) = (
        (float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    )
    assert ax < bx and ay > by  # more is to the right, and higher up
    bars = [
        tuple(map(float, bar))
        for bar in re.findall(r'd="M[\d.]+ ([\d.]+)V([\d.]+)" stroke="#', drawn)
    ]
    assert bars[0][0] - ay == pytest.approx(ay - bars[0][1], abs=0.2) and bars[0][
        0
    ] - ay == pytest.approx((ay - by) / 2, abs=0.2)
    assert 'class="front"' in drawn
    worse = scatter("quality", points, x_label="cost", badness=lambda y: y)
    assert 'class="front"' not in worse  # one point beats all


def test_ticks_are_round_and_few() -> None:
    for span in (0.003, 0.7, 1.0, 13.0, 4096.0):
        count = len(Axis(0.0, span, 0, 1).ticks())
        assert 3 <= count <= 7
        assert f"{nice(span):e}"[0] in "125"


# --- by hand, in a browser ------------------------------------------------------------------------


def test_the_page_opens_offline_and_fits_every_window(
    browser: Any, study: Path, tmp_path: Path
) -> None:
    report(f"runs=[{study}]", "compare_to=slow", out=tmp_path / "report")
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    complaints: list[str] = []
    requests: list[str] = []
    page = context.new_page()
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "report" / "index.html").as_uri())
    assert page.title() == "d2: study"
    assert page.locator("svg.chart").count() == 12 and page.locator(".point").count() == 5 * 3 + 19
    assert page.locator("figure img").evaluate_all(
        "all => all.every(i => i.complete && i.naturalWidth === 640)"
    )
    # every point lies within its chart, and every label of an axis too
    inside = """svgs => svgs.every(s => {
        const o = s.getBoundingClientRect(), all = [...s.querySelectorAll("circle, text")];
        return all.map(e => e.getBoundingClientRect()).every(b =>
            b.left >= o.left - 1 && b.right <= o.right + 1 &&
            b.top >= o.top - 1 && b.bottom <= o.bottom + 1);
    })"""
    assert page.locator("svg.chart").evaluate_all(inside)
    for width in (360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
    assert (
        complaints == []
        and requests
        and all(url.startswith(("file:", "data:")) for url in requests)
    )


# --- W&B ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wandb_gets_tables_plots_and_pictures(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb_home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "report"
    report(f"runs=[{study}]", "compare_to=slow", "logger=wandb", "shown_scenes=1", out=out)
    (run,) = (out / "wandb").glob("offline-run-*")
    media = run / "files" / "media"
    assert len(list(media.rglob("*.table.json"))) == 3  # figures, differences, runs
    assert len(list(media.rglob("*.html"))) == 12  # charts
    assert len([*media.rglob("*.png"), *media.rglob("*.jpg")]) == 2 * 3
    assert not (tmp_path / "wandb").exists()


def test_a_report_is_of_what_sampling_leaves(d2_sample: Callable[..., int], tmp_path: Path) -> None:

    variants = "+variants={whole:['renoise=none'],columns:['renoise=none','weights=multiview']}"
    assert d2_sample(variants, "scenes.count=2", "seeds=[0,1]", "baselines=true") == 0
    page = report(
        f"runs=[{tmp_path / 'out'}]",
        "compare_to=columns_alone",
        "shown_scenes=1",
        out=tmp_path / "report",
    )
    for name in ("1 whole", "2 columns_alone", "8 columns"):
        assert f">{name}<" in page
    assert page.count("<figure>") == 2 * 2 and len(re.findall(r'class="curve"', page)) >= 1

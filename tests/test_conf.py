"""Every file in conf/ and experiments/ is composed and run, and what is written on the command line
wins."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CELL, randomized
from PIL import Image, ImageDraw

from d2 import cli
from d2.config import command_line
from d2.config.binding import bind
from d2.config.checks import check
from d2.config.names import Label
from d2.files import asset
from d2.matrix import camera_ring
from d2.priors import tiny
from d2.priors.prior import Prior
from d2.resolve import resolve
from d2.rules.bundle import Rules
from d2.sampling import Composition, Step, needed
from d2.terms import Settings

# group/option -> the test file that runs it: what needs other processes, or a second device
ELSEWHERE = {
    "trainer/ddp": "test_sample_job.py",
    "trainer/slurm": "test_launch.py",
    "logger/wandb": "test_loggers.py",
    "video/svd": "test_published_sampling.py",
    "video/svd_xt": "test_published_sampling.py",
    "multiview/sv3d_u": "test_published_sampling.py",
    "multiview/sv3d_p": "test_published_sampling.py",
    "multiview/seva": "test_published_sampling.py",
    "multiview/tiny_camera": "test_camera_training.py",
    "prior/tiny_camera": "test_camera_training.py",
    "matting/rembg": "test_published_sampling.py",
    "prior/tiny_video_encoder": "test_video_encoder.py",  # no prior: nothing is sampled with it
    "composition/superposition_or": "test_superposition.py",  # of noise between all levels
    "composition/superposition_and": "test_superposition.py",
    "composition/inclusion_exclusion": "test_terms.py",  # of three terms
}
STEP = Step(0, 2, 0, 1, sigma=1.0, sigma_next=0.5)


def options() -> dict[str, list[str]]:
    """Group -> its options, as they lie in conf/."""
    groups = {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in asset("conf").iterdir()
    }
    return {group: names for group, names in sorted(groups.items()) if names}


def of_sampling() -> dict[str, list[str]]:
    """What a run in this process can choose."""
    here = {
        g: [n for n in names if f"{g}/{n}" not in ELSEWHERE]
        for g, names in options().items()
        if g != "prior"
    }
    here["trainer"] = [
        name for name in here["trainer"] if name != "gpu" or torch.cuda.is_available()
    ]
    return here


def runs() -> list[list[str]]:
    """As many command lines as the largest group has options; each takes the next option of every
    group."""
    columns = zip_longest(*([f"{g}={n}" for n in names] for g, names in of_sampling().items()))
    return [[choice for choice in column if choice] for column in columns]


def composed(*overrides: str, command: str = "sample") -> Any:
    config = command_line.composed(command, command_line.readable(overrides)).config
    check(config)
    return config


def resolved(config: Any) -> tuple[Rules, Settings]:
    job = resolve(config, "", "", Label("", None, "sample", ()))
    return job.rules, job.settings


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red disc, on nothing."""
    image = Image.new("RGBA", (48, 40), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 6, 36, 34), fill=(200, 30, 30, 255))
    image.save(tmp_path / "disc.png")
    return tmp_path / "disc.png"


# --- every file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", runs(), ids=lambda c: "+".join(x.partition("=")[2] for x in c))
def test_every_option_of_every_group_runs(
    choices: list[str], d2_sample: Callable[..., int], picture: Path, tmp_path: Path
) -> None:
    path = [f"scenes.path={picture}"] if "scenes=folder" in choices else []
    assert d2_sample(*choices, *path) == 0
    assert len(list((tmp_path / "out").glob("*/matrix.safetensors"))) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, and trainer=gpu is run")
def test_a_gpu_that_is_not_there_is_refused(
    d2_sample: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert d2_sample("trainer=gpu") == 2
    assert capfd.readouterr().err.startswith("d2: trainer.accelerator=gpu")
    assert not (tmp_path / "out").exists()


def test_what_is_run_elsewhere_is_an_option() -> None:
    assert {
        name for name in ELSEWHERE if name.split("/")[1] not in options()[name.split("/")[0]]
    } == set()


@pytest.mark.parametrize("prior", [n for n in options()["prior"] if f"prior/{n}" not in ELSEWHERE])
def test_every_prior_trains(
    prior: str, small_networks: None, small_weights: list[str], tmp_path: Path
) -> None:
    overrides = [
        f"prior={prior}",
        "prior.max_steps=2",
        "prior.batch_size=3",
        "num_scenes=4",
        "num_validation_scenes=2",
    ]
    kind = composed(f"prior={prior}", "init_from=some.safetensors", command="train").prior.kind
    key = kind if kind in ("autoencoder", "cell") else f"{kind}.checkpoint"
    start = "multiview.checkpoint" if kind == "cell" else key
    start = next(w for w in small_weights if w.startswith(f"{start}=")).replace(
        start, "init_from", 1
    )
    singles = [] if kind == "autoencoder" else ["prior.singles=1"]
    places = [
        f"output_dir={tmp_path / 'out'}",
        f"cache_dir={tmp_path / 'cache'}",
        small_weights[-1],
        "trainer=cpu",
    ]
    assert cli.run(["train", *overrides, *singles, *places, start]) == 0
    weights = tmp_path / "out" / f"tiny_{kind}.safetensors"
    short = [
        "sampler.num_steps=1",
        "matrix.num_views=2",
        "matrix.num_frames=2",
        "baselines=false",
        "pages=false",
    ]
    sampled = ["trainer=cpu", f"output_dir={tmp_path / 'sampled'}"]
    given = [w for w in small_weights if not w.startswith(f"{key}=")]
    given += ["unary.prior=cell", "composition=inclusion_exclusion"] if kind == "cell" else []
    # what is trained can be used
    assert cli.run(["sample", *given, f"{key}={weights}", *short, *sampled]) == 0


@pytest.mark.parametrize(
    "name", sorted(path.parent.name for path in asset("experiments").glob("*/sweep.yaml"))
)
def test_every_experiment_runs(
    name: str, d2_sample: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(f"experiment={name}")
    monkeypatch.chdir(tmp_path)  # where what other commands leave is looked for
    smallest = ["scenes.count=1", "matrix.num_views=2", "matrix.num_frames=2"]
    if config.cell is not None:
        (tmp_path / config.cell).parent.mkdir(parents=True)
        tiny.save_weights(tmp_path / config.cell, "cell", randomized(Prior(CELL), 4), {})
    assert d2_sample(f"experiment={name}", *smallest, "baselines=true") == 0
    for variant in config.variants or {}:
        folders = [f"{variant}/seed_{seed}" for seed in config.seeds] or [variant]
        assert all((tmp_path / "out" / folder / "metrics.csv").exists() for folder in folders)
    assert (tmp_path / "out" / "table.md").exists()


def test_no_yaml_lies_where_no_test_looks() -> None:
    conf = asset("conf")
    known = {
        conf / f"{name}.yaml"
        for name in ("sample", "train", "evaluate", "report", "reconstruct", "view")
    }
    known |= {conf / group / f"{name}.yaml" for group, names in options().items() for name in names}
    known |= set(asset("experiments").glob("*/sweep.yaml"))
    found = {path for root in (conf, asset("experiments")) for path in root.rglob("*.y*ml")}
    assert found == known


def test_every_group_of_the_folder_is_a_group_of_a_command() -> None:
    defaults = (asset("conf") / "sample.yaml").read_text() + (
        asset("conf") / "train.yaml"
    ).read_text()
    for group in options():
        assert f"- {group}: " in defaults, f"nobody can choose {group}="


# --- what wins ------------------------------------------------------------------------------------


def test_the_official_preset_is_the_published_run() -> None:
    config = composed("preset=official")
    rules, settings = resolved(config)
    assert (settings.num_steps, settings.sigma_max, settings.sigma_min, settings.rho) == (
        50,
        700.0,
        0.002,
        7.0,
    )
    plan = rules.renoise(settings.sigmas)
    assert len(plan) == 60 and [s.num_repeats for s in plan if s.repeat == 0] == [2] * 10 + [1] * 40
    assert config.weights["curve"] | {"_partial_": True} == {
        "_target_": "d2.rules.weights.constant",
        "_partial_": True,
        "scale": 0.6,
    }
    scales = rules.guidance(plan[0], camera_ring(21), 25)
    assert (scales["video"][0, 0], scales["video"][0, -1], scales["multiview"][7, 3]) == (
        1.5,
        3.0,
        2.5,
    )


def test_the_default_is_the_fast_preset() -> None:
    config = composed()
    assert config == composed("preset=fast") != composed("preset=official_short")
    rules, settings = resolved(config)
    plan = rules.renoise(settings.sigmas)
    assert len(plan) == 12 and 60 <= plan[0].sigma <= 100
    assert (
        sum(step.num_repeats == 2 and step.repeat == 0 for step in plan)
        == config.sampler.num_steps // 5
    )


def test_the_preset_is_applied_before_what_is_on_the_command_line() -> None:
    for line in (
        ["preset=official", "sampler.num_steps=3"],
        ["sampler.num_steps=3", "preset=official"],
    ):
        config = composed(*line)
        assert (config.sampler.num_steps, config.sampler.sigma_max) == (3, 700.0)
    for line in (["preset=official", "weights=linear"], ["weights=linear", "preset=official"]):
        config = composed(*line)
        assert config.weights["curve"]["_target_"] == "d2.rules.weights.linear"
        assert "scale" not in config.weights["curve"] and config.sampler.num_steps == 50
    for line in (["preset=official", "renoise=none"], ["renoise=none", "preset=official"]):
        config = composed(*line)
        rules, settings = resolved(config)
        assert len(rules.renoise(settings.sigmas)) == 50


def test_the_later_of_two_choices_wins() -> None:
    """So that a variant's overrides win over those of the study that it belongs to."""
    assert (
        composed("weights=linear", "weights=cosine").weights == composed("weights=cosine").weights
    )
    assert composed("sampler.num_steps=3", "sampler.num_steps=4").sampler.num_steps == 4


def test_a_rules_argument_on_the_command_line_reaches_the_rule() -> None:
    cameras = camera_ring(8)
    weights = resolved(composed("weights.curve.scale=0.3"))[0].weights(STEP, cameras, 2)
    front, side = weights["multiview"][7, 0], weights["multiview"][1, 0]  # azimuths 360° and 90°
    assert front == pytest.approx(0.3) and side == pytest.approx(1 - 0.25 + 0.25 * 0.3)

    ones = torch.ones(1, 1, dtype=torch.float64)
    fields = {"video": ones, "multiview": 0 * ones}, {"video": 2 * ones, "multiview": 2 * ones}
    own = needed(resolved(composed())[0].compose, [], *fields)
    mean = needed(
        resolved(composed("composition.coefficients.uncond=mean"))[0].compose, [], *fields
    )
    assert not own["multiview"][0].any() and mean["multiview"][0].all()


# --- binding --------------------------------------------------------------------------------------


def law(
    step: Step, *, slope: float, name: str = "x", limit: float | None = None
) -> tuple[float, str, float | None]:
    """A rule as users write them."""
    return slope * step.sigma, name, limit


def node(**arguments: object) -> dict[str, object]:
    return {"_target_": f"{__name__}.law", "_partial_": True, **arguments}


def test_binding_gives_the_function_with_its_arguments() -> None:
    assert bind(node(slope=2), "rule")(STEP) == (2.0, "x", None)
    assert bind({"a": [node(slope=2.5, name="y", limit=1)], "b": 3}, "rule")["a"][0](STEP) == (
        2.5,
        "y",
        1,
    )
    called = bind(
        {"_target_": "d2.rules.composition.linear", "coefficients": node(slope=1)}, "rule"
    )
    assert isinstance(called, Composition)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (node(slop=2), "rule.slop: .*law has no such argument; it takes slope, name, limit"),
        (node(), "rule.slope: .*law needs this argument"),
        (node(slope=2, step=1), "rule.step: .*no such argument"),
        (node(slope="steep"), "rule.slope=steep: .*takes float there"),
        (node(slope=True), "rule.slope=True: .*takes float there"),
        (node(slope=None), "rule.slope=None: .*takes float there"),
        (node(slope=[1.0]), "rule.slope=.*takes float there"),
        (node(slope=1, name=3), "rule.name=3: .*takes str there"),
        (node(slope=1, limit="no"), "rule.limit=no: .*takes float . None there"),
        (
            {"_target_": "d2.rules.nosuch.rule"},
            "rule._target_=d2.rules.nosuch.rule: no such function",
        ),
        (
            {"_target_": "d2.rules.weights.nosuch"},
            "rule._target_=d2.rules.weights.nosuch: no such function",
        ),
        ({"_target_": "d2.rules.weights"}, "rule._target_=d2.rules.weights: not a function"),
        (
            {"_target_": "d2.rules.composition.linear", "coefficients": 3},
            "rule.coefficients=3: .*CoefficientRule",
        ),
        ({"inner": node(slope=1, nmae="x")}, "rule.inner.nmae: .*no such argument"),
    ],
)
def test_binding_refuses_in_one_line(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        bind(wrong, "rule")
    assert "\n" not in str(error.value)

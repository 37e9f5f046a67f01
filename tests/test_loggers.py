"""What loggers are told: read back from the files that W&B writes offline, and that TensorBoard
writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from wandb_files import WandbRun, read_runs

from d2 import cli, loggers
from d2.loggers import Logging

STUDY = "variants={convex:[],video:[weights=video],columns:[weights=multiview]}"


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B as on a machine where nobody has logged in."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def logging(project: str, offline: bool | None = None) -> Logging:
    return Logging("wandb", project, None, None, (), offline)


def logged(run: WandbRun, key: str) -> list[float]:
    return [row[key] for row in run.history if key in row]


@pytest.mark.slow
def test_a_study_leaves_a_run_for_every_variant_and_seed(
    d2_sample: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Six runs in one group, each with its configuration, the priors' disagreement, its pictures
    and its figures."""
    assert (
        d2_sample(STUDY, "seeds=[0,1]", "logger=wandb", "logger.tags=[mine]", "renoise=none") == 0
    )
    out, err = capfd.readouterr()
    assert "wandb" not in (out + err).lower()
    runs = read_runs(tmp_path / "out")
    names = [
        f"{variant}/seed_{seed}" for variant in ("columns", "convex", "video") for seed in (0, 1)
    ]
    assert [run.name for run in runs] == names
    assert {(run.group, run.project, run.job_type) for run in runs} == {("out", "d2", "sample")}
    assert len({run.id for run in runs}) == 6
    for run in runs:
        assert {"fast", "tiny", "mine"} == set(run.tags)
        assert run.config["seed"] == int(run.name[-1]) and run.config["sampler"]["num_steps"] == 2
        assert {"version", "commit", "weights_hash"} <= run.config.keys()
        if run.name.startswith("convex"):  # the other rules ask one prior alone
            sigmas = logged(run, "sigma")
            assert (
                len(sigmas) == len(logged(run, "disagreement/test_0000")) == 2
                and sigmas == sorted(sigmas)[::-1]
            )
        assert (
            len(logged(run, "grid/test_0000._type"))
            == len(logged(run, "preview/test_0000._type"))
            == 1
        )
        assert len(logged(run, "scene/psnr_masked")) == 1
        assert logged(run, "mean/psnr_masked") == pytest.approx(logged(run, "scene/psnr_masked"))
        (table,) = logged(run, "figures.path")
        (file,) = (tmp_path / "out" / run.name).rglob(Path(str(table)).name)
        columns = json.loads(file.read_text())["columns"]
        assert columns[:2] == ["scene", "method"] and "psnr_masked" in columns
    rules = {run.name: run.config["weights"] for run in runs}
    assert rules["convex/seed_0"] == rules["convex/seed_1"] != rules["video/seed_0"]


def test_a_point_of_a_sweep_is_named_after_what_is_swept(
    d2_sample: Callable[..., int], tmp_path: Path
) -> None:
    line = ["-m", "weights.curve.scale=0.2,0.8", "renoise=none", "seed=3", "metrics=[]"]
    assert d2_sample(*line, "logger=wandb", "logger.entity=team", "logger.group=mine") == 0
    runs = read_runs(tmp_path / "out")
    assert [run.name for run in runs] == ["weights.curve.scale=0.2", "weights.curve.scale=0.8"]
    assert {(run.group, run.entity) for run in runs} == {("mine", "team")}


def test_tensorboard_gets_figures_pictures_and_the_table(
    d2_sample: Callable[..., int], tmp_path: Path
) -> None:
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert d2_sample("logger=tensorboard", "renoise=none") == 0
    found = event.EventAccumulator(str(tmp_path / "out" / "log"))
    found.Reload()
    tags = found.Tags()
    assert {"scene/psnr_masked", "mean/psnr_masked", "disagreement/test_0000"} <= set(
        tags["scalars"]
    )
    assert tags["images"] == ["grid/test_0000"] and "figures/text_summary" in tags["tensors"]


# --- what cannot start ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sample", "train", "report"])
def test_no_account_is_one_line_before_any_work(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["logger=wandb", "logger.offline=false", f"output_dir={tmp_path / 'out'}"]
    assert cli.run([command, *line]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "W&B knows no account here; run `wandb login`, or take logger.offline=true" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (logging("team/proj"), "give logger.entity=team logger.project=proj"),
        (logging("a:b"), "logger.project=a:b: W&B allows none of"),
    ],
)
def test_a_project_that_wandb_would_refuse_is_refused(given: Logging, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        loggers.check_logger(given)


@pytest.mark.parametrize(
    ("told", "offline", "mode"),
    [
        (None, None, "offline"),
        (None, False, "online"),
        ("online", None, "online"),
        ("online", True, "offline"),
        ("dryrun", None, "offline"),
        ("offline", False, "online"),
        ("disabled", None, "disabled"),
        ("disabled", False, "disabled"),
        ("disabled", True, "disabled"),
    ],
)
def test_wandb_mode_counts_where_the_key_is_silent_and_disabled_wins(
    told: str | None, offline: bool | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told is not None:
        monkeypatch.setenv("WANDB_MODE", told)
    assert loggers.wandb_mode(logging("d2", offline)) == mode


def test_disabled_wandb_writes_nothing(
    d2_sample: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert d2_sample("logger=wandb", "logger.offline=false", "renoise=none", "metrics=[]") == 0
    assert (
        not list(tmp_path.rglob("*wandb*"))
        and (tmp_path / "out" / "test_0000" / "grid.png").exists()
    )

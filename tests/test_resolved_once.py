"""A configuration is resolved once: one clock, paths as they were given, one configuration a
folder, one plan each."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch
from PIL import Image

from d2 import cli, processes
from d2.config import command_line
from d2.plan import planning
from d2.sample import earlier

Run = Callable[..., int]


def test_a_command_has_one_clock_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    began = datetime(2001, 2, 3, 4, 5, 6)
    monkeypatch.setenv(command_line.STARTED, began.isoformat())
    # a process that Lightning has started keeps what it was told
    monkeypatch.setenv("LOCAL_RANK", "1")
    command_line.start_clock()
    composed = command_line.composed("sample", ["output_dir=out/${now:%Y-%H-%M-%S}"])
    assert (
        composed.config.output_dir == "out/2001-04-05-06"
        and "output_dir: out/2001-04-05-06" in composed.text
    )
    monkeypatch.delenv("LOCAL_RANK")
    command_line.start_clock()
    assert datetime.fromisoformat(os.environ[command_line.STARTED]) > began


def test_workers_that_are_dealt_scenes_have_the_clock_of_their_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker of one rank is told no LOCAL_RANK, as it belongs to no process group."""
    began = datetime(2001, 2, 3, 4, 5, 6).isoformat()
    monkeypatch.setattr(cli, "run_command", lambda *_: 0)
    monkeypatch.setenv(command_line.STARTED, began)
    monkeypatch.setenv(processes.NOTES, str(tmp_path / "0"))
    assert cli.run(["sample"]) == 0 and os.environ[command_line.STARTED] == began
    monkeypatch.delenv(processes.NOTES)
    assert cli.run(["sample"]) == 0 and os.environ[command_line.STARTED] > began


def picture(path: Path) -> Path:
    """A grey square on nothing."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((90, 120, 90, 255), (8, 8, 24, 24))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_paths_are_as_they_were_given_wherever_hydra_goes(
    d2_sample: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "pictures" / "cube.png")
    monkeypatch.chdir(tmp_path)
    line = [
        "scenes=folder",
        "scenes.path=pictures",
        "metrics=[]",
        "seed=0,1",
        "hydra.job.chdir=true",
    ]
    assert d2_sample("-m", *line, "sampler.num_steps=1", "renoise=none") == 0
    assert len(list(tmp_path.glob("out/*/cube/matrix.safetensors"))) == 2


@pytest.mark.parametrize("name", ["a long prompt " * 17, "log"])
def test_a_scene_whose_name_cannot_be_a_folders_gets_one_that_can(
    d2_sample: Run, tmp_path: Path, name: str
) -> None:
    picture(tmp_path / "pictures" / f"{name}.png")
    line = ["scenes=folder", f"scenes.path='{tmp_path / 'pictures'}'", "metrics=[]"]
    assert d2_sample(*line, "sampler.num_steps=1", "renoise=none") == 0
    (scene,) = earlier.sampled_scenes(tmp_path / "out")
    assert scene.name.startswith(("a long prompt", "scene_log")) and len(scene.name.encode()) <= 200


def test_two_configurations_never_share_a_folder(
    d2_sample: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, out = (
        ["sampler.num_steps=1", "renoise=none", "metrics=[]", "overwrite=false"],
        tmp_path / "out",
    )
    assert d2_sample(*line, "scenes.count=2") == 0
    kept = (out / "config.yaml").read_text()
    assert d2_sample(*line, "scenes.count=2", "trainer.threads=1") == 0  # no result depends on it
    assert d2_sample(*line, "seed=3") == 2
    assert (
        "holds results of another configuration, which differs in scenes.count, seed;"
        in capsys.readouterr().err
    )
    assert (out / "config.yaml").read_text() == kept
    assert d2_sample(*line, "seed=3", "overwrite=true") == 0
    assert [path.name for path in earlier.sampled_scenes(out)] == ["test_0000"]
    assert d2_sample(*line, "seed=3") == 0  # how it came there is no part of what it is


def test_a_run_that_was_stopped_says_of_which_configuration_it_is(tmp_path: Path) -> None:
    text = "seed: 1\nscenes:\n  count: 2\n# video: aaa\n"
    earlier.begin(tmp_path, text)
    earlier.refuse_another(tmp_path, text)
    with pytest.raises(
        ValueError, match=r"differs in scenes\.count, video; give another output_dir, or overwrite="
    ):
        earlier.refuse_another(tmp_path, text.replace("2", "3").replace("aaa", "bbb"))
    earlier.end(tmp_path, [])
    assert earlier.earlier_text(tmp_path) is None


def test_a_study_plans_and_stops(
    d2_sample: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, seen = planning.planned, []
    monkeypatch.setattr(planning, "planned", lambda *given: seen.append(given) or own(*given))
    variants = "variants={a:[],same:[sampler.sigma_max=70],dearer:[sampler.num_steps=3]}"
    assert d2_sample(variants, "seeds=[0,1]", "plan=true", "renoise=none", "trainer.threads=1") == 0
    assert len(seen) == 2 and torch.get_num_threads() == 1
    said = capsys.readouterr().out
    assert "a, same\nwhat " in said and "\ndearer\nwhat " in said and "6 runs" in said
    assert not (tmp_path / "out").exists()
    assert cli.run(["sample", variants, "plan=true", "precision=fp16"]) == 2
    assert "precision=fp16: the tiny tier runs in fp32" in capsys.readouterr().err

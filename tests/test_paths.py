"""A path on a command line is what its user typed, whatever Hydra's grammar thinks of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from PIL import Image

from d2 import cli
from d2.config.command_line import compose_command, fixed_keys, values_in_turn
from d2.config.paths import LISTS, PATHS, as_path, literal, quoted
from d2.config.schema import EvaluateConfig, ReportConfig, SampleConfig, TrainConfig
from d2.files import asset

ROOT = Path(__file__).parents[1]
NAMES = [
    *(
        "a=b",
        "a, b",
        "clip (1)",
        "50% done",
        "take #2",
        "[final]",
        "it's",
        'a"b',
        "x{y}",
        "café 日本",
        "a$b",
        "a&b<i>",
    ),
    *(
        "a\\",
        "it\\'s",
        "1e3",
        "007",
        "true",
        " lead",
        "a:b",
        "~x",
        "+y",
        "a;b|c*?",
        "a\tb",
        "${x}",
        "null.png",
    ),
]


def scenes_path(*overrides: str) -> str:
    return compose_command("sample", ["scenes=folder", *overrides]).scenes.path


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for path in (name, str(tmp_path / name)):  # relative and absolute
        assert scenes_path(f"scenes.path={path}") == path
        swept = as_path(f"scenes.path={path}", swept=True)
        assert (
            fixed_keys([swept]) == {"scenes.path"}
            and scenes_path(values_in_turn([swept])[0][0]) == path
        )
    (tmp_path / name).rmdir()
    if name != "${x}":  # of what is not there it is an interpolation
        assert scenes_path(f"scenes.path={tmp_path / name}") == str(tmp_path / name)


def test_quotes_of_ones_own_lists_and_sweeps_still_mean_what_they_mean(tmp_path: Path) -> None:
    assert scenes_path("scenes.path='it is'") == scenes_path('scenes.path="it is"') == "it is"
    assert scenes_path("scenes.path=null") is None
    assert compose_command("sample", ["output_dir=out/${seed}", "seed=7"]).output_dir == "out/7"
    for given, expected in (
        ("[a,b]", ["a", "b"]),
        ("[it's,b (1)]", ["it's", "b (1)"]),
        ("it's", "it's"),
    ):
        assert compose_command("evaluate", [f"pred={given}"]).pred == expected
    for given, expected in (
        ("a,it's", ["a", "it's"]),
        ("a,b", ["a", "b"]),
        ("choice(a,b)", ["a", "b"]),
    ):
        lines = values_in_turn([as_path(f"scenes.path={given}", swept=True)])
        assert [scenes_path(*line) for line in lines] == expected
    assert as_path("seed=0,1", swept=True) == "seed=0,1"


def test_every_key_of_a_path_is_in_a_schema() -> None:
    def keys(schema: Any, prefix: str = "") -> set[str]:
        found = set()
        for field in fields(schema):
            value = field.default_factory() if callable(field.default_factory) else field.default
            found |= (
                keys(type(value), f"{prefix}{field.name}.")
                if is_dataclass(value)
                else {prefix + field.name}
            )
        return found

    known = set().union(*map(keys, (SampleConfig, TrainConfig, EvaluateConfig, ReportConfig)))
    assert (
        PATHS - known == {"hydra.sweep.dir", "hydra.run.dir", "composition.moments"}
        and LISTS <= PATHS
    )


def test_a_rule_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ConfigStore.instance()
    # other tests ask it what there is to choose from
    monkeypatch.setattr(store, "repo", deepcopy(store.repo))
    file = tmp_path / "it's, mine" / "my rules.py"
    file.parent.mkdir()
    shutil.copy(ROOT / "d2" / "rules" / "weights.py", file)
    assert (
        compose_command("sample", [f"weights={file}:constant"]).weights._target_
        == f"{file}:constant"
    )


def test_the_checkout_may_lie_anywhere(tmp_path: Path) -> None:
    """Its own paths are quoted too: the search path of experiments, the folder of a sweep."""
    copy = tmp_path / "John's ${work}"
    for part in ("d2", "conf", "experiments"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from d2.config.command_line import composed, start_clock, sweep_folder; start_clock(); "
    code += "composed('sample', []); print(sweep_folder('sample', []))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": "."},
    )
    assert done.returncode == 0 and done.stdout.startswith(str(copy)), done.stderr
    assert asset("conf") == ROOT / "conf"
    assert literal("${a}") == "\\${a}" and quoted("a'b\\") == "'a\\'b\\\\'"


def test_what_cannot_be_read_says_how_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sample", "clip.text=it's"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("d2: clip.text=it's: cannot be parsed") and "quotes within quotes" in line
    )


def test_a_warning_is_one_plain_line(
    d2_sample: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: Any
) -> None:
    (tmp_path / "it's").mkdir()
    for frame in range(3):
        Image.new("RGB", (32, 32), (90, 40 * frame, 60)).save(tmp_path / "it's" / f"{frame}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert d2_sample("scenes=folder", f"scenes.path={tmp_path / chr(105)}t's") == 0
    assert (
        warnings.formatwarning("two\nlines", UserWarning, "file.py", 7)
        == "d2: warning: two lines\n"
    )

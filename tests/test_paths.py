"""A path on a command line is what its user typed, whatever Hydra's grammar thinks of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from PIL import Image

from d2 import cli
from d2.config.command_line import compose_command, fixed_keys, values_in_turn
from d2.config.describe import keys
from d2.config.paths import VERBATIM, as_written, literal, quoted
from d2.config.schema import ROOTS
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
        swept = as_written(f"scenes.path={path}", swept=True)
        assert (
            fixed_keys([swept]) == {"scenes.path"}
            and scenes_path(values_in_turn([swept])[0][0]) == path
        )
    (tmp_path / name).rmdir()
    if name != "${x}":  # of what is not there it is an interpolation
        assert scenes_path(f"scenes.path={tmp_path / name}") == str(tmp_path / name)


def test_quotes_of_ones_own_lists_and_sweeps_still_mean_what_they_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scenes_path("scenes.path='it is'") == scenes_path('scenes.path="it is"') == "it is"
    assert scenes_path("scenes.path=null") is None
    assert compose_command("sample", ["output_dir=out/${seed}", "seed=7"]).output_dir == "out/7"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c, d").mkdir()
    for given, expected in (
        ("[a,b]", ["a", "b"]),
        ("['a, b',c]", ["a, b", "c"]),
        ("[a,c, d,b=1]", ["a", "c, d", "b=1"]),
        ("[it's,b (1)]", ["it's", "b (1)"]),
        ("it's", "it's"),
    ):
        assert compose_command("evaluate", [f"pred={given}"]).pred == expected
    for given, expected in (
        ("a,it's", ["a", "it's"]),
        ("a,b", ["a", "b"]),
        ("choice(a,b)", ["a", "b"]),
    ):
        lines = values_in_turn([as_written(f"scenes.path={given}", swept=True)])
        assert [scenes_path(*line) for line in lines] == expected
    assert as_written("seed=0,1", swept=True) == "seed=0,1"


@pytest.mark.parametrize("key", [*VERBATIM, "composition.file"])
def test_every_text_is_taken_as_it_is(key: str) -> None:
    text = "it's (1), é=[b]"
    parsed = OverridesParser.create().parse_override(as_written(f"{key}={text}"))
    assert parsed.key_or_group == key
    value = parsed.value()
    assert (value.text if isinstance(value, QuotedString) else value) == text


def test_every_path_of_a_schema_is_such_a_text() -> None:
    """By what is said of it: a path that a new key asks for is to be marked as one."""
    words = re.compile(r"\b(folder|file|output_dir|weights file)\b")
    asked = {
        key.name
        for command in ROOTS
        for key in keys(command)
        if words.search(key.meaning) and key.kind in ("str", "", "list") and not key.members
    } - {"cameras.elevation_deg"}  # numbers, "for a folder's scenes"
    assert {"matrix", "run", "pred", "scenes.path", "video.checkpoint"} <= asked
    assert sorted(asked - VERBATIM.keys()) == []


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


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("output_dir=", "output_dir=: empty; give a text, or leave it out"),
        ("seeds=0,1", "seeds=0,1: several values; add -m for a run of each, or give seeds=[0,1]"),
        ("sampler.rho", "sampler.rho: no value; give KEY=VALUE or GROUP=CHOICE"),
        ("variants={../a:[]}", "variants.../a: a folder is named after it; give another name"),
        ("metrics=reference", "metrics=reference: a list is wanted; give metrics=[reference]"),
        ("variants={a:[],a:[weights=linear]}", "variants: a is there 2 times; give each a name"),
        ("weights=null", "Config group override must be a string or a list. Got NoneType"),
        ("weights=gone.py:f", f"weights._target_=gone.py:f: no such file gone.py in {Path.cwd()};"),
    ],
)
def test_a_mistake_is_said_once_with_the_way_out(
    given: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["sample", given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"d2: {says}") and line.count(says) == 1


def test_what_cannot_be_read_says_how_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sample", "scenes.split=it's"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("d2: scenes.split=it's: cannot be parsed")
        and "quotes within quotes" in line
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

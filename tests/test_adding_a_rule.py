"""docs/adding-a-rule.md, followed to the letter; and what is said where a user's file is not as it
should be."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from d2 import cli
from d2.config.binding import bind

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-rule.md"
Run = Callable[..., int]


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- the page -------------------------------------------------------------------------------------


def test_from_an_empty_file_to_a_measured_rule(
    here: Path, small_networks: None, small_weights: list[str]
) -> None:
    (code,) = blocks("python")
    (name,) = set(re.findall(r"[\w]+\.py(?=:)", PAGE.read_text())) - {"py"}
    (here / name).write_text(code)
    (_, *line), (_, *pictures) = (
        shlex.split(block.replace("\\\n", " ")) for block in blocks("bash")
    )
    short = [
        "sampler.num_steps=2",
        "matrix.num_views=3",
        "matrix.num_frames=3",
        "trainer=cpu",
        "baselines=false",
    ]
    small = [word.replace("scenes.count=8", "scenes.count=2") for word in line]
    assert small != line
    assert cli.run([*small, *small_weights, *short]) == 0

    out = here / "outputs" / "hand_over"
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["variant"] for row in rows} == {"default", "hand_over"}
    assert {row["scene"] for row in rows} == {"validation_0000", "validation_0001"}
    table = (out / "table.md").read_text()
    assert "Paired differences from default." in table and "| energy " in table
    cost = {
        row["variant"]: float(row["value"]) for row in rows if row["metric"] == "cell_evaluations"
    }
    assert cost["hand_over"] < cost["default"]  # one prior at a time
    assert (out / "hand_over" / "seed_0" / "config.yaml").read_text().count(f"# {name}: ") == 1

    assert cli.run(pictures) == 0
    page = (here / "outputs" / "hand_over_report" / "index.html").read_text()
    assert (
        ">2 hand_over<" in page and "<figure>" in page and "Paired differences from default" in page
    )


def test_an_edited_rule_is_measured_again(
    here: Path, d2_sample: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("python")
    (here / "mine.py").write_text(code)
    line = ["+variants={a:['weights=mine.py:hand_over']}"]
    assert d2_sample(*line) == 0
    capfd.readouterr()
    assert d2_sample(*line) == 0
    assert "sampling" not in capfd.readouterr().err
    (here / "mine.py").write_text(code.replace("step.progress < at", "step.progress >= at"))
    assert d2_sample(*line) == 0
    assert "sampling" in capfd.readouterr().err


# --- a user's file --------------------------------------------------------------------------------

RULES = """
def constant(
    step, cameras, num_frames, *, share: float, wide: bool = False, name: str | None = None
):
    return share

def made(*, power: int = 2):
    return lambda step: power

NUMBER = 3
"""


def node(**more: object) -> dict[str, object]:
    return {"_target_": "sub/rules.py:constant", "_partial_": True, "share": 0.5, **more}


@pytest.fixture
def rules(here: Path) -> Path:
    (here / "sub").mkdir()
    (here / "sub" / "rules.py").write_text(RULES)
    return here / "sub" / "rules.py"


def test_a_function_is_found_by_its_path(rules: Path) -> None:
    assert bind(node(), "weights")(None, None, 1) == 0.5
    assert bind(node(_target_=f"{rules}:constant"), "weights")(None, None, 1) == 0.5
    assert bind({"_target_": "sub/rules.py:made", "power": 3}, "weights")(None) == 3


def test_a_file_is_read_anew(rules: Path) -> None:
    bind(node(), "weights")
    rules.write_text(RULES.replace("return share", "return -share"))
    assert bind(node(), "weights")(None, None, 1) == -0.5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            node(_target_="sub/nosuch.py:constant"),
            "weights._target_=sub/nosuch.py:constant: no such file sub/nosuch.py",
        ),
        (
            node(_target_="sub/rules.py:nosuch"),
            "sub/rules.py has no function nosuch; there are constant, made",
        ),
        (node(_target_="sub/rules.py:NUMBER"), "sub/rules.py has no function NUMBER"),
        (node(_target_="sub:constant"), "no such file sub in"),
        (
            node(shaer=1.0),
            "weights.shaer: sub/rules.py:constant has no such argument; it takes share, wide, name",
        ),
        (node(share="much"), "weights.share=much: sub/rules.py:constant takes float there"),
        (node(wide=1), "weights.wide=1: sub/rules.py:constant takes bool there"),
        (node(name=1.5), "weights.name=1.5: sub/rules.py:constant takes str | None there"),
        (
            {"_target_": "sub/rules.py:constant", "_partial_": True},
            "weights.share: sub/rules.py:constant needs this",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(given: dict[str, object], says: str, rules: Path) -> None:
    with pytest.raises(ValueError) as error:
        bind(given, "weights")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_arguments_without_annotations_take_anything(rules: Path) -> None:
    rules.write_text("def f(*, a, b=1):\n    return a, b\n")
    assert bind({"_target_": "sub/rules.py:f", "a": "x"}, "weights") == ("x", 1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["weights=nosuch.py:f"], "no such file nosuch.py"),
        (
            ["weights=sub/rules.py:nosuch"],
            "sub/rules.py has no function nosuch; there are constant, made",
        ),
        (
            ["weights=sub/rules.py:made", "weights.pwoer=3"],
            "weights.pwoer: no such key, did you mean weights.power?",
        ),
        (
            ["weights=sub/rules.py:made", "weights.power=2.5"],
            "weights.power=2.5: sub/rules.py:made takes int",
        ),
        (["weights=broken.py:f"], "broken.py cannot be imported (SyntaxError"),
        (
            ["weights=raising.py:f"],
            "raising.py cannot be imported (ZeroDivisionError: division by zero)",
        ),
    ],
)
def test_the_command_line_refuses_it_before_anything_runs(
    line: list[str], says: str, rules: Path, d2_sample: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("broken.py").write_text("def f(:\n")
    Path("raising.py").write_text("1 / 0\n")
    assert d2_sample(*line) == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1 and not Path("out").exists()


REFUSING = """
def weights(step, cameras, num_frames, *, share: float = 2.0):
    raise ValueError(f"weights.share={share}: give at most 1")

def made(*, power: int = 0):
    raise ValueError(f"composition.power={power}: give 1 or more")

def late(predictions, weights, scales, x, step, memory):
    if step.index:
        raise ValueError("composition: it has had enough")
    return x, memory

def returned(*, power: int = 0):
    return late
"""


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("weights=mine.py:weights", "weights.share=2.0: give at most 1"),
        ("composition=mine.py:made", "composition.power=0: give 1 or more"),
        ("composition=mine.py:late", "composition: it has had enough"),
        ("composition=mine.py:returned", "composition: it has had enough"),
    ],
)
def test_a_rule_of_ones_own_refuses_in_its_own_words(
    choice: str, says: str, here: Path, d2_sample: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(REFUSING)
    assert d2_sample(choice) == 2
    assert capfd.readouterr().err.splitlines()[-1] == f"d2: {says}"
    assert not (here / "out" / "metrics.csv").exists()


def test_a_rule_of_ones_own_is_swept_over(here: Path, d2_sample: Run) -> None:
    (code,) = blocks("python")
    (here / "mine.py").write_text(code)
    assert d2_sample("-m", "weights=mine.py:hand_over", "weights.at=0.2,0.9") == 0
    with (here / "out" / "results.csv").open() as file:
        assert {row["variant"] for row in csv.DictReader(file)} == {
            "weights.at=0.2",
            "weights.at=0.9",
        }

"""Every table of experiments/ is of the weights that ship, or its folder is listed as stale; the
list only shrinks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script import script

from d2.metrics.figures import Figure

FOLDER = Path(__file__).parents[1] / "experiments"
AT_MOST = {"priors_beyond_training"}  # what is stale still


@pytest.fixture
def studies() -> ModuleType:
    return script(FOLDER / "studies.py")


def test_tables_are_of_the_weights_that_ship_or_listed_as_stale(studies: ModuleType) -> None:
    listed = set(studies.STALE.read_text(encoding="utf-8").split())
    assert studies.stale() - listed == set(), "measured with other weights: run `make studies`"
    assert listed - studies.stale() == set(), "measured anew: take them off experiments/STALE"
    assert listed <= AT_MOST


def test_a_table_says_its_weights(studies: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "results.csv"
    for text, expected in (
        ("variant,scene,weights\na,s,1cf4\na,t,1cf4\n", {"1cf4"}),
        ("variant,scene\na,s\n", {"not said"}),
        ("table,setting\na,s\n", None),
    ):
        table.write_text(text)
        assert studies.weights_of(table) == expected


def test_every_folder_is_a_study_with_a_readme(studies: ModuleType) -> None:
    folders = {
        path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert {study.name for study in studies.STUDIES} == folders
    assert all((FOLDER / name / "README.md").exists() for name in folders)
    assert len({study.outputs for study in studies.STUDIES}) == len(studies.STUDIES)


def test_a_study_that_is_stopped_goes_on_and_leaves_its_table(
    studies: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first run is cut while it waits; the second finds the mark that the first has left."""
    monkeypatch.setattr(studies, "ROOT", tmp_path)
    (tmp_path / "experiments" / "one").mkdir(parents=True)
    (tmp_path / "one.py").write_text(
        "import pathlib, time\n"
        "mark, out = pathlib.Path('mark'), pathlib.Path('outputs/one')\n"
        "if not mark.exists():\n    mark.touch(); time.sleep(60)\n"
        "out.mkdir(parents=True); (out / 'results.csv').write_text('table\\n1\\n')\n"
    )
    monkeypatch.setattr(studies, "shipped", lambda: "1cf4")
    monkeypatch.setattr(studies, "STUDIES", (studies.Study("one", 0.1, "python one.py"),))

    def main(*words: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["studies.py", *words])
        return studies.main()

    assert main("--minutes", "0.05") == 75 and (tmp_path / "mark").exists()
    assert (
        main() == 0
        and (tmp_path / "experiments" / "one" / "results.csv").read_text() == "table\n1\n"
    )
    assert main("--list") == 0 and "0.0 hours" in capsys.readouterr().out.splitlines()[-1]


def test_the_default_is_the_least_energy_of_those_that_qualify() -> None:
    """A blurred variant scores best and is passed over, as is one that loses own frames in every
    scene."""
    select = script(FOLDER / "best_rule" / "choose.py")
    numbers = {  # energy, sharpness, own frames
        "columns": (0.12, 0.80, 0.30),
        "blurred": (0.08, 0.60, 0.35),
        "lost": (0.09, 0.80, 0.25),
        "good": (0.10, 0.76, 0.31),
        "autoencoder_ceiling": (float("nan"), 0.84, 1.0),
    }
    names = ("energy", "sharpness", "own_frame_unseen")
    figures = [
        Figure(variant=variant, scene=f"s{k}", metric=metric, value=value + 0.001 * k)
        for variant, values in numbers.items()
        for metric, value in zip(names, values, strict=True)
        for k in range(4)
    ]
    ranked = select.candidates(figures, "columns")
    assert [one.name for one in ranked] == ["blurred", "lost", "good", "columns"]
    assert [bool(one.lacks) for one in ranked] == [True, True, False, False]
    assert select.chosen(ranked).name == "good" and select.chosen(ranked[:1]).name == "blurred"

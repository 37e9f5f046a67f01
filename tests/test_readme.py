"""What the README and the pages in docs/ tell people to type works.

Python blocks run, made tiny; lines of bash blocks that begin with `d2` go through the command line
up to the job, and `make` and `pytest` lines name what is there. `<!-- needs: NAME -->` on the line
before a block has it skipped, by name.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from script import script

from d2 import cli, launch
from d2.io import write_video

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TINY = {
    r"num_views=\d+": "num_views=2",
    r"num_frames=\d+": "num_frames=2",
    r"num_steps=\d+": "num_steps=1",
    r"d2\.load\(": 'd2.load("sampler.num_steps=1", "matrix.num_views=2", "matrix.num_frames=2", ',
}
ALREADY_THERE = (".", "cd", "git", "sha256sum")  # commands that a bash block may use besides ours


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    needs: str | None

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(text: str, page: str) -> list[Block]:
    """The fenced blocks of a page that name a language."""
    pattern = r"(?:^<!-- needs: ([\w ]+) -->\n+)?^( *)```(\w+)\n(.*?)^\2```$"
    return [
        Block(page, text[: m.start(3)].count("\n") + 1, m[3], textwrap.dedent(m[4]), m[1])
        for m in re.finditer(pattern, text, flags=re.DOTALL | re.MULTILINE)
    ]


def all_blocks(language: str) -> list[Any]:
    """The blocks of one language of all pages, as parameters of a test."""
    found = [
        b
        for path in PAGES
        for b in blocks(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]
    return [
        pytest.param(
            b,
            id=b.name,
            marks=[pytest.mark.skip(reason=f"{b.name} needs {b.needs}")] if b.needs else [],
        )
        for b in found
        if b.language == language
    ]


@pytest.fixture(scope="session")
def clone(tiny_weights: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone to what a block does in it: weights, though random ones, in
    checkpoints/."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "checkpoints").mkdir()
    for weights in (Path(override.partition("=")[2]) for override in tiny_weights):
        shutil.copy(weights, folder / "checkpoints" / f"tiny_{weights.name}")
    write_video(folder / "my_clip.mp4", torch.rand(4, 3, 64, 64), 8.0)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("block", all_blocks("python"))
def test_python_runs(block: Block, clone: Path) -> None:
    code = block.text
    for pattern, small in TINY.items():
        code = re.sub(pattern, small, code)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{block.name}\n{done.stderr}"


@pytest.mark.parametrize("block", all_blocks("bash"))
def test_commands_are_understood(
    block: Block,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from d2.resolve import resolve

    def execute(command: str, composed: Any) -> int:
        if command == "sample":
            resolve(composed.config, composed.text, composed.name, composed.label)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "execute", execute)
    monkeypatch.setattr(launch, "processes", lambda config: 0)  # this one understands for all
    for words in commands(block.text):
        if words[0] == "d2":
            assert cli.run(words[1:]) == 0, (
                f"{block.name}: {shlex.join(words)}\n{capsys.readouterr().err}"
            )
        elif words[0] == "make":
            asked = {word for word in words[1:] if "=" not in word}
            assert asked <= targets(), f"{block.name}: {shlex.join(words)}: no such target"
        elif words[0] == "python":
            assert (ROOT / words[1]).exists(), f"{block.name}: {shlex.join(words)}: no such file"
        elif words[0] == "pytest":
            missing = [w for w in words[1:] if w.startswith("tests/") and not (ROOT / w).exists()]
            assert not missing, f"{block.name}: {missing}"
        else:
            assert words[0] in ALREADY_THERE, (
                f"{block.name}: {shlex.join(words)}: who understands this?"
            )


def commands(text: str) -> list[list[str]]:
    """The words of each line of a bash block, without comments and leading NAME=value."""
    lines = (shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines())
    words = [
        [w for i, w in enumerate(line) if not all("=" in v for v in line[: i + 1])]
        for line in lines
    ]
    return [line for line in words if line]


def targets() -> set[str]:
    """What make makes."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))


def test_blocks_are_found_with_their_needs() -> None:
    page = (
        "a\n<!-- needs: gpu -->\n```bash\nd2 sample\n```\n1. b\n\n   ```python\n   if x:\n      "
        " y\n   ```\n"
    )
    page += "```\nno language\n```\n"
    found = blocks(page, "page.md")
    assert [(b.line, b.language, b.text, b.needs) for b in found] == [
        (3, "bash", "d2 sample\n", "gpu"),
        (8, "python", "if x:\n    y\n", None),
    ]
    assert commands("A=1 B=2 d2 sample x=1 \\\n  y=2  # c\n\n# d\n") == [
        ["d2", "sample", "x=1", "y=2"]
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_the_tables_of_the_configuration_are_those_of_the_code() -> None:
    tables = script(ROOT / "docs" / "tables.py")
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "stale: run `make docs`"
    assert text.count("| `sampler.num_steps` | `10` | int, 1 … 1000 |") == 1
    assert "| `prior.lr` |" in text and "`renoise=vrs_fast` (default)" in text

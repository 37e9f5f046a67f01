"""`import torchvision` after d2: helped where its operators do not load, left alone where they
do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEFINE = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
REGISTER = """
import torch
for name in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{name}")(lambda dets, scores, iou_threshold: dets)
"""
SAYS = "torchvision was built for another torch"


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with `path` before what PYTHONPATH says."""
    places = os.pathsep.join([*map(str, path), str(Path(__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": places}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.fixture
def torchvision(tmp_path: Path) -> Path:
    """A folder with a torchvision that goes the way of the real one: it loads its operators, then
    registers them."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import extension, _meta_registrations\n")
    (package / "_meta_registrations.py").write_text(REGISTER)
    (package / "extension.py").write_text("def _has_ops():\n    return False\n")
    return tmp_path


def heal(folder: Path) -> None:
    extension = folder / "torchvision" / "extension.py"
    extension.write_text(f"{DEFINE}\ndef _has_ops():\n    return True\n")


def test_a_mismatched_torchvision_is_imported_and_said_once(torchvision: Path) -> None:
    # so it dies without d2
    assert "torchvision::nms" in python("import torchvision", torchvision).stderr
    done = python("import d2, torchvision\nfrom torchvision import extension", torchvision)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(SAYS) == 1 == done.stderr.count("\n")


def test_a_healthy_torchvision_is_left_alone(torchvision: Path) -> None:
    heal(torchvision)
    done = python(
        "import d2, torchvision, d2._torchvision as ours\nassert not ours._LIBRARIES", torchvision
    )
    # a second definition of an operator would be refused
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_happens_where_nobody_imports_torchvision(torchvision: Path) -> None:
    (torchvision / "torchvision" / "__init__.py").write_text("raise AssertionError")
    assert (done := python("import d2", torchvision)).returncode == 0 and done.stderr == ""


def test_importing_d2_first_lets_every_library_be_imported() -> None:
    done = python(
        "import sys, d2\nheavy = {'lightning', 'open_clip', 'torchmetrics', 'torchvision', 'hydra'}"
        " & set(sys.modules)\nassert not heavy, heavy\nimport lightning, torchmetrics, open_clip,"
        " torchvision.transforms"
    )
    assert done.returncode == 0 and done.stderr.count(SAYS) <= 1, done.stderr

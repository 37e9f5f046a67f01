"""docs/tour.ipynb runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PAGE = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws its pictures and saves its matrix; what it shows of itself has no error in it."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    page = nbformat.read(PAGE, as_version=4)
    NotebookClient(page, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "outputs" / "tour" / "matrix.safetensors").is_file()

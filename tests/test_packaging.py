"""The project outside its clone: a built wheel brings all it needs, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

import d2
from d2.files import asset

ROOT = Path(__file__).parents[1]
ASSETS = ("conf", "experiments", "checkpoints")
TINY = (
    "sampler.num_steps=1",
    "renoise=none",
    "matrix.num_views=2",
    "matrix.num_frames=2",
    "baselines=false",
)


@pytest.fixture(scope="session")
def installed(tiny_weights: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with d2 installed from a wheel, built from a copy of the clone in which a user has
    put weights."""
    base = tmp_path_factory.mktemp("wheel")
    source, wheels, target = base / "source", base / "wheels", base / "target"
    source.mkdir()
    for name in ("d2", "hydra_plugins", "conf", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    (source / "checkpoints").mkdir()
    shutil.copy(ROOT / "checkpoints" / ".d2", source / "checkpoints")
    for weights in (Path(override.partition("=")[2]) for override in tiny_weights):
        shutil.copy(weights, source / "checkpoints" / f"tiny_{weights.name}")
    for name in ("svd_xt.safetensors", "last.ckpt"):
        (source / "checkpoints" / name).write_bytes(b"gigabytes")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
    ]
    succeed(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(wheels),
            str(source),
        ],
        base,
    )
    (wheel,) = wheels.iterdir()
    succeed([*pip, str(wheel)], base)
    (base / "names").write_text("\n".join(zipfile.ZipFile(wheel).namelist()))
    return target


def succeed(command: list[str], folder: Path, path: Path | None = None) -> str:
    """Run a command in a folder, with `path` first among Python's; its standard output."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_a_wheel_brings_its_assets_and_no_weights_of_the_users(installed: Path) -> None:
    names = (installed.parent / "names").read_text().splitlines()
    held = {Path(name).name for name in names if name.startswith("d2/_assets/checkpoints/")}
    assert held == {
        ".d2",
        *(f"tiny_{kind}.safetensors" for kind in ("autoencoder", "video", "multiview")),
    }
    pages = {
        f"d2/report/templates/{path.name}"
        for path in (ROOT / "d2" / "report" / "templates").glob("*.html")
    }
    files = {
        path.relative_to(ROOT).as_posix()
        for name in ASSETS[:2]
        for path in (ROOT / name).rglob("*.yaml")
    }
    assert (
        pages
        and files
        and pages
        | {f"d2/_assets/{name}" for name in files}
        | {"d2/py.typed", "hydra_plugins/d2_launcher.py"}
        <= set(names)
    )
    outside = [
        name
        for name in names
        if name != "hydra_plugins/d2_launcher.py"
        and not name.startswith(("d2/", f"diffusion_squared-{d2.__version__}.dist-info/"))
    ]
    assert outside == []


@pytest.mark.slow
def test_an_installed_d2_samples_from_any_folder(installed: Path, tmp_path: Path) -> None:
    code = "from d2.files import asset\nimport sys\nprint(*map(asset, sys.argv[1:]), sep='\\n')"
    found = succeed([sys.executable, "-c", code, *ASSETS], tmp_path, installed).splitlines()
    assert [Path(line) for line in found] == [
        installed / "d2" / "_assets" / name for name in ASSETS
    ]
    main = "from d2.cli import main\nmain()"
    succeed([sys.executable, "-c", main, "sample", *TINY], tmp_path, installed)
    assert (tmp_path / "outputs" / "sample" / "test_0000" / "grid.png").exists()


def test_python_m_d2_is_ours_where_another_d2_is_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "d2").mkdir()
    (tmp_path / "d2" / "__init__.py").write_text("raise SystemExit('a stranger')")
    (tmp_path / "d2" / "__main__.py").write_text("")
    assert "usage: d2" in succeed([sys.executable, "-m", "d2", "--help"], ROOT, tmp_path)


def test_every_dependency_has_a_tested_version() -> None:
    """`make install` takes the versions of constraints.txt: one for each package that
    pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {canonical(name): version for name, version in (line.split("==") for line in lines)}
    # those of `make install`
    extras = ("tensorboard", "study", "weights", "videomae", "docs", "dev")
    asked = project["dependencies"] + [
        need for extra in extras for need in project["optional-dependencies"][extra]
    ]
    needs = [Requirement(need) for need in asked]
    wrong = [
        f"{need.name}: {tested.get(canonical(need.name))} is not {need.specifier}"
        for need in needs
        if canonical(need.name) != canonical(project["name"])
        and not need.specifier.contains(tested.get(canonical(need.name), "0"))
    ]
    assert not wrong


def test_a_clone_finds_its_own_assets() -> None:
    assert [asset(name) for name in ASSETS] == [ROOT / name for name in ASSETS]
    with pytest.raises(ValueError, match="nonsense: not found"):
        asset("nonsense")


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    cited = re.search(
        r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert cited and cited[1] == d2.__version__

"""Imports point one way (docs/architecture.md): this file is the import linter, and the law of a
light `import d2`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# Package or module -> what of d2 it may import besides itself; the longest name that fits a module
# counts.
LAYERS = {
    "d2._torchvision": (),
    "d2.allocator": (),
    "d2.errors": (),
    "d2.files": (),
    "d2.lens": (),
    "d2.nn": (),
    "d2.noise": (),
    "d2.settings": ("d2.sampling",),
    "d2.cameras": (),
    "d2.matrix": ("d2.cameras",),
    "d2.scene": ("d2.matrix",),
    "d2.io": ("d2.cameras", "d2.files", "d2.matrix", "d2.scene"),
    "d2.sampling": ("d2.matrix", "d2.noise"),
    "d2.shard": ("d2.matrix", "d2.sampling"),
    "d2.passes": ("d2.sampling",),
    "d2.particles": ("d2.passes", "d2.rules.choosing", "d2.sampling"),
    "d2.rules": ("d2.matrix", "d2.sampling"),
    "d2.priors": ("d2.files", "d2.nn", "d2.sampling"),
    "d2.priors.analytic": ("d2.matrix", "d2.sampling", "d2.priors"),
    "d2.data": ("d2.cameras", "d2.lens", "d2.matrix", "d2.scene"),
    "d2.metrics": ("d2.files", "d2.matrix", "d2.nn", "d2.scene", "d2.settings"),
    "d2.metrics.features": ("d2.files", "d2.metrics", "d2.nn"),
    "d2.report": ("d2.files", "d2.metrics.figures", "d2.metrics.intervals", "d2.metrics.table"),
    "d2.terms": (
        "d2.matrix",
        "d2.noise",
        "d2.priors",
        "d2.sampling",
        "d2.scene",
        "d2.views",
        "d2.settings",
    ),
    "d2.views": ("d2.cameras", "d2.matrix", "d2.passes", "d2.priors", "d2.sampling"),
    "d2.reference": (
        "d2.matrix",
        "d2.noise",
        "d2.passes",
        "d2.priors",
        "d2.rules",
        "d2.sampling",
        "d2.scene",
        "d2.shard",
        "d2.terms",
        "d2.views",
    ),
    "d2.pipeline": (
        "d2.matrix",
        "d2.noise",
        "d2.particles",
        "d2.passes",
        "d2.priors",
        "d2.reference",
        "d2.rules",
        "d2.sampling",
        "d2.scene",
        "d2.terms",
    ),
    "d2.signals": (),
    "d2.processes": ("d2.signals",),
    "d2.launch": ("d2.data.folder", "d2.processes"),
    "d2.progress": (),
    "d2": ("d2._torchvision",),
    # --- configuration: what a command is told
    "d2.config.bounds": (),
    "d2.config.recipe": ("d2.config.bounds",),
    "d2.config.schema": ("d2.config.bounds", "d2.config.recipe", "d2.settings"),
    "d2.config.checks": ("d2.config.bounds", "d2.config.schema"),
    "d2.config.names": ("d2.files",),
    "d2.config.paths": ("d2.config.bounds", "d2.config.schema", "d2.files"),
    "d2.config.command_line": (
        "d2.config.binding",
        "d2.config.names",
        "d2.config.paths",
        "d2.config.schema",
        "d2.files",
    ),
    "d2.config.describe": ("d2.config.bounds", "d2.config.command_line", "d2.config.schema"),
    "d2.config.help": ("d2.config.describe", "d2.config.names", "d2.files"),
    "d2.config.binding": ("d2.files", "d2.rules.calibrated", "d2.sampling"),
    "d2.trainer": ("d2.launch", "d2.settings", "d2.signals"),
    "d2.loggers": ("d2.config.names", "d2.files", "d2.settings", "d2.signals"),
    # --- what is decided before a job begins
    "d2.networks": ("d2.files", "d2.matrix", "d2.priors", "d2.terms"),
    "d2.job": (
        "d2.config.names",
        "d2.config.recipe",
        "d2.data",
        "d2.matrix",
        "d2.networks",
        "d2.rules.bundle",
        "d2.settings",
    ),
    # --- the jobs, each a room
    "d2.plan": (
        "d2.job",
        "d2.rules.bundle",
        "d2.matrix",
        "d2.pipeline",
        "d2.reference",
        "d2.priors",
        "d2.rules.choosing",
        "d2.sampling",
        "d2.scene",
        "d2.shard",
        "d2.terms",
    ),
    "d2.recon": (
        "d2.cameras",
        "d2.report.asset_page",
        "d2.config.recipe",
        "d2.progress",
        "d2.files",
        "d2.io",
        "d2.lens",
        "d2.matrix",
        "d2.metrics",
        "d2.scene",
        "d2.signals",
        "d2.trainer",
    ),
    "d2.recon.job": (
        "d2.metrics.figures",
        "d2.metrics.networks",
        "d2.config.names",
        "d2.config.recipe",
        "d2.data",
        "d2.files",
        "d2.io",
        "d2.loggers",
        "d2.matrix",
        "d2.recon",
        "d2.report",
        "d2.scene",
        "d2.trainer",
    ),
    "d2.recon.world": ("d2.data", "d2.matrix", "d2.recon", "d2.scene"),
    "d2.evaluate": (
        "d2.data",
        "d2.files",
        "d2.io",
        "d2.metrics",
        "d2.recon.self_fit",
        "d2.scene",
        "d2.trainer",
    ),
    "d2.train": (
        "d2.settings",
        "d2.config.names",
        "d2.cameras",
        "d2.data",
        "d2.matrix",
        "d2.files",
        "d2.loggers",
        "d2.nn",
        "d2.priors",
        "d2.progress",
        "d2.settings",
        "d2.signals",
        "d2.trainer",
    ),
    "d2.sample": (
        "d2.cameras",
        "d2.nn.unet",
        "d2.data",
        "d2.files",
        "d2.launch",
        "d2.io",
        "d2.job",
        "d2.loggers",
        "d2.matrix",
        "d2.metrics",
        "d2.networks",
        "d2.noise",
        "d2.passes",
        "d2.pipeline",
        "d2.reference",
        "d2.plan",
        "d2.priors",
        "d2.progress",
        "d2.recon.self_fit",
        "d2.report",
        "d2.rules",
        "d2.sampling",
        "d2.scene",
        "d2.shard",
        "d2.terms",
        "d2.trainer",
    ),
    "d2.study": (
        "d2.config.names",
        "d2.data",
        "d2.files",
        "d2.launch",
        "d2.io",
        "d2.job",
        "d2.loggers",
        "d2.metrics",
        "d2.report",
        "d2.sample",
    ),
    "d2.resolve": (
        "d2.config",
        "d2.data",
        "d2.files",
        "d2.job",
        "d2.matrix",
        "d2.metrics",
        "d2.networks",
        "d2.priors",
        "d2.reference",
        "d2.rules",
        "d2.sampling",
        "d2.settings",
        "d2.terms",
    ),
    "d2.commands": (
        "d2.config",
        "d2.data.sources",
        "d2.evaluate",
        "d2.files",
        "d2.job",
        "d2.launch",
        "d2.plan",
        "d2.recon",
        "d2.resolve",
        "d2.rules.bundle",
        "d2.sample",
        "d2.settings",
        "d2.study",
        "d2.train",
    ),
    "d2.cli": (
        "d2.allocator",
        "d2.commands",
        "d2.config",
        "d2.files",
        "d2.launch",
        "d2.loggers",
        "d2.priors.catalog",
        "d2.processes",
        "d2.signals",
        "d2.sweep",
    ),
    "d2.sweep": ("d2.config", "d2.files", "d2.launch", "d2.processes", "d2.study"),
    "d2.api": (
        "d2.config",
        "d2.data.sources",
        "d2.files",
        "d2.io",
        "d2.job",
        "d2.matrix",
        "d2.networks",
        "d2.rules.bundle",
        "d2.priors.placement",
        "d2.resolve",
        "d2.sample",
        "d2.sampling",
        "d2.scene",
    ),
    "d2.__main__": ("d2.cli",),
}
# of those jobs that are Lightning's
ROOMS = ("d2.sample", "d2.study", "d2.train", "d2.evaluate", "d2.recon")
# Library -> where it may be imported.
FENCES = {
    "hydra": ("d2.sweep", "d2.config.paths", "d2.config.command_line", "d2.config.schema"),
    "omegaconf": ("d2.config.command_line", "d2.config.describe", "d2.config.schema"),
    "lightning": (*ROOMS, "d2.progress", "d2.trainer", "d2.loggers"),
    "wandb": ("d2.loggers", "d2.report"),
    "lightning.pytorch.loggers": ("d2.loggers",),
    "torch.distributed": ("d2.shard",),
    "open_clip": ("d2.metrics.clip",),
    "rembg": ("d2.data.matting",),
    "onnxruntime": ("d2.data.matting",),
    "huggingface_hub": ("d2.priors.catalog",),
    "torchmetrics": ("d2.metrics",),
    "gsplat": ("d2.recon.rasterize",),
    "viser": ("d2.recon.view",),
}
# Sampling knows nothing of files, Hydra, Lightning and W&B.
PURE = (
    *(
        "d2.cameras",
        "d2.matrix",
        "d2.scene",
        "d2.noise",
        "d2.sampling",
        "d2.shard",
        "d2.rules",
        "d2.terms",
    ),
    *("d2.views", "d2.passes", "d2.particles", "d2.reference", "d2.pipeline", "d2.nn"),
)
IMPURE = (
    "pathlib",
    "os",
    "io",
    "json",
    "shutil",
    "PIL",
    "imageio",
    "imageio_ffmpeg",
    "safetensors",
    *FENCES,
)
ALLOWED_IN_PURE = {"d2.shard": ("torch.distributed",)}


class Module(NamedTuple):
    name: str
    imports: frozenset[str]  # dotted names of modules, and of what is taken from them


def within(name: str, *places: str) -> bool:
    """Whether a dotted name is one of the places or lies in one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def imported(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that a module imports, or reaches through a package it imported; type
    checking apart."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed"):
            yield "torch.distributed"
        todo += ast.iter_child_nodes(node)


def room_of(name: str) -> str:
    """The package of d2 that a module lies in, or the module itself."""
    return ".".join(name.split(".")[:2])


def read_modules(folder: Path) -> dict[str, Module]:
    """All modules of the package d2 in `folder`."""
    modules = {}
    for path in sorted((folder / "d2").rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(
            name, frozenset(imported(ast.parse(path.read_text(encoding="utf-8"))))
        )
    return modules


def own_imports(module: Module, modules: dict[str, Module]) -> set[str]:
    """The modules of d2 that a module imports."""
    found = set()
    for name in module.imports:
        if within(name, "d2") and name != "d2.__version__":
            found.add(name if name in modules else name.rpartition(".")[0])
    return found - {module.name}


def violations(modules: dict[str, Module]) -> list[str]:
    """One line for every import that points the wrong way."""
    lines = []
    for module in modules.values():
        layers = [
            layer
            for layer in LAYERS
            if module.name == layer or (layer != "d2" and within(module.name, layer))
        ]
        if not layers:
            if module.imports:
                lines.append(f"{module.name} has no layer: say in LAYERS what it may import")
            continue
        layer = max(layers, key=len)
        for name in own_imports(module, modules):
            if not within(name, "d2.errors", *LAYERS[layer]) and not (
                layer != "d2" and within(name, layer)
            ):
                lines.append(f"{module.name} imports {name}")
        for library, places in FENCES.items():
            if any(within(name, library) for name in module.imports) and not within(
                module.name, *places
            ):
                lines.append(f"{module.name} imports {library}")
        if within(module.name, *PURE):
            allowed = ALLOWED_IN_PURE.get(module.name, ())
            lines += [
                f"{module.name} imports {name}: sampling knows no files and frameworks"
                for name in module.imports
                if within(name, *IMPURE) and not within(name, *allowed)
            ]
    return sorted(lines)


def test_imports_point_one_way() -> None:
    assert violations(read_modules(ROOT)) == []


def test_there_are_no_circles_of_modules_or_rooms() -> None:
    modules = read_modules(ROOT)
    graph = {name: own_imports(module, modules) - {"d2"} for name, module in modules.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(modules)  # raises CycleError
    rooms: dict[str, set[str]] = {}
    for name in graph.keys() - {"d2", "d2.priors.analytic"}:
        rooms.setdefault(room_of(name), set()).update(
            {room_of(other) for other in graph[name]} - {room_of(name)}
        )
    assert len(list(TopologicalSorter(rooms).static_order())) == len(rooms)


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("nn/unet.py", "from d2.matrix import take", "d2.nn.unet imports d2.matrix"),
        ("priors/svd.py", "from d2 import matrix", "d2.priors.svd imports d2.matrix"),
        ("priors/analytic.py", "from d2.matrix import take", ""),
        ("sampling.py", "def f():\n    from d2.shard import place", "d2.sampling imports d2.shard"),
        ("rules/weights.py", "import hydra.utils", "d2.rules.weights imports hydra"),
        ("metrics/table.py", "import lightning as L", "d2.metrics.table imports lightning"),
        (
            "study/job.py",
            "import torch\ntorch.distributed.barrier()",
            "d2.study.job imports torch.distributed",
        ),
        ("study/job.py", "from torch import distributed", "d2.study.job imports torch.distributed"),
        ("pipeline.py", "from pathlib import Path", "d2.pipeline imports pathlib"),
        (
            "noise.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import d2.sampling",
            "",
        ),
        ("extra.py", "import torch", "d2.extra has no layer"),
    ],
)
def test_the_linter_sees_a_wrong_import(tmp_path: Path, path: str, code: str, said: str) -> None:
    for name in ("matrix.py", "shard.py", path):
        (tmp_path / "d2" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d2" / name).write_text("")
    (tmp_path / "d2" / path).write_text(code)
    found = violations(read_modules(tmp_path))
    assert any(line.startswith(said) for line in found) if said else found == []


def takes_configuration(tree: ast.AST, types: set[str]) -> Iterator[str]:
    """The functions of a module with a parameter that is annotated with one of these types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            told = " ".join(ast.unparse(each.annotation) for each in given if each.annotation)
            if types & set(re.findall(r"\w+", told)):
                yield node.name


def test_a_configuration_is_resolved_once() -> None:
    """Below commands/ and resolve.py no function takes a configuration; there, ten do at most."""
    schema = ast.parse((ROOT / "d2" / "config" / "schema.py").read_text(encoding="utf-8"))
    types = {node.name for node in schema.body if isinstance(node, ast.ClassDef)}
    found = {}
    for path in sorted((ROOT / "d2").rglob("*.py")):
        names = list(takes_configuration(ast.parse(path.read_text(encoding="utf-8")), types))
        if names:
            found[path.relative_to(ROOT / "d2").as_posix()] = names
    places = {file.partition("/")[0] for file in found if file != "config/checks.py"}
    assert places == {"commands", "resolve.py"} and "resolve" in found["resolve.py"]
    assert sum(map(len, found.values())) <= 10, found


def test_importing_d2_is_light_and_asks_no_network() -> None:
    code = (
        "import socket, sys\ndef refuse(*_): raise AssertionError('import d2 opened a"
        " socket')\nsocket.socket.connect = socket.create_connection = socket.getaddrinfo ="
        " refuse\nimport d2\nheavy = {'torch', 'numpy', 'lightning', 'hydra', 'omegaconf',"
        " 'open_clip', 'torchvision', 'wandb', 'PIL'}\nassert not heavy & set(sys.modules), heavy &"
        " set(sys.modules)\nassert callable(d2.sample_matrix) and not (heavy - {'torch', 'numpy'})"
        " & set(sys.modules)\nfor name in set(d2.__all__) - set(d2._HOMES['d2.api']): getattr(d2,"
        " name)\nassert 'torch' in sys.modules and not {'open_clip', 'torchvision', 'lightning',"
        " 'hydra', 'omegaconf'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_users_can_mend_is_said_by_an_input_error() -> None:
    """The command prints no other ValueError; networks, which could be lifted out of the house,
    know none of ours."""
    files = [path for path in (ROOT / "d2").rglob("*.py") if "nn" not in path.parts]
    assert not [
        path.name for path in files if "raise ValueError(" in path.read_text(encoding="utf-8")
    ]


def test_lines_on_stderr_are_written_whole() -> None:
    """A `print` to stderr may be two writes, between which another process writes its own."""
    found = [
        str(path) for path in (ROOT / "d2").rglob("*.py") if "file=sys.stderr" in path.read_text()
    ]
    assert found == []

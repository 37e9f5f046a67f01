"""A run that was stopped goes on where it stopped, and leaves the bytes of one that was not."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_world import sample, terms_of

from d2.errors import InputError
from d2.noise import draw
from d2.passes import Journal, Pass
from d2.priors import analytic
from d2.priors.analytic import autoregressive
from d2.rules import renoise, solver
from d2.rules.superposition import logical_or
from d2.sample.kept import KEPT
from d2.sample.state import STATE, packed, unpacked
from d2.sampling import initial_x, karras_sigmas

Run = Callable[..., int]
CPU = torch.device("cpu")


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


# --- memory on disk -------------------------------------------------------------------------------


def test_what_is_packed_comes_back() -> None:
    x = torch.randn(2, 3)
    memory = (
        {"a": {"x": x, "level": 0.1 + 0.2, "none": None}, "list": [math.inf, (1, True, "s")]},
        {"x": x.T},
    )
    passes = {"joint.0": Pass(3, x, memory, {"sigma": (torch.tensor(0.3, dtype=torch.float64),)})}
    tensors, text = packed(passes)
    assert len({t.data_ptr() for t in tensors.values()}) == len(tensors)  # what safetensors wants
    back = unpacked(tensors, text, CPU)["joint.0"]
    assert back.done == 3 and torch.equal(back.x, x) and torch.equal(back.memory[1]["x"], x.T)
    assert back.memory[0]["list"] == memory[0]["list"] and back.memory[0]["a"]["level"] == 0.1 + 0.2
    assert back.trace["sigma"][0].dtype == torch.float64 and isinstance(back.trace["sigma"], tuple)


@pytest.mark.parametrize("value", [{1: 2}, {0.5}, complex(1, 2)], ids=["key", "set", "complex"])
def test_a_memory_that_cannot_be_saved_is_refused(value: Any) -> None:
    passes = {"joint.0": Pass(1, torch.zeros(1), ({"mine": value}, {}), {})}
    with pytest.raises(InputError, match="joint.0/2/0/mine: memory holds a .*save_every_seconds=0"):
        packed(passes)


RULES = {
    "superposition, heun": {"compose": logical_or(temperature=10.0), "solver": solver.heun},
    "dpmpp_2m": {"solver": solver.dpmpp_2m},
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_a_pass_goes_on_from_every_step(rules: dict[str, Any]) -> None:
    """With what rule, solver and trace hold, through a file's tensors and text; what is finished is
    not asked again."""
    terms = terms_of(
        analytic.separable(autoregressive(2, 0.7), autoregressive(3, 0.5)),
        2,
        3,
        ("video", "multiview"),
    )
    sigmas = karras_sigmas(5, sigma_min=0.1, sigma_max=10.0)
    plan = renoise.corrector(sigmas, back=renoise.returning, repeats=1, sigma_low=0.0, s_churn=20.0)
    x = initial_x(draw(0, "init", (2, 3, 1, 2, 2)), plan[0].sigma)
    states: list[tuple[Any, str]] = []
    of = partial(sample, terms=terms, **rules)

    def run(
        passes: dict[str, Pass], changed: Callable[[Journal], None] = lambda _: None
    ) -> tuple[Any, list[float]]:
        journal: Journal = Journal(passes, lambda: changed(journal))
        trace: Any = {"sigma": []}
        see = lambda state: trace["sigma"].append(torch.tensor(state.step.sigma))  # noqa: E731
        end = journal.named("joint")(of, x, plan, see, trace)
        return end, [float(sigma) for sigma in trace["sigma"]]

    whole, sigmas = run({}, lambda journal: states.append(packed(journal.passes)))
    assert len(states) == len(plan) == len(sigmas)
    for k, (tensors, text) in enumerate(states):
        left = []
        again, traced = run(unpacked(tensors, text, CPU), lambda _, left=left: left.append(1))
        assert torch.equal(again, whole) and traced == sigmas and len(left) == len(plan) - 1 - k


# --- runs -----------------------------------------------------------------------------------------


class Stopped(BaseException):
    """Something ends the run."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[all steps of all passes so far, steps until the run is stopped]."""
    counts, own = [0, -1], Journal.__init__

    def counted(self: Journal, passes: dict[str, Pass], changed: Callable[[], None]) -> None:
        def change() -> None:
            changed()
            counts[0] += 1
            counts[1] -= 1
            if counts[1] == 0:
                raise Stopped

        own(self, passes, change)

    monkeypatch.setattr(Journal, "__init__", counted)
    return counts


@pytest.mark.parametrize(
    "more",
    [["pages=true", "baselines=true"], ["seeds=[0,1]"], ["particles=2", "choosing=lift"]],
    ids=["run", "study", "particles"],
)
def test_a_run_that_is_stopped_again_and_again_leaves_the_same_bytes(
    more: list[str], d2_sample: Run, tmp_path: Path, steps: list[int]
) -> None:
    """It takes no step twice, and leaves nothing behind; what is finished is not touched again."""
    line = [
        *more,
        "scenes.count=2",
        "composition=superposition_or",
        "renoise=churn",
        "sampler.num_steps=3",
    ]
    line += ["renoise.sigma_low=0", "renoise.sigma_high=inf"]
    assert d2_sample(*line) == 0
    straight, taken = files_of(tmp_path / "out"), steps[0]
    (tmp_path / "out").rename(tmp_path / "straight")
    steps[0], stops = 0, 0
    for after in (1, 4, 2, 5, 3, 7, 6, 4):
        steps[1] = after
        try:
            assert d2_sample(*line) == 0
            break
        except BaseException as stopped:
            assert "Stopped" in repr(stopped) or isinstance(stopped, Stopped)
            stops += 1
            assert list((tmp_path / "out").rglob(STATE))
    else:
        steps[1] = -1
        assert d2_sample(*line) == 0
    assert stops >= 3 and steps[0] == taken
    assert files_of(tmp_path / "out") == straight
    assert not list((tmp_path / "out").rglob(STATE)) and not list((tmp_path / "out").rglob(KEPT))


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_goes_on(d2_sample: Run, tmp_path: Path) -> None:
    """SIGKILL, while scenes are read, sampled, measured and written; tests/kill.py does so to whole
    commands."""
    line = [
        "scenes.count=2",
        "sampler.num_steps=4",
        "save_every_seconds=0.01",
        "pages=true",
        "trainer.threads=1",
    ]

    def begun() -> int:
        """The command in a process of its own, without its start-up."""
        child = os.fork()
        if child == 0:
            try:
                os._exit(d2_sample(*line))
            finally:
                os._exit(99)
        return child

    began, matrices, dice = time.monotonic(), set(), random.Random(0)
    assert os.waitpid(begun(), 0)[1] == 0
    whole, straight = time.monotonic() - began, files_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    for _ in range(8):
        child, deadline = begun(), time.monotonic() + dice.uniform(0, 0.8 * whole)
        while time.monotonic() < deadline and not os.waitpid(child, os.WNOHANG)[0]:
            matrices |= {
                (str(p), p.stat().st_mtime_ns)
                for p in (tmp_path / "out").glob("[!.]*/matrix.safetensors")
            }
            time.sleep(0.005)
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert os.waitpid(begun(), 0)[1] == 0
    matrices |= {
        (str(p), p.stat().st_mtime_ns) for p in (tmp_path / "out").glob("[!.]*/matrix.safetensors")
    }
    assert files_of(tmp_path / "out") == straight
    assert len(matrices) == 2  # none was sampled to its end twice


def test_a_finished_run_is_not_sampled_again(
    d2_sample: Run, tmp_path: Path, predicted: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert d2_sample("scenes.count=2") == 0
    before = files_of(tmp_path / "out")
    capfd.readouterr()
    assert d2_sample("scenes.count=2", "logger=csv", "save_every_seconds=0") == 0
    assert capfd.readouterr().err == f"d2: {tmp_path / 'out'}: finished before, not run again\n"
    assert len(predicted) == 2 and files_of(tmp_path / "out") == before


def test_another_input_of_the_same_name_is_sampled_anew(
    d2_sample: Run, tmp_path: Path, predicted: list[str]
) -> None:
    from PIL import Image

    clip = tmp_path / "clip"
    clip.mkdir()
    for grey in (20, 200):
        for frame in range(3):
            picture = Image.new("RGBA", (64, 64))
            picture.paste((grey, grey, 60 * frame, 255), (20, 20, 44, 44))
            picture.save(clip / f"{frame}.png")
        for _ in range(2):
            assert d2_sample("scenes=folder", f"scenes.path={clip}", "metrics=[]") == 0
    assert len(predicted) == 2

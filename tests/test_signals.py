"""SIGINT, SIGTERM and SIGUSR1 end a command within seconds, with 130, 143 and 75, wherever it
is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d2 import signals

LONG = [
    "sampler.num_steps=1000",
    "matrix.num_views=8",
    "matrix.num_frames=8",
    "pages=false",
    "trainer=cpu",
]
WITHIN = 10.0  # seconds
ENV = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def handled() -> object:
    """Handlers as in a command, and as they were afterwards."""
    before = {signum: signal.getsignal(signum) for signum in signals.SIGNALS}
    signals.install()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signals.forget()


def test_a_signal_is_raised_where_the_program_is(handled: None) -> None:
    with pytest.raises(signals.Stopped) as stopped:
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.exit_code == 143 and str(stopped.value) == "stopped by SIGTERM"
    assert signals.Stopped(signal.SIGUSR1).exit_code == 75


def test_a_signal_waits_for_what_has_to_be_whole(handled: None) -> None:
    seen = []
    with pytest.raises(signals.Stopped) as stopped, signals.held_back():
        assert signals.received() is None
        signal.raise_signal(signal.SIGINT)
        seen.append("whole")
        assert signals.received() == signal.SIGINT
    assert seen == ["whole"] and stopped.value.exit_code == 130


def test_a_stop_that_a_library_swallows_is_cut_off_and_said() -> None:
    code = """if True:
        import signal, time
        from d2 import signals
        signals.GRACE_SECONDS = 0.2
        signals.install()
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            time.sleep(30)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (143, "d2: stopped by SIGTERM\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "sign", "signum"),
    [
        (["sample", *LONG], "sampling ", signal.SIGTERM),
        (["sample", "-m", *LONG, "seed=0,1"], "sampling ", signal.SIGINT),
        (["sample", "-m", *LONG, "seed=0,1", "trainer.devices=2"], "sampling ", signal.SIGTERM),
        (["sample", *LONG, "variants={a:[],b:[weights=video]}"], "sampling ", signal.SIGTERM),
        # seconds, while it imports
        *((["sample", *LONG], after, signal.SIGTERM) for after in (0.5, 0.7, 1.0)),
    ],
    ids=[
        "sampling",
        "sweep",
        "sweep-on-two",
        "study",
        *(f"start-up-{after}" for after in (0.5, 0.7, 1.0)),
    ],
)
def test_a_command_ends_with_the_signals_code(
    line: list[str], sign: str | float, signum: int, tiny_weights: list[str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "d2", *line, *tiny_weights],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=ENV,
        cwd=tmp_path,
    )
    assert process.stderr is not None
    if isinstance(sign, str):
        assert any(sign in line for line in process.stderr)  # reads up to there
        time.sleep(1)
    else:
        time.sleep(sign)
    asked = time.monotonic()
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - asked < WITHIN
    assert process.returncode == 128 + signum
    assert (
        said.splitlines()[-1] == f"d2: stopped by {signal.Signals(signum).name}"
        and "Traceback" not in said
    )
    assert not list(tmp_path.rglob("*.partial"))

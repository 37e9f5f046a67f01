"""SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 end any command within seconds: the one place that handles
them.

The codes are 130, 143 and 75. SLURM sends SIGUSR1 before it takes a job's nodes away
(--signal=USR1@60), or SIGUSR2 to submitit's jobs, and to all processes of a job: what was begun is
there to go on with, and 75, the EX_TEMPFAIL of sysexits.h, says that the job may be started again.

While a command loads its libraries, a signal ends it at once: what is raised in the middle of a
compiled module's import is swallowed there, or aborts the process. From then on it raises `Stopped`
wherever the program is. Where something has to be whole before it stops, a training step for one,
`held_back` has it noted instead, until the next place that is a good one.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

TAKEN_AWAY = (signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (signal.SIGINT, signal.SIGTERM, *TAKEN_AWAY)
PREEMPTED = 75
GRACE_SECONDS = 8.0  # a stop that takes longer is cut off


class Stopped(BaseException):
    """A signal asked the program to stop. No Exception, so that nobody takes it for a failure that
    can be handled."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"

    @property
    def exit_code(self) -> int:
        return PREEMPTED if self.signum in TAKEN_AWAY else 128 + self.signum


class _State:
    """What one process knows of signals."""

    installed = False
    received: int | None = None
    since = 0.0  # seconds, of the monotonic clock
    cut_off: threading.Timer | None = None
    held = 0  # how many `held_back` are open
    announced = False
    loading = False
    haste = False


def install(*, loading: bool = False) -> None:
    """Handle `SIGNALS` in this process, from its main thread; `loading` until `loaded` says
    otherwise."""
    _State.installed, _State.loading = True, loading
    for signum in SIGNALS:
        signal.signal(signum, _receive)


def loaded() -> None:
    """Say that the libraries are there and work begins, which signals unwind in good order."""
    _State.loading = False


def reinstall() -> None:
    """Take the place again that a library took; Lightning's own handler notes SIGTERM and goes on
    for hours."""
    if _State.installed:
        install()


def _receive(signum: int, frame: FrameType | None) -> None:
    if _State.loading:
        _cut_off(signum)
    now = time.monotonic()
    if _State.received is not None:
        if now - _State.since > 1:  # asked again, and not by the same Ctrl-C on another way
            _cut_off(signum)
        return
    _State.received, _State.since = signum, now
    _State.cut_off = threading.Timer(GRACE_SECONDS, _cut_off, (signum,))
    _State.cut_off.daemon = True
    _State.cut_off.start()
    if not _State.held:
        raise Stopped(signum)


def _cut_off(signum: int) -> NoReturn:
    """End the process at once: a library may have swallowed `Stopped`, or a second signal does not
    want to wait."""
    stopped = Stopped(signum)
    announce(stopped)
    os._exit(stopped.exit_code)


def announce(stopped: Stopped) -> None:
    """Say on stderr what stopped the command, once; of several processes the first one does."""
    if not _State.announced and not is_child():
        os.write(2, f"d2: {stopped}\n".encode())
    _State.announced = True


def is_child() -> bool:
    """Whether another process of this command started this one."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0 or "D2_NOTES" in os.environ


def hasten() -> None:
    """Let the process end without waiting for what waits for nothing, as W&B's exit handler for a
    server that is silent."""
    _State.haste = True


def in_haste() -> bool:
    """Whether `leave` should end the process."""
    return _State.haste


def leave(code: int) -> NoReturn:
    """End the process once its exit handlers have run, for as long as a stop may take: W&B's waits
    for a server that is silent, and an interpreter that holds PyTorch takes seconds to fold up."""
    handlers = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    handlers.start()
    handlers.join(GRACE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def forget() -> None:
    """Know of no signal, and put handlers nowhere again: for a process that goes on after
    `Stopped`."""
    _State.installed, _State.received, _State.announced = False, None, False
    if _State.cut_off is not None:
        _State.cut_off.cancel()


def received() -> int | None:
    """The signal that has asked the program to stop, if one has."""
    return _State.received


def stop() -> None:
    """Raise `Stopped`: for the signal received, or as SIGTERM would where another rank received
    one."""
    raise Stopped(_State.received or signal.SIGTERM)


@contextmanager
def held_back() -> Iterator[None]:
    """Within, a signal is noted only: `received` tells of it, and it is raised at the end."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
    if not _State.held and _State.received is not None:
        stop()

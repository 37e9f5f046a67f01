"""Commands in forks of this process, which have its imports and its small networks: a second each,
where a new interpreter takes seven."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from d2 import cli, processes


class Forked:
    """`d2 ARGUMENTS`, as `processes.start` would start it anew; what it starts are forks too."""

    def __init__(
        self,
        arguments: Sequence[str],
        own: Mapping[str, str] | None = None,
        count: int = 1,
        *,
        said: Path | None = None,  # takes what it writes to stderr
    ):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, own or {}, said)

    def _run(self, arguments: Sequence[str], own: Mapping[str, str], said: Path | None) -> None:
        code: Any = 99
        atexit._clear()
        try:
            if said is not None:
                os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
                sys.stderr = os.fdopen(2, "w", closefd=False)
            os.environ.update(own)
            processes.start = Forked  # type: ignore[assignment]
            rank_zero_only.rank = int(own.get("RANK", "0"))
            torch.set_num_threads(1)
            cli.main(arguments)
        except SystemExit as left:
            code = left.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 300.0) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("d2", timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def wait_for(text: str, said: Path, times: int = 1, timeout: float = 300.0) -> None:
    """Wait until a process has said something so often."""
    deadline = time.monotonic() + timeout
    while not said.exists() or said.read_text().count(text) < times:
        told = said.read_text() if said.exists() else "nothing"
        assert time.monotonic() < deadline, f"waiting for {text!r}: {told}"
        time.sleep(0.02)

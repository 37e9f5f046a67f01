"""What is meant for whoever runs d2, and not for whoever writes it: one exception, and lines on
stderr."""

from __future__ import annotations

import sys


class InputError(ValueError):
    """What the user can mend: one line that names the key or the file, the value and the way out.

    The command prints it and exits with 2; any other exception is a bug of ours, and keeps its
    traceback.
    """


def as_line(message: str) -> str:
    """A message on one line, as d2 says it."""
    return f"d2: {' '.join(message.split())}"


def say(line: str) -> None:
    """Write a line to stderr by one call, so that lines of several processes do not run into each
    other."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()

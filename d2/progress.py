"""The bar on the terminal that samplings, trainings and fits share."""

from __future__ import annotations

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBar(L.Callback):
    """A bar with a description, steps done and the time left, on stderr; it gives the terminal its
    cursor back."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console
        )

    def on_train_end(self, *_: Any) -> None:
        self.stop()

    def on_predict_end(self, *_: Any) -> None:
        self.stop()

    def on_exception(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop drawing."""
        if self.progress.live.is_started:
            self.progress.stop()

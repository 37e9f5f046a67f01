"""`hydra/launcher=local`: the points of a sweep on the devices of this machine.

Hydra looks for launchers in packages of this name alone, and imports all it finds at every start:
what needs more than Hydra stands in d2/sweep.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn


class LocalLauncher(BasicLauncher):
    """Points one after another in this process, or several at once where devices would be idle."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Let Hydra go through the points, noting them where the task runs them at once."""
        task: Any = self.task_function
        groups = task.groups(self.config, job_overrides)
        if len(groups) == 1:
            return super().launch(job_overrides, initial_job_idx)
        self.task_function = task.point
        noted = super().launch(job_overrides, initial_job_idx)
        values = task.at_once([each.return_value for each in noted], groups)
        for each, value in zip(noted, values, strict=True):
            each.return_value = value
        return noted


ConfigStore.instance().store(
    group="hydra/launcher",
    name="local",
    node={"_target_": "hydra_plugins.d2_launcher.LocalLauncher"},
    provider="d2",
)

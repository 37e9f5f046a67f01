"""The progress of a predict loop on the terminal."""

from __future__ import annotations

import lightning as L

from d2 import launch
from d2.progress import ProgressBar
from d2.sample.matrix_sampler import MatrixSampler
from d2.sampling import State
from d2.scene import Scene


class SamplerProgress(ProgressBar):
    """A progress bar with the scene, the step, its sigma and the time left; plain lines where there
    is no terminal."""

    def __init__(self, num_scenes: int, evaluations: int):
        super().__init__()
        self.num_scenes = num_scenes
        self.scene = ""
        self.task = self.progress.add_task("sampling", total=num_scenes * evaluations)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MatrixSampler)
        pl_module.starts.append(self.start)
        pl_module.listeners.append(self.advance)
        self.told = trainer.is_global_zero and not self.console.is_terminal
        if trainer.is_global_zero and self.console.is_terminal and launch.worker()[0] == 0:
            self.progress.start()

    def start(self, scene: Scene, index: int) -> None:
        self.scene = scene.name
        if self.told:
            self.console.print(
                f"sampling {scene.name} ({index + 1} of {self.num_scenes})", highlight=False
            )

    def advance(self, name: str, state: State) -> None:
        step = state.step
        description = (
            f"{self.scene} {name} step {step.index + 1}/{step.num_steps} σ {step.sigma:.3g}"
        )
        self.progress.update(self.task, advance=1, description=description)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop()
        assert isinstance(pl_module, MatrixSampler)
        pl_module.starts.remove(self.start)
        pl_module.listeners.remove(self.advance)

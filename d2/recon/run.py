"""One reconstruction: a capture is fitted, measured, and written as what people take away.

FOLDER/scene.safetensors, ply/frame_0000.ply …, held/VV_FF.png, orbit.mp4, spiral.mp4,
           index.html, metrics.json
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from d2 import signals
from d2.config.recipe import Recipe
from d2.errors import InputError
from d2.files import staged, staged_folder, write_json
from d2.io import write_png, write_video
from d2.metrics.image import ImageDistance
from d2.progress import ProgressBar
from d2.recon.capture import Capture, held_cells
from d2.recon.files import motion_named, read_scene, write_ply_sequence, write_scene
from d2.recon.fit import SceneFit
from d2.recon.gaussians import Pinholes, orbit_pinholes
from d2.recon.hull import common_ball
from d2.recon.measure import Render, fit_figures, render_pictures
from d2.recon.motion import Motion
from d2.recon.page import write_page
from d2.recon.rasterize import Rasterize, rasterize, rasterize_gsplat
from d2.recon.scene import MovingGaussians
from d2.trainer import StopsAtOnce

# a film's shorter side at least, its pictures a turn and a second
FILM_SIDE, FILM_PICTURES, FILM_FPS = 128, 48, 16
LOG_EVERY = 10  # steps


class Reconstruction(NamedTuple):
    """What came of a fit."""

    scene: MovingGaussians
    figures: dict[str, float]


def reconstruct(
    capture: Capture,
    recipe: Recipe,
    motion: Motion,
    folder: Path,
    *,
    name: str,
    seed: int = 0,
    accelerator: str = "auto",  # as Lightning names it
    loggers: Sequence[Any] = (),
    distances: Sequence[ImageDistance] = (),  # measured beside PSNR and SSIM
    # where the world is known
    more_figures: Callable[[Render, torch.device], dict[str, float]] | None = None,
) -> Reconstruction:
    """Fit a scene and write it into `folder`. What is finished there of the same input is read and
    left as it is, what was interrupted goes on. The same input gives the same scene."""
    digest = digest_of(capture, recipe, motion, seed, [distance.name for distance in distances])
    if (figures := finished(folder, digest)) is not None:
        return Reconstruction(read_scene(folder / "scene.safetensors", motion)[0], figures)
    state = folder / f".fit_{digest}.ckpt"
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=recipe.max_steps,
        logger=list(loggers),
        log_every_n_steps=LOG_EVERY,
        callbacks=[
            StopsAtOnce(),
            FitProgress(name, recipe.max_steps),
            KeepState(state, recipe.save_every_seconds),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    device = trainer.strategy.root_device
    draw = rasterizer(recipe.rasterizer, device)
    fit = SceneFit(capture, recipe, motion, draw, seed)
    going_on = str(state) if state.exists() else None
    with signals.held_back():
        trainer.fit(fit, DataLoader(range(recipe.max_steps), batch_size=None), ckpt_path=going_on)  # type: ignore[arg-type]
    fit = fit.eval().to(device)
    figures = write_outputs(folder, name, fit, capture.to(device), digest, distances, more_figures)
    state.unlink(missing_ok=True)
    return Reconstruction(fit.scene, figures)


def rasterizer(kind: str, device: torch.device) -> Rasterize:
    """The one that is asked for; auto: gsplat's on CUDA, the plain one elsewhere."""
    if kind not in ("auto", "torch", "gsplat"):
        raise InputError(f"recon.rasterizer={kind}: choose auto, torch or gsplat")
    if kind == "gsplat" and device.type != "cuda":
        raise InputError("recon.rasterizer=gsplat: it draws on CUDA only; take torch")
    return rasterize if kind == "torch" or device.type != "cuda" else rasterize_gsplat


def digest_of(
    capture: Capture, recipe: Recipe, motion: Motion, seed: int, measured: Sequence[str]
) -> str:
    """A hash of all that a fit and its figures depend on."""
    asked = vars(recipe) | {"motion": motion_named(motion), "seed": seed, "measured": [*measured]}
    asked.pop("save_every_seconds")
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for tensor in (
        capture.pixels,
        capture.cameras.world_to_camera,
        capture.cameras.focal,
        capture.frame,
    ):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def finished(folder: Path, digest: str) -> dict[str, float] | None:
    """The figures of a folder that holds the scene of this very input, else None; they are written
    last."""
    path = folder / "metrics.json"
    figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return figures if figures.pop("fingerprint", None) == digest else None


def write_outputs(
    folder: Path,
    name: str,
    fit: SceneFit,
    capture: Capture,
    digest: str,
    distances: Sequence[ImageDistance],
    more_figures: Callable[[Render, torch.device], dict[str, float]] | None,
) -> dict[str, float]:
    """All files of a scene, and what was measured; the figures come last."""
    held = held_cells(fit.recipe.hold, capture)
    rendered = render_pictures(fit.render, capture.cameras, capture.frame.float())
    figures = fit_figures(rendered, capture, held.cpu(), distances)
    if more_figures is not None:
        figures |= more_figures(fit.render, fit.device)
    write_scene(folder / "scene.safetensors", fit.scene, capture.fps)
    write_ply_sequence(folder / "ply", fit.scene)
    shutil.rmtree(folder / "held", ignore_errors=True)  # of an earlier fit
    if held.any():
        with staged_folder(folder / "held") as partial:
            for picture in held.nonzero()[:, 0].tolist():
                view, frame = int(capture.view[picture]), int(capture.frame[picture])
                write_png(partial / f"{view:02}_{frame:02}.png", rendered[picture])
    for film, pictures in films(fit.render, capture).items():
        write_video(folder / f"{film}.mp4", pictures, FILM_FPS)
    write_page(folder / "index.html", name, fit.scene, capture, figures)
    write_json(folder / "metrics.json", {"fingerprint": digest, **figures})
    return figures


def films(render: Render, capture: Capture) -> dict[str, Tensor]:
    """orbit: one turn at the middle frame; spiral: one turn while time runs, at a height that goes
    down and up."""
    device, last = capture.pixels.device, capture.num_frames - 1
    turn = torch.arange(FILM_PICTURES, device=device) / FILM_PICTURES
    start, height = input_angles(capture)
    azimuth = start + 2 * math.pi * turn
    level = torch.full_like(turn, height)
    wave = (height + 0.35 * (2 * math.pi * turn).sin()).clamp(-1.4, 1.4)
    still, running = torch.full_like(turn, last / 2), turn * last
    return {
        "orbit": render_pictures(render, around(capture, azimuth, level), still),
        "spiral": render_pictures(render, around(capture, azimuth, wave), running),
    }


def around(capture: Capture, azimuth: Tensor, elevation: Tensor) -> Pinholes:
    """Cameras like the capture's on a sphere through them, with pictures large enough to watch;
    seen through those cameras, a Gaussian is as soft as in the capture's."""
    centre, _ = common_ball(capture.cameras)
    distance = float((capture.cameras.positions - centre).norm(dim=-1).mean())
    scale = max(1.0, FILM_SIDE / min(capture.cameras.height, capture.cameras.width))
    fx, fy = (scale * capture.cameras.focal.mean(dim=0)).tolist()
    size = round(scale * capture.cameras.height), round(scale * capture.cameras.width)
    cameras = orbit_pinholes(azimuth, elevation, centre, distance, (fx, fy), size)
    return cameras._replace(blur=capture.cameras.blur * scale**2)


def input_angles(capture: Capture) -> tuple[float, float]:
    """Azimuth and elevation of the input view (the first, where none is), seen from the common
    centre."""
    centre, _ = common_ball(capture.cameras)
    first = int((capture.view == (capture.input_view or 0)).nonzero()[0])
    x, y, z = (capture.cameras.positions[first] - centre).tolist()
    return math.atan2(y, x), math.atan2(z, math.hypot(x, y))


class KeepState(Callback):
    """Writes a state to go on from, now and then, and when a signal stops the fit: after a step,
    never within."""

    def __init__(self, path: Path, every_seconds: float):
        self.path, self.every_seconds, self.last = path, every_seconds, time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        stopped = signals.received() is not None
        if stopped or time.monotonic() - self.last >= self.every_seconds:
            with staged(self.path) as partial:
                trainer.save_checkpoint(partial)
            self.last = time.monotonic()
        if stopped:
            signals.stop()


class FitProgress(ProgressBar):
    """A bar with the PSNR of the step's pictures and the time left; a line where there is no
    terminal."""

    def __init__(self, name: str, max_steps: int):
        super().__init__()
        self.name = name
        self.task = self.progress.add_task(f"reconstructing {name}", total=max_steps)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.console.is_terminal:
            self.progress.start()
        else:
            self.console.print(f"reconstructing {self.name}", highlight=False)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        psnr = trainer.callback_metrics.get("train/psnr")
        said = "" if psnr is None else f" {float(psnr):.1f} dB"
        self.progress.update(
            self.task, completed=trainer.global_step, description=f"{self.name}{said}"
        )

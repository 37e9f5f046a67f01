"""What only published weights and a GPU can tell: `make validate-real` writes it into a report to
send in.

    python benchmarks/validate_real.py OUTPUT_DIR [group=choice] [key=value]    # those of `d2
    sample`

On one scene of world4d, whose truth is known: SV3D's sense of rotation, the quality of the unary
call, peak memory against the plan, seconds an evaluation. OUTPUT_DIR gets report.md, report.json
and orbit.png.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import d2
from d2.data.sources import list_scenes
from d2.errors import InputError, say
from d2.files import ensure_writable, write_json, write_text
from d2.io import write_png
from d2.networks import weights_hashes
from d2.noise import draw
from d2.plan.planner import GIB, plan
from d2.plan.planning import choice_of, device_memory, workload_of
from d2.reference import decode, shard_of
from d2.sampling import State
from d2.scene import Scene, Truth
from d2.terms import Unary, joint_terms, to_images

SIGMAS = (0.5, 2.0, 10.0, 50.0)  # noise levels of the unary call
SIDEWAYS = 0.5  # least |sin azimuth| of views that tell a rotation from its mirror image
EVALUATIONS = 4  # timed; the first, which warms up, is not counted
ERRORS = 2.0  # standard errors from which a sense of rotation counts as known


class Enough(Exception):
    """As many evaluations as are timed have been made."""


class Rotation(NamedTuple):
    """How the multi-view prior's orbit fits the true one, and the true one turned the other way."""

    same_db: float  # masked PSNR over the sideways views
    mirrored_db: float
    difference_db: float  # mean over these views of the one minus the other
    standard_error_db: float
    verdict: str


def main(arguments: list[str]) -> int:
    """Make the report. Returns the exit code."""
    if not arguments or "=" in arguments[0]:
        print(__doc__)
        return 2
    folder, words = Path(arguments[0]), [*arguments[1:], "scenes=world4d", "scenes.count=1"]
    try:
        report = measured(words, folder)
    except InputError as error:
        say(f"validate_real: {error}")
        return 2
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", text_of(report))
    print(text_of(report))
    return 0


@torch.no_grad()
def measured(words: list[str], folder: Path) -> dict[str, Any]:
    """All that the report holds, by name."""
    sampler = d2.load(*words)
    job, module, device = sampler.job, sampler.module, sampler.device
    ensure_writable(folder)
    (source,) = list_scenes(job.source)
    scene = source.read()
    truth = scene.truth
    assert truth is not None, "a scene of world4d"
    given = module.transfer_batch_to_device(scene.observed(), device, 0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    whole, orbits = module.reference(given)
    synchronise(device)
    orbit_seconds = time.perf_counter() - start
    anchor = job.settings.anchor_frames[0]
    rotation = rotation_of(orbits[0].cpu(), truth, scene, anchor)
    write_png(folder / "orbit.png", strip(orbits[0].cpu(), truth, scene, anchor))
    seconds, decoding = timed(sampler, whole, orbits)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    memory = device_memory(job.devices.accelerator)
    planned = plan(workload_of(job), job.settings, choice_of(job), memory=memory)
    return {
        "d2": d2.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "words": words,
        "weights": weights_hashes(job.networks),
        "rotation": rotation._asdict(),
        "unary": unary_errors(sampler, whole, orbits, truth),
        "peak_gib": None if peak is None else peak / GIB,
        "planned_gib": planned.device_bytes / GIB,
        "orbit_seconds": orbit_seconds,
        "evaluation_seconds": seconds,
        "decoding_seconds": decoding,
        "evaluations": planned.steps,
    }


def rotation_of(
    orbit: Tensor,  # v 3 h w, as sampled
    truth: Truth,
    scene: Scene,
    frame: int,
) -> Rotation:
    """Compare each sideways view with the true one and with that of the opposite azimuth."""
    views, opposite = sideways(scene)
    true, masks = truth.pixels[:, frame], truth.masks[:, frame]
    same, mirrored = (psnr(orbit[views], true[v], masks[v]) for v in (views, opposite))
    apart = same - mirrored
    mean, error = float(apart.mean()), float(apart.std() / len(apart) ** 0.5)
    known = abs(mean) > ERRORS * error
    verdict = (
        ("as ours: AZIMUTH_SIGN holds" if mean > 0 else "the other way") if known else "unclear"
    )
    return Rotation(float(same.mean()), float(mirrored.mean()), mean, error, verdict)


def sideways(scene: Scene) -> tuple[Tensor, Tensor]:
    """Views that see the object from a side, and for each the view nearest to its mirror image."""
    azimuth = scene.cameras.azimuth_rad - scene.cameras.azimuth_rad[scene.cameras.input_view]
    views = (azimuth.sin().abs() > SIDEWAYS).nonzero()[:, 0]
    return views, (azimuth[views, None] + azimuth).cos().argmax(dim=1)


def psnr(
    pixels: Tensor,  # n 3 h w
    true: Tensor,  # n 3 h w
    masks: Tensor,  # n 1 h w
) -> Tensor:  # n, dB
    """PSNR over the true object alone."""
    error = ((pixels - true).square().mean(dim=1, keepdim=True) * masks).sum((1, 2, 3))
    return -10 * (error / masks.sum((1, 2, 3))).clamp(min=1e-10).log10()


def strip(orbit: Tensor, truth: Truth, scene: Scene, frame: int) -> Tensor:  # 3 h w
    """Sideways views: as sampled, the true ones, the true ones of the opposite azimuth; row by
    row."""
    views, opposite = sideways(scene)
    true = truth.pixels[:, frame]
    rows = (orbit[views], true[views], true[opposite])
    return torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)


def timed(sampler: d2.Sampler, scene: Scene, orbits: Tensor) -> tuple[float, float]:
    """Seconds of an evaluation of the joint sampling, and of decoding the matrix."""
    module, times, latents = sampler.module, [], []

    def on_step(_: str, state: State) -> None:
        synchronise(sampler.device)
        times.append(time.perf_counter())
        if len(times) == EVALUATIONS:
            latents.append(state.x)
            raise Enough

    module.listeners[:] = [on_step]
    with contextlib.suppress(Enough):
        module.sample(scene, orbits, module.rules, "joint")
    module.listeners.clear()
    if not latents:
        raise InputError(f"sampler.num_steps: {EVALUATIONS} evaluations are timed; give more steps")
    start = time.perf_counter()
    decode(latents[0], module.priors.first_stage, module.settings.decode_chunk)
    synchronise(sampler.device)
    return (times[-1] - times[0]) / (len(times) - 1), time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def unary_errors(
    sampler: d2.Sampler, scene: Scene, orbits: Tensor, truth: Truth
) -> list[dict[str, float]]:
    """Mean squared errors of E[x0 | x, sigma] of a few cells of the middle frame, over their
    variance.

    A call that ignores its input has 1; rows and columns, asked the same, say what is to be had.
    """
    priors, num_frames = sampler.module.priors, len(scene.pixels)
    settings = replace(sampler.job.settings, unary=Unary("multiview", "column"))
    noise = partial(draw, scene.seed)
    pixels = truth.pixels.to(sampler.device)
    clean = torch.stack([priors.first_stage.encode(to_images(row)) for row in pixels])
    terms = joint_terms(scene.pixels, orbits, scene.cameras, noise, priors, settings)
    asked = torch.zeros(clean.shape[:2], dtype=torch.bool)
    asked[:: max(1, len(clean) // 3), num_frames // 2] = True
    shard, unit, found = shard_of(settings), noise("init", tuple(clean.shape)).to(clean), []
    scale = clean[asked].var()
    for sigma in SIGMAS:
        row = {"sigma": sigma}
        for term in terms:
            said = shard(term, clean + sigma * unit, sigma, (torch.zeros_like(asked), asked)).cond
            assert said is not None, "the conditional half is asked for"
            row[term.name] = float((said[asked] - clean[asked]).square().mean() / scale)
        found.append(row)
    return found


def text_of(report: dict[str, Any]) -> str:
    """The report as people read it."""
    turn, peak = report["rotation"], report["peak_gib"]
    measured_peak = "not measured, no CUDA" if peak is None else f"{peak:.2f} GiB"
    hours = (
        report["evaluations"] * report["evaluation_seconds"] + report["decoding_seconds"]
    ) / 3600
    lines = [
        "# d2 with real weights",
        "",
        f"d2 {report['d2']}, torch {report['torch']}, {report['device']}",
        "",
        f"    {' '.join(report['words'])}",
        "",
        *(f"- {name}: {digest}" for name, digest in report["weights"].items()),
        "",
        "## Sense of rotation",
        "",
        (
            f"{turn['verdict']}. Masked PSNR of the sideways views against the truth"
            f" {turn['same_db']:.1f} dB, against its mirror image {turn['mirrored_db']:.1f} dB;"
            f" difference {turn['difference_db']:.1f} ± {turn['standard_error_db']:.1f} dB. See"
            " orbit.png: sampled, true, mirrored."
        ),
        "",
        "## The unary call",
        "",
        "Squared error over the cells' variance; a call that ignores its input has 1.",
        "",
        "| sigma | rows (video) | columns (multiview) | cells alone (unary) |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {row['sigma']:g} | {row['video']:.4f} | {row['multiview']:.4f} |"
            f" {row['unary']:.4f} |"
            for row in report["unary"]
        ),
        "",
        "## Memory and time",
        "",
        f"- peak device memory: {measured_peak}, {report['planned_gib']:.2f} GiB planned",
        f"- orbit: {report['orbit_seconds']:.1f} s",
        (
            f"- an evaluation: {report['evaluation_seconds']:.2f} s; decoding:"
            f" {report['decoding_seconds']:.1f} s"
        ),
        f"- {report['evaluations']} evaluations and decoding come to {hours:.2f} h",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What `d2 --help` and `d2 COMMAND --help` print: groups with their choices, the keys people touch,
three examples."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from d2.config.names import experiments
from d2.files import asset

WIDTH = 110  # columns
COMMANDS = {
    "sample": (
        "sample the views × frames matrix of every scene; a study with variants, a sweep with -m"
    ),
    "train": "train a prior, the autoencoder or the video encoder of the tiny tier",
    "evaluate": "measure matrices, this program's or other people's",
    "reconstruct": (
        "fit a scene of moving 3D Gaussians to matrices, and show it from any angle at any time"
    ),
    "view": "turn such a scene by hand on a local page, its matrix beside it",
    "calibrate": "measure what composition=calibrated needs to know of the priors",
    "report": "one offline page of many runs, sweeps and studies",
    "checkpoints": "list | verify FILE | download NAME: weights of the priors",
}
OPTIONS = {
    "-m, --multirun": "one run for each combination of comma-separated values",
    "--cfg job|hydra|all": "print the composed configuration and stop",
    "--resolve": "with --cfg: put values in the place of interpolations",
    "-h, --help": "this text",
    "--version": "the version of d2",
}
TOUCHED = {  # of each command, the keys that people touch
    "sample": """
        output_dir seed seeds variants scenes.path scenes.count scenes.first
        scenes.anchor_frame matrix.num_views matrix.num_frames cameras.elevation_deg
        sampler.num_steps sampler.sigma_min sampler.sigma_max sampler.sequences_per_call
        sampler.hold video.checkpoint multiview.checkpoint metrics baselines precision
        offload plan trainer.devices trainer.threads logger.project logger.offline
    """,
    "train": """
        output_dir cache_dir seed init_from autoencoder num_scenes num_validation_scenes
        validate_every save_every_minutes prior.max_steps prior.lr prior.batch_size
        prior.singles prior.warmup_steps prior.decay_steps trainer.devices
        trainer.threads logger.project logger.offline
    """,
    "evaluate": """
        run pred truth output_dir objects metrics traversals features features_file size
        input_view compare_to
    """,
    "reconstruct": """
        run matrix scenes.path output_dir recon.hold recon.max_steps recon.num_gaussians
        recon.rasterizer metrics seed
    """,
    "view": "run matrix host port",
    "report": "runs output_dir compare_to quality shown_scenes seed",
}
KEYS = {command: keys.split() for command, keys in TOUCHED.items()}
KEYS["calibrate"] = [
    key
    for key in KEYS["sample"]
    if key.startswith(("output", "scenes", "matrix", "sampler", "video"))
]
EXAMPLES = {
    "sample": (
        "d2 sample scenes=folder scenes.path=my_clip.mp4 output_dir=outputs/mine",
        "d2 sample preset=official weights=cosine weights.curve.low=0.2 seed=3",
        "d2 sample 'variants={convex:[],video:[weights=video]}' seeds=[0,1] scenes.count=4",
    ),
    "train": (
        "d2 train prior=tiny_video output_dir=outputs/tiny_video",
        (
            "d2 train prior=tiny_multiview init_from=checkpoints/tiny_multiview.safetensors"
            " logger=wandb"
        ),
        "d2 train -m prior.lr=3e-4,6e-4 prior.max_steps=2000",
    ),
    "evaluate": (
        "d2 evaluate run=outputs/mine",
        "d2 evaluate pred=theirs truth=truth metrics=[reference] output_dir=outputs/theirs",
        "d2 evaluate run=[outputs/seed_0,outputs/seed_1] compare_to=outputs/evaluate",
    ),
    "calibrate": (
        "d2 calibrate",
        "d2 calibrate scenes.count=16 output_dir=outputs/calibrated",
        (
            "d2 calibrate preset=official_short"
            " video.checkpoint=outputs/tiny_video/tiny_video.safetensors"
        ),
    ),
    "reconstruct": (
        "d2 reconstruct run=outputs/sample",
        (
            "d2 reconstruct matrix=outputs/mine/clip/matrix.safetensors recon.hold=diagonal"
            " output_dir=outputs/asset"
        ),
        "d2 reconstruct scenes.path=my_pictures recon=rest",
    ),
    "view": (
        "d2 view run=outputs/sample/test_0000",
        "d2 view run=outputs/reconstruct/clip matrix=outputs/mine/clip/matrix.safetensors",
        "d2 view run=outputs/sample host=0.0.0.0 port=9000",
    ),
    "report": (
        "d2 report runs=[outputs/sample]",
        "d2 report runs=[outputs/study,multirun/2026-11-25/21-30-00] compare_to=convex",
        "d2 report runs=[outputs/study] logger=wandb logger.offline=false",
    ),
}


def overview(version: str) -> str:
    """`d2 --help`."""
    examples = [EXAMPLES[name][0] for name in ("sample", "evaluate", "report")]
    return "\n".join(
        [
            (
                f"d2 {version}: sample views × frames image matrices by composing frozen diffusion"
                " priors"
            ),
            "",
            "usage: d2 COMMAND [group=choice] [key=value] [options]",
            "",
            "commands (d2 COMMAND --help lists groups, choices and keys)",
            *_columns(COMMANDS.items(), 22),
            "",
            "options",
            *_columns(OPTIONS.items(), 22),
            "",
            "examples",
            *(f"  {line}" for line in examples),
        ]
    )


def of_command(command: str) -> str:
    """`d2 COMMAND --help`."""
    from d2.config.describe import values_and_meanings

    known = values_and_meanings(command)
    keys = [(key, *known[key]) for key in KEYS[command]]
    wide = max(len(key) for key, _, _ in keys) + 2
    lines = [
        f"usage: d2 {command} [group=choice] [key=value] [options]",
        "",
        f"{COMMANDS[command]}",
        "",
        "groups (* is the choice when none is given)",
        *_columns(groups(command).items(), wide),
        "",
        f"keys people touch, of {len(known)}: default, meaning",
        *_columns(((key, f"{value:<20} {meaning}") for key, value, meaning in keys), wide, hang=21),
        "",
        "examples",
        *(f"  {line}" for line in EXAMPLES[command]),
        "",
        f"All keys: docs/configuration.md. What a command line comes to: d2 {command} … --cfg job",
    ]
    return "\n".join(lines)


def groups(command: str) -> dict[str, str]:
    """Group -> its choices, as one line."""
    conf = asset("conf")
    defaults = (conf / f"{'sample' if command == 'calibrate' else command}.yaml").read_text(
        encoding="utf-8"
    )
    found = {}
    for group, choice in re.findall(r"^  - (\w+): (\w+)$", defaults, re.MULTILINE):
        names = sorted(path.stem for path in (conf / group).glob("*.yaml"))
        found[group] = "  ".join(f"{name}*" if name == choice else name for name in names)
    if "preset" in found:
        found = {"preset": found.pop("preset"), **found, "experiment": "  ".join(experiments())}
    return found


def _columns(pairs: Iterable[tuple[str, str]], wide: int, hang: int = 0) -> list[str]:
    """Names in a column, what is said of them in another, wrapped where it is long."""
    lines = []
    for name, said in pairs:
        wrapped = textwrap.wrap(said, WIDTH - wide - 2, subsequent_indent=" " * hang) or [""]
        lines.append(f"  {name:<{wide}}{wrapped[0]}")
        lines += [f"  {'':<{wide}}{line}" for line in wrapped[1:]]
    return lines

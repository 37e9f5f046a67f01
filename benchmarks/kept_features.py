"""What keeping deep features between neighbouring evaluations would give, as DeepCache does (arXiv
2312.00858).

    python benchmarks/kept_features.py time           # a call on kept features beside a whole one
    python benchmarks/kept_features.py loss [scenes]  # what is lost on validation scenes

In the second of two evaluations a UNet runs its finest level alone, on what the levels below had
left in the first. `loss` samples with `preset=fast` and two seeds, wholly and so, and wholly in
fewer steps; the orbit is sampled wholly.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import torch
from peers_networks import MID, TINY, networks
from torch import Tensor

import d2
from d2.allocator import keep_freed_memory
from d2.data.sources import list_scenes
from d2.metrics.energy import energy_score, object_disc
from d2.metrics.reference import reference_metrics
from d2.nn.unet import Downsample, UNet, run

# a call takes all sequences, so that what is kept is of the same ones
WORDS = ("preset=fast", "scenes.split=validation", "sampler.sequences_per_call=null")


class Clock:
    """How many evaluations there have been; every second one uses what is kept."""

    def __init__(self) -> None:
        self.evaluations = 0

    def tick(self, _: Any) -> None:
        self.evaluations += 1


def keep_deep(network: UNet, clock: Clock) -> None:
    """Let a UNet use what its deep levels left at its last call, in every second evaluation whose
    inputs are as many."""
    down = [list(layers.children()) for layers in network.input_blocks]
    fine = next(i for i, (first, *_) in enumerate(down) if isinstance(first, Downsample))
    up = list(network.output_blocks)[-fine:]
    whole, kept = network.through, {}

    def note(_: Any, args: tuple[Tensor, ...]) -> None:
        kept["deep"] = args[0]

    # the first layer on the finest level is given the deep features, its skip behind them
    next(up[0].children()).register_forward_pre_hook(note)

    def through(x: Tensor, given: Any) -> Tensor:
        deep = kept.get("deep")
        if deep is None or len(deep) != len(x) or clock.evaluations % 2 == 0:
            return whole(x, given)
        skips = [down[0][0](x.contiguous(memory_format=torch.channels_last))]
        for layers in list(network.input_blocks)[1:fine]:
            skips.append(run(layers, skips[-1], given))
        y = deep[:, : deep.shape[1] - skips[-1].shape[1]]
        for layers in up:
            y = run(layers, torch.cat((y, skips.pop()), dim=1), given)
        return network.out(y)

    network.through = through  # type: ignore[method-assign]


@torch.no_grad()
def time_of_calls() -> None:
    """Print a call's seconds, whole and on kept features, medians of calls in turns."""
    keep_freed_memory()
    for name, shape, turns in (("tiny", TINY, 7), ("mid", MID, 3)):
        clock, times = Clock(), []
        network, call = networks(shape)["ours"]
        assert isinstance(network, UNet)
        keep_deep(network, clock)
        for turn in range(2 * turns):
            given, start = shape.inputs(turn, "cpu", torch.float32), time.process_time()
            call(network, given)
            times.append(time.process_time() - start)
            clock.tick(None)
        whole, part = median(times[::2]), median(times[1::2])
        print(f"{name}: {whole:.3f} s, on kept features {part:.3f} s, {part / whole:.2f}")


@torch.no_grad()
def loss(count: int) -> None:
    """Print masked PSNR, sharpness, own frames and energy of each way of sampling."""
    for name, words, keeps in (
        ("whole, 10 steps", (), False),
        ("kept every second, 10 steps", (), True),
        ("whole, 7 steps", ("sampler.num_steps=7",), False),
    ):
        sampler = d2.load(*WORDS, f"scenes.count={count}", *words)
        clock, figures, priors = Clock(), [], sampler.module.priors
        if keeps:
            for prior in (priors.video, priors.multiview):
                keep_deep(prior.unet, clock)
        for scene in list_scenes(sampler.job.source):
            scene, matrices = scene.read(), []
            for seed in (0, 1):
                clock.evaluations = 0
                matrices.append(sampler(scene, seed=seed, on_step=clock.tick))
            truth = scene.truth
            assert truth is not None
            own = [reference_metrics(m.pixels, truth, m.cameras.input_view) for m in matrices]
            disc = object_disc(*truth.pixels.shape[-2:])
            pixels = torch.stack([m.pixels for m in matrices])
            energy = energy_score(pixels, truth.pixels, disc).score
            named = ("psnr_masked", "sharpness", "own_frame_unseen")
            figures.append([sum(o[key] for o in own) / 2 for key in named] + [energy])
            print(name, scene.name, [f"{value:.4f}" for value in figures[-1]], flush=True)
        means = torch.tensor(figures).mean(dim=0).tolist()
        print(f"{name}: " + " ".join(f"{value:.4f}" for value in means), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["time"]:
        time_of_calls()
    else:
        loss(int(([*sys.argv[2:], "4"])[0]))

"""The published networks at full size with random weights: that they run, what memory they take and
how fast they are.

    python benchmarks/full_size.py --device cuda    # a 21 x 25 matrix of 576 x 576 pixels, three
    evaluations, decoding python benchmarks/full_size.py --device cpu     # one forward of each
    network on small pictures, finite or not python benchmarks/full_size.py --plan 24        # no
    network is run: the plan for a card of so many GiB

Results go into benchmarks/README.md, with the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from d2.matrix import camera_ring, rig_of
from d2.pipeline import sample_scene
from d2.plan.planner import GIB, Choice, Plan, plan, render
from d2.plan.rehearsal import Workload
from d2.priors.camera_prior import CameraCondition, CameraPrior, CameraPriorConfig
from d2.priors.checkpoint import PUBLISHED, Loaded, random_published, random_weight
from d2.priors.placement import place
from d2.priors.prior import Prior, PriorConfig
from d2.priors.rays import normalised, pluecker
from d2.rules import composition, guidance, renoise, solver, weights
from d2.rules.bundle import Rules
from d2.sampling import State
from d2.scene import Scene
from d2.terms import Priors, Settings

VIEWS, FRAMES, SIZE = 21, 25, 576
RULES = Rules(  # as published
    renoise.vrs,
    partial(weights.scheduled, curve=weights.constant, profile=weights.side_views),
    partial(
        guidance.per_term, video=guidance.linear, multiview=partial(guidance.constant, scale=2.5)
    ),
    composition.linear(coefficients=composition.convex),
    solver.euler,
)
PUBLISHED_STEPS = Settings(num_steps=50, sigma_max=700.0, motion_bucket_id=127.0, fps_id=24.0)
CHUNKS = ("sequences_per_call", "decode_chunk", "offload")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument(
        "--plan", type=float, metavar="GIB", default=24.0, help="memory to plan for"
    )
    parser.add_argument(
        "--only", choices=("svd_xt", "sv3d_p", "seva"), help="on a CPU: this prior alone"
    )
    parser.add_argument(
        "--multiview", choices=("sv3d_p", "seva"), default="sv3d_p", help="beside svd_xt"
    )
    args = parser.parse_args()
    if args.device == "cpu" and args.only == "seva":
        forward_cameras()
        return
    if args.device == "cpu":
        for name in [args.only] if args.only else ["svd_xt", "sv3d_p"]:
            forward_each(name)
        return
    found = planned(RULES, PUBLISHED_STEPS, args.plan, multiview=args.multiview)
    print(render(found))
    if args.device == "cuda":
        sample_on_gpu(found.choice, args.multiview)


def planned(
    rules: Rules,
    settings: Settings,
    gib: float,
    choice: Choice | None = None,
    *,
    multiview: str = "sv3d_p",
) -> Plan:
    """For a card of so many GiB; what is chosen is not given."""
    video, columns = PUBLISHED["svd_xt"], PUBLISHED[multiview]
    assert isinstance(video.prior, PriorConfig)
    job = Workload(
        video.prior,
        columns.prior,
        video.first_stage,
        rules,
        num_views=VIEWS,
        num_frames=FRAMES,
        size=SIZE,
        decoder=columns.first_stage,
    )
    start = Choice(None, None, "none", torch.bfloat16) if choice is None else choice
    return plan(job, settings, start, memory=int(gib * GIB), free=CHUNKS if choice is None else ())


@torch.no_grad()
def sample_on_gpu(choice: Choice, name: str) -> None:
    """Two levels, the first evaluated twice, and all rows decoded: seconds an evaluation, and the
    peak."""
    rules = RULES._replace(renoise=partial(renoise.vrs, steps=1))
    chunks = {"sequences_per_call": choice.sequences_per_call, "decode_chunk": choice.decode_chunk}
    settings = replace(PUBLISHED_STEPS, num_steps=2, **chunks)
    expected = planned(
        rules,
        settings,
        torch.cuda.get_device_properties(0).total_memory / GIB,
        choice,
        multiview=name,
    )
    device = "cuda" if choice.offload == "none" else "cpu"
    video = random_published(PUBLISHED["svd_xt"], seed=0, dtype=choice.dtype, device=device)
    multiview = random_published(
        PUBLISHED[name], seed=0, dtype=choice.dtype, device=device, like=video
    )
    multiview.prior.decoder = multiview.first_stage
    assert isinstance(video.prior, Prior)
    priors = Priors(video.prior, multiview.prior, video.first_stage)
    place(priors.present, "cuda", choice.offload)

    clip = torch.rand(FRAMES, 3, SIZE, SIZE, device="cuda")
    scene = Scene("random", 0, clip, clip[:, :1], camera_ring(VIEWS), 8.0)
    times: list[float] = []

    def on_step(state: State) -> None:
        torch.cuda.synchronize()
        times.append(time.perf_counter())

    torch.cuda.reset_peak_memory_stats()
    sampled = sample_scene(
        scene, priors, rules, settings, orbits=clip[None, :VIEWS].clone(), on_step=on_step
    )
    torch.cuda.synchronize()
    decoding = time.perf_counter() - times[-1]
    seconds = (times[-1] - times[0]) / (len(times) - 1)  # the first evaluation also warms up
    assert sampled.matrix.pixels.isfinite().all()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {choice}")
    print(f"an evaluation takes {seconds:.2f} s, decoding {decoding:.1f} s")
    print(f"50 steps and 10 repeats: {(60 * seconds + decoding) / 60:.1f} min")
    peak = torch.cuda.max_memory_allocated() / GIB
    print(f"peak {peak:.2f} GiB allocated, {expected.device_bytes / GIB:.2f} planned")


@torch.no_grad()
def forward_each(name: str) -> None:
    """On a CPU in float32: every network of a prior once, on two frames of 64 x 64 pixels; times
    over the UNet's."""
    published, frames = PUBLISHED[name], 2
    start = time.perf_counter()
    loaded = random_published(published, seed=0, dtype=torch.float32, device="cpu")
    print(
        f"{name}: {sum(p.numel() for p in loaded.prior.parameters()) / 1e9:.2f} G parameters and a"
        " first stage"
    )
    print(f"  made in {time.perf_counter() - start:.0f} s")
    seconds: dict[str, float] = {}
    for network, run in networks_of(loaded, frames).items():
        start = time.perf_counter()
        out = run()
        seconds[network] = time.perf_counter() - start
        assert out.isfinite().all(), network
        print(
            f"  {network:8} {tuple(out.shape)}: finite, standard deviation {out.std():.3g}, "
            f"{seconds[network] / seconds['unet']:.2f} of the UNet's time"
        )


@torch.no_grad()
def forward_cameras(num_cells: int = 3) -> None:
    """On a CPU in bfloat16: the UNet of any cameras once, one cell of three known, 64 x 64 pixels;
    its own D(x)."""
    config = PUBLISHED["seva"].prior
    assert isinstance(config, CameraPriorConfig)
    with torch.device("meta"):
        prior = CameraPrior(config, with_tower=False)
    start = time.perf_counter()
    weights = {
        name: random_weight(name, tuple(p.shape), "0/seva").to(torch.bfloat16)
        for name, p in prior.named_parameters()
    }
    prior.load_state_dict(weights, assign=True)
    print(
        f"seva: {sum(w.numel() for w in weights.values())} parameters, made in"
        f" {time.perf_counter() - start:.0f} s"
    )
    ring, mask = rig_of(camera_ring(num_cells)), torch.zeros(1, num_cells, 1, 8, 8)
    mask[:, -1] = 1
    rays_of = pluecker(normalised(ring.poses, ring.poses), ring.intrinsics, 8, 8).float()[None]
    x, known = torch.randn(2, 1, num_cells, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = CameraCondition(
        torch.zeros(1, num_cells, 1, config.unet.context_dim), known * mask, mask, rays_of
    )
    for sigma in (84.9, 1.0, 0.03):
        start = time.perf_counter()
        out = prior(sigma * x, torch.full((1, num_cells), sigma), condition)
        assert out.isfinite().all()
        print(
            f"  sigma {sigma}: finite, standard deviation {out.std():.3g},"
            f" {time.perf_counter() - start:.1f} s"
        )


def networks_of(loaded: Loaded, frames: int) -> dict[str, Callable[[], Tensor]]:
    """Calls of a prior's networks, the UNet first."""
    generator = torch.Generator().manual_seed(0)
    prior = loaded.prior
    assert isinstance(prior, Prior) and prior.encoder is not None
    config, encoder = prior.config, prior.encoder
    pictures = torch.rand(frames, 3, 64, 64, generator=generator) * 2 - 1
    latents = torch.randn(frames, 4, 8, 8, generator=generator)
    unet = (
        torch.randn(frames, config.unet.in_channels, 8, 8, generator=generator),
        torch.full((frames,), 0.25),
        torch.randn(frames, 1, config.unet.context_dim, generator=generator),
        torch.randn(frames, config.unet.adm_in_channels, generator=generator),
    )
    return {
        "unet": lambda: prior.unet(*unet, num_frames=frames, image_only=torch.zeros(1, frames)),
        "tower": lambda: prior.tower(pictures),
        "encoder": lambda: encoder(pictures),
        "decoder": lambda: loaded.first_stage.decode(latents, num_frames=frames),
    }


if __name__ == "__main__":
    main()

"""How fast d2 is beside its peers, in one run: a network call, the decoding of a clip, a joint
step, the whole job.

    python benchmarks/peers.py --config tiny mid --what network step    # a CPU, one thread, float32
    python benchmarks/peers.py --device cuda --precision bf16 --config tiny mid full --what network

On CUDA seconds are those between two events, peaks those of the allocator, and `--compile` adds
ours and diffusers' through torch.compile with CUDA graphs, their first calls apart. `full` is a
clip of 25 frames of 576 x 576 with guidance through SVD-XT's UNet. diffusers is left out where it
is not installed.

`ours` is this package; `published` the same weights in plain modules, laid out and evaluated as
they were published (plain_unet.py); `diffusers` its UNet and its temporal decoder on the same
weights. A step and a job of `published` are the published algorithm evaluated plainly: every
sequence, both halves, at every step.

`ours` keeps the memory that tensors free, as the command `d2` does; the others have the C library
as it is, and so has `ours, memory as it is`. All take turns call by call, each on fresh inputs, so
that what else the machine does falls on all alike. Medians of the seconds are given with their
quartiles, and ratios of medians. On a CPU with one thread the clock is that of the process, which
does not run while another has the core. Results go to peers.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peers_networks import FULL, MID, TINY, Shape, decoders, networks
from plain_unet import PlainUNet
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import d2
from d2.allocator import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory
from d2.matrix import camera_ring
from d2.nn.linear import linear
from d2.noise import draw
from d2.plan.cast import Meter
from d2.report.charts import Point, ranking, sheet
from d2.sampling import as_composition, sample_matrix
from d2.shard import make_shard
from d2.terms import Priors, joint_terms

Call = Callable[[Any], object]  # of inputs
COMPILED = "ours, compiled"
KEEPS, AS_IT_IS = "ours", "ours, memory as it is"  # whether the memory that tensors free is kept


class Race(NamedTuple):
    """Those that do the same work, and what they are given at a turn."""

    calls: dict[str, Call]
    fresh: Callable[[int], Any]  # number of the turn -> inputs
    flops: float = float("nan")  # operations of `ours`


class Machine(NamedTuple):
    """Where and in what precision."""

    device: str
    dtype: torch.dtype
    threads: int

    def seconds(self, work: Callable[[], object]) -> float:
        """How long it takes: by events on CUDA, by the clock of the process on one thread, else by
        the wall's."""
        if self.device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1000
        clock = time.process_time if self.threads == 1 else time.perf_counter
        start = clock()
        work()
        return clock() - start

    def peak(self, work: Callable[[], object]) -> float:
        """MiB that its tensors take at most, beyond what was there before."""
        if self.device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            work()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        with Meter() as meter:
            work()
        return max(meter.peaks.values()) / 2**20

    def rate(self) -> float:
        """GFLOP/s that the faster of the products of two square matrices reaches: torch's, and
        oneDNN's on a CPU."""
        size = 8192 if self.device == "cuda" else 2048
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        times = {
            name: [self.seconds(partial(f, a, b)) for _ in range(7)]
            for name, f in (("t", F.linear), ("o", linear))
        }
        return 2 * size**3 / min(median(t[2:]) for t in times.values()) / 1e9


def memory_as_it_is() -> None:
    """What glibc's own adaptation of its thresholds ends with, which ours switched off."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)


@torch.no_grad()
def run(race: Race, machine: Machine, repeats: int, who: list[str]) -> dict[str, Any]:
    """Every competitor's seconds and peak, in turns after a call to warm up, which is also that of
    the peak."""
    calls = race.calls | {AS_IT_IS: race.calls["ours"]}
    calls = {name: call for name, call in calls.items() if name in who}
    first: dict[str, float] = {}  # a call to warm up, in which what is compiled compiles
    if machine.device == "cuda":
        first = {n: machine.seconds(partial(call, race.fresh(-2))) for n, call in calls.items()}
    peaks = {name: machine.peak(partial(call, race.fresh(-1))) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            given = race.fresh(turn)
            (keep_freed_memory if name == KEEPS else memory_as_it_is)()
            seconds[name].append(machine.seconds(partial(call, given)))
    rows = {}
    for name, times in seconds.items():
        low, _, high = quantiles(times, n=4, method="inclusive")
        over = median(times) / median(seconds["ours"])
        rows[name] = {
            "median": median(times),
            "low": low,
            "high": high,
            "over_ours": over,
            "peak_mib": peaks[name],
        } | ({"first": first[name]} if name in first else {})
    for name in ("ours", COMPILED):
        if name in rows:
            rows[name]["gflops"] = race.flops / rows[name]["median"] / 1e9
    return rows


# ----------------------------------------------------------------------------------------- the work


def network_race(shape: Shape, machine: Machine, *, compile: bool) -> Race:
    """One call of the UNet on whole clips, with guidance's two halves as further clips."""
    found = networks(shape, machine.device, compile=compile)
    calls: dict[str, Call] = {
        name: partial(call, network.to(machine.device, machine.dtype).eval())
        for name, (network, call) in found.items()
    }
    meta = networks(shape, "meta")["ours"]
    with FlopCounterMode(display=False) as counter:
        meta[1](meta[0], shape.inputs(0, "meta", torch.float32))
    fresh = partial(shape.inputs, device=machine.device, dtype=machine.dtype)
    return Race(calls, fresh, counter.get_total_flops())


def decoder_race(machine: Machine) -> Race:
    """A clip of 8 latents of 16 x 16 through the temporal decoder of a quarter of the published
    width."""
    found = {
        name: network.to(machine.device, machine.dtype).eval()
        for name, network in decoders().items()
    }

    def fresh(turn: int) -> Tensor:
        z = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(turn + 1))
        return z.to(machine.device, machine.dtype)

    calls: dict[str, Call] = {
        "ours": lambda z: found["ours"].decode(z, 8),
        "diffusers": lambda z: found["diffusers"].decode(z, num_frames=8).sample,
    }
    with FlopCounterMode(display=False) as counter:
        decoders("meta")["ours"].decode(torch.empty(8, 4, 16, 16, device="meta"), 8)
    return Race(calls, fresh, counter.get_total_flops())


def plainly(sampler: d2.Sampler) -> d2.Sampler:
    """The same sampler evaluated as published: plain modules, and all that a rule could want."""
    sampler.module.rules = sampler.rules._replace(
        compose=as_composition(sampler.rules.compose)._replace(needs=None)
    )
    priors: Priors = sampler.module.priors
    for prior in (priors.video, priors.multiview):
        prior.unet = PlainUNet(prior.unet)  # type: ignore[assignment]
    return sampler


def loaded(steps: int) -> dict[str, d2.Sampler]:
    """The job of `d2 sample` in so many steps, ours and plainly."""
    words = f"sampler.num_steps={steps}"
    return {"ours": d2.load(words), "published": plainly(d2.load(words))}


def step_race(steps: int, part: float) -> Race:
    """One joint evaluation of an 8 x 8 matrix, so far along the plan, with the composition and the
    solver."""
    calls: dict[str, Call] = {}
    for name, sampler in loaded(steps).items():
        settings, rules, device = sampler.module.settings, sampler.rules, sampler.device
        clip = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
        cameras, noise = camera_ring(8), partial(draw, 0)
        terms = joint_terms(clip, clip[None], cameras, noise, sampler.module.priors, settings)
        plan = rules.renoise(settings.sigmas)
        calls[name] = partial(
            sample_matrix,
            plan=[plan[round(part * (len(plan) - 1))]],
            terms=terms,
            cameras=cameras,
            weights=rules.weights,
            guidance=rules.guidance,
            compose=rules.compose,
            solver=rules.solver,
            shard=make_shard(),
        )
    stage = sampler.module.priors.first_stage.config
    side = 64 // stage.factor

    def fresh(turn: int) -> Tensor:
        return draw(turn + 1, "init", (8, 8, stage.channels, side, side)).to(device)

    return Race(calls, fresh)


def job_race(steps: int) -> Race:
    """A scene to its decoded matrix: orbit, conditions, joint sampling, decoding."""
    calls: dict[str, Call] = {
        name: lambda seed, s=s: s(seed=seed) for name, s in loaded(steps).items()
    }
    return Race(calls, lambda turn: turn + 1)


# ----------------------------------------------------------------------------------------- the page


def table(results: dict[str, Any]) -> str:
    """Markdown: seconds with quartiles, times ours, peak, and the share of the matrix-product
    rate."""
    lines = [
        (
            f"{results['machine']}; a product of matrices reaches"
            f" {results['gflops_of_a_product']:.0f} GFLOP/s."
        ),
        "",
        "| work | who | seconds [quartiles] | over ours | peak MiB | share of the rate |",
    ]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for work, rows in results["work"].items():
        for name, r in rows.items():
            share = r.get("gflops", float("nan")) / results["gflops_of_a_product"]
            said = f"{share:.2f}" if share == share else ""
            said += f" (first call: {r['first']:.3g} s)" if "compiled" in name else ""
            spread = f"{r['median']:.3g} [{r['low']:.3g}, {r['high']:.3g}]"
            lines.append(
                f"| {work} | {name} | {spread} | {r['over_ours']:.2f} | {r['peak_mib']:.0f} |"
                f" {said} |"
            )
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any]) -> str:
    """An SVG of seconds over ours' median, with quartiles."""
    names = list(dict.fromkeys(name for rows in results["work"].values() for name in rows))
    charts = []
    for work, rows in results["work"].items():
        ours = rows["ours"]["median"]
        points = [
            Point(
                names.index(name) + 1,
                name,
                0,
                *(r[key] / ours for key in ("median", "low", "high")),
            )
            for name, r in rows.items()
        ]
        charts.append(ranking(f"{work}: seconds over ours", names, points, ideal=1.0))
    return sheet(charts, len(names))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--config", nargs="+", choices=tuple(SHAPES), default=["tiny", "mid"])
    parser.add_argument("--what", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--who", nargs="+", choices=PEERS, default=PEERS, help="beside ours")
    parser.add_argument("--compile", action="store_true", help="ours and diffusers' compiled too")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="of the job")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("peers"), help="without its ending"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    machine = Machine(
        args.device, {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision], args.threads
    )
    named = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    where = (
        f"{named}, {args.threads} thread(s), {args.precision}, torch {torch.__version__},"
        f" {args.repeats} turns"
    )
    results: dict[str, Any] = {"machine": where, "gflops_of_a_product": machine.rate(), "work": {}}
    for what in args.what:
        for name, race in WORK[what](args, machine).items():
            results["work"][name] = run(race(), machine, args.repeats, ["ours", *args.who])
            print(table(results | {"work": {name: results["work"][name]}}), flush=True)
            # what is measured is kept, whatever becomes of the rest
            args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(table(results))
            args.out.with_suffix(".svg").write_text(plot(results))
            if args.device == "cuda":
                torch.cuda.empty_cache()


def cpu_name() -> str:
    """Of Linux's; elsewhere what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")),
        platform.processor(),
    )


PEERS = ["published", "diffusers", AS_IT_IS, COMPILED, "diffusers, compiled"]
SHAPES = {"tiny": TINY, "mid": MID, "full": FULL}
WORK: dict[str, Callable[[argparse.Namespace, Machine], Mapping[str, Callable[[], Race]]]] = {
    "network": lambda a, m: {
        f"network, {c}": partial(network_race, SHAPES[c], m, compile=a.compile) for c in a.config
    },
    "decoder": lambda a, m: {"decoder": partial(decoder_race, m)},
    # fast guides in the middle of its plan, and not at the end
    "step": lambda a, m: {
        "joint step, tiny": partial(step_race, a.steps, 0.5),
        "joint step without guidance, tiny": partial(step_race, a.steps, 1.0),
    },
    "job": lambda a, m: {f"job of {a.steps} steps, tiny": partial(job_race, a.steps)},
}

if __name__ == "__main__":
    main()

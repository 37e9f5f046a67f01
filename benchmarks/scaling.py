"""What N devices give: measured on one and two processes here, predicted for more.

    python benchmarks/scaling.py                       # about ten minutes of two quiet cores

In go the measured cost of every call (sequences of a term, decoded rows), of what all processes do
alike, of gathering between two processes, and of start-up. Out come time and idle share for 1 to
64 devices, in nodes of eight, when devices share each matrix and when they are dealt the scenes.
Each process has one thread. Between nodes a network is assumed, not measured: `--network`. The
prediction is checked against measured runs of one and two processes, with median and spread.
Results go to scaling.json and .md, the plot to docs/scaling.svg.

A job is timed from the first scene's begin to the last scene's figures, without start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

DEVICES = (1, 2, 4, 8, 16, 32, 64)
NODE = 8  # devices of a node
RECORD = "D2_SCALING"  # of the environment: where a job that is recorded leaves its calls
LINE = [
    "preset=official_short",
    "baselines=false",
    "pages=false",
    "reconstruct=false",
    "trainer.threads=1",
    "trainer.accelerator=cpu",
]
MODES = {
    "one device": [],
    "scenes": ["trainer.devices=2", "trainer.parallel=scenes"],
    "matrix": ["trainer.devices=2", "trainer.parallel=matrix"],
}


class Call(NamedTuple):
    """One sharing out of work among the processes."""

    count: int  # blocks of sequences, or rows, to share out
    seconds: float  # of one process for all of them
    elements: int  # of one of them when it is gathered, float32


class Costs(NamedTuple):
    """What a job costs; seconds."""

    calls: list[Call]  # of one scene
    alike: float  # of one scene, which all processes do or wait for
    start: float  # of the command, up to its first scene
    latency: float  # of a gathering between two processes
    per_byte: float


class Network(NamedTuple):
    """Between nodes."""

    latency: float  # seconds
    per_byte: float  # seconds


# --- the model ------------------------------------------------------------------------------------


def seconds_of_scene(costs: Costs, devices: int, network: Network) -> float:
    """A matrix shared by so many devices: each call lasts as long as the largest share, and the
    shares go round a ring."""
    total = costs.alike
    for call in costs.calls:
        share = -(-call.count // devices)
        total += call.seconds * share / call.count
        if devices > 1:
            size = 4 * share * call.elements
            hop = costs.latency + size * costs.per_byte
            if devices > NODE:
                hop = max(hop, network.latency + size * network.per_byte)
            total += (devices - 1) * hop
    return total


def predicted(
    costs: Costs, scenes: int, devices: int, groups: int, network: Network
) -> dict[str, float]:
    """A job whose scenes are dealt to groups of devices, each sharing its matrices: seconds without
    start-up, speed-up and the share of device time that is idle or spent on what others do too."""
    alone = scenes * seconds_of_scene(costs, 1, network)
    seconds = -(-scenes // groups) * seconds_of_scene(costs, devices // groups, network)
    return {
        "seconds": seconds,
        "speedup": alone / seconds,
        "idle": 1 - alone / (seconds * devices),
        "with_start": seconds + costs.start,
    }


def best_groups(costs: Costs, scenes: int, devices: int, network: Network) -> int:
    """Into how many groups the devices fall for the shortest job."""
    divisors = [number for number in range(1, devices + 1) if devices % number == 0]
    return min(divisors, key=lambda g: predicted(costs, scenes, devices, g, network)["seconds"])


# --- measuring ------------------------------------------------------------------------------------


@contextmanager
def recorded(calls: list[Call]) -> Iterator[None]:
    """Within, every sharing out is noted, which `d2.shard` alone does."""
    from d2 import shard

    denoise, spread = shard.denoise_share, shard.spread

    def denoise_share(
        term: Any, sequences: Any, sigma: float, wanted: Any, rank: int, world: int, size: int
    ) -> Any:
        began = time.perf_counter()
        results = denoise(term, sequences, sigma, wanted, rank, world, size)
        taken = time.perf_counter() - began
        halves = int(wanted.any(dim=0).sum())
        if sequences.device.type != "meta":  # of a rehearsal
            blocks = -(-len(sequences) // size)
            calls.append(Call(blocks, taken, size * halves * sequences[0].numel()))
        return results

    def spread_out(work: Callable[..., Any], count: int) -> Any:
        began = time.perf_counter()
        result = spread(work, count)
        calls.append(Call(count, time.perf_counter() - began, result[0].numel()))
        return result

    shard.denoise_share, shard.spread = denoise_share, spread_out
    from d2 import reference, terms

    users = [module for module in (reference, terms) if getattr(module, "spread", None) is spread]
    for module in users:
        module.spread = spread_out  # type: ignore[attr-defined]
    try:
        yield
    finally:
        shard.denoise_share, shard.spread = denoise, spread
        for module in users:
            module.spread = spread  # type: ignore[attr-defined]


def run_recorded(arguments: list[str], file: Path) -> int:
    """`d2 ARGUMENTS` in this process, its calls noted."""
    from d2 import cli

    calls: list[Call] = []
    with recorded(calls):
        code = cli.run(arguments)
    file.write_text(json.dumps(calls))
    return code


def timed(arguments: list[str], folder: Path, record: Path | None = None) -> tuple[float, float]:
    """Seconds of a command up to its first scene, and from there to the last scene's figures."""
    command = [sys.executable, "-m", "d2"] if record is None else [sys.executable, __file__]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env |= {} if record is None else {RECORD: str(record)}
    began, first = time.time(), 0.0
    with subprocess.Popen(
        [*command, *arguments, f"output_dir={folder}"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=env,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("sampling ") and not first:
                first = time.time()
    assert process.returncode == 0, f"{arguments} ended with {process.returncode}"
    last = max(path.stat().st_mtime for path in folder.glob("*/metrics.json"))
    return first - began, last - first


def gathering(rank: int, port: int, sizes: list[int], queue: Any) -> None:
    """One of two processes that gather float32 tensors of these sizes: median seconds of each."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = []
    for size in sizes:
        share, taken = torch.zeros(size), []
        parts = [torch.empty_like(share) for _ in range(2)]
        for _ in range(100):
            dist.barrier()
            began = time.perf_counter()
            dist.all_gather(parts, share)
            taken.append(time.perf_counter() - began)
        found.append(statistics.median(taken))
    if rank == 0:
        queue.put(found)
    dist.destroy_process_group()


def cost_of_gathering() -> tuple[float, float]:
    """Latency and seconds a byte between two processes of this machine, from a small and a large
    tensor."""
    from d2.processes import free_port

    sizes, context = [1, 1 << 20], mp.get_context("spawn")
    queue = context.SimpleQueue()
    mp.spawn(gathering, (free_port(), sizes, queue), nprocs=2)
    small, large = queue.get()
    return small, (large - small) / (4 * (sizes[1] - sizes[0]))


def measure(line: list[str], scenes: int, repeats: int) -> tuple[Costs, dict[str, Any]]:
    """The costs of a job, and the seconds of each mode, repeat by repeat, one after another."""
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    starts, loads = [], []
    with tempfile.TemporaryDirectory() as place:
        folder, record = Path(place), Path(place) / "calls.json"
        _, whole = timed([*line, "scenes.count=1"], folder / "recorded", record)
        calls = [Call(*call) for call in json.loads(record.read_text())]
        for repeat in range(repeats):
            for mode, more in MODES.items():
                loads.append(os.getloadavg()[0])
                start, taken = timed(
                    [*line, *more, f"scenes.count={scenes}"], folder / f"{mode}{repeat}"
                )
                seconds[mode].append(taken)
                starts += [start] if mode == "one device" else []
                print(f"{mode}: {taken:.1f} s after {start:.1f} s", flush=True)
    alike = max(0.0, whole - sum(call.seconds for call in calls))
    costs = Costs(calls, alike, statistics.median(starts), *cost_of_gathering())
    return costs, {"seconds": seconds, "load": [min(loads), max(loads)]}


# --- what is shown --------------------------------------------------------------------------------


def checks(costs: Costs, measured: dict[str, Any], scenes: int, network: Network) -> list[dict]:
    """Each mode's measured seconds and speed-up beside the predicted ones."""
    own = measured["seconds"]
    said = {"one device": (1, 1), "scenes": (2, 2), "matrix": (2, 1)}
    rows = []
    for mode, taken in own.items():
        ratios = [one / each for one, each in zip(own["one device"], taken, strict=True)]
        model = predicted(costs, scenes, *said[mode], network)
        rows.append(
            {
                "mode": mode,
                "seconds": statistics.median(taken),
                "spread": [min(taken), max(taken)],
                "speedup": statistics.median(ratios),
                "speedup_spread": [min(ratios), max(ratios)],
                "predicted_seconds": model["seconds"],
                "predicted_speedup": model["speedup"],
            }
        )
    return rows


def predictions(costs: Costs, counts: list[int], network: Network) -> list[dict[str, Any]]:
    """For every number of scenes and devices: one matrix over all, scenes dealt out, and the best
    groups."""
    rows = []
    for scenes in counts:
        for devices in DEVICES:
            best = best_groups(costs, scenes, devices, network)
            for mode, groups in {"matrix": 1, "scenes": devices, "groups": best}.items():
                row = {"scenes": scenes, "devices": devices, "mode": mode, "groups": groups}
                rows.append(row | predicted(costs, scenes, devices, groups, network))
    return rows


def table(result: dict[str, Any]) -> str:
    """Both tables in Markdown."""
    lines = ["| two processes | seconds | speed-up | predicted |", "| --- | --- | --- | --- |"]
    for row in result["checks"]:
        low, high = row["spread"]
        down, up = row["speedup_spread"]
        lines.append(
            f"| {row['mode']} | {row['seconds']:.1f} [{low:.1f}, {high:.1f}] |"
            f" {row['speedup']:.2f} [{down:.2f}, {up:.2f}] | {row['predicted_seconds']:.1f} s,"
            f" {row['predicted_speedup']:.2f} |"
        )
    lines += ["", "| scenes | devices | matrix: seconds, idle | scenes: seconds, idle |"]
    lines[-1] += " best groups: seconds, idle |"
    lines.append("| ---: | ---: | ---: | ---: | ---: |")
    rows = result["predictions"]
    for place in range(0, len(rows), 3):
        cells = [f"{row['seconds']:.1f}, {row['idle']:.0%}" for row in rows[place : place + 3]]
        groups = rows[place + 2]["groups"]
        lines.append(
            f"| {rows[place]['scenes']} | {rows[place]['devices']} | {' | '.join(cells[:2])} |"
            f" {groups}: {cells[2]} |"
        )
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Speed-up over devices, a panel for each number of scenes."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    counts = sorted({row["scenes"] for row in result["predictions"]})
    figure, panels = plt.subplots(1, len(counts), figsize=(4.5 * len(counts), 4), sharey=True)
    for panel, scenes in zip(panels, counts, strict=True):
        panel.plot(DEVICES, DEVICES, color="0.8", label="as many times as devices")
        for mode in ("matrix", "scenes", "groups"):
            rows = [
                row
                for row in result["predictions"]
                if row["scenes"] == scenes and row["mode"] == mode
            ]
            style = "--" if mode == "groups" else "-"
            panel.plot(DEVICES, [row["speedup"] for row in rows], style, label=mode)
        if scenes == result["scenes"]:
            for row in result["checks"][1:]:
                panel.plot([2], [row["speedup"]], "o", label=f"{row['mode']}, measured")
        panel.set(xscale="log", yscale="log", xlabel="devices", title=f"{scenes} scenes")
        panel.set_xticks(DEVICES, DEVICES)
        panel.legend(fontsize=8)
    panels[0].set(ylabel="speed-up without start-up")
    panels[0].set_yticks(DEVICES, DEVICES)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--sequences-per-call", type=int, default=1)
    parser.add_argument(
        "--network",
        type=float,
        nargs=2,
        default=(25.0, 12.5),
        help="between nodes: latency in microseconds, and GB/s; assumed",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    parser.add_argument("--plot", type=Path, default=Path(__file__).parents[1] / "docs/scaling.svg")
    args = parser.parse_args()
    network = Network(args.network[0] * 1e-6, 1e-9 / args.network[1])
    line = ["sample", *LINE, f"sampler.num_steps={args.steps}"]
    line += [f"matrix.num_views={args.views}", f"matrix.num_frames={args.frames}"]
    line += [f"sampler.sequences_per_call={args.sequences_per_call}"]
    costs, measured = measure(line, args.scenes, args.repeats)
    result = {
        "scenes": args.scenes,
        "line": line,
        "costs": costs._asdict() | {"calls": len(costs.calls)},
        "seconds_of_calls": sum(call.seconds for call in costs.calls),
        "network_assumed": network._asdict(),
        "measured": measured,
        "checks": checks(costs, measured, args.scenes, network),
        "predictions": predictions(costs, [args.scenes, 64], network),
    }
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(result))
    plot(result, args.plot)
    print(table(result), end="")


if __name__ == "__main__":
    if RECORD in os.environ:
        sys.exit(run_recorded(sys.argv[1:], Path(os.environ[RECORD])))
    main()

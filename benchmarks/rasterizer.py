"""How long one picture takes to draw, in plain PyTorch by tiles, densely, and by gsplat on CUDA.

    python benchmarks/rasterizer.py                     # writes benchmarks/rasterizer.{json,md}
    python benchmarks/rasterizer.py --device cuda       # and gsplat beside them

The Gaussians lie on a sphere of radius 0.4, as dense as a fit's at its start, and are seen in
pictures of 64 × 64 pixels in batches of 4 (densely one by one, for the memory that takes).
Projection is timed alone; forward includes it; backward is that of the sum of squares of the
colour. Times are medians over repeats, of the processor on a CPU, which other programs lengthen
least, and on the wall on CUDA; the spread is the middle half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from d2.matrix import camera_ring
from d2.recon.gaussians import Gaussians, Pinholes, project, ring_pinholes
from d2.recon.rasterize import CUT, OPAQUE, Rasterize, Rendered, rasterize, rasterize_gsplat

SIZE, BATCH = 64, 4
SPACING = 0.6  # a Gaussian's deviation over the distance between neighbours, as a fit starts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    drawn: dict[str, tuple[Rasterize, int]] = {"tiled": (rasterize, BATCH), "dense": (dense, 1)}
    if device.type == "cuda" and find_spec("gsplat"):
        drawn["gsplat"] = (rasterize_gsplat, BATCH)
    rows = []
    for count in args.counts:
        for name, (draw, batch) in drawn.items():
            times = measured(draw, count, batch, args.repeats, device)
            rows.append({"rasterizer": name, "gaussians": count, **times})
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    machine = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{args.threads} CPU thread(s)"
    )
    facts = {"machine": machine, "torch": torch.__version__, "repeats": args.repeats, "rows": rows}
    args.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    head = f"{machine}, torch {torch.__version__}, median of {args.repeats} (middle half), ms"
    args.out.with_suffix(".md").write_text(f"{head}\n\n{table(rows)}\n", encoding="utf-8")


def measured(
    draw: Rasterize, count: int, batch: int, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Quartiles of milliseconds a picture: projection, forward (with it), backward."""
    gaussians, pinholes = scene(count, batch, device)
    white = torch.ones(3, device=device)
    told: dict[str, list[float]] = {"projection": [], "forward": [], "backward": []}
    for repeat in range(repeats + 1):
        leaves = Gaussians(*(part.clone().requires_grad_() for part in gaussians))
        pictures: list[Tensor] = []

        def forward(leaves: Gaussians = leaves, pictures: list[Tensor] = pictures) -> None:
            pictures.append(draw(leaves, pinholes, white).colour)

        def projection(leaves: Gaussians = leaves) -> None:
            project(leaves, pinholes)

        def backward(pictures: list[Tensor] = pictures) -> None:
            pictures[0].square().sum().backward()

        for what, step in zip(told, (projection, forward, backward), strict=True):
            seconds = clocked(step, device)
            if repeat:  # the first warms up
                told[what].append(1e3 * seconds / batch)
    return {what: statistics.quantiles(times, n=4) for what, times in told.items()}


def clocked(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of a step."""
    if device.type != "cuda":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def scene(count: int, batch: int, device: torch.device) -> tuple[Gaussians, Pinholes]:
    """Gaussians on a sphere of radius 0.4, as far apart as a fit's at its start."""
    g = torch.Generator().manual_seed(0)
    means = 0.4 * F.normalize(torch.randn(count, 3, generator=g), dim=-1)
    scale = SPACING * 0.4 * (4 * torch.pi / count) ** 0.5
    each = (
        means,
        torch.randn(count, 4, generator=g),
        scale * (0.3 * torch.randn(count, 3, generator=g)).exp(),
        torch.randn(count, generator=g).sigmoid(),
        0.3 * torch.randn(count, 4, 3, generator=g),
    )
    gaussians = Gaussians(*(x.expand(batch, *x.shape).to(device) for x in each))
    return gaussians, ring_pinholes(camera_ring(batch, 0.3), SIZE).to(device)


def dense(gaussians: Gaussians, cameras: Pinholes, background: Tensor) -> Rendered:
    """Every Gaussian at every pixel, in one tensor of pixels × Gaussians."""
    seen = project(gaussians, cameras)
    order = seen.depth.argsort(dim=-1)
    side = torch.arange(SIZE, device=order.device) + 0.5
    y, x = (axis.flatten()[:, None] for axis in torch.meshgrid(side, side, indexing="ij"))
    pictures = []
    for b, front in enumerate(order):
        (cx, cy), (xx, xy, yy) = seen.centre[b, front].unbind(-1), seen.conic[b, front].unbind(-1)
        u, v = x - cx, y - cy
        alpha = (
            gaussians.opacities[b, front] * (-0.5 * (xx * u * u + yy * v * v) - xy * u * v).exp()
        )
        alpha = torch.where(alpha < CUT, 0.0, alpha.clamp(max=OPAQUE))
        passed = torch.log1p(-alpha)
        weight = alpha * (passed.cumsum(-1) - passed).exp()
        drawn = [seen.colour[b, front], torch.ones_like(cx)[:, None], seen.depth[b, front, None]]
        pictures.append((weight @ torch.cat(drawn, dim=-1)).mT.unflatten(-1, (SIZE, SIZE)))
    colour, alpha, depth = torch.stack(pictures).split((3, 1, 1), dim=1)
    return Rendered(colour + (1 - alpha) * background[:, None, None], alpha, depth)


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| rasteriser | Gaussians | projection | forward | backward |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [
            f"{row[what][1]:.2f} ({row[what][0]:.2f}–{row[what][2]:.2f})"
            for what in ("projection", "forward", "backward")
        ]
        lines.append(f"| {row['rasterizer']} | {row['gaussians']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

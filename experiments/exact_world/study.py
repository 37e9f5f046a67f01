"""Rules and correctors on worlds whose truth is known: python experiments/exact_world/study.py
[folder].

Gaussian worlds are linear, so covariances are computed exactly; the mixture is sampled, 1000
matrices.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2 import (
    Step,
    Term,
    camera_ring,
    columns,
    draw,
    initial_x,
    karras_sigmas,
    make_shard,
    rows,
    sample_matrix,
)
from d2.matrix import raster, single_cells
from d2.priors import analytic
from d2.priors.analytic import World, autoregressive, wasserstein2
from d2.rules import composition, renoise, solver
from d2.rules.nested import nested
from d2.sampling import Composition

SIGMAS = karras_sigmas(50, sigma_min=0.02, sigma_max=200.0)
PUBLISHED = karras_sigmas(50, sigma_min=0.002, sigma_max=700.0)
RULES = {  # name -> shares of video, multiview, unary
    "columns alone": (0.0, 1.0, 0.0),
    "convex 1/2": (0.5, 0.5, 0.0),
    "alpha 3/4": (0.75, 0.75, -0.5),
    "alpha 7/8": (0.875, 0.875, -0.75),
    "three-term": (1.0, 1.0, -1.0),
}
NAMES = ("video", "multiview", "unary")
EVEN = {"video": 0.5, "multiview": 0.5, "unary": 0.0}
CONVEX = composition.linear(coefficients=composition.convex)
NESTED = {f"nested, {k} step{'s' * (k > 1)}": nested(steps=k) for k in (1, 2, 3, 4, 6, 8, 12)}
SOLVED = nested(steps=16)  # to where it is linear, so that covariances are exact


class Result(NamedTuple):
    table: str
    variant: str
    setting: str
    value: float


def run(
    x: Tensor,
    plan: Sequence[Step],
    terms: Sequence[Term],
    shares: dict[str, float],
    *,
    compose: Composition = CONVEX,
    scale: float = 1.0,
    step: Callable[..., Any] = solver.dpmpp_2m,
    noise: Any = None,
) -> Tensor:
    """The sampler under constant shares; `scale` guides every term but the unary."""
    one = torch.ones(x.shape[:2], dtype=torch.float64)
    fields = {t.name: shares[t.name] * one for t in terms}
    scales = {t.name: (1.0 if t.name == "unary" else scale) * one for t in terms}
    return sample_matrix(
        x,
        plan,
        terms=terms,
        cameras=camera_ring(len(x)),
        weights=lambda step, cameras, num_frames: fields,
        guidance=lambda step, cameras, num_frames: scales,
        compose=compose,
        solver=step,
        shard=make_shard(),
        noise=noise,
    )


def terms_of(world: World, v: int, f: int, shares: Sequence[float]) -> list[Term]:
    """The terms that have a share, told nothing."""
    cuts = dict(zip(NAMES, (rows(v, f), columns(v, f), single_cells(v, f)), strict=True))
    return [
        analytic.term(n, cuts[n], world, f) for n, share in zip(NAMES, shares, strict=True) if share
    ]


def covariance(
    world: World, n: int, shares: Sequence[float], compose: Composition = CONVEX
) -> Tensor:
    """What a rule ends with, exactly."""
    basis = analytic.basis(renoise.none(SIGMAS), n, n)
    x = initial_x(basis.start, SIGMAS[0])
    terms = terms_of(world, n, n, shares)
    return analytic.moments(
        run(x, renoise.none(SIGMAS), terms, dict(zip(NAMES, shares, strict=True)), compose=compose)
    )[1]


def nested_error(n: int = 6) -> list[Result]:
    """How far nested terms, and the best weights in hindsight, are from the joint denoiser,
    relative to its answer."""
    chain = autoregressive(n, 0.9)
    world = analytic.separable(chain, chain)
    terms, joint = (
        terms_of(world, n, n, (1, 1, 1)),
        [analytic.term("joint", raster(n, n), world, n)],
    )
    truth = analytic.draw_truth(world, draw(0, "init", (n * n, 8)), torch.zeros(8)).reshape(
        n, n, 8, 1, 1
    )
    found = []
    for sigma in (0.05, 0.1, 0.32, 1.0, 3.2, 10.0, 32.0, 80.0):
        x = truth + sigma * draw(0, "renoise", tuple(truth.shape)).double()
        exact = denoised(x, sigma, joint, {"joint": 1.0})
        said = torch.stack([denoised(x, sigma, [t], {t.name: 1.0}).flatten() for t in terms], dim=1)
        best = said @ torch.linalg.lstsq(said, exact.flatten()).solution
        ends = {
            "convex 1/2": denoised(x, sigma, terms, EVEN),
            "three-term": denoised(
                x, sigma, terms, dict(zip(NAMES, RULES["three-term"], strict=True))
            ),
            "best weights for this very x": best.reshape(x.shape),
        }
        for name, rule in NESTED.items():
            ends[name] = denoised(x, sigma, terms[:2], EVEN, rule)
        ends["Richardson, 12 steps"] = denoised(x, sigma, terms[:2], EVEN, nested(steps=12, keep=0))
        found += [
            Result("nested", name, f"sigma {sigma}", ((end - exact).norm() / exact.norm()).item())
            for name, end in ends.items()
        ]
    return found


def denoised(
    x: Tensor,
    sigma: float,
    terms: Sequence[Term],
    shares: dict[str, float],
    compose: Composition = CONVEX,
) -> Tensor:
    """What a rule makes of x at one level: a step down to zero."""
    return run(x, [Step(0, 1, 0, 1, sigma, 0.0)], terms, shares, compose=compose, step=solver.euler)


def gaussian_worlds(n: int = 6) -> list[Result]:
    """Separable worlds by correlation, and a wave of correlation 0.9 that couples rows and columns
    by its share."""
    found = []
    for correlation in (0.5, 0.7, 0.9):
        chain = autoregressive(n, correlation)
        world = analytic.separable(chain, chain)
        rules = {name: (shares, CONVEX) for name, shares in RULES.items()}
        for name, (shares, compose) in (
            rules | {"nested, solved": (RULES["convex 1/2"], SOLVED)}
        ).items():
            ended = covariance(world, n, shares, compose)
            setting = f"rho {correlation}"
            found.append(Result("variance kept", name, setting, ended.trace().item() / n**2))
            found.append(
                Result("separable", name, setting, wasserstein2(ended, world.covariances[0]) / n**2)
            )
            # rows, columns and cells, and so the end, are the same for every share
            if correlation == 0.9:
                for share in (0.0, 0.1, 0.25, 0.5, 1.0):
                    truth = analytic.travelling(
                        n, n, correlation=correlation, share=share
                    ).covariances[0]
                    found.append(
                        Result("coupled", name, f"share {share}", wasserstein2(ended, truth) / n**2)
                    )
    return found


def mixture_worlds(n: int = 4, count: int = 1000) -> list[Result]:
    """Two kinds of matrices: how many come out torn (cells of both signs), more than of the truth's
    own."""
    found = []
    plan = renoise.none(karras_sigmas(30, sigma_min=0.02, sigma_max=50.0))
    start = initial_x(draw(0, "init", (n, n, count, 1, 1)).double(), plan[0].sigma)
    chain = autoregressive(n, 0.7)
    for share in (0.5, 0.7, 0.9):
        world = analytic.two_kinds(chain, chain, share=share)
        joint = {"joint": 1.0}
        ends = {
            "joint (truth)": run(
                start, plan, [analytic.term("joint", raster(n, n), world, n)], joint
            )
        }
        for name, shares in RULES.items():
            ends[name] = run(
                start, plan, terms_of(world, n, n, shares), dict(zip(NAMES, shares, strict=True))
            )
        for name in ("nested, 1 step", "nested, 2 steps", "nested, 4 steps"):
            terms = terms_of(world, n, n, RULES["convex 1/2"])
            ends[name] = run(start, plan, terms, EVEN, compose=NESTED[name])
        for name, x in ends.items():
            cells = x.flatten(0, 1).flatten(1)
            torn = ((cells > 0).any(dim=0) & (cells < 0).any(dim=0)).double().mean().item()
            found.append(Result("mixture torn", name, f"m² {share}", torn))
            off = wasserstein2(cells @ cells.T / count, analytic.covariance(world)) / n**2
            found.append(Result("mixture covariance", name, f"m² {share}", off))
    return found


def conditioned_worlds(n: int = 7) -> list[Result]:
    """First row and first column known, correlation 0.9: errors of mean and covariance a free cell,
    with guidance."""
    chain = autoregressive(n, 0.9)
    world = analytic.separable(chain, chain)
    plan = renoise.none(SIGMAS)
    basis = analytic.basis(plan, n, n)
    cells = [(v, f) for v in range(n) for f in range(n)]
    known = torch.tensor([i for i, (v, f) in enumerate(cells) if v * f == 0])
    free = torch.tensor([i for i, (v, f) in enumerate(cells) if v * f])
    gain, left = analytic.given(world.covariances[0], known)

    def term(name: str, cut: Any, told: list[list[tuple[int, int]]]) -> Term:
        return analytic.term(name, cut, world, n, told=torch.tensor(told), truth=basis.truth)

    video = term("video", rows(n, n), [[(v, 0)] for v in range(n)])
    multiview = term("multiview", columns(n, n), [[(0, f)] for f in range(n)])
    cut = single_cells(n, n)
    unary = {
        "nothing": analytic.term("unary", cut, world, n),
        "column's": term("unary", cut, [[(0, f)] for _, f in cells]),
        "row's": term("unary", cut, [[(v, 0)] for v, _ in cells]),
        "both": term("unary", cut, [[(0, f), (v, 0)] for v, f in cells]),
        "shared": term("unary", cut, [[(0, 0)] for _ in cells]),
    }
    variants = {
        "columns alone": ([multiview], RULES["columns alone"]),
        "rows alone": ([video], (1.0, 0.0, 0.0)),
    }
    variants["convex 1/2"] = ([video, multiview], RULES["convex 1/2"])
    for told, own in unary.items():
        variants[f"three-term, unary told {told}"] = ([video, multiview, own], RULES["three-term"])
    for alpha in ("7/8", "3/4"):
        variants[f"alpha {alpha}, unary told shared"] = (
            [video, multiview, unary["shared"]],
            RULES[f"alpha {alpha}"],
        )
    rules = {name: (terms, shares, CONVEX) for name, (terms, shares) in variants.items()}
    rules["nested, solved"] = ([video, multiview], RULES["convex 1/2"], nested(steps=24))
    told = [video, multiview, unary["shared"]]
    rules["nested, solved, unary told shared"] = (
        told,
        RULES["convex 1/2"],
        nested(steps=24, unary=True),
    )
    found = []
    for scale in (1.0, 1.5):
        for name, (terms, shares, compose) in rules.items():
            x, by_name = (
                initial_x(basis.start, plan[0].sigma),
                dict(zip(NAMES, shares, strict=True)),
            )
            response, cov = analytic.moments(
                run(x, plan, terms, by_name, compose=compose, scale=scale)
            )
            wrong = (response - gain)[free]
            mean = (wrong @ world.covariances[0] @ wrong.T).trace().item() / len(free)
            found.append(Result("conditioned", name, f"mean, CFG {scale}", mean))
            off = wasserstein2(cov[free][:, free], left[free][:, free]) / len(free)
            found.append(Result("conditioned", name, f"covariance, CFG {scale}", off))
    return found


def correctors() -> list[Result]:
    """Standard deviation that a unit Gaussian keeps under the published levels, and the evaluations
    it takes."""
    again = partial(renoise.corrector, PUBLISHED)
    returning = renoise.returning
    plans = {
        "none": renoise.none(PUBLISHED),
        "VRS as published": renoise.vrs(PUBLISHED),
        "VRS, told the level reached": again(back=renoise.cold, steps=10),
        "halfway, told nominal": again(
            back=partial(returning, share=0.5), steps=10, told="nominal"
        ),
        "halfway, told the level reached": again(back=partial(returning, share=0.5), steps=10),
        "exact return, first 10": again(back=returning, steps=10),
        "exact return, above 5": again(back=returning),
        "exact return, above 0.05": again(back=returning, sigma_low=0.05),
        "exact return, above 0.05, 4 times": again(back=returning, sigma_low=0.05, repeats=4),
        "Restart, 4 steps, above 0.05": again(back=returning, sigma_low=0.05, span=4),
        "Langevin, 2 of a tenth, above 5": again(
            back=renoise.langevin, repeats=3, depth=0.1, told="nominal"
        ),
        "churn 40 in 0.05 to 50": again(
            back=returning, repeats=1, sigma_low=0.05, sigma_high=50.0, s_churn=40.0
        ),
    }
    unit = [analytic.term("video", rows(1, 1), analytic.gaussian(torch.ones(1, 1)), 1)]
    found = []
    for name, plan in plans.items():
        basis = analytic.basis(plan, 1, 1)
        for method in (solver.euler, solver.dpmpp_2m):
            x = initial_x(basis.start, plan[0].sigma)
            end = run(x, plan, unit, {"video": 1.0}, step=method, noise=basis.noise)
            spread = analytic.moments(end)[1].item() ** 0.5
            found.append(Result("correctors", name, f"std, {method.__name__}", spread))
        found.append(Result("correctors", name, "evaluations", float(len(plan))))
    return found


def corrected_rules(n: int = 4) -> list[Result]:
    """Rules with correctors, correlation 0.9: what a score leaves as it is, and what its flow ends
    at, may differ."""
    chain = autoregressive(n, 0.9)
    world = analytic.separable(chain, chain)
    bound = float(torch.linalg.eigvalsh(chain)[-1])
    critical = renoise.iterable_above(bound, bound)
    sigmas = karras_sigmas(30, sigma_min=0.02, sigma_max=100.0)
    again = partial(renoise.corrector, sigmas, back=renoise.returning)
    plans = {
        "none": renoise.none(sigmas),
        "VRS, first 6": renoise.vrs(sigmas, steps=6),
        "exact above 5": again(),
        f"exact above {critical:.1f}": again(sigma_low=critical),
        f"exact above {critical / 3:.1f}": again(sigma_low=critical / 3),
        "the same, 4 times": again(sigma_low=critical / 3, repeats=4),
    }
    found = []
    for name in ("joint (truth)", "convex 1/2", "alpha 7/8", "three-term", "nested, solved"):
        shares = RULES["convex 1/2"] if name == "nested, solved" else RULES.get(name, ())
        compose = SOLVED if name == "nested, solved" else CONVEX
        terms = (
            terms_of(world, n, n, shares)
            if shares
            else [analytic.term("joint", raster(n, n), world, n)]
        )
        by_name = dict(zip(NAMES, shares, strict=True)) if shares else {"joint": 1.0}
        for setting, plan in plans.items():
            basis = analytic.basis(plan, n, n)
            end = run(
                initial_x(basis.start, plan[0].sigma),
                plan,
                terms,
                by_name,
                compose=compose,
                noise=basis.noise,
            )
            off = wasserstein2(analytic.moments(end)[1], world.covariances[0]) / n**2
            found.append(Result("corrected", name, setting, off))
    return found


HEADINGS = {
    "nested": "Relative error of the denoiser, separable 6 × 6 world, correlation 0.9",
    "separable": "Squared 2-Wasserstein error a cell, separable 6 × 6 worlds by correlation",
    "variance kept": "Variance kept a cell, separable 6 × 6 worlds (truth: 1)",
    "coupled": (
        "Squared 2-Wasserstein error a cell by the share of a travelling wave, correlation 0.9"
    ),
    "mixture torn": "Matrices with cells of both signs, two kinds at ±m, 4 × 4, 1000 matrices",
    "mixture covariance": "Squared 2-Wasserstein distance of covariances a cell, two kinds at ±m",
    "conditioned": "First row and column known, 7 × 7, correlation 0.9: errors a free cell",
    "corrected": (
        "Squared 2-Wasserstein error a cell with correctors, separable 4 × 4 world, correlation 0.9"
    ),
    "correctors": "Standard deviation of a unit Gaussian, 50 published levels (truth: 1)",
}


def tables(results: list[Result]) -> str:
    """All results as Markdown."""
    parts = []
    for table, heading in HEADINGS.items():
        here = {(r.variant, r.setting): r.value for r in results if r.table == table}
        variants, settings = (list(dict.fromkeys(key[i] for key in here)) for i in (0, 1))
        lines = [f"| | {' | '.join(settings)} |", f"|---|{'---:|' * len(settings)}"]
        for v in variants:
            form = ".1e" if table == "nested" else ".3f"
            values = [f"{here[v, s]:{'.0f' if s == 'evaluations' else form}}" for s in settings]
            lines.append(f"| {v} | {' | '.join(values)} |")
        parts.append(f"{heading}.\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def plot(path: Path, results: list[Result]) -> None:
    """Errors against how strongly the worlds are coupled; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = ("separable", "coupled", "mixture torn")
    variants = dict.fromkeys(r.variant for r in results if r.table in shown)
    colours = {variant: f"C{i}" for i, variant in enumerate(variants)}
    figure, axes = plt.subplots(1, len(shown), figsize=(13, 3.6), layout="constrained")
    for axis, table in zip(axes, shown, strict=True):
        here = [r for r in results if r.table == table]
        for variant in dict.fromkeys(r.variant for r in here):
            line = [r for r in here if r.variant == variant]
            at, values = [float(r.setting.split()[1]) for r in line], [r.value for r in line]
            axis.plot(at, values, "o-", color=colours[variant], label=variant)
        axis.set_title(HEADINGS[table].split(",")[0], fontsize=9)
        axis.set_xlabel(here[0].setting.split()[0])
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    of = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(of.values()), list(of), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)


def main(folder: Path) -> None:
    studies = (
        nested_error,
        gaussian_worlds,
        mixture_worlds,
        conditioned_worlds,
        corrected_rules,
        correctors,
    )
    results = [result for study in studies for result in study()]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(Result._fields)
        writer.writerows((*r[:3], f"{r.value:.6g}") for r in results)
    (folder / "table.md").write_text(tables(results), encoding="utf-8")
    plot(folder / "plot.png", results)
    print(tables(results))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/exact_world"))

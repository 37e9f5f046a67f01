"""Analytic priors: worlds of matrices whose every denoiser is known exactly.

A world is a mixture of Gaussians over the n = V·F cells of a matrix, in raster order (one
component: a Gaussian). Axes c h w hold independent particles. Any part of a matrix is then a
mixture too, so rows, columns, cells and the whole matrix have exact denoisers E[x0 | x, σ, what is
known], in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from d2.errors import InputError
from d2.matrix import Cut
from d2.sampling import Denoise, Prediction, Step, Term

EXACT = 1e-10  # variance of the noise on what is known exactly, so that a cell may be told twice


class World(NamedTuple):
    """A mixture of Gaussians over the cells of a matrix; all float64."""

    shares: Tensor  # k, summing to 1
    means: Tensor  # k n
    covariances: Tensor  # k n n


class Basis(NamedTuple):
    """Unit inputs of a linear sampler as particles: each channel is 1 in one cell of one input, and
    0 elsewhere."""

    start: Tensor  # matrix, the initial noise
    noise: Callable[[Step, Literal["before", "after"]], Tensor]  # every other noise of the plan
    truth: Tensor  # matrix, what terms are told


# ------------------------------------------------------------------------------------------- worlds


def autoregressive(size: int, correlation: float) -> Tensor:
    """correlation^|i − j|, the covariance of a stationary chain of unit variance: size size."""
    at = torch.arange(size, dtype=torch.float64)
    return correlation ** (at[:, None] - at).abs()


def gaussian(covariance: Tensor) -> World:
    """The zero-mean Gaussian of this covariance (n n)."""
    covariance = covariance.double()
    return World(covariance.new_ones(1), covariance.new_zeros(1, len(covariance)), covariance[None])


def separable(
    between_views: Tensor,  # v v
    between_frames: Tensor,  # f f
) -> World:
    """Cells covary as A ⊗ B: given a cell, its row and its column are independent."""
    return gaussian(torch.kron(between_views, between_frames))


def travelling(num_views: int, num_frames: int, *, correlation: float, share: float) -> World:
    """(1 − share) of a separable world and `share` of a wave that travels over the views as frames
    go by.

    The wave's cells covary as correlation^|Δv − Δf|. Rows, columns and cells are those of the
    separable world whatever the share: what no rule that sees only them can tell.
    """
    v, f = (torch.arange(size, dtype=torch.float64) for size in (num_views, num_frames))
    place = (v[:, None] - f).flatten()
    wave = correlation ** (place[:, None] - place).abs()
    apart = torch.kron(
        autoregressive(num_views, correlation), autoregressive(num_frames, correlation)
    )
    return gaussian((1 - share) * apart + share * wave)


def two_kinds(
    between_views: Tensor,  # v v
    between_frames: Tensor,  # f f
    *,
    share: float,
) -> World:
    """Matrices of two kinds, evenly: all cells around +m or all around −m, with m² = share of the
    variance.

    Around it cells covary as (1 − share) · A ⊗ B.
    """
    around = (1 - share) * torch.kron(between_views, between_frames).double()
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    means = signs * math.sqrt(share) * torch.ones(len(around), dtype=torch.float64)
    return World(torch.full((2,), 0.5, dtype=torch.float64), means, around.expand(2, -1, -1))


def covariance(world: World) -> Tensor:
    """Of a whole mixture: n n."""
    mean = world.shares @ world.means
    within = torch.einsum("k,kij->ij", world.shares, world.covariances)
    return (
        within
        + torch.einsum("k,ki,kj->ij", world.shares, world.means, world.means)
        - torch.outer(mean, mean)
    )


def draw_truth(
    world: World,
    unit: Tensor,  # n p, Gaussian
    uniform: Tensor,  # p, in [0, 1): which component
) -> Tensor:
    """Matrices of this world: n p."""
    component = torch.bucketize(uniform.double(), world.shares.cumsum(0)[:-1], right=True)
    roots = torch.stack([_root(c) for c in world.covariances])
    return world.means[component].T + torch.einsum("pij,jp->ip", roots[component], unit.double())


# ------------------------------------------------------------------------------------------- priors


def term(
    name: str,
    cut: Cut,
    world: World,
    num_frames: int,
    *,
    told: Tensor | None = None,
    truth: Tensor | None = None,
) -> Term:
    """The exact prior of a cut's sequences; its conditional half knows the cells `told` (b m 2) of
    `truth` (matrix)."""
    if (told is None) != (truth is None):
        raise InputError(
            "analytic: a condition is the cells told and the truth they are read from; give both or"
            " none"
        )
    return Term(name, cut, _denoiser(world, flat(cut.cells, num_frames), num_frames, told, truth))


def flat(cells: Tensor, num_frames: int) -> Tensor:
    """(view, frame) pairs `... 2` to places in raster order `...`."""
    return cells[..., 0] * num_frames + cells[..., 1]


def _denoiser(
    world: World, cells: Tensor, num_frames: int, told: Tensor | None, truth: Tensor | None
) -> Denoise:
    nothing = cells[:, :0]
    known = nothing if told is None else flat(told, num_frames)

    def denoise(
        x: Tensor,  # b t c h w
        sigma: float,
        sequences: Tensor,  # b
        halves: tuple[bool, bool],
    ) -> Prediction:
        particles = x.flatten(2).double()  # b t p
        values = particles.new_zeros(len(world.means[0]), particles.shape[2])
        if truth is not None:
            values = truth.flatten(0, 1).flatten(1).double().expand(-1, particles.shape[2])

        def half(known: Tensor) -> Tensor:
            known = known[sequences]
            found = posterior_mean(world, cells[sequences], particles, sigma, known, values[known])
            return found.reshape(x.shape).to(x)

        return Prediction(half(nothing) if halves[0] else None, half(known) if halves[1] else None)

    return denoise


def posterior_mean(
    world: World,
    cells: Tensor,  # b t, places seen through noise
    x: Tensor,  # b t p
    sigma: float,
    known: Tensor,  # b m, places known exactly; one may come twice
    values: Tensor,  # b m p
) -> Tensor:
    """E[x0 in cells | x, σ, values]: b t p. Each component's Gaussian regression, weighted by how
    likely it is."""
    seen = torch.cat([cells, known], dim=1)
    level = torch.cat(
        [torch.full(cells.shape, sigma**2), torch.full(known.shape, EXACT)], dim=1
    ).double()
    observed = torch.cat([x, values], dim=1)
    means, scores = [], []
    for share, mean, cov in zip(*world, strict=True):
        factor = torch.linalg.cholesky(
            cov[seen[:, :, None], seen[:, None, :]] + torch.diag_embed(level)
        )
        residual = observed - mean[seen][..., None]
        solved = torch.cholesky_solve(residual, factor)
        means.append(mean[cells][..., None] + cov[cells[:, :, None], seen[:, None, :]] @ solved)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        scores.append(share.log() - 0.5 * (residual * solved).sum(dim=1) - log_det[:, None])
    chance = torch.stack(scores).softmax(dim=0)  # k b p
    return (chance[:, :, None] * torch.stack(means)).sum(dim=0)


# ----------------------------------------------------------------------------------------- measures


def basis(plan: Sequence[Step], num_views: int, num_frames: int) -> Basis:
    """What a linear sampler is given to learn its map exactly: initial noise, every noise of the
    plan, truth."""
    added = [(s.index, s.repeat, "before") for s in plan if s.noise_before]
    added += [(s.index, s.repeat, "after") for s in plan if s.noise_after]
    n = num_views * num_frames

    def unit(block: int) -> Tensor:
        channels = torch.zeros(n, (len(added) + 2) * n, dtype=torch.float64)
        channels[:, block * n : (block + 1) * n] = torch.eye(n)
        return rearrange(channels, "(v f) c -> v f c 1 1", v=num_views)

    places = {name: 1 + i for i, name in enumerate(added)}
    return Basis(
        unit(0),
        lambda step, when: unit(places[step.index, step.repeat, when]),
        unit(1 + len(added)),
    )


def moments(
    ended: Tensor,  # matrix, what a linear sampler made of a basis
) -> tuple[Tensor, Tensor]:
    """How the mean follows the truth that was told, and the covariance around it: n n each."""
    linear = ended.flatten(0, 1).flatten(1)
    n = len(linear)
    return linear[:, -n:], linear[:, :-n] @ linear[:, :-n].T


def given(
    covariance: Tensor,  # n n
    known: Tensor,  # m
) -> tuple[Tensor, Tensor]:
    """The same two of the exact answer where these cells of a Gaussian are known."""
    n = len(covariance)
    gain = torch.zeros(n, n, dtype=torch.float64)
    gain[:, known] = torch.linalg.solve(covariance[known][:, known], covariance[known]).T
    return gain, covariance - gain @ covariance


def wasserstein2(
    a: Tensor,  # n n
    b: Tensor,  # n n
) -> float:
    """Squared 2-Wasserstein distance of zero-mean Gaussians: tr(a + b − 2 (√a b √a)^½)."""
    root = _root(a)
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return (a.trace() + b.trace() - 2 * cross).item()


def score_precision(
    terms: Sequence[Term], shares: dict[str, float], num_views: int, num_frames: int, sigma: float
) -> Tensor:
    """Minus the derivative of a linear rule's score, (1 − ∂D/∂x)/σ² with D = Σ share · conditional
    prediction: n n."""
    n = num_views * num_frames
    eye = torch.eye(n, dtype=torch.float64)
    x = rearrange(eye, "(v f) c -> v f c 1 1", v=num_views)
    jacobian = torch.zeros_like(eye)
    for t in terms:
        sequences = x[t.cut.cells[..., 0], t.cut.cells[..., 1]]
        answer = t.denoise(sequences, sigma, torch.arange(len(sequences)), (False, True)).cond
        assert answer is not None
        rows = answer.flatten(2) * t.cut.blend[..., None]
        jacobian.index_add_(
            0, flat(t.cut.cells, num_frames).flatten(), shares[t.name] * rows.flatten(0, 1).double()
        )
    return (eye - jacobian) / sigma**2


def critical_sigma(
    precision: Callable[[float], Tensor], *, low: float = 1e-2, high: float = 1e2
) -> float:
    """The highest σ whose score precision has a negative eigenvalue: below it iterating at one
    level diverges; or 0."""

    def negative(sigma: float) -> bool:
        matrix = precision(sigma)
        return bool(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[0] < 0)

    levels = torch.logspace(math.log10(high), math.log10(low), 41, dtype=torch.float64).tolist()
    below = next((i for i, sigma in enumerate(levels) if negative(sigma)), None)
    if not below:  # nowhere, or even at `high`
        return 0.0 if below is None else math.inf
    bottom, top = levels[below], levels[below - 1]
    for _ in range(30):
        middle = math.sqrt(bottom * top)
        bottom, top = (middle, top) if negative(middle) else (bottom, middle)
    return top


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

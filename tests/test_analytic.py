"""Laws of the analytic worlds, and of the composition rules on them, where every answer is
known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from exact_world import ended, sample, terms_of, three_terms
from torch import Tensor

from d2.matrix import columns, raster, rows, single_cells
from d2.noise import draw
from d2.priors import analytic
from d2.priors.analytic import World, autoregressive, wasserstein2
from d2.rules import renoise, solver
from d2.sampling import initial_x, karras_sigmas

V, F = 3, 4
A, B = autoregressive(V, 0.8), autoregressive(F, 0.5)
APART = analytic.separable(A, B)
FINE = renoise.none(karras_sigmas(80, sigma_min=0.02, sigma_max=200.0))


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


# ------------------------------------------------------------------------------------------- worlds


@pytest.mark.parametrize("sigma", [0.05, 0.7, 30.0])
def test_a_mixtures_denoiser_is_its_posterior_mean(sigma: float) -> None:
    """Against the integral over a fine grid."""
    shares, means, stds = [0.2, 0.5, 0.3], [-2.0, 0.5, 1.5], [0.3, 0.1, 0.8]
    world = World(
        torch.tensor(shares).double(),
        torch.tensor(means).double()[:, None],
        torch.tensor(stds).double().square()[:, None, None],
    )
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    density = sum(
        s * torch.exp(-0.5 * ((grid - m) / d) ** 2) / d
        for s, m, d in zip(shares, means, stds, strict=True)
    )
    x = torch.tensor([-3.0, -0.4, 0.0, 0.9, 2.5], dtype=torch.float64)
    seen = density * torch.exp(-0.5 * ((x[:, None] - grid) / sigma) ** 2)
    expected = (seen * grid).sum(dim=1) / seen.sum(dim=1)
    none = torch.zeros(1, 0, dtype=torch.long)
    got = analytic.posterior_mean(
        world, none.new_zeros(1, 1), x[None, None], sigma, none, x.new_zeros(1, 0, 5)
    )
    torch.testing.assert_close(got[0, 0], expected, rtol=1e-6, atol=1e-8)


def test_what_is_told_is_known_exactly() -> None:
    """Condition first, then denoise what is left, in two steps of textbook algebra; a cell told
    twice is told once."""
    cut, told = rows(V, F), torch.tensor([[[v, 0], [0, 0]] for v in range(V)])
    truth, x = draw(0, "init", (V, F, 1, 2, 2)).double(), draw(1, "init", (V, F, 1, 2, 2)).double()
    term = analytic.term("video", cut, APART, F, told=told, truth=truth)
    got = term.denoise(x, 0.6, torch.arange(V), (True, True))
    cov = torch.kron(A, B)
    for v in range(V):
        cells = torch.arange(v * F, v * F + F)
        gain, left = analytic.given(cov, torch.tensor(sorted({0, v * F})))
        mean = (gain @ truth.reshape(V * F, 4))[cells]
        wiener = left[cells][:, cells] @ torch.linalg.inv(
            left[cells][:, cells] + 0.36 * torch.eye(F)
        )
        assert got.cond is not None and got.uncond is not None
        torch.testing.assert_close(
            got.cond[v].reshape(F, 4), mean + wiener @ (x[v].reshape(F, 4) - mean)
        )
        plain = B @ torch.linalg.inv(B + 0.36 * torch.eye(F)) @ x[v].reshape(F, 4)
        torch.testing.assert_close(got.uncond[v].reshape(F, 4), plain)
        torch.testing.assert_close(got.cond[v, 0], truth[v, 0], rtol=0, atol=1e-6)


def test_a_term_answers_for_the_sequences_and_halves_it_is_asked() -> None:
    term = analytic.term(
        "multiview", columns(V, F), analytic.travelling(V, F, correlation=0.7, share=0.4), F
    )
    x = draw(0, "init", (F, V, 1, 2, 2))
    every = term.denoise(x, 1.0, torch.arange(F), (True, False))
    some = term.denoise(x[[2, 0]], 1.0, torch.tensor([2, 0]), (False, True))
    assert (
        every.cond is None
        and some.uncond is None
        and every.uncond is not None
        and some.cond is not None
    )
    assert some.cond.dtype == torch.float32
    torch.testing.assert_close(some.cond, every.uncond[[2, 0]])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rows_and_columns_do_not_tell_a_wave(share: float) -> None:
    cov = analytic.travelling(V, F, correlation=0.8, share=share).covariances[0]
    for cut, own in ((rows(V, F), autoregressive(F, 0.8)), (columns(V, F), autoregressive(V, 0.8))):
        for cells in analytic.flat(cut.cells, F):
            torch.testing.assert_close(cov[cells][:, cells], own)
    assert torch.linalg.eigvalsh(cov)[0] > -1e-12
    apart = torch.kron(autoregressive(V, 0.8), autoregressive(F, 0.8))
    assert (wasserstein2(cov, apart) > 0.02 * V * F) == (share > 0)


def test_matrices_drawn_have_the_worlds_covariance() -> None:
    world = analytic.two_kinds(A, B, share=0.6)
    generator = torch.Generator().manual_seed(0)
    x = analytic.draw_truth(
        world,
        torch.randn(V * F, 40000, generator=generator),
        torch.rand(40000, generator=generator),
    )
    torch.testing.assert_close(x @ x.T / 40000, analytic.covariance(world), rtol=0, atol=0.04)
    assert (x.mean(dim=0).abs() < 0.3).double().mean() < 0.2  # two kinds, little between
    torch.testing.assert_close(analytic.covariance(world).diagonal(), torch.ones(V * F).double())


def test_wasserstein_distance() -> None:
    a, b = (
        torch.diag(torch.tensor([4.0, 9.0])).double(),
        torch.diag(torch.tensor([1.0, 25.0])).double(),
    )
    assert wasserstein2(a, b) == pytest.approx((2 - 1) ** 2 + (3 - 5) ** 2)
    turn = torch.linalg.qr(draw(0, "init", (2, 2)).double()).Q
    assert wasserstein2(turn @ a @ turn.T, turn @ b @ turn.T) == pytest.approx(5.0)
    assert wasserstein2(A, B[:V, :V]) == pytest.approx(wasserstein2(B[:V, :V], A))
    assert wasserstein2(A, A) == pytest.approx(0.0, abs=1e-9)


def test_half_a_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="give both or none"):
        analytic.term("video", rows(V, F), APART, F, told=torch.zeros(V, 1, 2, dtype=torch.long))


# ---------------------------------------------------------------------- what joint denoisers sample


def test_the_joint_denoiser_samples_the_world() -> None:
    world = analytic.travelling(V, F, correlation=0.8, share=0.5)
    joint = [analytic.term("joint", raster(V, F), world, F)]
    left = wasserstein2(ended(FINE, joint, V, F, solver=solver.heun), world.covariances[0]) / (
        V * F
    )
    assert left < 1e-4


def test_the_joint_denoiser_of_a_mixture_samples_both_kinds() -> None:
    world = analytic.two_kinds(A, B, share=0.8)
    plan = renoise.none(karras_sigmas(25, sigma_min=0.01, sigma_max=50.0))
    x = initial_x(draw(0, "init", (V, F, 1, 50, 50)), plan[0].sigma)
    x = (
        sample(x, plan, [analytic.term("joint", raster(V, F), world, F)], solver=solver.heun)
        .flatten(0, 1)
        .flatten(1)
    )
    torch.testing.assert_close(
        (x @ x.T / 2500).double(), analytic.covariance(world), rtol=0, atol=0.08
    )
    up = (x > 0).double().mean(dim=0)
    assert ((up > 0.9) | (up < 0.1)).double().mean() > 0.9 and 0.45 < (
        up > 0.5
    ).double().mean() < 0.55


# -------------------------------------------------------------------- what composed priors end with


@pytest.mark.parametrize("w", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_the_convex_rule_ends_at_a_geometric_mean(w: float) -> None:
    got = ended(
        FINE, terms_of(APART, V, F, ("video", "multiview")), V, F, weight=w, solver=solver.heun
    )
    torch.testing.assert_close(got, torch.kron(power(A, w), power(B, 1 - w)), rtol=0, atol=5e-3)


def test_three_terms_end_at_the_world() -> None:
    got = ended(FINE, terms_of(APART, V, F), V, F, compose=three_terms(), solver=solver.heun)
    torch.testing.assert_close(got, torch.kron(A, B), rtol=0, atol=5e-3)


@pytest.mark.parametrize("alpha", [0.5, 0.7, 0.9])
def test_the_family_ends_between_them(alpha: float) -> None:
    """All terms are diagonal in one basis, so exponents are the coefficients."""
    got = ended(FINE, terms_of(APART, V, F), V, F, compose=three_terms(alpha), solver=solver.heun)
    torch.testing.assert_close(got, torch.kron(power(A, alpha), power(B, alpha)), rtol=0, atol=5e-3)


def test_half_the_variance_is_lost_by_averaging() -> None:
    world = analytic.separable(autoregressive(6, 0.9), autoregressive(6, 0.9))
    convex = ended(FINE, terms_of(world, 6, 6, ("video", "multiview")), 6, 6, solver=solver.heun)
    assert convex.trace().item() / 36 == pytest.approx(0.51, abs=0.01)
    assert wasserstein2(convex, world.covariances[0]) / 36 == pytest.approx(0.26, abs=0.01)
    three = ended(FINE, terms_of(world, 6, 6), 6, 6, compose=three_terms(), solver=solver.heun)
    assert three.trace().item() / 36 == pytest.approx(1.0, abs=0.01)
    assert wasserstein2(three, world.covariances[0]) / 36 < 1e-4


def test_no_rule_of_rows_and_columns_sees_what_couples_them() -> None:
    """It ends where it ends without the coupling, so its error grows with it."""
    errors = []
    for share in (0.0, 0.5, 1.0):
        world = analytic.travelling(V, F, correlation=0.8, share=share)
        got = ended(FINE, terms_of(world, V, F), V, F, compose=three_terms(), solver=solver.heun)
        torch.testing.assert_close(
            got, torch.kron(autoregressive(V, 0.8), autoregressive(F, 0.8)), rtol=0, atol=5e-3
        )
        errors.append(wasserstein2(got, world.covariances[0]) / (V * F))
    assert errors[0] < 1e-4 and errors[1] > 0.02 and errors[2] > 2 * errors[1]


# ---------------------------------------------------------------------------------- with conditions


def conditioned(unary: str | None, alpha: float) -> tuple[float, float]:
    """7 × 7 cells of correlation 0.9 / 0.9, first row and column known: errors of mean and
    covariance a free cell.

    Columns are told their cell of the first row, rows theirs of the first column. The squared error
    of the mean is averaged over what may be known.
    """
    n = 7
    world = analytic.separable(autoregressive(n, 0.9), autoregressive(n, 0.9))
    plan = renoise.none(karras_sigmas(40, sigma_min=0.01, sigma_max=200.0))
    basis = analytic.basis(plan, n, n)
    cells = [(v, f) for v in range(n) for f in range(n)]
    told: dict[str, Any] = {
        "column's": [[(0, f)] for _, f in cells],
        "row's": [[(v, 0)] for v, _ in cells],
        "both": [[(0, f), (v, 0)] for v, f in cells],
        "shared": [[(0, 0)] for _ in cells],
    }

    def term(name: str, cut: Any, told: Any) -> Any:
        return analytic.term(name, cut, world, n, told=torch.tensor(told), truth=basis.truth)

    terms = [
        term("video", rows(n, n), [[(v, 0)] for v in range(n)]),
        term("multiview", columns(n, n), [[(0, f)] for f in range(n)]),
    ]
    if unary == "nothing":
        terms.append(analytic.term("unary", single_cells(n, n), world, n))
    elif unary is not None:
        terms.append(term("unary", single_cells(n, n), told[unary]))
    x = initial_x(basis.start, plan[0].sigma)
    x = sample(x, plan, terms, compose=three_terms(alpha), solver=solver.heun, noise=basis.noise)
    gain, cov = analytic.moments(x)
    known = torch.tensor([i for i, (v, f) in enumerate(cells) if v * f == 0])
    free = torch.tensor([i for i, (v, f) in enumerate(cells) if v * f])
    true_gain, true_cov = analytic.given(world.covariances[0], known)
    wrong = gain - true_gain
    mean = (wrong @ world.covariances[0] @ wrong.T).diagonal()[free].mean().item()
    return mean, wasserstein2(cov[free][:, free], true_cov[free][:, free]) / len(free)


@pytest.fixture(scope="module")
def told_table() -> dict[tuple[str | None, float], tuple[float, float]]:
    wanted = [
        (None, 0.5),
        *((u, 1.0) for u in ("nothing", "column's", "row's", "both", "shared")),
        ("shared", 0.875),
    ]
    return {(unary, alpha): conditioned(unary, alpha) for unary, alpha in wanted}


@pytest.mark.parametrize(
    ("unary", "alpha", "covariance"),
    [
        (None, 0.5, 0.058),
        ("nothing", 1.0, 0.000),
        ("column's", 1.0, 0.052),
        ("row's", 1.0, 0.052),
        ("both", 1.0, 0.144),
        ("shared", 1.0, 0.005),
        ("shared", 0.875, 0.006),
    ],
)
def test_errors_depend_on_what_the_unary_term_is_told(
    told_table: dict[tuple[str | None, float], tuple[float, float]],
    unary: str | None,
    alpha: float,
    covariance: float,
) -> None:
    assert told_table[unary, alpha][1] == pytest.approx(covariance, rel=0.1, abs=1e-3)


def test_the_unary_term_is_to_be_told_what_both_conditions_share(
    told_table: dict[tuple[str | None, float], tuple[float, float]],
) -> None:
    mean = {key: value[0] for key, value in told_table.items()}
    assert mean["shared", 0.875] < mean["shared", 1.0] < mean[None, 0.5]
    assert all(
        mean[None, 0.5] < 0.5 * mean[told, 1.0] for told in ("nothing", "column's", "row's", "both")
    )
    # the world is symmetric
    assert mean["column's", 1.0] == pytest.approx(mean["row's", 1.0], rel=1e-3)
    assert math.isclose(mean["shared", 1.0], 0.09, rel_tol=0.1) and math.isclose(
        mean[None, 0.5], 0.138, rel_tol=0.1
    )

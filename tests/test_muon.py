"""The optimiser of the tiny priors: PyTorch's Muon where that takes the parameter, AdamW for what
is no matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2.train.muon import Muon, orthogonal


def steps(optimizer: torch.optim.Optimizer, p: nn.Parameter, count: int = 4) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    for _ in range(count):
        p.grad = torch.randn(p.shape, generator=g)
        optimizer.step()
    return p.detach()


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_singular_values_come_to_about_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-6, 1.0, 1e4]
    ).view(3, 1, 1)
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.3 and values.max() < 1.3
    assert torch.linalg.svdvals(matrices[1]).max() > 4  # they were not before
    assert orthogonal(torch.zeros(1, *shape)).abs().max() == 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon since 2.9")
@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_matrices_step_as_pytorchs_own(shape: tuple[int, int]) -> None:
    ours, theirs = parameter(*shape), parameter(*shape)
    own = torch.optim.Muon(  # type: ignore[attr-defined]
        [theirs],
        0.1,
        momentum=0.95,
        weight_decay=0.01,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
    )
    moved = (steps(Muon([ours], 0.1), ours) - parameter(*shape)).detach()
    torch.testing.assert_close(
        moved, steps(own, theirs) - parameter(*shape), rtol=0, atol=0.03 * float(moved.abs().max())
    )


def test_a_convolution_steps_as_its_flattened_kernel() -> None:
    kernel, matrix = parameter(8, 4, 3, 3), nn.Parameter(parameter(8, 4, 3, 3).detach().flatten(1))
    g = torch.Generator().manual_seed(1)
    optimizers = Muon([kernel], 0.1), Muon([matrix], 0.1)
    for _ in range(3):
        kernel.grad = torch.randn(kernel.shape, generator=g)
        matrix.grad = kernel.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)


@pytest.mark.parametrize("shape", [(7,), (5, 1)])
def test_what_is_no_matrix_steps_as_adamw(shape: tuple[int, ...]) -> None:
    ours, theirs = parameter(*shape), parameter(*shape)
    adamw = torch.optim.AdamW([theirs], 0.1, betas=(0.9, 0.99), weight_decay=0.01)
    torch.testing.assert_close(steps(Muon([ours], 0.1), ours), steps(adamw, theirs))


def test_parameters_alike_do_not_mix_and_those_without_a_gradient_stay() -> None:
    a, b, still = parameter(6, 9), parameter(6, 9), parameter(6, 9)
    together = Muon([a, b, still], 0.1)
    alone = parameter(6, 9)
    g = torch.Generator().manual_seed(1)
    own = Muon([alone], 0.1)
    for _ in range(3):
        a.grad = torch.randn(a.shape, generator=g)
        b.grad, alone.grad = torch.randn(b.shape), a.grad.clone()
        together.step()
        own.step()
    torch.testing.assert_close(a, alone)
    assert torch.equal(still, parameter(6, 9))

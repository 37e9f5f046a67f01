"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024), at AdamW's learning rates
(Liu et al. 2025).

PyTorch's own takes matrices alone; a UNet's convolutions are matrices too once their kernels are
flattened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Jordan et al.: singular values from (0, 1] to about 1 in five steps
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon for weights of two and more axes, flattened to out × rest; AdamW for everything else."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ):
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for p in parameters:
            groups[p.ndim >= 2 and min(p.flatten(1).shape) > 1].append(p)
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__(
            [{"params": ps, "matrices": kind} for kind, ps in groups.items() if ps], defaults
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            chosen = [p for p in group["params"] if p.grad is not None]
            for p in chosen:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            (self.step_matrices if group["matrices"] else self.step_rest)(chosen, group)
        return loss

    def step_matrices(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Nesterov momentum, made orthogonal, scaled to the size that AdamW's updates have; alike
        shapes together."""
        alike: dict[torch.Size, list[nn.Parameter]] = {}
        for p in parameters:
            alike.setdefault(p.flatten(1).shape, []).append(p)
        for shape, members in alike.items():
            updates = []
            for p in members:
                assert p.grad is not None
                mean = self.state[p].setdefault("momentum", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(mean, group["momentum"]).flatten(1))
            size = 0.2 * max(shape) ** 0.5
            for p, update in zip(members, orthogonal(torch.stack(updates)), strict=True):
                p.add_(update.view_as(p), alpha=-group["lr"] * size)

    def step_rest(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Adam's step."""
        for p in parameters:
            assert p.grad is not None
            state = self.state[p]
            state["step"] = state.get("step", 0) + 1
            mean, square = (
                state.setdefault(name, torch.zeros_like(p)) for name in ("mean", "square")
            )
            mean.lerp_(p.grad, 1 - group["betas"][0])
            square.lerp_(p.grad.square(), 1 - group["betas"][1])
            unbiased = [1 - beta ** state["step"] for beta in group["betas"]]
            p.addcdiv_(mean / unbiased[0], (square / unbiased[1]).sqrt() + 1e-8, value=-group["lr"])


def orthogonal(
    matrices: Tensor,  # n rows columns
) -> Tensor:  # n rows columns
    """The nearest matrices with singular values about 1, by five Newton–Schulz steps; zero stays
    zero."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x

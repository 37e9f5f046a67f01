"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024), at AdamW's learning rates
(Liu et al. 2025).

PyTorch's own takes matrices alone; a UNet's convolutions are matrices too once their kernels are
flattened.
"""

# pyright: reportPrivateImportUsage=false
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
            if not chosen:
                continue
            torch._foreach_mul_(chosen, 1 - group["lr"] * group["weight_decay"])
            (self.step_matrices if group["matrices"] else self.step_rest)(chosen, group)
        return loss

    def step_matrices(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Nesterov momentum, made orthogonal, scaled to the size that AdamW's updates have; alike
        shapes together."""
        grads = [p.grad for p in parameters if p.grad is not None]
        means = [self.kept(p, "momentum") for p in parameters]
        torch._foreach_lerp_(means, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, means, group["momentum"])
        alike: dict[torch.Size, list[int]] = {}
        for i, p in enumerate(parameters):
            alike.setdefault(p.flatten(1).shape, []).append(i)
        for shape, members in alike.items():
            size = 0.2 * max(shape) ** 0.5
            chosen = [parameters[i] for i in members]
            turned = orthogonal(torch.stack([updates[i].flatten(1) for i in members]))
            steps = [u.view_as(p) for u, p in zip(turned, chosen, strict=True)]
            torch._foreach_add_(list[Tensor](chosen), steps, alpha=-group["lr"] * size)

    def step_rest(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Adam's step."""
        grads = [p.grad for p in parameters if p.grad is not None]
        means, squares = ([self.kept(p, name) for p in parameters] for name in ("mean", "square"))
        for p in parameters:
            self.state[p]["step"] = self.state[p].get("step", 0) + 1
        torch._foreach_lerp_(means, grads, 1 - group["betas"][0])
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - group["betas"][1])
        unbiased = [
            [1 - beta ** self.state[p]["step"] for p in parameters] for beta in group["betas"]
        ]
        spread = torch._foreach_div(squares, unbiased[1])
        torch._foreach_sqrt_(spread)
        torch._foreach_add_(spread, 1e-8)
        torch._foreach_addcdiv_(
            list[Tensor](parameters), torch._foreach_div(means, unbiased[0]), spread, -group["lr"]
        )

    def kept(self, p: nn.Parameter, name: str) -> Tensor:
        """What is remembered of a parameter; zeros at first."""
        if name not in self.state[p]:
            self.state[p][name] = torch.zeros_like(p)
        return self.state[p][name]


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

"""A product of experts: what each prior's condition adds to one unconditional prediction."""

from __future__ import annotations

import torch

from d2.errors import InputError
from d2.rules.composition import Coefficients
from d2.sampling import Fields

SHARES = {
    "video": {"video": 1.0},
    "multiview": {"multiview": 1.0},
    "mean": {"video": 0.5, "multiview": 0.5},
}


def product(
    weights: Fields, scales: Fields, *, uncond: str = "mean", strength: float = 1.0
) -> Coefficients:
    """D = U + strength · Σ weight · scale · (cond − uncond) (Composable Diffusion, arXiv
    2206.01714, eq. 11).

    Each condition is an expert whose likelihood ratio multiplies one prior, U: that of `uncond`
    video, multiview, mean, or weighted, each by its weight, which at strength 1 is the convex rule.
    Weights that sum to one share the guidance out; at even weights a strength of 2 lets every
    condition speak in full.
    """
    if uncond not in (*SHARES, "weighted"):
        raise InputError(f"composition.uncond={uncond}: choose mean, video, multiview or weighted")
    of_cond = {name: strength * weights[name] * scales[name] for name in weights}
    ones = torch.ones_like(next(iter(weights.values())))
    base = {
        name: weights[name] if uncond == "weighted" else SHARES[uncond].get(name, 0.0) * ones
        for name in weights
    }
    return {name: (base[name] - of_cond[name], of_cond[name]) for name in weights}

"""How the published video priors turn a network's output into E[x0 | x, sigma]."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Scaling(NamedTuple):
    """denoised = c_skip x + c_out network(c_in x, c_noise); each has the shape of sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(
    sigma: Tensor,  # ..., > 0
) -> Scaling:
    """v-prediction written for x = x0 + sigma n, told the noise level as ln(sigma) / 4 (sgm's
    VScalingWithEDMcNoise).

    Karras et al. 2022, table 1 with sigma_data = 1; Salimans and Ho 2022 for v.
    """
    variance = sigma.square() + 1
    return Scaling(
        c_skip=1 / variance,
        c_out=-sigma * variance.rsqrt(),
        c_in=variance.rsqrt(),
        c_noise=sigma.log() / 4,
    )

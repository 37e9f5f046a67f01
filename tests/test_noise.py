"""A draw depends on its name alone."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import get_args

import pytest
import torch

from d2.noise import Stream, draw, step_noise
from d2.sampling import Step

SHAPE = (3, 4, 2, 8, 8)


def step(index: int, repeat: int) -> Step:
    return Step(index, 10, repeat, 2, sigma=2.0, sigma_next=1.0)


def names() -> list[tuple[int, Stream, int, int]]:
    return list(itertools.product((0, 1), get_args(Stream), (0, 1), (0, 1)))


def test_the_same_name_gives_the_same_bits_whatever_was_drawn_before() -> None:
    forward = {
        name: draw(name[0], name[1], SHAPE, step=name[2], repeat=name[3]) for name in names()
    }
    torch.manual_seed(5)
    torch.randn(17)
    for name in reversed(names()):
        assert torch.equal(
            draw(name[0], name[1], SHAPE, step=name[2], repeat=name[3]), forward[name]
        )


def test_a_draw_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw(0, "init", SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_process_draws_the_same_bits() -> None:
    """Python's own string hash is salted by process; a name must not go through it."""
    program = "from d2.noise import draw; print(draw(3, 'orbit', (20,), step=2, repeat=1).tolist())"
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == str(draw(3, "orbit", (20,), step=2, repeat=1).tolist())


def test_default_dtype_and_device_do_not_matter() -> None:
    expected = draw(0, "init", SHAPE)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            again = draw(0, "init", SHAPE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.device.type == "cpu" and torch.equal(again, expected)


def test_streams_are_unit_gaussians_and_uncorrelated() -> None:
    draws = torch.stack(
        [draw(s, stream, (10_000,), step=i, repeat=j) for s, stream, i, j in names()]
    )
    n = draws.shape[1]
    assert draws.mean(dim=1).abs().max() < 5 / n**0.5
    assert (draws.var(dim=1) - 1).abs().max() < 5 * (2 / n) ** 0.5
    assert (draws.abs() < 1).float().mean(dim=1).sub(0.6827).abs().max() < 5 * (
        0.6827 * 0.3173 / n
    ) ** 0.5
    between = torch.corrcoef(draws) - torch.eye(len(draws))
    assert between.abs().max() < 5 / n**0.5  # five standard errors; about 1100 pairs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_noise_is_a_whole_matrix_named_by_step_repeat_and_moment(dtype: torch.dtype) -> None:
    noise = step_noise(7, torch.zeros(SHAPE, dtype=dtype))
    seen = {
        (i, j, when): noise(step(i, j), when)
        for i, j, when in itertools.product((0, 1), (0, 1), ("before", "after"))
    }
    for drawn in seen.values():
        assert drawn.shape == SHAPE and drawn.dtype == dtype and drawn.device.type == "cpu"
        # drawn in float32, whatever the matrix is in
        assert torch.equal(drawn, drawn.float().to(dtype))
    for one, other in itertools.combinations(seen.values(), 2):
        assert not torch.equal(one, other)
    assert torch.equal(seen[1, 0, "after"].float(), draw(7, "renoise", SHAPE, step=1))
    assert torch.equal(seen[1, 1, "before"].float(), draw(7, "churn", SHAPE, step=1, repeat=1))


def test_step_noise_does_not_depend_on_levels() -> None:
    """Rules whose plans differ in their levels are compared under the same noise."""
    noise = step_noise(7, torch.zeros(SHAPE))
    other = step(1, 0)._replace(
        sigma=50.0, sigma_next=20.0, num_steps=99, num_repeats=5, noise_after=30.0
    )
    assert torch.equal(noise(step(1, 0), "after"), noise(other, "after"))

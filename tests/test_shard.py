"""A result does not depend on who denoises what: not on the sequences of a call, not on the number
of processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_prior import CHANNELS, SIZE, random_condition, small_prior
from torch import Tensor

from d2.matrix import Cut, camera_ring, columns, rows
from d2.noise import draw, step_noise
from d2.priors.prior import denoiser
from d2.rules import composition, guidance, renoise, solver, weights
from d2.sampling import Denoise, Prediction, Term, initial_x, karras_sigmas, sample_matrix
from d2.settings import Settings
from d2.shard import make_shard, spread

V, F = 5, 3  # uneven shares for two and three processes
BLOCK = Settings.sequences_per_call


def sample(sequences_per_call: int | None, num_frames: int = F) -> Tensor:
    """A matrix sampled from two small priors, with sequences that want both halves, one, or
    none."""
    plan = renoise.vrs(karras_sigmas(3, sigma_min=0.01, sigma_max=20.0), steps=1)
    terms = [
        Term("video", rows(V, num_frames), denoiser_of(0, V, num_frames)),
        Term("multiview", columns(V, num_frames), denoiser_of(1, num_frames, V)),
    ]
    x = initial_x(draw(0, "init", (V, num_frames, CHANNELS, SIZE, SIZE)), plan[0].sigma)
    return sample_matrix(
        x,
        plan,
        terms=terms,
        cameras=camera_ring(V),
        weights=partial(weights.scheduled, curve=weights.linear, profile=weights.side_views),
        guidance=partial(
            guidance.per_term,
            video=partial(guidance.linear, first=1.0),
            multiview=partial(guidance.triangle, low=1.0, high=2.5),
        ),
        compose=composition.linear(coefficients=composition.convex),
        solver=solver.euler,
        shard=make_shard(sequences_per_call=sequences_per_call),
        noise=step_noise(0, x),
    )


def denoiser_of(seed: int, sequences: int, length: int) -> Denoise:
    return denoiser(small_prior(seed), random_condition(sequences, length, seed))


def squares(count: int) -> Tensor:
    """Something spread over the processes: count 2."""
    return spread(lambda index: torch.stack([index.float(), index.float() ** 2], dim=1), count)


def process(rank: int, folder: str) -> None:
    """One of five: samples with all of them, then, if its rank is below, with three, two and one;
    writes what it holds."""
    torch.set_num_threads(1)
    for world in (5, 3, 2, 1):
        if rank < world:
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world
            )
            held = {f"{size} a call": sample(size) for size in (1, 2, BLOCK, None)}
            held["orbit"] = sample(1, num_frames=1)
            held |= {f"spread{n}": squares(n) for n in (1, 2, 7)}
            torch.save(held, f"{folder}/{world}.{rank}.pt")
            dist.barrier()
            dist.destroy_process_group()


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_matrix(tmp_path: Path) -> None:
    """Bit for bit, however many sequences a call takes; every process holds all of it, were it one
    without a share."""
    torch.set_num_threads(1)
    alone = {f"{size} a call": sample(size) for size in (1, 2, BLOCK, None)}
    alone["orbit"] = sample(1, num_frames=1)
    torch.multiprocessing.start_processes(  # pyright: ignore[reportPrivateImportUsage]
        process, args=(str(tmp_path),), nprocs=5, start_method="fork"
    )
    held = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    assert sorted(held) == [f"{n}.{rank}" for n in (1, 2, 3, 5) for rank in range(n)]
    for where, got in held.items():
        for what, matrix in alone.items():
            assert torch.equal(got[what], matrix), f"world.rank {where}, {what}"
        for n in (1, 2, 7):
            assert got[f"spread{n}"].tolist() == [[i, i**2] for i in range(n)]


@pytest.mark.parametrize("sequences_per_call", [2, 3, 5, None])
def test_any_number_of_sequences_a_call_gives_the_same_matrix(
    sequences_per_call: int | None,
) -> None:
    alone = sample(1)
    assert alone.isfinite().all() and alone.std() > 0.1
    torch.testing.assert_close(sample(sequences_per_call), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sequences_per_call", [1, 2, None])
def test_each_sequence_goes_out_once_with_what_it_wants_and_comes_back_to_its_place(
    sequences_per_call: int | None,
) -> None:
    calls: list[tuple[list[int], tuple[bool, bool]]] = []

    def denoise(
        x: Tensor, sigma: float, sequences: Tensor, halves: tuple[bool, bool]
    ) -> Prediction:
        calls.append((sequences.tolist(), halves))
        assert sigma == 2.5 and torch.equal(x, matrix[sequences])  # rows
        return Prediction(
            *(sign * x if wanted else None for sign, wanted in zip((-1, 1), halves, strict=True))
        )

    matrix = torch.arange(1.0, V * F + 1).reshape(V, F, 1, 1, 1)
    uncond, cond = torch.zeros(V, F, dtype=torch.bool), torch.zeros(V, F, dtype=torch.bool)
    uncond[[0, 3], 1] = True  # one cell of a row is enough
    cond[[1, 2, 3]] = True  # row 4 wants nothing
    shard = make_shard(sequences_per_call=sequences_per_call)
    got = shard(Term("video", rows(V, F), denoise), matrix, 2.5, (uncond, cond))
    asked = sorted((s, halves) for sequences, halves in calls for s in sequences)
    assert asked == [(0, (True, False)), (1, (False, True)), (2, (False, True)), (3, (True, True))]
    assert all(len(sequences) <= (sequences_per_call or V) for sequences, _ in calls)
    if sequences_per_call is None:
        assert len(calls) == 3  # one for each combination of halves
    assert got.uncond is not None and got.cond is not None
    assert torch.equal(got.uncond, -matrix * uncond.any(dim=1)[:, None, None, None, None])
    assert torch.equal(got.cond, matrix * cond.any(dim=1)[:, None, None, None, None])


def test_a_half_that_nobody_wants_is_none() -> None:
    def denoise(
        x: Tensor, sigma: float, sequences: Tensor, halves: tuple[bool, bool]
    ) -> Prediction:
        assert halves == (False, True)
        return Prediction(None, x)

    nobody, everybody = torch.zeros(V, F, dtype=torch.bool), torch.ones(V, F, dtype=torch.bool)
    matrix = torch.randn(V, F, 1, 2, 2)
    got = make_shard()(Term("multiview", columns(V, F), denoise), matrix, 1.0, (nobody, everybody))
    assert got.uncond is None and got.cond is not None and torch.equal(got.cond, matrix)
    assert make_shard()(Term("video", rows(V, F), denoise), matrix, 1.0, (nobody, nobody)) == (
        None,
        None,
    )


def test_overlapping_sequences_are_blended() -> None:
    """Two windows over three frames that disagree in the middle one, which they share."""

    def denoise(
        x: Tensor, sigma: float, sequences: Tensor, halves: tuple[bool, bool]
    ) -> Prediction:
        return Prediction(None, torch.ones_like(x) * (1 + sequences.reshape(-1, 1, 1, 1, 1)))

    cut = Cut(
        torch.tensor([[[0, 0], [0, 1]], [[0, 1], [0, 2]]]), torch.tensor([[1.0, 0.25], [0.75, 1.0]])
    )
    wanted = torch.ones(1, 3, dtype=torch.bool)
    got = make_shard(sequences_per_call=1)(
        Term("video", cut, denoise), torch.zeros(1, 3, 1, 1, 1), 1.0, (~wanted, wanted)
    )
    assert got.cond is not None and got.cond.flatten().tolist() == [1.0, 1.75, 2.0]

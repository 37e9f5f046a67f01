"""Laws of offloading: where weights lie changes no bit, and what waits is not on the device."""

from __future__ import annotations

import pytest
import torch
from conftest import AUTOENCODER, MULTIVIEW, VIDEO, randomized
from torch import Tensor, nn

from d2.priors.first_stage import FirstStage
from d2.priors.placement import (
    blocks,
    loose,
    num_bytes,
    place,
    resident_bytes,
    tensors,
    units,
    waiting_bytes,
)
from d2.priors.prior import Prior, denoiser

V = F = 2
LATENT = (16, 8, 8)


def holders() -> list[nn.Module]:
    found = [Prior(VIDEO), Prior(MULTIVIEW), FirstStage(AUTOENCODER)]
    return [
        randomized(holder, seed).eval().requires_grad_(False) for seed, holder in enumerate(found)
    ]


def run(found: list[nn.Module]) -> list[Tensor]:
    """Conditions, two evaluations of both terms, and decoding, as a job calls them."""
    generator = torch.Generator().manual_seed(9)
    pictures, x = (torch.randn(s, generator=generator) for s in ((V, 3, 64, 64), (V, F, *LATENT)))
    *priors, stage = found
    assert isinstance(stage, FirstStage)
    denoises = []
    for prior in priors:
        assert isinstance(prior, Prior)
        scalars = {name: torch.full((V, F), 0.3) for name, _ in prior.config.scalars}
        denoises.append(
            denoiser(
                prior, *prior.condition(pictures, torch.zeros_like(pictures), scalars, F, stage)
            )
        )
    seen = []
    for sigma in (3.0, 0.5):
        for denoise in denoises:
            for half in denoise(x, sigma, torch.arange(V), (True, True)):
                assert half is not None
                seen.append(half)
                x = x + 0.1 * half
    return [*seen, stage.decode(x.flatten(0, 1), num_frames=F)]


@pytest.mark.parametrize("offload", ["none", "idle", "sequential"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_the_same_bits_wherever_weights_wait(offload: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)  # of the inputs too
    try:
        expected = run([holder.to(dtype) for holder in holders()])
        moved = [holder.to(dtype) for holder in holders()]
        place(moved, "cpu", offload)
        with torch.inference_mode():
            got = run(moved)
        again = run(moved)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b, c in zip(expected, got, again, strict=True):
        assert a.dtype == dtype and torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("offload", ["idle", "sequential"])
def test_one_unit_at_a_time_is_away_from_home(offload: str) -> None:
    found = holders()
    home = {id(t): t.data_ptr() for holder in found for t in tensors(holder)}
    always = {id(t) for t in loose(found, units(found, offload))}
    away: list[set[int]] = []

    def look(unit: nn.Module) -> None:
        now = {
            id(t) for h in found for t in tensors(h) if t.data_ptr() != home[id(t)] and t.numel()
        }
        assert now - always == {id(t) for t in tensors(unit)}
        away.append(now)

    place(found, "cpu", offload, on_move=look)
    run(found)
    assert len(away) > 4


def test_idle_moves_twice_an_evaluation() -> None:
    found, moves = holders(), []
    place(found, "cpu", "idle", on_move=moves.append)
    run(found)
    unets = [found[0].unet, found[1].unet]
    assert [unit for unit in moves if unit in unets] == unets * 2
    # each tower, then the first stage that encodes; UNets; decoding
    assert len(moves) == 2 * 2 + 2 * 2 + 1


def test_sequential_moves_every_block_of_a_network_once_a_call() -> None:
    found, moves = holders(), []
    place(found, "cpu", "sequential", on_move=moves.append)
    run(found)
    for prior in found[:2]:
        assert isinstance(prior, Prior)
        assert all(moves.count(block) == 2 for block in blocks(prior.unet))


def test_a_network_that_two_priors_share_is_moved_as_one() -> None:
    video, multiview, stage = holders()
    assert isinstance(video, Prior) and isinstance(multiview, Prior)
    apart = waiting_bytes([video, multiview, stage], "idle", pinned=False)
    multiview.tower = video.tower
    together = [video, multiview, stage]
    assert waiting_bytes(together, "idle", pinned=False) == apart - num_bytes(tensors(video.tower))
    expected = run(together)
    place(together, "cpu", "idle")
    assert all(torch.equal(a, b) for a, b in zip(expected, run(together), strict=True))


def test_bytes_are_those_that_are_moved() -> None:
    found = holders()
    everything = num_bytes(t for holder in found for t in tensors(holder))
    assert resident_bytes(found, None, "none") == everything
    assert waiting_bytes(found, "none", pinned=True) == 0
    for offload in ("idle", "sequential"):
        always = num_bytes(loose(found, units(found, offload)))
        assert waiting_bytes(found, offload, pinned=False) == everything - always
        assert everything <= waiting_bytes(found, offload, pinned=True) + always <= 2 * everything
    unet = found[0].unet
    assert isinstance(unet, nn.Module)
    idle, sequential = (resident_bytes(found, unet, offload) for offload in ("idle", "sequential"))
    assert idle - resident_bytes(found, None, "idle") == num_bytes(tensors(unet)) > 2 * sequential


def test_an_unknown_offload_is_refused() -> None:
    with pytest.raises(ValueError, match="offload=some: choose none, idle or sequential"):
        place(holders(), "cpu", "some")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", ["idle", "sequential"])
def test_on_a_gpu_what_waits_is_pinned_and_takes_no_device_memory(offload: str) -> None:
    found = holders()
    place(found, "cuda", offload)
    torch.cuda.reset_peak_memory_stats()
    unet = found[0].unet
    assert isinstance(unet, nn.Module)
    assert all(t.is_pinned() for t in tensors(unet) if t.numel())
    assert torch.cuda.memory_allocated() <= 2**16 + 512 * len(loose(found, units(found, offload)))

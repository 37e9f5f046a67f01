"""Laws of time-synchronised attention: columns that see their neighbours go through one call,
whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_prior import CHANNELS, SIZE, random_condition, small_prior
from torch import Tensor

from d2.matrix import columns
from d2.nn.video_unet import Blend
from d2.noise import draw
from d2.priors.prior import denoiser
from d2.reference import shard_of
from d2.sampling import Denoise, Prediction, Term
from d2.shard import make_shard
from d2.terms import Settings

V, F = 3, 4
ALL = torch.arange(F)
SIGMA = 1.7
EVERYTHING = torch.ones(V, F, dtype=torch.bool)


def matrix() -> Tensor:
    return SIGMA * draw(0, "init", (V, F, CHANNELS, SIZE, SIZE))


def noisy() -> Tensor:
    return matrix().transpose(0, 1)


def denoise_with(blend_weight: float | None) -> Denoise:
    return denoiser(small_prior(), random_condition(F, V), blend_weight=blend_weight)


def halves_of(prediction: Prediction) -> tuple[Tensor, Tensor]:
    assert prediction.uncond is not None and prediction.cond is not None
    return prediction.uncond, prediction.cond


def test_clips_are_mixed_with_their_neighbours_and_with_nothing_beyond_the_ends() -> None:
    x = torch.tensor([1.0, 10.0, 100.0]).repeat(2)  # two groups of three clips of one frame
    mixed = Blend(0.5, 3).mix(x.reshape(6, 1, 1), 1).flatten()
    assert mixed.tolist() == [0.5 + 2.5, 5 + 0.25 + 25, 50 + 2.5] * 2


def test_frames_of_a_clip_are_never_mixed() -> None:
    x = torch.randn(2 * 4, 5, 6)  # two clips of four frames
    whole = Blend(0.6, 2).mix(x, 4).unflatten(0, (2, 4))
    for t in range(4):
        torch.testing.assert_close(whole[:, t], Blend(0.6, 2).mix(x.unflatten(0, (2, 4))[:, t], 1))


def test_a_share_of_one_is_no_blending() -> None:
    one, none = (denoise_with(w)(noisy(), SIGMA, ALL, (True, True)) for w in (1.0, None))
    for a, b in zip(halves_of(one), halves_of(none), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_columns_hear_their_neighbours_only_when_told_to() -> None:
    changed = noisy().clone()
    changed[1] += 1
    for weight, who in ((None, [False, True, False]), (0.6, [True, True, True])):
        before, after = (
            denoise_with(weight)(x, SIGMA, ALL, (False, True)).cond for x in (noisy(), changed)
        )
        assert before is not None and after is not None
        assert ((before - after).abs().amax(dim=(1, 2, 3, 4)) > 1e-5).tolist()[:3] == who


def test_halves_are_the_same_asked_together_or_apart() -> None:
    denoise = denoise_with(0.6)
    uncond, cond = halves_of(denoise(noisy(), SIGMA, ALL, (True, True)))
    torch.testing.assert_close(
        denoise(noisy(), SIGMA, ALL, (True, False)).uncond, uncond, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        denoise(noisy(), SIGMA, ALL, (False, True)).cond, cond, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("some", [[0, 1], [0, 2, 1, 3], [3]])
def test_some_columns_or_another_order_are_refused(some: list[int]) -> None:
    sequences = torch.tensor(some)
    with pytest.raises(
        ValueError, match=r"multiview\.conv_blend=0\.6: .* all 4 .* one call"
    ) as error:
        denoise_with(0.6)(noisy()[sequences], SIGMA, sequences, (True, True))
    assert "\n" not in str(error.value)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"conv_blend=1\.5"):
        denoise_with(1.5)


def test_a_shard_that_cuts_the_columns_up_cannot_go_unnoticed() -> None:
    term = Term("multiview", columns(V, F), denoise_with(0.6))
    with pytest.raises(ValueError, match="conv_blend"):
        make_shard(sequences_per_call=2)(term, matrix(), SIGMA, (EVERYTHING, EVERYTHING))
    uneven = EVERYTHING.clone()
    uneven[:, 2] = False  # one column wants another half than the rest
    with pytest.raises(ValueError, match="conv_blend"):
        make_shard()(term, matrix(), SIGMA, (uneven, EVERYTHING))


def whole(sequences_per_call: int | None, need: tuple[Tensor, Tensor]) -> Prediction:
    term = Term("multiview", columns(V, F), denoise_with(0.6))
    return shard_of(Settings(sequences_per_call=sequences_per_call, conv_blend=0.6))(
        term, matrix(), SIGMA, need
    )


@pytest.mark.parametrize("sequences_per_call", [1, 3, None])
def test_the_pipeline_evaluates_all_columns_in_one_call(sequences_per_call: int | None) -> None:
    uneven = EVERYTHING.clone()
    uneven[:, 2] = False
    direct = halves_of(denoise_with(0.6)(noisy(), SIGMA, ALL, (True, True)))
    for got, column in zip(
        halves_of(whole(sequences_per_call, (uneven, EVERYTHING))), direct, strict=True
    ):
        assert torch.equal(got, column.transpose(0, 1))
    assert whole(sequences_per_call, (~EVERYTHING, EVERYTHING)).uncond is None
    assert whole(sequences_per_call, (~EVERYTHING, ~EVERYTHING)) == (None, None)


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(whole(1, (EVERYTHING, EVERYTHING))._asdict(), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_hold_the_same_result(tmp_path: Path) -> None:
    # pyright: ignore[reportPrivateImportUsage]
    torch.multiprocessing.spawn(process, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = whole(None, (EVERYTHING, EVERYTHING))._asdict()
    for half in ("uncond", "cond"):
        assert torch.equal(first[half], second[half])
        torch.testing.assert_close(first[half], alone[half], rtol=1e-5, atol=1e-5)

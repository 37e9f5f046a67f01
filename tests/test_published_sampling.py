"""`d2 sample` with the published priors: the whole job, on networks of their form that are small
and random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import VIDEO
from safetensors.torch import load_file
from test_conf import picture  # noqa: F401  a fixture

from d2.priors import checkpoint
from d2.priors.camera_prior import CameraPriorConfig
from d2.priors.published import Published

RANDOM = [
    "video.checkpoint=random",
    "multiview.checkpoint=random",
    "matrix.num_frames=3",
    "matrix.num_views=3",
]
TINY = ["video=tiny", "multiview=tiny", "video.checkpoint=null", "multiview.checkpoint=null"]
BOTH = ["video=svd_xt", "multiview=sv3d_p"]
Sample = Callable[..., int]


def small(published: Published) -> Published:
    """A published prior on pictures of 64 × 64, with a level and a block of the fewest channels."""
    p = published.prior
    if isinstance(p, CameraPriorConfig):
        sizes = {
            "model_channels": 32,
            "channel_mult": (1,),
            "num_res_blocks": 1,
            "attention_resolutions": (1,),
        }
        more = {
            "num_head_channels": 16,
            "context_dim": VIDEO.tower.embed_dim,
            "transformer_depth": (1,),
        }
        unet = replace(p.unet, **sizes, **more, joint=("output_ds1",))
        return replace(published, prior=replace(p, unet=unet, tower=VIDEO.tower), size=64)
    assert p.encoder is not None
    scalars = tuple((name, 16) for name, _ in p.scalars)
    unet = replace(
        p.unet,
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(1,),
        num_head_channels=16,
        context_dim=VIDEO.tower.embed_dim,
        adm_in_channels=16 * len(scalars),
    )
    autoencoders = {
        stage: replace(config, ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
        for stage, config in (
            ("encoder", p.encoder),
            ("first_stage", published.first_stage.autoencoder),
        )
    }
    prior = replace(
        p, unet=unet, tower=VIDEO.tower, encoder=autoencoders["encoder"], scalars=scalars
    )
    stage = replace(published.first_stage, autoencoder=autoencoders["first_stage"])
    return replace(published, prior=prior, first_stage=stage, size=64)


@pytest.fixture
def sample(
    d2_sample: Sample,
    picture: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Sample:
    """`d2 sample` of a picture under the published priors, small."""
    for name, published in list(checkpoint.PUBLISHED.items()):
        monkeypatch.setitem(checkpoint.PUBLISHED, name, small(published))
    return lambda *overrides: d2_sample(
        *RANDOM, "scenes=folder", f"scenes.path={picture}", *overrides
    )


def result(tmp_path: Path) -> dict[str, torch.Tensor]:
    return load_file(tmp_path / "out" / "disc" / "matrix.safetensors")


@pytest.mark.parametrize(
    "choices",
    [
        ["video=svd", "multiview=sv3d_u"],
        ["video=svd_xt", "multiview=sv3d_p"],
        ["video=svd_xt", "multiview=seva"],
    ],
    ids=" ".join,
)
def test_a_picture_becomes_a_matrix(choices: list[str], sample: Sample, tmp_path: Path) -> None:
    assert sample(*choices) == 0
    matrix = result(tmp_path)
    assert matrix["latents"].shape == (3, 3, 4, 8, 8) and matrix["pixels"].shape[-2:] == (64, 64)
    assert matrix["latents"].isfinite().all() and matrix["latents"].std() > 0
    config = (tmp_path / "out" / "config.yaml").read_text()
    assert "motion_bucket_id: 127" in config and "# video: random" in config


@pytest.mark.parametrize("offload", ["idle", "sequential"])
def test_where_the_weights_wait_changes_nothing(
    offload: str, sample: Sample, tmp_path: Path
) -> None:
    assert sample(*BOTH) == 0
    usual = result(tmp_path)
    assert sample(*BOTH, f"offload={offload}") == 0
    assert all(torch.equal(value, result(tmp_path)[name]) for name, value in usual.items())


@pytest.mark.parametrize(("precision", "near"), [("bf16", 0.1), ("fp16", 0.02)])
def test_half_precision_is_near(
    precision: str, near: float, sample: Sample, tmp_path: Path
) -> None:
    assert sample(*BOTH) == 0
    usual = result(tmp_path)["latents"].float()
    assert sample(*BOTH, f"precision={precision}") == 0
    error = (result(tmp_path)["latents"].float() - usual).norm() / usual.norm()
    assert 0 < error < near


@pytest.mark.parametrize(
    "changed", ["multiview.conv_blend=0.5", "sampler.reinit=1", "sampler.decode_chunk=1"]
)
def test_the_published_options_reach_the_sampler(
    changed: str, sample: Sample, tmp_path: Path
) -> None:
    assert sample(*BOTH) == 0
    usual = result(tmp_path)
    assert sample(*BOTH, changed) == 0
    assert not torch.equal(usual["pixels"], result(tmp_path)["pixels"])


def test_a_plan_is_printed_and_nothing_done(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = ["video.checkpoint=nowhere.safetensors", "multiview.checkpoint=nowhere.safetensors"]
    assert sample(*BOTH, *absent, "plan=true", "precision=bf16", "offload=idle") == 0
    said = capsys.readouterr().out
    assert "settings:" in said and "offload=idle precision=bf16" in said and "TFLOP" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            ["video=svd", "multiview=sv3d_p", "matrix.num_frames=25"],
            "matrix.num_frames=25: svd makes 14",
        ),
        ([*BOTH, "matrix.num_views=22"], "matrix.num_views=22: sv3d_p makes 21"),
        (["video=tiny", "multiview=sv3d_p"], "their latents differ"),
        (["video=svd_xt", "multiview=tiny"], "their latents differ"),
        (
            [*BOTH, "video.checkpoint=nowhere.safetensors"],
            "nowhere.safetensors: no such checkpoint",
        ),
        (
            [*BOTH, "cameras.elevation_deg=[1,2]"],
            "cameras.elevation_deg=[1, 2]: give one number, or one a view (3)",
        ),
        (
            ["video=svd_xt", "multiview=sv3d_u", "cameras.elevation_deg=[1,2,3]"],
            "sv3d_u is told no cameras",
        ),
        ([*BOTH, "video.motion_bucket_id=null"], "video.motion_bucket_id=null"),
        ([*BOTH, "matting=rembg"], "matting"),
        (
            [*BOTH, "composition=calibrated"],
            "composition.file=null: the shipped moments are the tiny priors'",
        ),
        ([*BOTH, "cell=cell.safetensors"], "cell=cell.safetensors: a network of the tiny tier"),
        ([*BOTH, "precision=fp8"], "precision=fp8: choose fp32 or bf16 or fp16"),
        (["video=tiny", "multiview=tiny", "video.checkpoint=random"], "video.checkpoint=random"),
        ([*TINY, "precision=bf16"], "precision=bf16"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line(
    wrong: list[str], says: str, sample: Sample, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sample(*wrong) == 2
    said = capfd.readouterr().err
    assert said.startswith("d2: ") and says in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()

"""SVD against an independent implementation: diffusers' UNet and autoencoder, transformers' image
tower.

Their own models with random weights, written by their own `save_pretrained`, are read through the
folder layout.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from golden.case import relative_error
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from d2.nn.autoencoder import AutoencoderConfig
from d2.nn.clip import ImageTowerConfig
from d2.nn.embedding import sinusoidal
from d2.nn.video_unet import VideoUNetConfig
from d2.priors.checkpoint import PUBLISHED, Entry, Loaded, check_layout, load_published
from d2.priors.diffusers_layout import LEFT_OUT
from d2.priors.first_stage import FirstStageConfig
from d2.priors.prior import PriorConfig
from d2.priors.published import Published

TOLERANCE = 1e-4  # relative, float32
FRAMES, SIZE = 3, 16
ENCODER = AutoencoderConfig(
    in_channels=3,
    out_channels=3,
    ch=32,
    ch_mult=(1, 2),
    num_res_blocks=2,
    z_channels=4,
    temporal_decoder=False,
    quant_conv=True,
)
SMALL = replace(
    PUBLISHED["svd_xt"],
    prior=PriorConfig(
        unet=VideoUNetConfig(
            in_channels=8,
            out_channels=4,
            model_channels=32,
            channel_mult=(1, 2, 2),
            num_res_blocks=2,
            attention_resolutions=(2, 1),
            num_head_channels=16,
            context_dim=12,
            adm_in_channels=24,
        ),
        tower=ImageTowerConfig(
            layers=2,
            width=32,
            head_width=16,
            patch_size=8,
            image_size=32,
            mlp_ratio=2.0,
            embed_dim=12,
        ),
        encoder=ENCODER,
        scalars=(("fps_id", 8), ("motion_bucket_id", 8), ("cond_aug", 8)),
    ),
    first_stage=FirstStageConfig(replace(ENCODER, temporal_decoder=True, quant_conv=False)),
)


class Theirs(NamedTuple):
    unet: Any
    vae: Any
    image_encoder: Any


def models(published: Published) -> Theirs:
    """Their models in the sizes of ours; skips where the libraries are not installed."""
    reason = "install diffusers and transformers for the independent oracle of SVD"
    diffusers = pytest.importorskip("diffusers", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    unet, tower = published.prior.unet, published.prior.tower
    vae = published.first_stage.autoencoder
    widths = tuple(unet.model_channels * mult for mult in unet.channel_mult)
    attend = [2**level in unet.attention_resolutions for level in range(len(widths))]
    return Theirs(
        diffusers.UNetSpatioTemporalConditionModel(
            in_channels=unet.in_channels,
            out_channels=unet.out_channels,
            block_out_channels=widths,
            down_block_types=tuple(f"{'CrossAttn' * a}DownBlockSpatioTemporal" for a in attend),
            up_block_types=tuple(
                f"{'CrossAttn' * a}UpBlockSpatioTemporal" for a in reversed(attend)
            ),
            layers_per_block=unet.num_res_blocks,
            num_attention_heads=tuple(width // unet.num_head_channels for width in widths),
            cross_attention_dim=unet.context_dim,
            addition_time_embed_dim=published.prior.scalars[0][1],
            projection_class_embeddings_input_dim=unet.adm_in_channels,
            num_frames=published.length,
        ),
        diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=tuple(vae.widths),
            down_block_types=("DownEncoderBlock2D",) * len(vae.widths),
            layers_per_block=vae.num_res_blocks,
            latent_channels=vae.z_channels,
        ),
        transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(
                hidden_size=tower.width,
                intermediate_size=int(tower.mlp_ratio * tower.width),
                num_hidden_layers=tower.layers,
                num_attention_heads=tower.width // tower.head_width,
                patch_size=tower.patch_size,
                image_size=tower.image_size,
                projection_dim=tower.embed_dim,
                hidden_act="gelu",
            )
        ),
    )


def trained(network: nn.Module, seed: int) -> None:
    """Weights as if trained: none is zero, norms are no identities."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in network.named_parameters():
        values = torch.randn(p.shape, generator=generator)
        p.data = values * p[0].numel() ** -0.5 if p.ndim > 1 else 0.3 * values + ("norm" in name)
    network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    found = models(SMALL)
    for seed, network in enumerate(found):
        trained(network, seed)
    return found


@pytest.fixture(scope="module")
def folder(theirs: Theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diffusers")
    for name, network in theirs._asdict().items():
        network.save_pretrained(path / name)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Loaded:
    return load_published(folder, SMALL, dtype=torch.float32, device="cpu")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def expect(out: Tensor, reference: Tensor) -> None:
    error = relative_error(out, reference)
    assert error < TOLERANCE, f"{error:.1e} off"


# ------------------------------------------------------------------------------------------ numbers


def test_unet(ours: Loaded, theirs: Theirs) -> None:
    """Two clips at different levels, under different pictures and scalars."""
    clips = 2
    x, context, levels = (
        random(clips, FRAMES, 8, 8, 4),
        random(clips, 1, 12),
        torch.tensor([1.6, -1.5]),
    )
    scalars = torch.tensor([[6.0, 127.0, 0.02], [24.0, 30.0, 0.5]])
    out = ours.prior.unet(
        x.flatten(0, 1),
        levels.repeat_interleave(FRAMES),
        context.repeat_interleave(FRAMES, 0),
        sinusoidal(scalars, 8).flatten(1).repeat_interleave(FRAMES, 0),
        num_frames=FRAMES,
        image_only=torch.zeros(clips, FRAMES),
    ).unflatten(0, (clips, FRAMES))
    expect(out, theirs.unet(x, levels, context, added_time_ids=scalars).sample)


def test_decoder(ours: Loaded, theirs: Theirs) -> None:
    z = random(2 * FRAMES, 4, 4, 6)
    expect(
        ours.first_stage.autoencoder.decode(z, FRAMES),
        theirs.vae.decode(z, num_frames=FRAMES).sample,
    )


def test_encoders(ours: Loaded, theirs: Theirs) -> None:
    """Their one encoder is the conditions' and, its two last convolutions merged, the first
    stage's."""
    images = random(2, 3, SIZE, SIZE)
    posterior = theirs.vae.encode(images).latent_dist
    assert ours.prior.encoder is not None
    expect(ours.prior.encoder(images), posterior.mode())
    expect(torch.cat(ours.first_stage.moments(images), 1), posterior.parameters)


def test_image_tower(ours: Loaded, theirs: Theirs) -> None:
    images = random(2, 3, 48, 40)
    expect(
        ours.prior.tower(images),
        theirs.image_encoder(ours.prior.tower.preprocess(images)).image_embeds,
    )


# ------------------------------------------------------------------------------------------- layout


def test_every_tensor_of_the_full_size_has_its_place() -> None:
    published = PUBLISHED["svd_xt"]
    with torch.device("meta"):
        found = models(published)
    header = {
        f"{name}/{key}": Entry("F32", tuple(tensor.shape), Path(name), 0, 0)
        for name, network in found._asdict().items()
        for key, tensor in network.state_dict().items()
    }
    check_layout(header, published, Path(__file__).parent)  # any folder


def test_half_precision_variants_and_position_ids_are_read(
    folder: Path, ours: Loaded, tmp_path: Path
) -> None:
    for file in folder.glob("*/*.safetensors"):
        (tmp_path / file.parent.name).mkdir()
        weights = {key: tensor.half() for key, tensor in load_file(file).items()}
        if file.parent.name == "image_encoder":
            # as older files have
            weights[LEFT_OUT[0].prefix.removeprefix("image_encoder/")] = torch.arange(17)[None]
        save_file(weights, tmp_path / file.parent.name / f"{file.stem}.fp16.safetensors")
    half = load_published(tmp_path, SMALL, dtype=torch.float32, device="cpu")
    for part, module in half._asdict().items():
        mine = getattr(ours, part).state_dict()
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, mine[name], rtol=2e-3, atol=2e-3, msg=name)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    def refusal(path: Path, published: Published) -> str:
        with pytest.raises(ValueError) as refused:
            load_published(path, published, dtype=torch.float32, device="cpu")
        assert "\n" not in str(refused.value)
        return str(refused.value).removeprefix(f"{path}: ")

    svd = replace(SMALL, name="svd", length=14)
    assert refusal(folder, svd) == "made for 25 frames, svd for 14; say video=svd_xt"
    said = "not svd_xt in diffusers' layout, it has no unet/diffusion_pytorch_model.safetensors"
    assert refusal(tmp_path, SMALL) == said
    wider = replace(
        SMALL, prior=replace(SMALL.prior, unet=replace(SMALL.prior.unet, adm_in_channels=32))
    )
    said = (
        "not svd_xt: unet/add_embedding.linear_1.weight makes (128, 24), wanted (128, 32); get"
        " svd_xt.safetensors"
    )
    assert refusal(folder, wider).startswith(said)

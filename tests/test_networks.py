"""Laws of the networks that need no reference."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from plain_unet import PlainUNet
from torch import Tensor, nn

from d2.nn.autoencoder import Autoencoder, AutoencoderConfig, ModeEncoder
from d2.nn.clip import ImageTower, ImageTowerConfig, resize
from d2.nn.embedding import sinusoidal
from d2.nn.linear import gated_gelu, linear
from d2.nn.unet import compiled
from d2.nn.video_unet import TemporalConv, VideoUNet, VideoUNetConfig
from d2.priors.precondition import precondition

UNET = VideoUNetConfig(
    in_channels=6,
    out_channels=3,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(1, 2),
    num_head_channels=16,
    context_dim=12,
    adm_in_channels=10,
)
AUTOENCODER = AutoencoderConfig(
    in_channels=3,
    out_channels=3,
    ch=32,
    ch_mult=(1, 2),
    num_res_blocks=1,
    z_channels=4,
    temporal_decoder=True,
    quant_conv=True,
)
TOWER = ImageTowerConfig(
    layers=1, width=16, head_width=8, patch_size=8, image_size=16, mlp_ratio=2.0, embed_dim=5
)
CLIPS, FRAMES = 2, 3
Network = TypeVar("Network", bound=nn.Module)


def inputs(clips: int = CLIPS, frames: int = FRAMES, tokens: int = 2) -> dict[str, Tensor]:
    """What a UNet is given, random, without its image_only."""
    n = clips * frames
    draw = torch.Generator().manual_seed(7)
    shapes = {"x": (n, 6, 8, 4), "c_noise": (n,), "context": (n, tokens, 12), "vector": (n, 10)}
    return {
        name: torch.randn(shape, generator=draw, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def trained(network: Network) -> Network:
    """Weights as if trained: none is zero, every branch matters."""
    draw = torch.Generator().manual_seed(1)
    for name, p in network.named_parameters():
        scale = p[0].numel() ** -0.5 if p.ndim > 1 else 0.3
        p.data = torch.randn(p.shape, generator=draw, dtype=torch.float64) * scale
        if "norm" in name or name.endswith(("layers.0.weight", "out.0.weight")):
            p.data += 1
    return network.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return trained(VideoUNet(UNET))


def off(clips: int = CLIPS, frames: int = FRAMES) -> Tensor:
    return torch.ones(clips, frames)


def on(clips: int = CLIPS, frames: int = FRAMES) -> Tensor:
    return torch.zeros(clips, frames)


# --------------------------------------------------------------------------------------------- UNet


def test_an_untrained_unet_predicts_nothing() -> None:
    given = {name: value.float() for name, value in inputs().items()}
    assert VideoUNet(UNET)(**given, num_frames=FRAMES, image_only=on()).abs().max() == 0


def test_frames_see_each_other_but_not_those_of_other_clips(unet: nn.Module) -> None:
    given = inputs()
    before = unet(**given, num_frames=FRAMES, image_only=on())
    given["x"][0] += 1
    moved = (unet(**given, num_frames=FRAMES, image_only=on()) - before).abs().amax(dim=(1, 2, 3))
    assert (moved[:FRAMES] > 1e-3).all()
    assert (moved[FRAMES:] == 0).all()


def test_an_image_only_frame_is_a_clip_of_its_own_without_time(unet: nn.Module) -> None:
    given = inputs()
    together = unet(**given, num_frames=FRAMES, image_only=off())
    alone = unet(**given, num_frames=1, image_only=off(CLIPS * FRAMES, 1))
    torch.testing.assert_close(together, alone)
    assert (together - unet(**given, num_frames=FRAMES, image_only=on())).abs().max() > 1e-3


def test_what_is_compiled_is_one_graph_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, where a CPU takes the way that a GPU takes; traced only, as what makes kernels of a
    graph is torch's."""
    half = trained(VideoUNet(UNET)).bfloat16()
    given = {k: v.bfloat16() for k, v in inputs(tokens=1).items()}
    trace = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", lambda function, **options: trace(function))
    with torch.no_grad():
        said = half(**given, num_frames=FRAMES, image_only=on())
        assert torch.equal(compiled(half)(**given, num_frames=FRAMES, image_only=on()), said)


def test_mixing_with_share_one_equals_leaving_the_branch_out(unet: nn.Module) -> None:
    given, image_only = inputs(), on()
    image_only[0] = 1  # one whole clip, so that the branch is run for the sake of the other
    mixed = unet(**given, num_frames=FRAMES, image_only=image_only)
    torch.testing.assert_close(
        mixed[:FRAMES], unet(**given, num_frames=FRAMES, image_only=off())[:FRAMES]
    )
    torch.testing.assert_close(
        mixed[FRAMES:], unet(**given, num_frames=FRAMES, image_only=on())[FRAMES:]
    )


def test_the_mix_factor_is_the_spatial_share() -> None:
    given, spatial = inputs(), trained(VideoUNet(UNET))
    for name, parameter in spatial.named_parameters():
        if name.endswith("mix_factor"):
            parameter.fill_(50.0)
    still = spatial(**given, num_frames=FRAMES, image_only=off())
    torch.testing.assert_close(spatial(**given, num_frames=FRAMES, image_only=on()), still)


def test_one_context_token_counts_as_many_equal_ones(unet: nn.Module) -> None:
    given = inputs(tokens=1)
    once = unet(**given, num_frames=FRAMES, image_only=on())
    given["context"] = given["context"].repeat(1, 3, 1)
    torch.testing.assert_close(unet(**given, num_frames=FRAMES, image_only=on()), once)


def test_temporal_attention_takes_the_context_of_the_first_frame() -> None:
    unet = trained(VideoUNet(UNET))
    for name, parameter in unet.named_parameters():
        if "transformer_blocks" in name and ".attn2.to_out" in name:
            parameter.zero_()  # spatial cross-attention, which reads every frame's own
    given = inputs()
    before = unet(**given, num_frames=FRAMES, image_only=on())
    given["context"][1] += 1
    assert torch.equal(unet(**given, num_frames=FRAMES, image_only=on()), before)
    given["context"][0] += 1
    assert not torch.allclose(
        unet(**given, num_frames=FRAMES, image_only=on())[:FRAMES], before[:FRAMES]
    )


def test_memory_layout_of_x_does_not_matter(unet: nn.Module) -> None:
    given = inputs()
    once = unet(**given, num_frames=FRAMES, image_only=on())
    given["x"] = given["x"].to(memory_format=torch.channels_last)
    assert torch.equal(unet(**given, num_frames=FRAMES, image_only=on()), once)


@pytest.mark.parametrize("kernel", [(3, 1, 1), (5, 1, 1), (3, 3, 3)])
def test_a_temporal_convolution_is_a_convolution(kernel: tuple[int, int, int]) -> None:
    pad = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv, x = TemporalConv(4, 6, kernel).double(), torch.randn(2, 4, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.conv3d(x, conv.weight, conv.bias, padding=pad))


def test_other_sizes_run_on_the_meta_device() -> None:
    config = replace(
        UNET, transformer_depth=(1, 2), video_kernel_size=(3, 3, 3), attention_resolutions=(2,)
    )
    with torch.device("meta"):
        given = {name: torch.empty(value.shape) for name, value in inputs().items()}
        out = VideoUNet(config)(**given, num_frames=FRAMES, image_only=on())
    assert out.shape == (CLIPS * FRAMES, 3, 8, 4)


# -------------------------------------------------------------------------------------- autoencoder


def test_the_autoencoder_changes_sizes_by_its_factor() -> None:
    autoencoder = Autoencoder(AUTOENCODER)
    mean, logvar = autoencoder.moments(torch.zeros(2, 3, 8, 12))
    assert mean.shape == logvar.shape == (2, 4, 8 // AUTOENCODER.factor, 12 // AUTOENCODER.factor)
    assert autoencoder.decode(mean, 2).shape == (2, 3, 8, 12)


def test_the_mode_is_the_mean() -> None:
    autoencoder, encoder = Autoencoder(AUTOENCODER), ModeEncoder(AUTOENCODER)
    encoder.load_state_dict(
        {k: w for k, w in autoencoder.state_dict().items() if k in encoder.state_dict()}
    )
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(encoder(images), autoencoder.moments(images)[0])


def test_the_temporal_decoder_with_a_temporal_share_of_zero_is_the_image_decoder() -> None:
    temporal = trained(Autoencoder(AUTOENCODER))
    for name, parameter in temporal.named_parameters():
        if name.endswith("mix_factor"):
            parameter.fill_(-50.0)
        if "time_mix_conv" in name:  # the identity
            parameter.zero_()
            if parameter.ndim == 5:
                parameter[:, :, 1, 0, 0] = torch.eye(3)
    image = Autoencoder(replace(AUTOENCODER, temporal_decoder=False)).double()
    image.load_state_dict(
        {k: w for k, w in temporal.state_dict().items() if k in image.state_dict()}
    )
    latents = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(temporal.decode(latents, 3), image.decode(latents, 3))


def test_frames_of_different_chunks_do_not_see_each_other() -> None:
    decoder = trained(Autoencoder(replace(AUTOENCODER, has_encoder=False)))
    latents = torch.randn(4, 4, 4, 4, dtype=torch.float64)
    apart = torch.cat([decoder.decode(chunk, 2) for chunk in latents.split(2)])
    torch.testing.assert_close(decoder.decode(latents, 2), apart)
    assert not torch.allclose(decoder.decode(latents, 4), apart)


# ------------------------------------------------------------------------------------------ picture


def test_resizing_keeps_what_it_should() -> None:
    noise = torch.randn(1, 3, 16, 16)
    assert resize(noise, 16) is noise
    torch.testing.assert_close(
        resize(torch.full((1, 3, 40, 24), 0.3), 16), torch.full((1, 3, 16, 16), 0.3)
    )
    ramp = torch.linspace(-1, 1, 9).expand(1, 3, 9, 9)
    # upwards nothing is blurred; bicubic reproduces a ramp off the border
    inner = resize(ramp, 17)[0, 0, 8, 4:-4]
    torch.testing.assert_close(inner, torch.linspace(-1, 1, 17)[4:-4])


def test_shrinking_blurs_away_what_the_small_picture_cannot_show() -> None:
    stripes = (-1.0) ** torch.arange(64).expand(1, 3, 64, 64)
    assert resize(stripes, 16)[..., 2:-2].abs().max() < 0.02


def test_the_tower_sees_white_and_black_as_clip_does() -> None:
    tower = ImageTower(TOWER)
    low, high = (tower.preprocess(torch.full((1, 3, 16, 16), value)) for value in (-1.0, 1.0))
    mean, std = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    # Radford et al. 2021, published with CLIP
    torch.testing.assert_close(low[0, :, 3, 3], -mean / std)
    torch.testing.assert_close((high - low)[0, :, 3, 3], 1 / std)
    assert tower(torch.zeros(2, 3, 20, 30)).shape == (2, TOWER.embed_dim)


def test_the_tower_is_open_clips() -> None:
    tower = ImageTower(TOWER).eval()
    theirs = VisionTransformer(
        image_size=TOWER.image_size,
        patch_size=TOWER.patch_size,
        width=TOWER.width,
        layers=TOWER.layers,
        heads=TOWER.width // TOWER.head_width,
        mlp_ratio=TOWER.mlp_ratio,
        output_dim=TOWER.embed_dim,
    ).eval()
    assert list(theirs.state_dict()) == list(tower.state_dict())
    theirs.load_state_dict(tower.state_dict())
    images = torch.rand(3, 3, 20, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(tower(images), theirs(tower.preprocess(images)), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(tower(images), theirs(tower.preprocess(images)), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------ scalars


def test_a_network_that_knows_v_gives_back_the_clean_picture() -> None:
    """x = x0 + sigma n on the circle: c_in x = x0 cos + n sin, v = n cos - x0 sin, tan = sigma."""
    sigma = torch.tensor([0.002, 0.5, 1.0, 80.0, 700.0], dtype=torch.float64)
    clean, noise = torch.randn(2, 5, dtype=torch.float64)
    scaling, angle, x = precondition(sigma), sigma.atan(), clean + sigma * noise
    v = noise * angle.cos() - clean * angle.sin()
    torch.testing.assert_close(scaling.c_in * x, clean * angle.cos() + noise * angle.sin())
    torch.testing.assert_close(scaling.c_skip * x + scaling.c_out * v, clean)
    torch.testing.assert_close(scaling.c_noise, torch.log(sigma) / 4)


def test_an_embedding_turns_by_its_frequencies() -> None:
    """Adding a constant to the scalar rotates every pair (cos, sin) by that constant times its
    frequency."""
    values = torch.tensor([0.0, 1.5, 255.0], dtype=torch.float64)
    here, there = (torch.complex(*sinusoidal(v, 8).chunk(2, dim=-1)) for v in (values, values + 2))
    turned = torch.exp(2j * torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64))
    torch.testing.assert_close(there, here * turned)
    assert sinusoidal(torch.tensor([3]), 4).dtype == torch.float32


# ------------------------------------------------------------------------------------- fused layers


def test_fused_layers_and_their_derivatives_are_those_in_double_precision() -> None:
    """In float32 on a CPU oneDNN takes bias, sum and gated GELU along; in float64 torch's own
    functions run."""
    draw = torch.Generator().manual_seed(3)
    x, plus, weight, bias = (
        torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in ((2, 7, 12), (2, 7, 20), (20, 12), (20,))
    )
    for inputs in ((x, weight), (x, weight, bias), (x, weight, bias, plus)):
        single = [value.detach().float().requires_grad_() for value in inputs]
        out, expected = linear(*single), F.linear(*inputs[:3]) + (plus if len(inputs) == 4 else 0)
        close(out, expected)
        grads = torch.autograd.grad(out.square().sum(), single)
        for grad, exact in zip(
            grads, torch.autograd.grad(expected.square().sum(), inputs), strict=True
        ):
            close(grad, exact)
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    for grads_wanted in (False, True):  # without a backward pass the GELU goes with the product
        with torch.set_grad_enabled(grads_wanted):
            close(
                gated_gelu(*(p.detach().float() for p in (x, weight, bias))), value * F.gelu(gate)
            )


def close(out: Tensor, expected: Tensor) -> None:
    """Within 1e-6 of the largest value."""
    assert out.dtype == torch.float32 and expected.dtype == torch.float64
    assert (out - expected).abs().max() < 1e-6 * expected.abs().max()


def test_a_single_token_spares_the_norm_and_changes_nothing(unet: nn.Module) -> None:
    """What a query attends to of one token is the token: as twice the same token, where softmax and
    norm are taken."""
    given = inputs(tokens=1)
    once = unet(**given, num_frames=FRAMES, image_only=on())
    twice = unet(
        **given | {"context": given["context"].expand(-1, 2, -1)},
        num_frames=FRAMES,
        image_only=on(),
    )
    torch.testing.assert_close(once, twice, rtol=1e-9, atol=1e-9)


def test_the_network_is_that_of_plain_modules_laid_out_as_published(unet: nn.Module) -> None:
    """benchmarks/plain_unet.py fuses nothing and takes every attention in full."""
    for tokens, image_only in ((1, on()), (2, on()), (1, off())):
        given = inputs(tokens=tokens)
        fast = unet(**given, num_frames=FRAMES, image_only=image_only)
        plain = PlainUNet(unet)(**given, num_frames=FRAMES, image_only=image_only)
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)

"""The networks that peers.py compares, with their weights and inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from plain_unet import PlainUNet
from torch import Tensor, nn

from d2.nn.autoencoder import Autoencoder, AutoencoderConfig
from d2.nn.embedding import sinusoidal
from d2.nn.unet import compiled
from d2.nn.video_unet import VideoUNet, VideoUNetConfig
from d2.priors.diffusers_layout import unet_key, vae_key
from d2.priors.svd import UNET
from d2.priors.tiny import VIDEO

SCALARS = 3  # in the vector condition


class Inputs(NamedTuple):
    """Of a UNet, for clips."""

    x: Tensor  # b t c h w
    level: Tensor  # b
    context: Tensor  # b 1 d
    scalars: Tensor  # b 3


class Shape(NamedTuple):
    """A configuration and what it is called with."""

    unet: VideoUNetConfig
    clips: int
    frames: int
    size: int  # of the latents' sides
    same_in_diffusers: bool  # else diffusers runs the nearest network that it can express

    def inputs(self, turn: int, device: str, dtype: torch.dtype) -> Inputs:
        """Others at every turn."""
        generator = torch.Generator().manual_seed(turn + 1)
        b, c, s = self.clips, self.unet.in_channels, self.size
        x = torch.randn(b, self.frames, c, s, s, generator=generator)
        context = torch.randn(b, 1, self.unet.context_dim, generator=generator)
        level, scalars = (torch.rand(*shape, generator=generator) for shape in ((b,), (b, SCALARS)))
        return Inputs(*(value.to(device, dtype) for value in (x, level, context, scalars)))


# 8 rows or columns, both halves
TINY = Shape(VIDEO.unet, clips=16, frames=8, size=8, same_in_diffusers=False)
MID = Shape(
    VideoUNetConfig(
        in_channels=8,
        out_channels=4,
        model_channels=128,
        channel_mult=(1, 2, 4),
        num_res_blocks=2,
        attention_resolutions=(1, 2, 4),
        num_head_channels=64,
        context_dim=256,
        adm_in_channels=192,
    ),
    clips=2,
    frames=8,
    size=32,
    same_in_diffusers=True,
)
# a clip of SVD-XT's, both halves of guidance: 79 TFLOP
FULL = Shape(UNET, clips=2, frames=25, size=72, same_in_diffusers=True)
DECODER = AutoencoderConfig(
    in_channels=3,
    out_channels=3,
    ch=32,
    ch_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    z_channels=4,
    temporal_decoder=True,
    quant_conv=False,
)


def networks(
    shape: Shape, device: str = "cpu", *, compile: bool = False
) -> dict[str, tuple[nn.Module, Callable[[Any, Inputs], Tensor]]]:
    """Every competitor with the call that it understands; diffusers' where it is installed."""
    with torch.device(device):
        ours = VideoUNet(shape.unet).eval().requires_grad_(False)
    trained(ours)
    found: dict[str, Any] = {"ours": (ours, call_ours)}
    if device == "meta":
        return found
    found["published"] = (PlainUNet(ours), call_ours)
    if find_spec("diffusers"):
        with torch.device(device):
            theirs = diffusers_unet(shape)
        if shape.same_in_diffusers:
            renamed = {
                unet_key(key, shape.unet.num_res_blocks): value
                for key, value in ours.state_dict().items()
            }
            theirs.load_state_dict(renamed)
        found["diffusers"] = (theirs, call_diffusers)
    if compile:
        found["ours, compiled"] = (compiled(copy.copy(ours)), call_ours)
        if "diffusers" in found:
            theirs = torch.compile(found["diffusers"][0], mode="reduce-overhead", dynamic=False)
            found["diffusers, compiled"] = (theirs, call_diffusers)
    return found


def call_ours(network: nn.Module, given: Inputs) -> Tensor:
    b, t = given.x.shape[:2]
    each = [value.repeat_interleave(t, 0) for value in (given.level, given.context)]
    vector = sinusoidal(given.scalars, network.config.adm_in_channels // SCALARS).flatten(1)  # type: ignore[union-attr]
    image_only = torch.zeros(b, t, device=given.x.device)
    return network(
        given.x.flatten(0, 1),
        *each,
        vector.repeat_interleave(t, 0),
        num_frames=t,
        image_only=image_only,
    )


def call_diffusers(network: Any, given: Inputs) -> Tensor:
    return network(
        given.x, given.level, given.context, added_time_ids=given.scalars
    ).sample.flatten(0, 1)


def diffusers_unet(shape: Shape) -> Any:
    """Of the same sizes; where a level is no multiple of the first, with a first convolution as
    wide as that level."""
    import diffusers

    unet = shape.unet
    widths = tuple(unet.model_channels * mult for mult in unet.channel_mult)
    attends = [2**level in unet.attention_resolutions for level in range(len(widths))]
    kinds = [f"{'CrossAttn' * it_does}{{}}BlockSpatioTemporal" for it_does in attends]
    return diffusers.UNetSpatioTemporalConditionModel(  # pyright: ignore[reportPrivateImportUsage]
        in_channels=unet.in_channels,
        out_channels=unet.out_channels,
        block_out_channels=widths,
        down_block_types=tuple(kind.format("Down") for kind in kinds),
        up_block_types=tuple(kind.format("Up") for kind in reversed(kinds)),
        layers_per_block=unet.num_res_blocks,
        num_attention_heads=tuple(width // unet.num_head_channels for width in widths),
        cross_attention_dim=unet.context_dim,
        addition_time_embed_dim=unet.adm_in_channels // SCALARS,
        projection_class_embeddings_input_dim=unet.adm_in_channels,
        num_frames=shape.frames,
    ).requires_grad_(False)


def decoders(device: str = "cpu") -> dict[str, Any]:
    """Ours and diffusers', with the same weights in the decoder."""
    with torch.device(device):
        ours = Autoencoder(DECODER).eval().requires_grad_(False)
    trained(ours)
    if device == "meta":
        return {"ours": ours}
    import diffusers

    autoencoder: Any = diffusers.AutoencoderKLTemporalDecoder  # pyright: ignore[reportPrivateImportUsage]
    theirs = autoencoder(
        block_out_channels=tuple(DECODER.widths),
        down_block_types=("DownEncoderBlock2D",) * len(DECODER.widths),
        layers_per_block=DECODER.num_res_blocks,
        latent_channels=DECODER.z_channels,
    ).requires_grad_(False)
    own = {key: value for key, value in ours.state_dict().items() if key.startswith("decoder.")}
    renamed = {vae_key(key, len(DECODER.ch_mult)): value for key, value in own.items()}
    shapes = theirs.state_dict()
    theirs.load_state_dict(
        shapes | {key: value.reshape(shapes[key].shape) for key, value in renamed.items()}
    )
    return {"ours": ours, "diffusers": theirs}


def trained(network: nn.Module) -> None:
    """Weights as if trained: none is zero, so that no branch could be left out."""
    device = next(network.parameters()).device
    if device.type == "meta":
        return
    generator = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        unit = torch.randn(parameter.shape, generator=generator, device=device)
        is_matrix = parameter.ndim > 1
        parameter.data = unit * parameter[0].numel() ** -0.5 if is_matrix else 1 + 0.3 * unit

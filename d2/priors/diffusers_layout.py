"""SVD in the folder layout of diffusers (unet/, vae/, image_encoder/): where every parameter here
lies there.

Derived from the names and shapes of diffusers' UNetSpatioTemporalConditionModel and
AutoencoderKLTemporalDecoder and transformers' CLIPVisionModelWithProjection; tests hold the two
side by side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from d2.priors.prior import PriorConfig
from d2.priors.published import LeftOut

FOLDERS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "image_encoder": "model",
}
VARIANTS = (  # of a file: whole or in shards, which its index names
    ".safetensors",
    ".fp16.safetensors",
    ".safetensors.index.json",
    ".safetensors.index.fp16.json",
)
LEFT_OUT = (
    LeftOut(
        "image_encoder/vision_model.embeddings.position_ids", "counts the positions 0, 1, 2, …"
    ),
)


class Origin(NamedTuple):
    """The tensors of a file that a parameter is made of, and how."""

    keys: tuple[str, ...]
    make: Callable[..., Tensor]


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def origins(names: Iterable[str], config: PriorConfig) -> dict[str, Origin]:
    """Parameter of a prior ("prior.…") or a first stage ("first_stage.…") -> its origin in the
    folder."""
    return {name: origin(name, config) for name in names}


def origin(name: str, config: PriorConfig) -> Origin:
    network, key = re.fullmatch(
        r"(prior\.(?:unet|tower|encoder)|first_stage\.autoencoder)\.(.*)", name
    ).groups()  # type: ignore[union-attr]
    if network == "prior.unet":
        return Origin((f"unet/{unet_key(key, config.unet.num_res_blocks)}",), as_it_is)
    if network == "prior.tower":
        return tower_origin(key)
    if name.startswith("first_stage.autoencoder.encoder.conv_out."):
        return merged_quant_conv(key.rpartition(".")[2])
    make = pixelwise if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key) else as_it_is
    assert config.encoder is not None
    return Origin((f"vae/{vae_key(key, len(config.encoder.ch_mult))}",), make)


def pixelwise(weight: Tensor) -> Tensor:
    """A linear map as a convolution of a single pixel."""
    return weight[:, :, None, None]


def merged_quant_conv(part: str) -> Origin:
    """The last convolution of the first stage's encoder: this layout has one encoder, with a 1x1
    convolution after it.

    The published first stage has none; the two convolutions in a row are one.
    """

    def weight(conv: Tensor, quant: Tensor) -> Tensor:  # o i 3 3, o o 1 1
        return torch.einsum("om,mihw->oihw", quant[:, :, 0, 0].double(), conv.double())

    def bias(conv: Tensor, quant: Tensor, quant_bias: Tensor) -> Tensor:  # o, o o 1 1, o
        return quant[:, :, 0, 0].double() @ conv.double() + quant_bias.double()

    keys = (f"vae/encoder.conv_out.{part}", "vae/quant_conv.weight")
    return (
        Origin(keys, weight) if part == "weight" else Origin((*keys, "vae/quant_conv.bias"), bias)
    )


# -------------------------------------------------------------------------------------------- names


RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
TRANSFORMER = {
    "time_stack": "temporal_transformer_blocks",
    "time_pos_embed.0": "time_pos_embed.linear_1",
    "time_pos_embed.2": "time_pos_embed.linear_2",
}
PIXEL_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
VISION_ENDS = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1": "vision_model.embeddings.patch_embedding",
    "ln_pre": "vision_model.pre_layrnorm",
    "ln_post": "vision_model.post_layernorm",
}
VISION_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def renamed(key: str, names: dict[str, str]) -> str:
    """`key` with its beginning replaced, where the table has it."""
    for ours, theirs in names.items():
        if key == ours or key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    return key


def unet_key(key: str, num_res_blocks: int) -> str:
    """Blocks, numbered in a row here, are numbered by level and kind there."""
    side, _, rest = key.partition(".")
    if side not in ("input_blocks", "middle_block", "output_blocks"):
        return renamed(key, UNET_ENDS)
    if side == "middle_block":
        child, _, rest = rest.partition(".")
        return f"mid_block.{MIDDLE[child]}.{unet_layer(MIDDLE[child], rest)}"
    number, child, rest = rest.split(".", 2)
    if side == "input_blocks":
        if number == "0":
            return f"conv_in.{rest}"
        # the last of a level halves the size
        level, block = divmod(int(number) - 1, num_res_blocks + 1)
        if block == num_res_blocks:
            return f"down_blocks.{level}.downsamplers.0.{renamed(rest, {'op': 'conv'})}"
        place = f"down_blocks.{level}"
    else:
        level, block = divmod(int(number), num_res_blocks + 1)
        place = f"up_blocks.{level}"
        if rest.startswith("conv."):
            return f"{place}.upsamplers.0.{rest}"
    kind = "resnets" if child == "0" else "attentions"
    return f"{place}.{kind}.{block}.{unet_layer(kind, rest)}"


def unet_layer(kind: str, key: str) -> str:
    if kind.startswith("attentions"):
        return renamed(key, TRANSFORMER)
    if key.startswith("time_mixer."):
        return key
    temporal = key.startswith("time_stack.")
    twin = "temporal_res_block" if temporal else "spatial_res_block"
    return f"{twin}.{renamed(key.removeprefix('time_stack.'), RESNET)}"


def vae_key(key: str, num_levels: int) -> str:
    """Of the encoder with its quant_conv, or of the decoder, whose levels are listed there as they
    run."""
    half, _, rest = key.partition(".")
    if half == "quant_conv":
        return key
    level = re.match(r"(down|up)\.(\d+)\.", rest)
    if level:
        number = int(level[2]) if level[1] == "down" else num_levels - 1 - int(level[2])
        place, rest = f"{half}.{level[1]}_blocks.{number}", rest[level.end() :]
        if not rest.startswith("block."):
            names = {"downsample": "downsamplers.0", "upsample": "upsamplers.0"}
            return f"{place}.{renamed(rest, names)}"
        _, block, rest = rest.split(".", 2)
    elif rest.startswith("mid."):
        _, child, rest = rest.split(".", 2)
        place = f"{half}.mid_block"
        if child == "attn_1":
            return f"{place}.attentions.0.{renamed(rest, PIXEL_ATTENTION)}"
        block = int(child == "block_2")
    else:
        names = {"norm_out": "conv_norm_out", "conv_out.time_mix_conv": "time_conv_out"}
        return f"{half}.{renamed(rest, names)}"
    return f"{place}.resnets.{block}.{vae_resnet(half, rest)}"


def vae_resnet(half: str, key: str) -> str:
    if key == "mix_factor":
        return "time_mixer.mix_factor"
    if key.startswith("time_stack."):
        return f"temporal_res_block.{renamed(key.removeprefix('time_stack.'), RESNET)}"
    key = renamed(key, {"nin_shortcut": "conv_shortcut"})
    return key if half == "encoder" else f"spatial_res_block.{key}"


def tower_origin(key: str) -> Origin:
    """The image tower, whose queries, keys and values are one matrix here and three there."""
    if key == "proj":
        return Origin(("image_encoder/visual_projection.weight",), torch.t)
    layer = re.match(r"transformer\.resblocks\.(\d+)\.", key)
    if layer is None:
        return Origin((f"image_encoder/{renamed(key, VISION_ENDS)}",), as_it_is)
    place, rest = f"image_encoder/vision_model.encoder.layers.{layer[1]}", key[layer.end() :]
    joint = re.fullmatch(r"attn\.in_proj_(weight|bias)", rest)
    if joint:
        keys = tuple(f"{place}.self_attn.{part}_proj.{joint[1]}" for part in "qkv")
        return Origin(keys, lambda *parts: torch.cat(parts))
    return Origin((f"{place}.{renamed(rest, VISION_LAYER | {'attn': 'self_attn'})}",), as_it_is)

"""The spatio-temporal UNet as it was published, layer by layer, on the weights of a `VideoUNet`.

Activations are contiguous b c h w, axes are moved where the published modules move them, every
attention is taken in full, that to a single token too, and nothing is fused or done in place.

Axes: b clips, t frames of a clip, c channels, h w, s = h w, n context tokens, d their width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from d2.nn.embedding import sinusoidal
from d2.nn.unet import Downsample, Upsample
from d2.nn.video_unet import (
    Attention,
    SpatialBlock,
    TemporalBlock,
    VideoResBlock,
    VideoTransformer,
    VideoUNet,
)


class PlainUNet(nn.Module):
    """Takes the place of a `VideoUNet`, whose weights it shares."""

    def __init__(self, network: VideoUNet):
        super().__init__()
        self.network, self.config = network, network.config

    def forward(
        self,
        x: Tensor,  # (b t) c h w
        c_noise: Tensor,  # (b t)
        context: Tensor,  # (b t) n d
        vector: Tensor,  # (b t) adm
        *,
        num_frames: int,
        image_only: Tensor,  # b t
        blend: None = None,
    ) -> Tensor:  # (b t) c_out h w
        net = self.network
        embedding = mlp(net.time_embed, sinusoidal(c_noise, self.config.model_channels))
        embedding = embedding + mlp(net.label_emb[0], vector)
        given = (embedding, context, num_frames, image_only.bool())
        (conv_in,) = net.input_blocks[0].children()
        x = conv_in(x.contiguous())
        skips = [x]
        for layers in net.input_blocks[1:]:
            x = run(layers, x, *given)
            skips.append(x)
        x = run(net.middle_block, x, *given)
        for layers in net.output_blocks:
            x = run(layers, torch.cat((x, skips.pop()), dim=1), *given)
        norm, _, last = net.out
        return last(F.silu(norm(x)))


def run(
    layers: nn.Module,
    x: Tensor,  # (b t) c h w
    embedding: Tensor,  # (b t) e
    context: Tensor,  # (b t) n d
    t: int,
    image_only: Tensor,  # b t
) -> Tensor:
    for layer in layers.children():
        match layer:
            case VideoResBlock():
                x = res_block(layer, x, embedding)
                clips = rearrange(x, "(b t) c h w -> b c t h w", t=t)
                over_time = res_block(
                    layer.time_stack, clips, rearrange(embedding, "(b t) e -> b t e", t=t)
                )
                share = torch.where(image_only, 1.0, layer.time_mixer.mix_factor.sigmoid())[
                    :, None, :, None, None
                ]
                mixed = share * clips + (1 - share) * over_time
                x = rearrange(mixed, "b c t h w -> (b t) c h w")
            case VideoTransformer():
                x = transformer(layer, x, context, t, image_only)
            case Downsample():
                x = layer.op(x)
            case Upsample():
                x = layer.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    return x


def res_block(layer: Any, x: Tensor, embedding: Tensor) -> Tensor:
    norm_in, _, conv_in = layer.in_layers
    norm_out, _, _, conv_out = layer.out_layers
    shift = F.linear(F.silu(embedding), layer.emb_layers[1].weight, layer.emb_layers[1].bias)
    shift = shift[..., None, None] if x.ndim == 4 else rearrange(shift, "b t c -> b c t 1 1")
    h = conv(conv_in, F.silu(norm_in(x))) + shift
    return layer.skip_connection(x) + conv(conv_out, F.silu(norm_out(h)))


def conv(layer: Any, x: Tensor) -> Tensor:
    function = F.conv2d if x.ndim == 4 else F.conv3d
    return function(x, layer.weight, layer.bias, padding=layer.padding)


def transformer(
    layer: VideoTransformer, x: Tensor, context: Tensor, t: int, image_only: Tensor
) -> Tensor:
    tokens = rearrange(layer.norm(x), "b c h w -> b (h w) c").contiguous()
    tokens, s = dense(layer.proj_in, tokens), tokens.shape[1]
    frames = repeat(torch.arange(t, device=x.device, dtype=x.dtype), "t -> (b t)", b=len(x) // t)
    position = mlp(layer.time_pos_embed, sinusoidal(frames, layer.channels))[:, None]
    first = repeat(context[::t], "b n d -> (b s) n d", s=s)
    share = torch.where(image_only, 1.0, layer.time_mixer.mix_factor.sigmoid()).flatten()[
        :, None, None
    ]
    for over_pixels, over_frames in zip(layer.transformer_blocks, layer.time_stack, strict=True):
        tokens = spatial(cast(SpatialBlock, over_pixels), tokens, context)
        clips = rearrange(tokens + position, "(b t) s c -> (b s) t c", t=t)
        clips = temporal(cast(TemporalBlock, over_frames), clips, first)
        tokens = share * tokens + (1 - share) * rearrange(clips, "(b s) t c -> (b t) s c", s=s)
    tokens = dense(layer.proj_out, tokens)
    return rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2]).contiguous() + x


def spatial(block: SpatialBlock, x: Tensor, context: Tensor) -> Tensor:
    y = block.norm1(x)
    x = attention(block.attn1, y, y) + x
    x = attention(block.attn2, block.norm2(x), context) + x
    return feed_forward(block.ff, block.norm3(x)) + x


def temporal(block: TemporalBlock, x: Tensor, context: Tensor) -> Tensor:
    x = feed_forward(block.ff_in, block.norm_in(x)) + x
    y = block.norm1(x)
    x = attention(block.attn1, y, y) + x
    x = attention(block.attn2, block.norm2(x), context) + x
    return feed_forward(block.ff, block.norm3(x)) + x


def attention(layer: Attention, x: Tensor, context: Tensor) -> Tensor:
    q, k, v = dense(layer.to_q, x), dense(layer.to_k, context), dense(layer.to_v, context)
    q, k, v = (rearrange(p, "b n (h d) -> b h n d", d=layer.head_channels) for p in (q, k, v))
    out = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
    return dense(layer.to_out[0], out)


def feed_forward(layer: Any, x: Tensor) -> Tensor:
    value, gate = dense(layer.net[0].proj, x).chunk(2, dim=-1)
    return dense(layer.net[2], value * F.gelu(gate))


def dense(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def mlp(layers: Any, x: Tensor) -> Tensor:
    first, _, last = layers.children()
    return dense(last, F.silu(dense(first, x)))

"""CUDA graphs of a network in training: replayed or launched, the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from small_prior import randomize
from torch import Tensor

from d2.nn.video_unet import VideoUNet
from d2.priors import tiny
from d2.train.replay import replay


def inputs(seed: int, device: str) -> tuple[tuple[Tensor, ...], Tensor]:
    """x, level, context and vector of two clips and a row of single images, and its flags."""
    g = torch.Generator().manual_seed(seed)
    c, b, t = tiny.VIDEO.unet, 3, 8
    shapes = ((c.in_channels, 8, 8), (), (1, c.context_dim), (c.adm_in_channels,))
    tensors = tuple(torch.randn(b * t, *shape, generator=g).to(device) for shape in shapes)
    tensors[2].requires_grad_()
    return tensors, torch.tensor([0.0, 0.0, 1.0])[:, None].expand(b, t).to(device)


def test_nothing_is_captured_on_a_cpu() -> None:
    unet = VideoUNet(tiny.VIDEO.unet)
    randomize(unet, 0)
    tensors, flags = inputs(0, "cpu")
    with torch.no_grad():
        before = unet(*tensors, num_frames=8, image_only=flags)
        replay(unet)
        assert torch.equal(before, unet(*tensors, num_frames=8, image_only=flags))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_step_is_the_step() -> None:
    """Outputs and gradients of two steps with other inputs; the second one replays the first's
    graph."""
    plain = VideoUNet(tiny.VIDEO.unet).cuda()
    randomize(plain, 0)
    captured = copy.deepcopy(plain)
    replay(captured)
    for seed in (0, 1):
        outs = []
        for unet in (plain, captured):
            unet.zero_grad()
            tensors, flags = inputs(seed, "cuda")
            out = unet(*tensors, num_frames=8, image_only=flags)
            out.square().mean().backward()
            assert tensors[2].grad is not None
            outs.append((out.detach().clone(), tensors[2].grad.clone()))
        for one, other in zip(*outs, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)
        for p, q in zip(plain.parameters(), captured.parameters(), strict=True):
            if p.grad is not None:
                assert q.grad is not None
                assert torch.allclose(p.grad, q.grad, rtol=1e-2, atol=1e-5)

"""`rasterize(gaussians, cameras, background) -> colour, alpha, depth`: in plain PyTorch, and by
gsplat on CUDA.

The two have one signature and one meaning, so the first tests the second. A pixel is what its
Gaussians make of it from front to back: with α = opacity · exp(−½ dᵀ Σ⁻¹ d), colour = Σ α T c + T
background, T what is left of the light. An α below `CUT` is not drawn.

Axes: b pictures, n Gaussians, t tiles, k Gaussians of one tile, p pixels of one tile, c h w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from d2.errors import InputError
from d2.recon.gaussians import NEAR, Gaussians, Pinholes, Projected, project

TILE = 4  # pixels a side: of 4, 8 and 16 the fastest on a CPU
CUT, OPAQUE = 1 / 255, 0.999  # the least and the most that α may be, gsplat's
SLACK = 1e-3  # variances, of rounding where a tile is only just met
# tiles of about as many Gaussians are drawn together, so that few are padding
GROUPS = (16, 32, 64, 128, 256)


class Rendered(NamedTuple):
    """Pictures of Gaussians."""

    colour: Tensor  # b 3 h w, on the background
    alpha: Tensor  # b 1 h w, coverage in [0, 1]
    # b 1 h w, along the optical axis, weighted by α T: divide by alpha where that is not zero
    depth: Tensor


Rasterize = Callable[[Gaussians, Pinholes, Tensor], Rendered]


def rasterize(
    gaussians: Gaussians,
    cameras: Pinholes,
    background: Tensor,  # 3
    *,
    cut: float = CUT,
) -> Rendered:
    """In plain PyTorch, by tiles, differentiable by autograd. `cut` 0 draws every Gaussian
    everywhere."""
    seen = project(gaussians, cameras)
    b, n = seen.depth.shape
    down, across = (math.ceil(side / TILE) for side in (cameras.height, cameras.width))
    lists = tile_lists(seen, gaussians.opacities, down, across, cut)
    facts = torch.cat(
        [seen.centre, seen.conic, gaussians.opacities.log()[..., None], seen.colour], dim=-1
    )
    facts = torch.cat([facts, seen.depth[..., None]], dim=-1).flatten(0, 1)  # (b n) 10
    canvas = facts.new_zeros(b * down * across, 5, TILE * TILE)  # colour, coverage, depth
    for tiles, members, real in lists:
        corner = torch.stack([tiles % across, tiles // across % down], dim=-1).to(facts) * TILE
        chosen = rearrange(
            facts.index_select(0, members.flatten()), "(t k) i -> i t k", k=members.shape[1]
        )
        canvas = canvas.index_copy(0, tiles, _blend(chosen, corner, real, cut))
    canvas = rearrange(
        canvas, "(b y x) c (i j) -> b c (y i) (x j)", b=b, y=down, i=TILE, j=TILE
    )[..., : cameras.height, : cameras.width]  # fmt: skip
    colour, alpha, depth = canvas.split((3, 1, 1), dim=1)
    return Rendered(colour + (1 - alpha) * background[:, None, None], alpha, depth)


def rasterize_gsplat(
    gaussians: Gaussians,
    cameras: Pinholes,
    background: Tensor,  # 3
) -> Rendered:
    """By the CUDA kernels of gsplat (Ye et al. 2024). ValueError where it is not installed."""
    try:
        from gsplat import rasterization  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "recon.rasterizer=gsplat: not installed; pip install 'diffusion-squared[gsplat]', or"
            " take torch"
        ) from error
    focal, centre = cameras.focal, cameras.centre
    intrinsics = torch.zeros_like(cameras.world_to_camera[:, :3, :3])
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = focal.unbind(-1)
    intrinsics[:, :2, 2], intrinsics[:, 2, 2] = centre, 1
    pictures, alpha, _ = rasterization(
        *gaussians,
        cameras.world_to_camera[:, None],
        intrinsics[:, None],
        cameras.width,
        cameras.height,
        near_plane=NEAR,
        eps2d=cameras.blur,
        sh_degree=math.isqrt(gaussians.sh.shape[-2]) - 1,
        backgrounds=background.expand(len(focal), 1, 3),
        render_mode="RGB+D",
        packed=False,
    )
    colour, depth = rearrange(pictures, "b 1 h w c -> b c h w").split((3, 1), dim=1)
    return Rendered(colour, rearrange(alpha, "b 1 h w c -> b c h w"), depth)


class TileList(NamedTuple):
    """Tiles and their Gaussians from front to back, padded to the longest list."""

    tiles: Tensor  # t, among those of all pictures
    members: Tensor  # t k, among the Gaussians of all pictures
    real: Tensor  # t k, False where the list is padded


@torch.no_grad()
def tile_lists(
    seen: Projected, opacities: Tensor, down: int, across: int, cut: float
) -> list[TileList]:
    """The tiles that any Gaussian meets, those with lists of about the same length together."""
    device = seen.depth.device
    b, n = seen.depth.shape
    order = seen.depth.argsort(dim=-1, stable=True) + torch.arange(b, device=device)[:, None] * n
    order = order.flatten()  # front to back, picture by picture
    # where α falls to `cut`, in standard deviations; what is nowhere above it gets no tiles
    extent = (
        (2 * (opacities.flatten() / cut).log()).clamp(min=0).sqrt()
        if cut
        else torch.full_like(opacities, 1e9)
    )
    half = seen.reach.flatten(0, 1) * extent.flatten()[:, None]
    centre, limit = seen.centre.flatten(0, 1), torch.tensor([across, down], device=device)
    low = (((centre - half) / TILE).floor().clamp(min=0)).minimum(limit).long()[order]
    high = (((centre + half) / TILE).floor() + 1).clamp(min=0).minimum(limit).long()[order]
    span = (high - low) * ((seen.depth > NEAR).flatten() & (extent.flatten() > 0))[order, None]
    met = span.prod(dim=-1)
    pair = torch.repeat_interleave(met)  # place in `order` of every (Gaussian, tile)
    within = torch.arange(len(pair), device=device) - (met.cumsum(0) - met)[pair]
    y = low[pair, 1] + within // span[pair, 0]
    x = low[pair, 0] + within % span[pair, 0]
    member = order[pair]
    if cut:
        met = _least(seen, member, x, y) <= extent.flatten()[member].square() + SLACK
        member, x, y = member[met], x[met], y[met]
    tile, place = (((member // n) * down + y) * across + x).to(torch.int32).sort(stable=True)
    tiles, counts = tile.unique_consecutive(return_counts=True)
    start, member = counts.cumsum(0) - counts, member[place]
    lists, longest = [], 0
    for bound in (*GROUPS, math.inf):
        chosen = ((counts > longest) & (counts <= bound)).nonzero()[:, 0]
        longest = bound
        if len(chosen):
            slot = torch.arange(int(counts[chosen].max()), device=device)
            real = slot < counts[chosen, None]
            lists.append(
                TileList(
                    tiles[chosen].long(),
                    member[torch.where(real, start[chosen, None] + slot, 0)],
                    real,
                )
            )
    return lists


def _least(
    seen: Projected,
    member: Tensor,  # pairs, among the Gaussians of all pictures
    x: Tensor,  # pairs, the tile's column
    y: Tensor,  # pairs, its row
) -> Tensor:  # pairs
    """The least dᵀ Σ⁻¹ d of a Gaussian within the square of a tile's pixel centres.

    Where the Gaussian's centre is outside, it lies on one of the two sides that face it.
    """
    xx, xy, yy = seen.conic.flatten(0, 1)[member].unbind(-1)
    centre_x, centre_y = seen.centre.flatten(0, 1)[member].unbind(-1)
    left, top = x * TILE + 0.5 - centre_x, y * TILE + 0.5 - centre_y
    right, bottom = left + TILE - 1, top + TILE - 1
    side_x = left.clamp(min=0) + right.clamp(max=0)  # 0 where the centre is between them
    side_y = top.clamp(min=0) + bottom.clamp(max=0)
    along_y = (-xy / yy * side_x).clamp(top, bottom)
    along_x = (-xy / xx * side_y).clamp(left, right)

    def form(u: Tensor, v: Tensor) -> Tensor:
        return xx * u * u + 2 * xy * u * v + yy * v * v

    return torch.minimum(form(side_x, along_y), form(along_x, side_y))


def _blend(
    facts: Tensor,  # 10 t k: centre, conic, log opacity, colour, depth
    corner: Tensor,  # t 2, pixels
    real: Tensor,  # t k
    cut: float,
) -> Tensor:  # t 5 p
    """Front to back over the k Gaussians of every tile."""
    x, y, xx, xy, yy, log_opacity = facts[:6].unbind(0)
    x, y = x - corner[:, :1], y - corner[:, 1:]
    u, v = xx * x + xy * y, xy * x + yy * y
    # the exponent is a polynomial of the pixel's place in the tile, so all pixels come from one
    # matrix product
    constant = torch.where(real, log_opacity - 0.5 * (u * x + v * y), -1e4)
    exponent = torch.stack([-0.5 * xx, -0.5 * yy, -xy, u, v, constant], dim=1)  # t 6 k
    alpha = (_monomials(facts) @ exponent).exp().clamp(max=OPAQUE)  # t p k
    alpha = torch.where(alpha < cut, 0.0, alpha) if cut else alpha
    passed = torch.log1p(-alpha)
    weight = alpha * (passed.cumsum(-1) - passed).exp()
    drawn = torch.cat([facts[6:9], torch.ones_like(facts[:1]), facts[9:]])  # colour, 1, depth
    return torch.einsum("t p k, c t k -> t c p", weight, drawn)


def _monomials(like: Tensor) -> Tensor:  # p 6
    """xx, yy, xy, x, y, 1 at the pixels' centres, from the tile's corner."""
    side = torch.arange(TILE, device=like.device, dtype=like.dtype) + 0.5
    y, x = (axis.flatten() for axis in torch.meshgrid(side, side, indexing="ij"))
    return torch.stack([x * x, y * y, x * y, x, y, torch.ones_like(x)], dim=-1)

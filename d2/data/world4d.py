"""world4d: a procedural world of articulated creatures, rendered from the camera ring of
d2/matrix.py, or from any cameras.

It gives what no 4D data set gives, the exact V × F matrix of a moving thing, and the two marginals
the priors train on: frozen orbits and single-camera clips. Everything is a function of
(WORLD_VERSION, split, index).

Light is ambient + a uniform sky (Lambert) + a weak headlight: it has no azimuth, so a row of any
view looks like a clip of the input view.

Axes: b scenes, v views, f frames, t along a sequence, n images, p ellipsoids, k ellipsoids of one
tile, s samples of one tile, c h w. Pixels are in [0, 1], on white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from d2.cameras import Rig
from d2.data.creature import (
    WORLD_VERSION,
    Creatures,
    Pose,
    Split,
    elevation_at,
    pose,
    sample_creatures,
)
from d2.data.walks import draw_walk
from d2.errors import InputError
from d2.matrix import FOV_Y_DEG, RADIUS, Cameras, camera_ring, rig_of
from d2.scene import Scene, Truth

__all__ = [
    "WORLD_VERSION",
    "Split",
    "Views",
    "static_orbits",
    "clips",
    "pairs",
    "full_matrix",
    "scene",
    "seen_from",
    "half_way",
    "render",
]

# they sum to 1: a surface facing both lights shows its own colour
AMBIENT, SKY, HEADLIGHT = 0.50, 0.26, 0.24
EDGE = 0.15  # half width of the border between two colours of a part, of its radius
TILE = 8  # pixels a side; an ellipsoid is tested only in the tiles its bounding rectangle meets
# four samples a pixel on a rotated grid: an edge near an axis still takes five levels
SUBPIXEL = torch.tensor([(-1, -3), (3, -1), (1, 3), (-3, 1)], dtype=torch.float64) / 8
# (tile, ellipsoid) pairs; on a CPU they have to fit its L2 cache
PAIRS_PER_CHUNK = {"cpu": 512, "cuda": 1 << 18}


class Views(NamedTuple):
    """Sequences, t = num_views or num_frames; or matrices, where t is v f in pixels, masks and
    depth, v in angles."""

    pixels: Tensor  # b t 3 h w, on white, in [0, 1]
    masks: Tensor  # b t 1 h w, coverage in [0, 1]
    depth: Tensor  # b t 1 h w, distance along the optical axis; inf where nothing is
    azimuth_rad: Tensor  # b t, float64, relative to the input view, which is 2π
    elevation_rad: Tensor  # b t, float64


def static_orbits(
    split: Split,
    indices: Sequence[int],
    *,
    num_views: int = 8,
    size: int = 64,
    device: torch.device | str = "cpu",
) -> Views:
    """Scenes frozen at one random moment of their clips, seen from the whole ring; the input view
    comes last."""
    creatures = sample_creatures(split, indices)
    return _squeeze(
        _views(creatures, creatures.still_time[:, None], _ring(num_views), size, device), frame=0
    )


def clips(
    split: Split,
    indices: Sequence[int],
    *,
    num_frames: int = 8,
    size: int = 64,
    device: torch.device | str = "cpu",
) -> Views:
    """The input view over time."""
    creatures = sample_creatures(split, indices)
    return _squeeze(
        _views(creatures, _times(creatures, num_frames), _ring(1), size, device), frame=None
    )


def pairs(
    split: Split,
    indices: Sequence[int],
    *,
    num_cells: int = 8,
    size: int = 64,
    device: torch.device | str = "cpu",
) -> tuple[Views, Tensor]:
    """The input view's first frame, then other cells drawn from the whole 8 × 8 matrix; and their
    frames, b t.

    This is 4D data: a picture, and how its scene looks from elsewhere at another time. Neither
    prior ever gets it.
    """
    creatures, ring = sample_creatures(split, indices), _ring(8)
    order = [
        torch.randperm(63, generator=torch.Generator().manual_seed(index))[: num_cells - 1]
        for index in indices
    ]
    # view · 8 + frame
    cells = torch.stack([torch.cat([torch.tensor([56]), o + (o >= 56)]) for o in order])
    view, frame = cells // 8, cells % 8
    azimuth, elevation = ring[view], elevation_at(creatures, ring).gather(1, view)
    pictures = _pictures(creatures, pose(creatures, frame / 8.0), azimuth, elevation, size, device)
    return Views(*pictures, azimuth, elevation), frame


def walks(
    split: Split,
    indices: Sequence[int],
    *,
    num_cells: int = 8,
    size: int = 64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Scenes frozen at one random moment of their clips, from cameras of a walk each
    (`d2.data.walks`).

    Pixels b t 3 h w, and poses b t 4 4 (camera-to-world, OpenCV, float64).
    """
    creatures = sample_creatures(split, indices)
    walked = torch.stack([draw_walk(index, num_cells) for index in indices])
    poses = walked.flatten(0, 1)
    posed = pose(creatures, creatures.still_time[:, None].expand(-1, num_cells))
    ellipsoids = ellipsoids_of(creatures, posed, device)
    axes, positions = poses[:, :3, :3].mT.to(device), poses[:, :3, 3].to(device)
    return render_from(ellipsoids, axes, positions, size)[0].unflatten(0, (-1, num_cells)), walked


def full_matrix(
    split: Split,
    indices: Sequence[int],
    *,
    num_views: int = 8,
    num_frames: int = 8,
    size: int = 64,
    device: torch.device | str = "cpu",
) -> Views:
    """The true matrices: pixels b v f 3 h w, masks and depth b v f 1 h w, angles b v. For
    evaluation only."""
    refuse_training(split)
    creatures = sample_creatures(split, indices)
    return _views(creatures, _times(creatures, num_frames), _ring(num_views), size, device)


def scene(
    split: Split,
    index: int,
    *,
    num_views: int,
    num_frames: int,
    size: int,
    fps: float = 8.0,
    cameras: Cameras | None = None,  # num_views of them; None: the scene's own ring
) -> Scene:
    """Scene `index` of an evaluation split, its truth beside it; the clip is the truth's input
    view."""
    if cameras is None:
        views = full_matrix(split, [index], num_views=num_views, num_frames=num_frames, size=size)
        truth = Truth(views.pixels[0], views.masks[0], views.depth[0])
        cameras = Cameras(views.azimuth_rad[0], views.elevation_rad[0], num_views - 1)
    else:
        truth = seen_from(split, index, rig_of(cameras), num_frames=num_frames, size=size)
    return Scene(
        name=f"{split}_{index:04d}",
        seed=index,
        pixels=truth.pixels[cameras.input_view],
        masks=truth.masks[cameras.input_view],
        cameras=cameras,
        fps=fps,
        truth=truth,
    )


def seen_from(split: Split, index: int, rig: Rig, *, num_frames: int, size: int) -> Truth:
    """A scene of an evaluation split as any cameras see it."""
    refuse_training(split)
    creatures = sample_creatures(split, [index])
    ellipsoids = ellipsoids_of(creatures, pose(creatures, _times(creatures, num_frames)), "cpu")
    views = [
        render_from(
            ellipsoids,
            place[:3, :3].mT.expand(num_frames, 3, 3),
            place[:3, 3].expand(num_frames, 3),
            size,
            intrinsics,
        )
        for place, intrinsics in zip(rig.poses, rig.intrinsics, strict=True)
    ]
    return Truth(*(torch.stack(parts) for parts in zip(*views, strict=True)))


def own_elevation_deg(split: Split, index: int) -> float:
    """Elevation of a scene's input view."""
    azimuth = torch.tensor([2 * math.pi], dtype=torch.float64)
    return math.degrees(float(elevation_at(sample_creatures(split, [index]), azimuth)))


def refuse_training(split: Split) -> None:
    """Raise an InputError for the split that priors train on."""
    if split == "train":
        raise InputError(
            "split='train': a 4D truth is for evaluation only; choose validation or test"
        )


def half_way(
    split: Split, index: int, *, num_views: int, num_frames: int, size: int
) -> tuple[Views, Views]:
    """What a matrix does not show: half-way between every view and the one before it on the ring,
    at the matrix's frames; and its views half-way between every frame and the next. Pixels 1 v f 3
    h w, the second with f − 1.
    """
    refuse_training(split)
    creatures, ring = sample_creatures(split, [index]), _ring(num_views)
    times = _times(creatures, num_frames)
    turned = _views(creatures, times, ring - math.pi / num_views, size, "cpu")
    return turned, _views(creatures, times[:, :-1] + 0.5 / num_frames, ring, size, "cpu")


def render(
    ellipsoids: Ellipsoids,  # n p
    azimuth_rad: Tensor,  # n, float64
    elevation_rad: Tensor,  # n, float64
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:  # n 3 h w, n 1 h w, n 1 h w
    """Ray-cast ellipsoids from cameras on the sphere: pixels, masks, depth."""
    return render_from(ellipsoids, *_on_sphere(azimuth_rad, elevation_rad), size)


def render_from(
    ellipsoids: Ellipsoids,  # n p
    axes: Tensor,  # n 3 3, float64, rows right, down and along the optical axis: world to camera
    position: Tensor,  # n 3, float64
    size: int,
    intrinsics: Tensor | None = None,  # 3 3, normalised, of all cameras; None: the ring's lens
) -> tuple[Tensor, Tensor, Tensor]:  # n 3 h w, n 1 h w, n 1 h w
    """Ray-cast ellipsoids from any cameras of one lens: pixels, masks, depth.

    With d = (x, y, 1) a ray in the camera's frame and w = 1 / depth, the nearer hit of an ellipsoid
    is w = l · d + sqrt(dᵀ N d), and it is missed where dᵀ N d < 0: both are polynomials of (x, y),
    so the discriminants of all samples of all tiles come from one matrix product.
    """
    n, device = len(position), position.device
    tiles = math.ceil(size / TILE)
    # of one pixel, on the plane z = 1
    step_x = step_y = 2 * math.tan(math.radians(FOV_Y_DEG) / 2) / size
    middle_x = middle_y = 0.5
    if intrinsics is not None:
        step_x, step_y = (1 / (float(intrinsics[i, i]) * size) for i in (0, 1))
        middle_x, middle_y = float(intrinsics[0, 2]), float(intrinsics[1, 2])
    cast = _cast(ellipsoids, axes, position)
    start = torch.arange(tiles, dtype=torch.float64, device=device) * TILE
    corner_x, corner_y = (start - size * middle_x) * step_x, (start - size * middle_y) * step_y
    # n p tiles
    meets_x = (cast.high[:, :, None, 0] >= corner_x) & (
        cast.low[:, :, None, 0] <= corner_x + TILE * step_x
    )
    meets_y = (cast.high[:, :, None, 1] >= corner_y) & (
        cast.low[:, :, None, 1] <= corner_y + TILE * step_y
    )
    meets = rearrange(meets_y[:, :, :, None] & meets_x[:, :, None, :], "n p ty tx -> (n ty tx) p")
    counts, order = meets.sum(-1).sort(descending=True, stable=True)
    counts = counts[counts > 0].tolist()
    # the ellipsoids met come first
    slots = meets.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)

    # colour on white, coverage, depth
    canvas = torch.zeros(n * tiles**2, 5, TILE**2, device=device)
    canvas[:, :3] = 1
    canvas[:, 4] = math.inf
    samples = _samples(step_x, step_y, device)
    budget, first = PAIRS_PER_CHUNK["cpu" if device.type == "cpu" else "cuda"], 0
    while first < len(counts):
        k = counts[first]
        tile = order[first : min(first + max(budget // k, 1), len(counts))]
        image, place = tile // tiles**2, tile % tiles**2
        shift = torch.stack([corner_x[place % tiles], corner_y[place // tiles]], dim=-1)
        slot = slots[tile, :k]
        canvas[tile] = _render_tiles(cast, image, slot, meets[tile].gather(1, slot), shift, samples)
        first += len(tile)
    canvas = rearrange(
        canvas, "(n ty tx) c (y x) -> n c (ty y) (tx x)", n=n, ty=tiles, tx=tiles, y=TILE, x=TILE
    )[..., :size, :size]  # fmt: skip
    return canvas[:, :3], canvas[:, 3:4], canvas[:, 4:5]


class Ellipsoids(NamedTuple):
    """Coloured ellipsoids in the world; radii 0 marks one that is absent."""

    centre: Tensor  # n p 3
    rotation: Tensor  # n p 3 3, columns are the axes
    radii: Tensor  # n p 3
    colours: Tensor  # n p 2 3, upper and lower
    split: Tensor  # n p 4: upper where n · q > level, q the point on the unit sphere


def ellipsoids_of(
    creatures: Creatures,
    posed: Pose,  # b t
    device: torch.device | str,
) -> Ellipsoids:
    """Creatures as they stand at every time: (b t) p."""
    count, facts = posed.centre.shape[1], (creatures.radii, creatures.colours, creatures.split)
    return Ellipsoids(
        *(x.flatten(0, 1).to(device) for x in posed),
        *(repeat(x, "b ... -> (b t) ...", t=count).to(device) for x in facts),
    )


# --- which scenes, times and cameras --------------------------------------------------------------


def _ring(num_views: int) -> Tensor:
    return camera_ring(num_views).azimuth_rad


def _times(creatures: Creatures, num_frames: int) -> Tensor:  # b f
    if num_frames < 1:
        raise InputError(f"matrix.num_frames={num_frames}: there must be at least one frame")
    return (torch.arange(num_frames, dtype=torch.float64) / num_frames).expand(
        len(creatures.yaw), -1
    )


def _views(
    creatures: Creatures,
    time: Tensor,  # b f
    azimuth: Tensor,  # v
    size: int,
    device: torch.device | str,
) -> Views:
    """Every camera at every time."""
    views, frames = len(azimuth), time.shape[1]
    elevation = elevation_at(creatures, azimuth)  # b v
    pictures = _pictures(
        creatures,
        Pose(*(repeat(x, "b f ... -> b (v f) ...", v=views) for x in pose(creatures, time))),
        repeat(azimuth, "v -> b (v f)", b=len(time), f=frames),
        repeat(elevation, "b v -> b (v f)", f=frames),
        size,
        device,
    )
    pixels, masks, depth = (x.unflatten(1, (views, frames)) for x in pictures)
    return Views(pixels, masks, depth, azimuth.expand(len(time), -1).clone(), elevation)


def _pictures(
    creatures: Creatures,
    posed: Pose,  # b t
    azimuth: Tensor,  # b t
    elevation: Tensor,  # b t
    size: int,
    device: torch.device | str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, masks and depth of single pictures, b t c h w.

    The geometry is double precision on the CPU, so that it is the same everywhere.
    """
    if size < 1:
        raise InputError(f"size={size}: a picture has at least one pixel")
    pictures = render(
        ellipsoids_of(creatures, posed, device),
        azimuth.flatten().to(device),
        elevation.flatten().to(device),
        size,
    )
    pixels, masks, depth = (x.unflatten(0, (-1, azimuth.shape[1])) for x in pictures)
    return pixels, masks, depth


def _squeeze(views: Views, *, frame: int | None) -> Views:
    """One frame's column, or, for None, the single view's row, with angles for each of its
    frames."""
    if frame is not None:
        pixels, masks, depth = (x[:, :, frame] for x in views[:3])
        return views._replace(pixels=pixels, masks=masks, depth=depth)
    frames = views.pixels.shape[2]
    return Views(
        views.pixels[:, 0],
        views.masks[:, 0],
        views.depth[:, 0],
        views.azimuth_rad.expand(-1, frames).clone(),
        views.elevation_rad.expand(-1, frames).clone(),
    )


# --- the ray caster -------------------------------------------------------------------------------


class _Cast(NamedTuple):
    """Ellipsoids as one camera each sees them: frame x right, y down, z along the optical axis."""

    hit: Tensor  # n p 9 float64: N as (xx, yy, xy, x, y, 1) with the twos inside, l as (x, y, 1)
    # n p 4 4 float64: rows of affine maps of the hit point: normal (x, y, z), colour coordinate
    surface: Tensor
    colours: Tensor  # n p 6 float32
    up: Tensor  # n 3 float64, the world's z in the frame
    low: Tensor  # n p 2 float64, bounding rectangle on the plane z = 1; empty if absent
    high: Tensor


def _on_sphere(azimuth: Tensor, elevation: Tensor) -> tuple[Tensor, Tensor]:
    """Axes and positions of cameras on the sphere: n 3 3 and n 3."""
    ca, sa, ce, se = azimuth.cos(), azimuth.sin(), elevation.cos(), elevation.sin()
    zero = torch.zeros_like(ca)
    toward = torch.stack([ce * ca, ce * sa, se], dim=-1)  # from the origin to the camera
    right = torch.stack([-sa, ca, zero], dim=-1)
    down = torch.stack([se * ca, se * sa, -ce], dim=-1)
    return torch.stack([right, down, -toward], dim=-2), RADIUS * toward


def _cast(
    ellipsoids: Ellipsoids,  # n p
    camera: Tensor,  # n 3 3, rows: world -> camera
    position: Tensor,  # n 3
) -> _Cast:
    centre = _rows(camera[:, None], ellipsoids.centre - position[:, None])  # n p 3
    present = ellipsoids.radii[..., :1] > 0
    radii = ellipsoids.radii.clamp(min=1e-3)
    # n p axis 3
    axes = torch.stack(
        [_rows(camera[:, None], axis) for axis in ellipsoids.rotation.unbind(-1)], dim=-2
    )
    unit = axes / radii[..., None]  # camera -> unit sphere: q = unit (x - centre)
    b = -_rows(unit, centre)
    shape = (unit[..., :, :, None] * unit[..., :, None, :]).sum(-3)  # Q
    gap = b.square().sum(-1, keepdim=True) - 1
    slope = -(unit * b[..., None]).sum(-2) / gap
    conic = slope[..., :, None] * slope[..., None, :] - shape / gap[..., None]
    xx, xy, x1, _, yy, y1, _, _, one = conic.flatten(-2).unbind(-1)
    hit = torch.stack([xx, yy, 2 * xy, 2 * x1, 2 * y1, one], dim=-1)
    # the dual of the outline: c cᵀ - A Aᵀ
    spread = (axes * radii[..., None]).square().sum(-2)
    cross = (axes * radii[..., None] * (axes[..., 2:] * radii[..., None])).sum(-2)
    depth = centre[..., 2:]
    zz = depth.square() - spread[..., 2:]
    xz = (centre * depth - cross)[..., :2] / zz
    width = (xz.square() - (centre.square() - spread)[..., :2] / zz).clamp(min=0).sqrt()
    normal, split = ellipsoids.split[..., :3], ellipsoids.split[..., 3]
    linear = torch.cat([shape, (unit * normal[..., None]).sum(-2, keepdim=True)], dim=-2)
    constant = torch.cat(
        [-_rows(shape, centre), (b * normal).sum(-1, keepdim=True) - split[..., None]], dim=-1
    )
    surface = torch.cat([linear, constant[..., None]], dim=-1)
    low, high = xz - width, xz + width
    return _Cast(
        torch.cat([hit, slope], dim=-1),
        surface,
        ellipsoids.colours.flatten(-2).float(),
        camera[..., 2],
        torch.where(present, low, math.inf),
        torch.where(present, high, -math.inf),
    )


def _samples(step_x: float, step_y: float, device: torch.device) -> Tensor:  # 6 s, float32
    """Monomials (xx, yy, xy, x, y, 1) of the samples of a tile, from its corner; s = pixel (y x),
    then sample."""
    pixel = torch.arange(TILE, dtype=torch.float64) + 0.5
    x = (pixel[None, :, None] + SUBPIXEL[:, 0]).expand(TILE, TILE, -1) * step_x
    y = (pixel[:, None, None] + SUBPIXEL[:, 1]).expand(TILE, TILE, -1) * step_y
    x, y = x.flatten(), y.flatten()
    return torch.stack([x * x, y * y, x * y, x, y, torch.ones_like(x)]).float().to(device)


def _render_tiles(
    cast: _Cast,
    image: Tensor,  # tiles
    slots: Tensor,  # tiles k
    met: Tensor,  # tiles k, False where the slot only pads
    shift: Tensor,  # tiles 2, the corner of each
    samples: Tensor,  # 6 s
) -> Tensor:  # tiles 5 pixels
    hit = cast.hit[image[:, None], slots]
    x, y = shift[:, None].unbind(-1)
    xx, yy, xy, nx, ny, n1, lx, ly, l1 = hit.unbind(-1)
    # the same polynomials from the tile's corner: better conditioned, and every tile has the same
    # monomials
    at_corner = xx * x * x + yy * y * y + xy * x * y + nx * x + ny * y + n1
    conic = torch.stack(
        [xx, yy, xy, nx + 2 * xx * x + xy * y, ny + 2 * yy * y + xy * x, at_corner], dim=-1
    )
    conic = torch.where(met[..., None], conic, conic.new_tensor([0, 0, 0, 0, 0, -1])).float()
    slope = torch.stack([lx, ly, l1 + lx * x + ly * y], dim=-1).float()
    tiles, k = slots.shape
    discriminant = (conic.view(-1, 6) @ samples).view(tiles, k, -1)
    nearness = (slope.view(-1, 3) @ samples[3:]).view(tiles, k, -1)
    nearness = torch.where(discriminant > 0, nearness.add_(discriminant.clamp_(min=0).sqrt_()), 0.0)
    w, winner = nearness.max(dim=1)  # tiles s

    tile, sample = (w > 0).nonzero(as_tuple=True)
    part = slots[tile, winner[tile, sample]]
    colour = _shade(
        cast, image[tile], part, w[tile, sample], shift[tile].float() + samples[3:5, sample].mT
    )
    out = w.new_zeros(5, tiles, w.shape[1])
    out[:3] = 1
    out[:3, tile, sample] = colour.mT
    covered = w > 0
    out[3] = covered
    out[4] = torch.where(covered, 1 / w, 0.0)
    out = rearrange(
        out, "c tiles (pixel sample) -> tiles c pixel sample", sample=len(SUBPIXEL)
    ).mean(-1)
    out[:, 4] = torch.where(out[:, 3] > 0, out[:, 4] / out[:, 3], math.inf)
    return out


def _shade(
    cast: _Cast,
    image: Tensor,  # m
    part: Tensor,  # m
    w: Tensor,  # m
    xy: Tensor,  # m 2
) -> Tensor:  # m 3
    """Colour of m hits: Lambert under the sky and the headlight, on the part's two colours."""
    # w times the hit point, homogeneous
    ray = torch.cat([xy, torch.ones_like(xy[:, :1]), w[:, None]], dim=-1)
    surface = cast.surface.float()[image, part]
    affine = (surface * ray[:, None]).sum(-1)
    normal = affine[:, :3] / affine[:, :3].norm(dim=-1, keepdim=True)
    up = (normal * cast.up.float()[image]).sum(-1)
    facing = -(normal * ray[:, :3]).sum(-1) / ray[:, :3].norm(dim=-1)
    light = AMBIENT + SKY * (1 + up) / 2 + HEADLIGHT * facing.clamp(min=0)
    mix = ((affine[:, 3] / w) / (2 * EDGE) + 0.5).clamp(0, 1)[:, None]
    upper, lower = cast.colours[image, part].split(3, dim=-1)
    return light[:, None] * (lower + mix * (upper - lower))


def _rows(matrix: Tensor, x: Tensor) -> Tensor:
    """Matrix times vector, written out so that a picture does not depend on the batch it is in."""
    return (matrix * x[..., None, :]).sum(-1)

"""Laws of world4d: what is drawn, from where, and what is promised of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from d2.data import world4d
from d2.data.body_plans import EYE
from d2.data.creature import elevation_at, pose, sample_creatures
from d2.matrix import Cameras, camera_positions, camera_ring

SPLITS = ("train", "validation", "test")


def one_sphere(
    centre: tuple[float, float, float], radius: float, count: int = 1
) -> world4d.Ellipsoids:
    """`count` images of one red sphere."""
    return world4d.Ellipsoids(
        centre=torch.tensor(centre, dtype=torch.float64).expand(count, 1, 3),
        rotation=torch.eye(3, dtype=torch.float64).expand(count, 1, 3, 3),
        radii=torch.full((count, 1, 3), radius, dtype=torch.float64),
        colours=torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand(count, 1, 2, 3),
        split=torch.zeros(count, 1, 4, dtype=torch.float64),
    )


def creature_ellipsoids(split: world4d.Split, index: int, moment: float) -> world4d.Ellipsoids:
    creature = sample_creatures(split, [index])
    centre, rotation = pose(creature, torch.tensor([[moment]], dtype=torch.float64))
    return world4d.Ellipsoids(
        centre[:, 0], rotation[:, 0], creature.radii, creature.colours, creature.split
    )


def reference_rays(
    azimuth: float, elevation: float, size: int, samples: int
) -> tuple[Tensor, Tensor]:
    """Origin 3 and directions (size · samples)² 3 of a pinhole camera, written from the design's
    words alone.

    The directions are 1 along the optical axis.
    """
    eye = 2.0 * torch.tensor(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ],
        dtype=torch.float64,
    )
    forward = -eye / eye.norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    right = right / right.norm()
    up = torch.linalg.cross(right, forward)
    rays = size * samples
    side = ((torch.arange(rays, dtype=torch.float64) + 0.5) * 2 / rays - 1) * math.tan(
        math.radians(33.8 / 2)
    )
    directions = forward + side[None, :, None] * right - side[:, None, None] * up
    return eye, directions.flatten(0, 1)


def reference_depth(
    ellipsoids: world4d.Ellipsoids, azimuth: float, elevation: float, size: int, samples: int
) -> Tensor:  # size·samples size·samples
    """Depth of every ray, inf where it misses: the textbook quadratic, one ellipsoid after the
    other."""
    eye, directions = reference_rays(azimuth, elevation, size, samples)
    nearest = torch.full((len(directions),), math.inf, dtype=torch.float64)
    for centre, rotation, radii in zip(
        ellipsoids.centre[0], ellipsoids.rotation[0], ellipsoids.radii[0], strict=True
    ):
        if radii.max() == 0:
            continue
        o = (eye - centre) @ rotation / radii
        d = directions @ rotation / radii
        a, b, c = d.square().sum(-1), d @ o, o @ o - 1
        root = b * b - a * c
        nearest = torch.where(
            root > 0, torch.minimum(nearest, (-b - root.clamp(min=0).sqrt()) / a), nearest
        )
    return nearest.view(size * samples, size * samples)


# --- geometry against hand-written references -----------------------------------------------------


@pytest.mark.parametrize("azimuth_deg, elevation_deg", [(0, 0), (45, 20), (170, -10), (300, 40)])
def test_a_sphere_appears_where_a_pinhole_camera_sees_its_centre(
    azimuth_deg: float, elevation_deg: float
) -> None:
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    point = torch.tensor([0.21, -0.13, 0.17], dtype=torch.float64)
    angles = (
        torch.tensor([azimuth], dtype=torch.float64),
        torch.tensor([elevation], dtype=torch.float64),
    )
    _, mask, _ = world4d.render(one_sphere((0.21, -0.13, 0.17), 0.05), *angles, size=128)
    grid = torch.arange(128) + 0.5
    column = (mask[0, 0].sum(0) * grid).sum() / mask.sum()
    row = (mask[0, 0].sum(1) * grid).sum() / mask.sum()
    # turn the world so that the camera stands on +x, then tilt it down to the horizon
    x = point[0] * math.cos(azimuth) + point[1] * math.sin(azimuth)
    y = -point[0] * math.sin(azimuth) + point[1] * math.cos(azimuth)
    ahead = 2.0 - (x * math.cos(elevation) + point[2] * math.sin(elevation))
    height = -x * math.sin(elevation) + point[2] * math.cos(elevation)
    focal = 64 / math.tan(math.radians(33.8 / 2))
    assert column.item() == pytest.approx(64 + focal * (y / ahead).item(), abs=0.2)
    assert row.item() == pytest.approx(64 - focal * (height / ahead).item(), abs=0.2)


def test_the_camera_of_a_view_stands_where_the_ring_says() -> None:
    """A small sphere on the way from the origin to camera k is in the middle of view k, and nearest
    there."""
    cameras = camera_ring(8, 0.3)
    toward = camera_positions(cameras) / 2.0
    for k in range(8):
        sphere = one_sphere(tuple((0.3 * toward[k]).tolist()), 0.05, count=8)
        _, mask, depth = world4d.render(sphere, cameras.azimuth_rad, cameras.elevation_rad, size=64)
        nearest = depth.flatten(1).amin(1)
        assert nearest.argmin() == k
        assert nearest[k] == pytest.approx(2.0 - 0.3 - 0.05, abs=3e-3)  # the mean over a pixel
        assert mask[k, 0, 31:33, 31:33].min() == 1


def test_depth_is_the_closed_form_of_the_sphere() -> None:
    sphere, angles = one_sphere((0.1, -0.05, 0.08), 0.3), torch.tensor([0.7], dtype=torch.float64)
    _, mask, depth = world4d.render(sphere, angles, angles / 2, size=48)
    truth = reference_depth(sphere, 0.7, 0.35, size=48, samples=1).float()
    # away from the rim, where depth is not smooth within a pixel
    inside = (mask[0, 0] == 1) & (truth < 1.75)
    assert inside.sum() > 200
    torch.testing.assert_close(depth[0, 0][inside], truth[inside], atol=2e-3, rtol=0)


@pytest.mark.parametrize("index, size", [(0, 64), (3, 64), (4, 52), (6, 20)])
def test_creatures_agree_with_an_independent_ray_caster(index: int, size: int) -> None:
    """Masks and depths against 8 × 8 rays a pixel, ellipsoid by ellipsoid: tiles, culling and
    algebra drop nothing."""
    ellipsoids = creature_ellipsoids("test", index, 0.3)
    angles = torch.tensor([1.1], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    _, mask, depth = world4d.render(ellipsoids, *angles, size=size)
    rays = (
        reference_depth(ellipsoids, 1.1, 0.4, size, samples=8)
        .view(size, 8, size, 8)
        .permute(0, 2, 1, 3)
        .flatten(2)
    )
    coverage = rays.isfinite().double().mean(-1)
    assert mask.mean().item() == pytest.approx(coverage.mean().item(), rel=0.6 / size)
    assert (mask[0, 0] - coverage).abs().max() < 0.45
    smooth = (coverage == 1) & (rays.amax(-1) - rays.amin(-1) < 0.03)
    assert smooth.sum() > 0.05 * size
    torch.testing.assert_close(
        depth[0, 0][smooth].double(), rays.mean(-1)[smooth], atol=5e-3, rtol=0
    )


def test_edges_are_anti_aliased() -> None:
    mask = world4d.clips("test", [0, 1], num_frames=2).masks
    edge = (mask > 0) & (mask < 1)
    assert edge.sum() > 0.1 * (mask > 0).sum()
    assert len(mask.unique()) >= 5


def test_light_has_no_azimuth() -> None:
    """Turning the creature and the camera together changes nothing, so rows of all views look
    alike."""
    ellipsoids = creature_ellipsoids("test", 1, 0.1)
    angle = 1.234
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]],
        dtype=torch.float64,
    )
    turned = ellipsoids._replace(
        centre=ellipsoids.centre @ turn.T, rotation=turn @ ellipsoids.rotation
    )
    azimuth, elevation = (
        torch.tensor([0.5], dtype=torch.float64),
        torch.tensor([0.2], dtype=torch.float64),
    )
    before = world4d.render(ellipsoids, azimuth, elevation, 64)
    after = world4d.render(turned, azimuth + angle, elevation, 64)
    torch.testing.assert_close(before[0], after[0], atol=1e-4, rtol=0)


def test_a_surface_that_faces_sky_and_camera_shows_its_own_colour() -> None:
    """From above at 90° both lights are full in the middle; at the horizon's equator the sky is
    halved."""
    angles = (
        torch.zeros(2, dtype=torch.float64),
        torch.tensor([math.pi / 2, 0.0], dtype=torch.float64),
    )
    pixels, _, _ = world4d.render(one_sphere((0, 0, 0), 0.3, count=2), *angles, size=64)
    middle = pixels[:, :, 31:33, 31:33].mean((2, 3))
    expected = torch.tensor([[1.0, 0, 0], [1 - world4d.SKY / 2, 0, 0]])
    torch.testing.assert_close(middle, expected, atol=5e-3, rtol=0)


# --- the promises of the world --------------------------------------------------------------------


def test_a_scene_is_a_function_of_its_split_and_index_alone() -> None:
    together = world4d.static_orbits("train", [5, 0, 11])
    for place, index in enumerate([5, 0, 11]):
        alone = world4d.static_orbits("train", [index])
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[place])
    assert not torch.equal(together.pixels[0], together.pixels[1])


def test_splits_share_no_scene() -> None:
    sampled = [sample_creatures(split, range(200)) for split in SPLITS]
    for fact in ("frequency", "start", "yaw", "still_time"):
        values = torch.cat([getattr(creatures, fact) for creatures in sampled])
        assert len(values.unique()) == 600


def test_nothing_leaves_the_ball() -> None:
    """Surface points in 150 directions at 97 moments, most of them between those at which creatures
    were fitted."""
    k = torch.arange(150, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * k / 150, math.pi * (1 + math.sqrt(5)) * k
    directions = torch.stack(
        [(1 - height**2).sqrt() * turn.cos(), (1 - height**2).sqrt() * turn.sin(), height]
    )
    creatures = sample_creatures("validation", range(24))
    centre, rotation = pose(creatures, torch.linspace(0, 1, 97, dtype=torch.float64).expand(24, -1))
    farthest = torch.zeros(24, dtype=torch.float64)
    for p in range(centre.shape[2]):
        present = creatures.radii[:, p].amax(-1) > 0
        surface = (
            centre[:, :, p, :, None]
            + (rotation[:, :, p] * creatures.radii[:, None, p, None, :]) @ directions
        )
        farthest = torch.maximum(
            farthest, torch.where(present, surface.norm(dim=2).amax((1, 2)), 0.0)
        )
    assert farthest.max() < 0.5
    assert farthest.min() > 0.44  # and it fills the frame


def test_no_picture_is_cropped() -> None:
    matrices, orbits = (
        world4d.full_matrix("test", range(24), num_frames=4),
        world4d.static_orbits("train", range(24)),
    )
    for masks in (matrices.masks, orbits.masks):
        assert masks.amax((-1, -2)).min() == 1  # it is there
        border = torch.cat(
            [masks[..., 0, :], masks[..., -1, :], masks[..., 0], masks[..., -1]], dim=-1
        )
        assert border.max() == 0


def test_it_really_moves() -> None:
    """Mean masked change over half a clip against that over 45° of the ring."""
    matrix = world4d.full_matrix("test", range(32), num_frames=2)  # frames 0 and F/2

    def change(a: Tensor, b: Tensor, mask_a: Tensor, mask_b: Tensor) -> Tensor:
        union = torch.maximum(mask_a, mask_b) > 0
        return ((a - b).abs().mean(2, keepdim=True) * union).flatten(1).sum(1) / union.flatten(
            1
        ).sum(1)

    pixels, masks = matrix.pixels, matrix.masks
    over_time = change(pixels[:, :, 0], pixels[:, :, 1], masks[:, :, 0], masks[:, :, 1])
    first, first_mask = pixels[:, :, 0], masks[:, :, 0]
    over_views = change(first, first.roll(1, dims=1), first_mask, first_mask.roll(1, dims=1))
    ratio = (over_time.mean() / over_views.mean()).item()
    print(f"change over half a clip / change over 45 degrees = {ratio:.2f}")
    assert ratio >= 0.40


def test_motion_is_smooth_and_rigid() -> None:
    """Positions have no jumps; a joint that does not swing holds its part fast to its parent."""
    creatures = sample_creatures("train", range(40))
    centre, rotation = pose(creatures, torch.linspace(0, 1, 65, dtype=torch.float64).expand(40, -1))
    assert (centre[:, 1:] - centre[:, :-1]).norm(dim=-1).max() < 0.1
    eye = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, eye)
    checked = 0
    for b in range(40):
        for p in range(1, centre.shape[2]):
            if creatures.radii[b, p].max() > 0 and creatures.swing[b, p].abs().max() == 0:
                parent = int(creatures.parent[b, p])
                offset = centre[b, :, p] - centre[b, :, parent]
                held = (rotation[b, :, parent].mT @ offset[..., None])[..., 0]
                torch.testing.assert_close(held, held[:1].expand_as(held))
                checked += 1
    assert checked > 40


def test_the_rest_pose_is_its_own_mirror_image() -> None:
    creatures = sample_creatures("train", range(60))
    still = creatures._replace(
        swing=0 * creatures.swing, slide=0 * creatures.slide, yaw=0 * creatures.yaw
    )
    centre, rotation = pose(still, torch.zeros(60, 1, dtype=torch.float64))
    centre = centre[:, 0] - creatures.origin[:, None]
    axes = rotation[:, 0] * creatures.radii[:, :, None]
    mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
    shape = axes @ axes.mT
    colour_axis = (rotation[:, 0] @ creatures.split[..., :3, None])[..., 0]
    facts = torch.cat(
        [centre, shape.flatten(-2), colour_axis, creatures.colours.flatten(-2)], dim=-1
    )
    seen = [
        centre @ mirror,
        (mirror @ shape @ mirror).flatten(-2),
        colour_axis @ mirror,
        creatures.colours.flatten(-2),
    ]
    mirrored = torch.cat(seen, dim=-1)
    twin = torch.cdist(facts, mirrored).amin(-1)
    assert twin.max() < 1e-6


def test_palettes_are_few_colours_far_apart() -> None:
    creatures = sample_creatures("train", range(200))
    counts = []
    for colours, radii in zip(creatures.colours, creatures.radii, strict=True):
        palette = colours[radii.amax(-1) > 0].flatten(0, 1).unique(dim=0)
        palette = palette[(palette - torch.tensor(EYE, dtype=torch.float64)).norm(dim=-1) > 1e-9]
        counts.append(len(palette))
        assert torch.nn.functional.pdist(palette).min() > 0.5
        assert (palette.amax(-1) - palette.amin(-1)).min() > 0.5  # saturated
    assert set(counts) == {3, 4}


def test_elevations_are_uniform_and_vary_in_a_fifth_of_the_scenes() -> None:
    creatures = sample_creatures("train", range(400))
    elevation = torch.rad2deg(elevation_at(creatures, camera_ring(8).azimuth_rad))
    assert elevation.min() >= -10 and elevation.max() <= 40
    varies = elevation.amax(1) - elevation.amin(1) > 1e-6
    assert varies.double().mean().item() == pytest.approx(0.2, abs=0.06)
    fixed = elevation[~varies, 0]
    for quantile in (0.25, 0.5, 0.75):  # uniform on -10...40
        assert fixed.quantile(quantile).item() == pytest.approx(-10 + 50 * quantile, abs=5)
    assert (elevation[varies] - elevation[varies].roll(1, dims=1)).abs().max() < 20


def test_headings_and_still_moments_are_uniform() -> None:
    creatures = sample_creatures("train", range(400))
    for value, top in (
        (creatures.yaw, 2 * math.pi),
        (creatures.still_time, 1.0),
        (creatures.start, 1.0),
    ):
        counts = torch.histc(value / top, bins=8, min=0, max=1)
        assert counts.sum() == 400 and (counts - 50).abs().max() < 28


# --- what the functions hand out ------------------------------------------------------------------


def test_shapes_ranges_and_white_background() -> None:
    orbit = world4d.static_orbits("train", [1, 2], num_views=3, size=40)
    clip = world4d.clips("train", [1, 2], num_frames=5, size=40)
    for views, count in ((orbit, 3), (clip, 5)):
        assert views.pixels.shape == (2, count, 3, 40, 40)
        assert views.masks.shape == views.depth.shape == (2, count, 1, 40, 40)
        assert views.azimuth_rad.shape == views.elevation_rad.shape == (2, count)
        assert views.azimuth_rad.dtype == views.elevation_rad.dtype == torch.float64
        assert views.pixels.min() >= 0 and views.pixels.max() <= 1
        empty = views.masks == 0
        assert (views.pixels[empty.expand_as(views.pixels)] == 1).all()
        assert torch.equal(views.depth.isinf(), empty)
        assert views.depth[~empty].min() > 1.5 and views.depth[~empty].max() < 2.5
    assert torch.allclose(orbit.azimuth_rad[0], camera_ring(3).azimuth_rad)
    assert (clip.azimuth_rad == 2 * math.pi).all()
    assert torch.equal(clip.elevation_rad[:, 0], orbit.elevation_rad[:, -1])


def test_a_clip_is_the_input_row_of_the_matrix_and_a_still_the_column_of_its_moment() -> None:
    matrix = world4d.full_matrix("validation", [4, 7], num_views=4, num_frames=3)
    clip = world4d.clips("validation", [4, 7], num_frames=3)
    assert torch.equal(matrix.pixels[:, -1], clip.pixels)
    assert torch.equal(matrix.masks[:, -1], clip.masks)
    assert torch.equal(matrix.depth[:, -1], clip.depth)
    creatures = sample_creatures("validation", [4])
    orbit = world4d.static_orbits("validation", [4], num_views=4)
    still = creature_ellipsoids("validation", 4, float(creatures.still_time))
    pixels, _, _ = world4d.render(still, orbit.azimuth_rad[0, :1], orbit.elevation_rad[0, :1], 64)
    assert torch.equal(pixels, orbit.pixels[0, :1])


def test_a_scene_carries_its_truth_beside_the_input() -> None:
    scene = world4d.scene("test", 3, num_views=4, num_frames=3, size=48)
    assert (scene.name, scene.seed, scene.fps) == ("test_0003", 3, 8.0)
    assert scene.truth is not None and scene.truth.pixels.shape == (4, 3, 3, 48, 48)
    assert isinstance(scene.cameras, Cameras) and scene.cameras.input_view == 3
    assert torch.equal(scene.pixels, scene.truth.pixels[3]) and torch.equal(
        scene.masks, scene.truth.masks[3]
    )
    assert torch.equal(scene.pixels, world4d.clips("test", [3], num_frames=3, size=48).pixels[0])


def test_pairs_are_cells_of_the_matrix() -> None:
    views, frame = world4d.pairs("validation", [4, 7], num_cells=6)
    matrix = world4d.full_matrix("validation", [4, 7])
    view = (views.azimuth_rad[..., None] - matrix.azimuth_rad[:, None]).abs().argmin(-1)  # b t
    scene = torch.arange(2)[:, None]
    assert torch.equal(views.pixels, matrix.pixels[scene, view, frame])
    assert torch.equal(views.elevation_rad, matrix.elevation_rad[scene, view])
    assert view[:, 0].tolist() == [7, 7] and frame[:, 0].tolist() == [0, 0]
    assert all(len(set(cells.tolist())) == 6 for cells in view * 8 + frame)


def test_training_never_gets_a_matrix() -> None:
    with pytest.raises(ValueError, match="evaluation only"):
        world4d.full_matrix("train", [0])
    with pytest.raises(ValueError, match="evaluation only"):
        world4d.scene("train", 0, num_views=2, num_frames=2, size=16)


def test_bad_requests_name_the_key() -> None:
    with pytest.raises(ValueError, match="split='trian'"):
        world4d.clips("trian", [0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_views=0"):
        world4d.static_orbits("test", [0], num_views=0)
    with pytest.raises(ValueError, match="num_frames=0"):
        world4d.clips("test", [0], num_frames=0)
    with pytest.raises(ValueError, match="size=0"):
        world4d.clips("test", [0], size=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree() -> None:
    here, there = world4d.clips("test", range(8)), world4d.clips("test", range(8), device="cuda")
    assert there.pixels.is_cuda
    # a sample may fall across an edge
    assert ((here.pixels - there.pixels.cpu()).abs() > 1e-3).float().mean() < 1e-3

"""Laws of a prior of any cameras, alone and beside a video prior, on the smallest networks."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from small_camera_prior import small_camera_prior
from small_prior import CHANNELS, SIZE, small_prior
from test_pipeline import first_stage
from torch import Tensor

from d2.cameras import Z_UP, Rig, Start, lens, looking_at, preset_path
from d2.errors import InputError
from d2.matrix import Cameras, camera_ring, cameras_of, rig_of
from d2.noise import draw
from d2.pipeline import sample_scene
from d2.priors import chunks, rays
from d2.priors.discrete_levels import own_sigmas, snapped, table
from d2.reference import make_orbit
from d2.rules import composition, guidance, renoise, solver, weights
from d2.rules.bundle import Rules, under_one_prior
from d2.sample.matrix_sampler import MatrixSampler
from d2.sampling import Step, Term, among_speakers, karras_sigmas
from d2.scene import Known, Scene
from d2.terms import Priors, Settings, multiview_term, video_term

V, F = 4, 3
HIGH = float(table()[-1])
RULES = Rules(
    renoise.none,
    partial(
        weights.scheduled, curve=partial(weights.constant, scale=0.6), profile=weights.side_views
    ),
    partial(
        guidance.per_term, video=guidance.linear, multiview=partial(guidance.constant, scale=2.0)
    ),
    composition.linear(coefficients=composition.convex),
    solver.euler,
)
SETTINGS = Settings(num_steps=6, sigma_max=700.0, motion_bucket_id=50.0)


def spiral(count: int = V) -> Cameras:
    """Cameras that no ring holds; the input's is the first."""
    origin = torch.zeros(3, dtype=torch.float64)
    pose = looking_at(torch.tensor([[2.0, 0.3, 0.5]]).double(), origin, Z_UP)
    path = preset_path("spiral", Start(pose[0], origin, -pose[0, :3, 1], math.radians(40)), count)
    return cameras_of(Rig(path.poses, lens(path.fov_rad)), 0)


def priors(levels: str = "table") -> Priors:
    return Priors(small_prior(1), small_camera_prior(2, levels=levels), first_stage(3))


def scene(cameras: Cameras | None = None, others: Known | None = None) -> Scene:
    clip = draw(0, "init", (F, 3, 2 * SIZE, 2 * SIZE)).sigmoid()
    return Scene(
        "small", 7, clip, clip[:, :1], spiral() if cameras is None else cameras, 7.0, others=others
    )


def by_hand(x: Tensor, sigmas: list[float], orbit: Tensor) -> Tensor:
    """The joint sampling of `scene()` as a plain loop that shares no rule, cut, term or solver with
    the house."""
    given, clip = priors(), scene().pixels
    rig, table_ = rig_of(spiral()), table()
    row_term = video_term(orbit[None], clip, partial(draw, 7), given, SETTINGS)
    pictures = clip * 2 - 1
    latents = given.first_stage.encode(pictures)
    positions = rig.poses[:, :3, 3]
    poses = rig.poses.clone()
    poses[:, :3, 3] -= positions.mean(dim=0)
    poses[:, :3, 3] *= 2.0 / poses[0, :3, 3].norm()
    told_rays = rays.pluecker(poses, rig.intrinsics, SIZE, SIZE).float()
    side = 1 - 0.75 * spiral().azimuth_rad.sin().square()
    for sigma, down in zip(sigmas, sigmas[1:], strict=False):
        says = row_term.denoise(x, sigma, torch.arange(V), (True, True))
        assert says.uncond is not None and says.cond is not None
        along = torch.linspace(1.5, 3.0, F)[None, :, None, None, None]
        row = says.uncond + along * (says.cond - says.uncond)
        denoised = row.clone()
        if float(table_[0]) <= sigma <= HIGH:
            k = int((table_ - sigma).abs().argmin())
            s = float(table_[k])
            for f in range(F):
                column = {}
                for half in ("uncond", "cond"):
                    y = x[:, f].clone()
                    mask = torch.zeros(V, 1, SIZE, SIZE)
                    context = torch.zeros(V, 1, 6)
                    if half == "cond":
                        y[0], mask[0] = latents[f], 1.0
                        context = context + given.multiview.tower(pictures[f : f + 1])  # type: ignore[misc]
                    inside = torch.cat([y / math.sqrt(s**2 + 1), mask, told_rays], dim=1)
                    net = given.multiview.unet(
                        inside, torch.full((V,), float(k)), context, told_rays, num_cells=V
                    )
                    column[half] = y - s * net
                guided = column["uncond"] + 2.0 * (column["cond"] - column["uncond"])
                share = (1 - 0.4 * side).float()  # of columns
                # the input's own cells are told, so columns say nothing of them
                for v in range(1, V):
                    denoised[v, f] = (1 - share[v]) * row[v, f] + share[v] * guided[v]
        x = x + (down - sigma) * (x - denoised) / sigma
    return x


def test_rows_and_columns_of_any_cameras_are_composed_as_a_plain_loop_composes_them() -> None:
    settings = replace(SETTINGS, sigma_min=0.01)
    orbit = draw(3, "init", (V, 3, 2 * SIZE, 2 * SIZE)).sigmoid()
    shares: dict[float, float] = {}
    sampled = sample_scene(
        scene(),
        priors(),
        RULES,
        settings,
        orbits=orbit[None],
        on_step=lambda state: shares.update(
            {state.step.sigma: float(state.weights["multiview"].sum())}
        ),
    )
    sigmas = karras_sigmas(settings.num_steps, sigma_min=0.01, sigma_max=700.0)
    assert {sigma: share > 0 for sigma, share in shares.items()} == {
        s: 0.0246 < s < 84.92 for s in sigmas[:-1]
    }
    x = draw(7, "init", (V, F, CHANNELS, SIZE, SIZE)) * math.sqrt(1 + 700.0**2)
    expected = by_hand(x, sigmas, orbit)
    assert sampled.matrix.latents is not None
    torch.testing.assert_close(
        sampled.matrix.latents, expected, rtol=2e-4, atol=2e-4 * float(expected.abs().max())
    )


def test_columns_alone_are_sampled_at_the_levels_of_their_prior() -> None:
    seen: list[Step] = []
    alone = under_one_prior(RULES, "multiview")
    orbit = draw(3, "init", (1, V, 3, 2 * SIZE, 2 * SIZE)).sigmoid()
    sampled = sample_scene(
        scene(), priors(), alone, SETTINGS, orbits=orbit, on_step=lambda s: seen.append(s.step)
    )
    assert sampled.matrix.latents is not None and sampled.matrix.latents.isfinite().all()
    inside = [sigma for sigma in SETTINGS.sigmas[:-1] if 0.0246 < sigma < 84.92]
    assert [step.sigma for step in seen] == inside and seen[-1].sigma_next == 0
    assert len(inside) < SETTINGS.num_steps


def test_a_rule_that_asks_a_prior_outside_its_range_is_refused_with_the_way_out() -> None:
    shared = RULES._replace(
        compose=composition.linear(coefficients=partial(composition.convex, uncond="multiview"))
    )
    orbit = draw(3, "init", (1, V, 3, 2 * SIZE, 2 * SIZE)).sigmoid()
    with pytest.raises(
        InputError,
        match=(
            r"nothing at noise level 700.* from 0\.02465 to 84\.92: set sampler\.sigma_max=84\.9,"
        ),
    ):
        sample_scene(scene(), priors(), shared, SETTINGS, orbits=orbit)
    sample_scene(
        scene(), priors(), shared, replace(SETTINGS, sigma_max=84.9, sigma_min=0.03), orbits=orbit
    )


def test_weights_of_the_silent_go_to_the_others_in_their_proportions() -> None:
    def term(name: str, high: float = math.inf, told: Tensor | None = None) -> Term:
        return Term(name, None, None, (0.0, high), told)  # type: ignore[arg-type]

    fields = {
        name: torch.full((1, 2), share) for name, share in (("a", 0.5), ("b", 0.3), ("c", 0.2))
    }
    told = torch.tensor([[True, False]])
    terms = [term("a"), term("b", 10.0, told), term("c")]
    given = among_speakers(fields, terms, 5.0)
    assert given["b"].tolist() == [[0, pytest.approx(0.3)]]
    assert torch.stack([*given.values()]).sum(dim=0).tolist() == [[1, 1]]
    assert given["a"][0, 0] / given["c"][0, 0] == pytest.approx(2.5)
    above = among_speakers(fields, terms, 11.0)
    assert not above["b"].any() and above["a"].flatten().tolist() == pytest.approx([0.5 / 0.7] * 2)
    assert among_speakers(fields, [term("a"), term("b"), term("c")], 5.0) is fields


def test_a_long_path_is_made_by_anchors_and_what_lies_between() -> None:
    """Every view of a path longer than a forward is made once; the known view stays what it is."""
    cameras, lengths = spiral(40), []
    given = priors()
    given.multiview.unet.register_forward_pre_hook(lambda _, args: lengths.append(len(args[0])))
    orbit = make_orbit(scene().pixels[0], cameras, 7, given, RULES, replace(SETTINGS, num_steps=1))
    assert orbit.shape == (40, 3, 2 * SIZE, 2 * SIZE) and orbit.isfinite().all()
    assert (
        torch.equal(orbit[0], scene().pixels[0])
        and len({view.sum().item() for view in orbit}) == 40
    )
    # both halves of so many cells, in more than one pass
    assert set(lengths) == {2 * 21} and len(lengths) > 2


def test_more_known_views_are_told_and_kept() -> None:
    others = Known((2,), draw(9, "init", (1, F, 3, 2 * SIZE, 2 * SIZE)).sigmoid())
    cells: list[Tensor] = []
    given = priors()
    given.multiview.unet.register_forward_pre_hook(
        lambda _, args: cells.append(args[0][:, CHANNELS])
    )
    settings = replace(SETTINGS, sigma_max=80.0, hold=("input_row",))
    sampled = sample_scene(scene(others=others), given, RULES, settings)
    assert torch.equal(sampled.orbits[0, 2], others.pixels[0, 0])
    job = SimpleNamespace(
        priors=given, reference_settings=settings, reference_rules=RULES, num_frames=F
    )
    orbits = MatrixSampler.make_reference(job, scene(others=others))[1]  # type: ignore[arg-type]
    assert torch.equal(orbits, sampled.orbits)
    joint = [mask for mask in cells if len(mask) == 2 * F * V]  # the others are the orbit's
    asked = [mask.amax(dim=(1, 2)).unflatten(0, (-1, V)).sum(dim=1).tolist() for mask in joint]
    # nothing, or both known cells
    assert {count for batch in asked for count in batch} == {0.0, 2.0}
    assert sampled.matrix.latents is not None
    stage = given.first_stage
    for view, clip in ((0, scene().pixels), (2, others.pixels[0])):
        torch.testing.assert_close(
            sampled.matrix.latents[view], stage.encode(clip * 2 - 1), atol=1e-5, rtol=1e-5
        )
    with pytest.raises(
        InputError, match=r"scenes\.views: 2 known views, and this multi-view prior is told one"
    ):
        sample_scene(
            scene(camera_ring(V), others),
            Priors(small_prior(1), small_prior(2), first_stage(3)),
            RULES,
            settings,
        )


def test_cells_of_the_orbit_are_told_behind_a_column_and_are_no_cells_of_it() -> None:
    """Two of the second anchor's orbit: they are known, and without the condition not there."""
    cameras, settings = spiral(), replace(SETTINGS, anchor_frames=(0, 2), told_orbit=2)
    given, clip = priors("any"), scene().pixels
    orbits = draw(3, "init", (2, V, 3, 2 * SIZE, 2 * SIZE)).sigmoid()
    inputs: list[Tensor] = []
    given.multiview.unet.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    term = multiview_term(clip, cameras, partial(draw, 7), given, settings, orbits=orbits)
    x = draw(1, "init", (F, V, CHANNELS, SIZE, SIZE))
    said = term.denoise(x, 5.0, torch.arange(F), (True, True))
    assert said.cond is not None and said.cond.shape == x.shape
    alone = multiview_term(clip, cameras, partial(draw, 7), given, SETTINGS)
    want = alone.denoise(x, 5.0, torch.arange(F), (True, False))
    torch.testing.assert_close(said.uncond, want.uncond)
    cond = next(i for i in inputs if len(i) == F * (V + 2)).unflatten(0, (F, V + 2))
    assert cond[:, :, CHANNELS].amin(dim=(2, 3)).tolist() == [[1.0, 0, 0, 0, 1, 1]] * F
    positions = rig_of(cameras).poses[:, :3, 3]
    far = int((positions - positions[0]).norm(dim=1).argmax())
    latents = given.first_stage.encode(orbits[:, far] * 2 - 1)
    for frame, anchor in ((0, 0), (1, 0), (2, 1)):  # of two as near, the first
        torch.testing.assert_close(
            cond[frame, V, :CHANNELS], latents[anchor] / math.sqrt(1 + 0.002**2)
        )
    with pytest.raises(InputError, match=r"multiview\.told_orbit=4: 4 views, .*give at most 3"):
        multiview_term(
            clip, cameras, partial(draw, 7), given, replace(settings, told_orbit=4), orbits=orbits
        )
    ring = Priors(small_prior(1), small_prior(2), first_stage(3))
    with pytest.raises(InputError, match=r"multiview\.told_orbit=2: this multi-view prior is told"):
        multiview_term(clip, camera_ring(V), partial(draw, 7), ring, settings)


def test_a_prior_that_is_told_any_level_takes_the_rules_own_steps() -> None:
    sampled = sample_scene(scene(camera_ring(V)), priors("any"), RULES, SETTINGS)
    assert sampled.matrix.pixels.isfinite().all()


def test_a_level_snaps_to_its_nearest_entry_and_to_the_lower_of_two() -> None:
    levels = table()
    middle = (levels[:-1] + levels[1:]) / 2
    off = snapped(middle) - torch.arange(999)
    assert set(off.tolist()) <= {0, 1}  # the middle itself is a rounding off
    assert torch.equal(snapped(levels), torch.arange(1000))
    assert snapped(torch.tensor([1e-9, 1e9], dtype=torch.float64)).tolist() == [0, 999]
    assert own_sigmas(50)[0] == HIGH


def test_cameras_all_in_one_place_turn_and_have_rays() -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    every = rays.pluecker(
        rays.normalised(poses, poses), torch.eye(3, dtype=torch.float64).expand(3, 3, 3), 2, 2
    )
    assert every.isfinite().all() and not every[:, 3:].any()


@pytest.mark.parametrize("count", [1, 5, 19, 40])
def test_every_target_is_made_exactly_once(count: int) -> None:
    poses = spiral(count + 2).rig.poses  # type: ignore[union-attr]
    for strategy in ("gt", "gt-ltr", "gt-nearest", "nearest", "nearest-gt", "nearest-1"):
        cut = chunks.cut_into_chunks(strategy, 9, poses[:2], poses[2:], always=(0, 1))
        made = [
            s.index
            for f in chunks.forwards(cut, 9)
            for s, own in zip(f.slots, f.own, strict=True)
            if own and not s.known
        ]
        assert sorted(made) == list(range(count)), strategy

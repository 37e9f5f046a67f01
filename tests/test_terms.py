"""Laws of the terms of joint sampling: windows, cells by themselves, known cells, disagreement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_prior import small_prior
from test_pipeline import RULES, SEED, SETTINGS, F, V, scene, small_priors
from torch import Tensor

from d2 import terms
from d2.matrix import Cameras, Cut, camera_ring, column_windows, coverage, put, row_windows, take
from d2.noise import draw
from d2.pipeline import Sampled, sample_scene
from d2.priors.prior import Condition
from d2.rules import composition
from d2.sampling import State, Step, needed
from d2.terms import Settings, Unary, joint_terms, unary_term, video_term


def even(step: Step, cameras: Cameras, num_frames: int) -> dict[str, Tensor]:
    return {
        name: torch.full((cameras.num_views, num_frames), 0.5) for name in ("video", "multiview")
    }


def run(settings: Settings, **changes: Any) -> Sampled:
    return sample_scene(scene(), small_priors(), RULES._replace(**changes), settings)


# ------------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize(
    "cut",
    [
        row_windows(3, 8, 4, (0, 2, 4)),
        row_windows(3, 8, 5, (0, 3)),
        row_windows(3, 8, 8, (0,)),
        column_windows(16, 3, 8),
        column_windows(16, 3, 8, 2),
        column_windows(7, 2, 3),
        column_windows(8, 2, 8),
    ],
)
def test_windows_cover_every_cell_and_what_they_agree_on_is_kept(cut: Cut) -> None:
    v, f = (int(n) + 1 for n in cut.cells.amax(dim=(0, 1)))
    assert coverage(cut, v, f).all()
    matrix = torch.randn(v, f, 2)
    torch.testing.assert_close(put(take(matrix, cut), cut, v, f), matrix)
    for cells in cut.cells.tolist():
        assert len({tuple(cell) for cell in cells}) == len(cells)


def test_windows_of_a_column_go_around_the_ring() -> None:
    views = column_windows(8, 2, 4).cells[::2, :, 0].tolist()
    assert views == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 0, 1]]
    assert column_windows(8, 2, 4, 2).cells[::2, :, 0].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: row_windows(2, 8, 4, (0, 5)), "growing numbers from 0 to 4"),
        (lambda: row_windows(2, 8, 3, (0, 5)), "covers frame 3"),
        (lambda: row_windows(2, 8, 4, (4, 0)), "growing numbers"),
        (lambda: column_windows(8, 2, 4, 3), "give at most 2"),
    ],
)
def test_windows_that_do_not_fit_are_refused(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_a_window_of_all_is_the_whole_sequence() -> None:
    whole = run(SETTINGS).matrix.latents
    windows = run(replace(SETTINGS, video_window=F, multiview_window=V)).matrix.latents
    assert whole is not None and windows is not None
    torch.testing.assert_close(windows, whole, rtol=0, atol=0)


def test_each_window_is_told_the_orbit_of_its_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Tensor] = []

    def hear(prior: object, references: Tensor, *_: object) -> tuple[Condition, Condition]:
        told.append(references)
        nothing = Condition(*(torch.zeros(1, 1, 1) for _ in range(3)))
        return nothing, nothing

    monkeypatch.setattr(terms, "bind_condition", hear)
    orbits = torch.rand(2, V, 3, 8, 8)
    settings = replace(SETTINGS, anchor_frames=(0, 2), video_window=2)
    term = video_term(orbits, scene().pixels, partial(draw, 0), small_priors(), settings)
    for (view, frame), reference in zip(term.cut.cells[:, 0].tolist(), told[0], strict=True):
        assert torch.equal(reference, orbits[settings.anchor_frames.index(frame), view])
    with pytest.raises(ValueError, match="a whole row is told one picture"):
        video_term(
            orbits,
            scene().pixels,
            partial(draw, 0),
            small_priors(),
            replace(settings, video_window=None),
        )


def test_a_matrix_longer_than_a_window_is_sampled() -> None:
    settings = replace(SETTINGS, anchor_frames=(0, 1, 2), video_window=2, multiview_window=2)
    sampled = run(settings)
    assert sampled.orbits.shape[:2] == (3, V) and sampled.matrix.pixels.shape[:2] == (V, F)
    assert sampled.matrix.pixels.isfinite().all()


# -------------------------------------------------------------------------------------------- cells


def heard(monkeypatch: pytest.MonkeyPatch, unary: Unary) -> tuple[Tensor, dict[str, Tensor]]:
    """The picture (its mean colour) and the scalars that each cell is told: v f."""
    v, f = 3, 4

    def hear(
        prior: object, references: Tensor, scalars: dict[str, Tensor], length: int, *_: object
    ) -> tuple[Condition, Condition]:
        colour = references.mean(dim=(1, 2, 3))[:, None, None].expand(-1, length, 1)
        both = torch.stack(list(scalars.values()), dim=-1).float()
        condition = Condition(colour[..., None], colour[..., None, None], both)
        return condition, condition.drop()

    seen: list[Condition] = []

    def bound(prior: object, condition: Condition, *_: object, image_only: bool) -> None:
        assert image_only
        seen.append(condition)

    monkeypatch.setattr(terms, "bind_condition", hear)
    monkeypatch.setattr(terms, "denoiser", bound)
    clip = torch.stack([torch.full((3, 8, 8), i / 10) for i in range(f)])
    orbit = torch.stack([torch.full((3, 8, 8), 0.5 + i / 10) for i in range(v)])
    settings = replace(SETTINGS, motion_bucket_id=9.0)
    names = {
        "video": ("fps_id", "motion_bucket_id", "cond_aug"),
        "multiview": ("polars_rad", "azimuths_rad", "cond_aug", "frames"),
    }
    names["cell"] = names["multiview"]
    priors = small_priors()._replace(cell=small_prior(4))
    term = unary_term(unary, clip, orbit, camera_ring(v), partial(draw, 0), priors, settings)
    assert term.name == "unary" and term.cut.cells.shape == (v * f, 1, 2)
    colour = seen[0].crossattn.reshape(v, f)
    return colour, {
        name: seen[0].vector[:, 0, i].reshape(v, f) for i, name in enumerate(names[unary.prior])
    }


@pytest.mark.parametrize("prior", ["video", "multiview"])
def test_a_cell_is_told_what_was_chosen(monkeypatch: pytest.MonkeyPatch, prior: Any) -> None:
    clip, orbit = torch.arange(4) / 10, 0.5 + torch.arange(3) / 10
    expected = {
        "anchor": torch.zeros(3, 4),
        "column": clip.expand(3, 4),
        "row": orbit[:, None].expand(3, 4),
        "none": torch.zeros(3, 4),
    }
    for told, colour in expected.items():
        got, scalars = heard(monkeypatch, Unary(prior, told, 0.3))  # type: ignore[arg-type]
        torch.testing.assert_close(got, colour)
        assert torch.equal(scalars["cond_aug"], torch.full((3, 4), 0.3))
        if prior == "multiview":
            ring = (
                torch.full((3,), 2 * math.pi)
                if told == "row"
                else camera_ring(3).azimuth_rad.float()
            )
            torch.testing.assert_close(scalars["azimuths_rad"], ring[:, None].expand(3, 4))


def test_a_network_of_pairs_is_told_frames_of_a_clip_of_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    colour, scalars = heard(monkeypatch, Unary("cell", "anchor"))
    assert torch.equal(colour, torch.zeros(3, 4))
    torch.testing.assert_close(scalars["frames"], torch.tensor([0.0, 2.0, 4.0, 6.0]).expand(3, 4))
    torch.testing.assert_close(
        scalars["azimuths_rad"], camera_ring(3).azimuth_rad.float()[:, None].expand(3, 4)
    )


def test_three_terms_at_one_half_are_the_convex_rule_at_even_weights() -> None:
    settings = replace(SETTINGS, unary=Unary())
    rule = composition.linear(coefficients=partial(composition.inclusion_exclusion, alpha=0.5))
    two = run(SETTINGS, weights=even).matrix.pixels
    torch.testing.assert_close(run(settings, weights=even, compose=rule).matrix.pixels, two)
    more = composition.linear(coefficients=partial(composition.inclusion_exclusion, alpha=0.9))
    assert not torch.allclose(
        run(settings, weights=even, compose=more).matrix.pixels, two, atol=1e-3
    )


def test_a_term_that_no_rule_weighs_changes_nothing() -> None:
    torch.testing.assert_close(
        run(replace(SETTINGS, unary=Unary())).matrix.pixels,
        run(SETTINGS).matrix.pixels,
        rtol=0,
        atol=0,
    )


def test_the_terms_are_rows_columns_and_cells() -> None:
    given = scene()
    orbits = given.pixels[None, :V]
    settings = replace(SETTINGS, unary=Unary("video", "row"))
    made = joint_terms(
        given.pixels, orbits, given.cameras, partial(draw, SEED), small_priors(), settings
    )
    assert [term.name for term in made] == ["video", "multiview", "unary"]


# -------------------------------------------------------------------------------------- known cells


@pytest.mark.parametrize("hold", ["input_row", "reference_column"])
def test_known_cells_stay(hold: str) -> None:
    priors = small_priors()
    sampled = sample_scene(scene(), priors, RULES, replace(SETTINGS, hold=(hold,)))
    latents = sampled.matrix.latents
    assert latents is not None
    pictures = scene().pixels if hold == "input_row" else sampled.orbits[0]
    known = priors.first_stage.encode(2 * pictures - 1)
    held = latents[scene().cameras.input_view] if hold == "input_row" else latents[:, 0]
    torch.testing.assert_close(held, known, rtol=1e-4, atol=1e-4)
    free = run(SETTINGS).matrix.latents
    assert free is not None and not torch.allclose(free, latents, atol=1e-3)


def test_a_row_that_is_known_is_not_evaluated() -> None:
    asked: list[Tensor] = []
    rule = composition.holding(
        compose=composition.linear(coefficients=composition.convex),
        known=torch.zeros(V, F, 1, 1, 1),
        where=torch.arange(V)[:, None].expand(V, F) == 1,
    )
    ones = {name: torch.ones(V, F) for name in ("video", "multiview")}
    for uncond, cond in needed(
        rule, [], ones, {name: 2 * one for name, one in ones.items()}
    ).values():
        asked += [uncond, cond]
    assert all(torch.equal(half, torch.arange(V)[:, None].expand(V, F) != 1) for half in asked)


# ------------------------------------------------------------------------------------- disagreement


def test_disagreement_is_nothing_between_equal_priors_and_missing_where_one_is_not_weighed() -> (
    None
):
    states: list[State] = []
    rules = RULES._replace(weights=even)
    apart = sample_scene(
        scene(), small_priors(), rules, SETTINGS, on_step=states.append
    ).disagreement
    assert apart.distance.shape == (len(states), V, F) and apart.sigma.tolist() == [
        s.step.sigma for s in states
    ]
    assert (apart.distance > 0).all()
    same = states[0]._replace(
        predictions={name: states[0].predictions["video"] for name in ("video", "multiview")}
    )
    same = same._replace(scales={name: same.scales["video"] for name in same.scales})
    assert composition.disagreement(same) is not None
    torch.testing.assert_close(composition.disagreement(same), torch.zeros(V, F))
    alone = same._replace(weights={**same.weights, "video": torch.zeros(V, F)})
    missing = composition.disagreement(alone)
    assert missing is not None and missing.isnan().all()
    assert composition.disagreement(same._replace(predictions={})) is None


# ------------------------------------------------------------------------------------------ the job


def test_the_job_samples_with_three_terms_windows_and_known_cells(
    d2_sample: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert d2_sample("composition=inclusion_exclusion", "unary.prior=video", "unary.told=row") == 0
    assert (
        d2_sample(
            "preset=three_term", "sampler.num_steps=2", "sampler.hold=[input_row,reference_column]"
        )
        == 0
    )
    assert d2_sample("video.window=2", "multiview.window=2") == 0
    capfd.readouterr()
    for wrong, word in {
        "composition=inclusion_exclusion": "unary.prior=null",
        "sampler.hold=[everything]": "choose from",
        "scenes.anchor_frames=[0,9]": "the clip has frames 0 to",
        "unary.told=all": "choose none or anchor",
        "unary.prior=cell": "cell=null",
    }.items():
        assert d2_sample(wrong) == 2
        assert word in capfd.readouterr().err

"""Laws of the path from a scene to its matrix, on the smallest networks."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_prior import CHANNELS, SIZE, small_prior
from torch import Tensor

from d2 import terms
from d2.matrix import Cameras, camera_ring
from d2.nn.autoencoder import AutoencoderConfig
from d2.noise import Stream, draw
from d2.pipeline import Sampled, sample_scene
from d2.priors.first_stage import FirstStage, FirstStageConfig
from d2.priors.prior import Condition
from d2.reference import decode, make_clip, make_orbit
from d2.rules import composition, guidance, renoise, solver, weights
from d2.rules.bundle import Rules
from d2.sampling import State
from d2.scene import Scene
from d2.terms import Priors, Settings, multiview_term

V, F, SEED = 3, 4, 7
AUTOENCODER = AutoencoderConfig(
    in_channels=12,
    out_channels=12,
    ch=32,
    ch_mult=(1,),
    num_res_blocks=1,
    z_channels=CHANNELS,
    temporal_decoder=True,
    quant_conv=False,
)
RULES = Rules(
    partial(renoise.churned, steps=1, s_churn=0.5),
    partial(weights.scheduled, curve=weights.linear, profile=weights.side_views),
    partial(
        guidance.per_term,
        video=guidance.linear,
        multiview=partial(guidance.constant, scale=2.5),
    ),
    composition.linear(coefficients=composition.convex),
    solver.euler,
)
SETTINGS = Settings(num_steps=2, sigma_max=10.0)


def first_stage(seed: int) -> FirstStage:
    """No weight is zero, so that every branch matters."""
    stage = FirstStage(FirstStageConfig(AUTOENCODER, unshuffle=2))
    generator = torch.Generator().manual_seed(seed)
    for p in stage.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (
            p[0].numel() ** -0.5 if p.ndim > 1 else 0.2
        )
    return stage.eval().requires_grad_(False)


def small_priors() -> Priors:
    return Priors(small_prior(1), small_prior(2), first_stage(3))


def picture() -> Tensor:
    return draw(1, "init", (3, 2 * SIZE, 2 * SIZE)).sigmoid()


def scene() -> Scene:
    clip = draw(0, "init", (F, 3, 2 * SIZE, 2 * SIZE)).sigmoid()
    return Scene("small", SEED, clip, torch.ones(F, 1, 2 * SIZE, 2 * SIZE), camera_ring(V), 7.0)


def sample(settings: Settings = SETTINGS, rules: Rules = RULES) -> Sampled:
    return sample_scene(scene(), small_priors(), rules, settings)


def latents_of(sampled: Sampled) -> Tensor:
    assert sampled.matrix.latents is not None and sampled.matrix.latents.isfinite().all()
    return sampled.matrix.latents


def test_all_noise_comes_from_the_source_that_is_given() -> None:
    """The named streams, handed in, give the same bits; every draw of theirs has another name or
    another shape."""
    names: list[tuple[Stream, int, int, tuple[int, ...]]] = []

    def recorded(
        stream: Stream, shape: tuple[int, ...], *, step: int = 0, repeat: int = 0
    ) -> Tensor:
        names.append((stream, step, repeat, shape))
        return draw(SEED, stream, shape, step=step, repeat=repeat)

    settings = replace(SETTINGS, start="multiview", reinit=1)
    given = sample_scene(scene(), small_priors(), RULES, settings, noise=recorded)
    assert torch.equal(latents_of(given), latents_of(sample(settings)))
    assert len(set(names)) == len(names)
    assert {name[0] for name in names} == {"init", "orbit", "augmentation", "churn", "renoise"}
    other = sample_scene(scene(), small_priors(), RULES, settings, noise=partial(draw, SEED + 1))
    assert not torch.allclose(latents_of(other), latents_of(given), atol=1e-2)


def test_frames_of_different_chunks_are_decoded_apart() -> None:
    stage, latents = first_stage(3), draw(0, "init", (2, F, CHANNELS, SIZE, SIZE))
    whole, chunked = decode(latents, stage), decode(latents, stage, 3)
    assert torch.equal(
        chunked, torch.cat([decode(latents[:, :3], stage), decode(latents[:, 3:], stage)], dim=1)
    )
    assert not torch.allclose(whole, chunked, atol=1e-4)
    assert torch.equal(decode(latents, stage, F), whole)
    assert torch.equal(
        sample(replace(SETTINGS, decode_chunk=3)).matrix.pixels,
        decode(latents_of(sample()), stage, 3),
    )


def test_a_clip_of_a_picture_starts_with_it_unless_told_not_to() -> None:
    kept, free = (
        make_clip(picture(), F, SEED, small_priors(), RULES, replace(SETTINGS, keep_picture=keep))
        for keep in (True, False)
    )
    assert torch.equal(kept[0], picture()) and not torch.allclose(free[0], picture(), atol=1e-3)
    assert torch.equal(kept[1:], free[1:])


def test_an_orbit_is_decoded_by_the_multiview_priors_own_decoder_where_it_has_one() -> None:
    priors, args = small_priors(), (picture(), camera_ring(V), SEED)
    latents: list[State] = []
    orbit = make_orbit(*args, priors, RULES, SETTINGS, on_step=latents.append)
    assert torch.equal(orbit[:-1], decode(latents[-1].x, priors.first_stage)[:-1, 0])
    assert torch.equal(orbit[-1], picture())
    priors.multiview.decoder = first_stage(4)
    own = make_orbit(*args, priors, RULES, SETTINGS)
    assert torch.equal(own[:-1], decode(latents[-1].x, priors.multiview.decoder)[:-1, 0])
    assert not torch.allclose(own[:-1], orbit[:-1], atol=1e-3)


def test_a_further_pass_changes_the_references_alone() -> None:
    once, twice = (
        make_orbit(picture(), camera_ring(V), SEED, small_priors(), RULES, s)
        for s in (SETTINGS, replace(SETTINGS, reinit=1))
    )
    assert torch.equal(once[-1], twice[-1]) and not torch.allclose(once[:-1], twice[:-1], atol=1e-3)
    matrices = [
        sample_scene(scene(), small_priors(), RULES, settings, orbits=once[None])
        for settings in (SETTINGS, replace(SETTINGS, reinit=1))
    ]
    assert torch.equal(latents_of(matrices[0]), latents_of(matrices[1]))


@pytest.mark.parametrize("sequences_per_call", [1, None])
def test_blended_columns_go_through_one_call(sequences_per_call: int | None) -> None:
    plain = latents_of(sample())
    settings = replace(SETTINGS, sequences_per_call=sequences_per_call)
    torch.testing.assert_close(
        latents_of(sample(replace(settings, conv_blend=1.0))), plain, rtol=1e-4, atol=1e-4
    )
    blended = latents_of(sample(replace(settings, conv_blend=0.5)))
    assert not torch.allclose(blended, plain, atol=1e-3)


def told(
    monkeypatch: pytest.MonkeyPatch, cameras: Cameras, sign: int
) -> tuple[list[int], Tensor, Tensor]:
    """The views of a column in its order, and the azimuths and polar angles told to the prior."""
    heard: dict[str, Tensor] = {}

    def hear(
        prior: object, references: object, scalars: dict[str, Tensor], *_: object
    ) -> tuple[object, object]:
        heard.update(scalars)
        return small_condition, small_condition

    small_condition = Condition(*(torch.zeros(1, cameras.num_views, 1) for _ in range(3)))
    monkeypatch.setattr(terms, "bind_condition", hear)
    settings = replace(SETTINGS, azimuth_sign=sign)
    term = multiview_term(picture()[None], cameras, partial(draw, 0), small_priors(), settings)
    return term.cut.cells[0, :, 0].tolist(), heard["azimuths_rad"][0], heard["polars_rad"][0]


def test_a_column_goes_around_as_its_prior_does_and_ends_at_the_input_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring = camera_ring(4, torch.tensor([0.0, 0.1, 0.2, 0.3]))
    views, azimuth, polar = told(monkeypatch, ring, 1)
    assert views == [0, 1, 2, 3]
    torch.testing.assert_close(azimuth, ring.azimuth_rad, rtol=0, atol=0)
    torch.testing.assert_close(polar, math.pi / 2 - ring.elevation_rad)
    views, azimuth, polar = told(monkeypatch, ring, -1)
    assert views == [2, 1, 0, 3]  # the mirrored orbit, seen by the prior as its own
    torch.testing.assert_close(azimuth, ring.azimuth_rad)
    torch.testing.assert_close(polar, math.pi / 2 - ring.elevation_rad[views])


def test_an_azimuth_is_told_as_one_turn_of_the_input_view(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = camera_ring(3)
    far = ring._replace(
        azimuth_rad=torch.tensor(
            [-math.pi / 2, math.pi / 2 + 4 * math.pi, 0.0], dtype=torch.float64
        )
    )
    views, azimuth, _ = told(monkeypatch, far, 1)
    assert views == [1, 0, 2]
    torch.testing.assert_close(
        azimuth, torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64) * math.pi
    )

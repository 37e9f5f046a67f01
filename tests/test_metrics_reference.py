"""Laws of the figures against the truth, on small matrices whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2.metrics import reference
from d2.metrics.baselines import repeat_orbit, show_input, true_orbit_repeated
from d2.metrics.reference import reference_metrics, reference_tables
from d2.scene import Truth

V, N, H = 5, 4, 32  # views, frames, height; views and frames differ, so that swapped axes show
INPUT_VIEW = V - 1
OBJECT = (slice(10, 22), slice(9, 23))


def synthetic_truth(seed: int = 0) -> Truth:
    """A textured object on white, its texture different in every cell but nearer along frames than
    along views."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(V, N, 1, H, H)
    masks[..., OBJECT[0], OBJECT[1]] = 1
    by_view = torch.rand(V, 1, 3, H, H, generator=generator)
    by_cell = torch.rand(V, N, 3, H, H, generator=generator)
    colour = 0.1 + 0.5 * by_view + 0.2 * by_cell  # in [0.1, 0.8]: visible, and room for offsets
    pixels = masks * colour + (1 - masks)
    return Truth(pixels, masks, torch.where(masks > 0, 2.0, torch.inf))


def blur(images: Tensor) -> Tensor:
    return F.avg_pool2d(images.flatten(0, 1), 5, 1, 2, count_include_pad=False).reshape(
        images.shape
    )


def test_the_truth_itself_scores_full_marks():
    truth = synthetic_truth()
    figures = reference_metrics(truth.pixels, truth, INPUT_VIEW)
    expected = dict(
        psnr=100, ssim=1, psnr_masked=100, ssim_masked=1, sharpness=1, own_view=1, own_frame=1
    )
    assert figures == pytest.approx(
        expected | {f"{k}_unseen": v for k, v in expected.items()}, abs=1e-5
    )


def test_a_known_error_has_its_closed_form():
    """An offset e on the object alone: MSE is e² times the object's share of the pixels counted."""
    truth = synthetic_truth()
    sample = truth.pixels + 0.1 * truth.masks
    figures = reference_metrics(sample, truth, INPUT_VIEW)
    area = 12 * 14
    dilated = (12 + 4) * (14 + 4)
    assert figures["psnr"] == pytest.approx(-10 * math.log10(0.01 * area / H**2), abs=1e-3)
    assert figures["psnr_masked"] == pytest.approx(
        -10 * math.log10(0.01 * area / dilated), abs=1e-3
    )


def test_errors_are_pooled_before_the_logarithm_and_the_input_view_is_left_out():
    truth = synthetic_truth()
    sample = truth.pixels.clone()
    sample[INPUT_VIEW] += 0.2 * truth.masks[INPUT_VIEW]
    sample[0] += 0.1 * truth.masks[0]
    share = 12 * 14 / (16 * 18)
    figures = reference_metrics(sample, truth, INPUT_VIEW)
    assert figures["psnr_masked"] == pytest.approx(
        -10 * math.log10((0.04 + 0.01) / V * share), abs=1e-3
    )
    assert figures["psnr_masked_unseen"] == pytest.approx(
        -10 * math.log10(0.01 / (V - 1) * share), abs=1e-3
    )


def test_agrees_with_torchmetrics_called_by_hand():
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    truth = synthetic_truth()
    sample = blur(synthetic_truth(seed=1).pixels)
    figures = reference_metrics(sample, truth, INPUT_VIEW)
    cells, true_cells = sample.flatten(0, 1), truth.pixels.flatten(0, 1)
    assert figures["psnr"] == pytest.approx(
        float(peak_signal_noise_ratio(cells, true_cells, data_range=1.0)), abs=1e-4
    )
    mask = reference.object_mask(sample, truth.masks).expand_as(sample)
    masked = peak_signal_noise_ratio(sample[mask], truth.pixels[mask], data_range=1.0)
    assert figures["psnr_masked"] == pytest.approx(float(masked), abs=1e-4)
    ssim = structural_similarity_index_measure(cells, true_cells, data_range=1.0)
    assert isinstance(ssim, Tensor)
    assert figures["ssim"] == pytest.approx(float(ssim), abs=1e-5)


def test_masked_ssim_is_ssim_by_its_definition():
    """Wang et al. 2004, eq. 13, at one masked pixel after another: Gaussian window of 11, std
    1.5."""
    truth = synthetic_truth()
    sample = blur(truth.pixels)
    ramp = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(ramp[:, None] ** 2 + ramp[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    mask = reference.object_mask(sample, truth.masks)
    values = []
    for v, f in [(0, 0), (V - 1, N - 1)]:
        # the mask keeps 5 px and more from the border
        for row, column in mask[v, f, 0].nonzero().tolist():
            patch = (slice(row - 5, row + 6), slice(column - 5, column + 6))
            for c in range(3):
                x, y = sample[v, f, c][patch].double(), truth.pixels[v, f, c][patch].double()
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                values.append(
                    (2 * mx * my + 1e-4)
                    * (2 * cov + 9e-4)
                    / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
                )
    cells = reference.measure_cells(sample, truth)
    where = torch.zeros(V, N, dtype=torch.bool)
    where[0, 0] = where[V - 1, N - 1] = True
    assert reference.pool(cells, where)["ssim_masked"] == pytest.approx(
        float(torch.stack(values).mean()), abs=1e-4
    )


def test_blur_wins_psnr_against_a_displaced_sharp_picture_and_loses_sharpness():
    """Why no table shows PSNR alone."""
    truth = synthetic_truth()
    blurred, displaced = blur(truth.pixels), truth.pixels.roll(2, dims=-1)
    soft, sharp = (reference_metrics(x, truth, INPUT_VIEW) for x in (blurred, displaced))
    assert soft["psnr_masked"] > sharp["psnr_masked"] + 1
    assert soft["sharpness"] < 0.3
    assert sharp["sharpness"] == pytest.approx(1, abs=1e-4)


def test_sharpness_is_the_square_of_contrast():
    truth = synthetic_truth()
    figures = reference_metrics(1 - 0.5 * (1 - truth.pixels), truth, INPUT_VIEW)
    assert figures["sharpness"] == pytest.approx(0.25, abs=1e-5)


def test_a_matrix_shifted_in_time_has_no_own_frame():
    truth = synthetic_truth()
    figures = reference_metrics(truth.pixels.roll(1, dims=1), truth, INPUT_VIEW)
    assert (figures["own_frame"], figures["own_view"]) == (0, 1)


def test_a_matrix_rolled_in_views_has_no_own_view():
    truth = synthetic_truth()
    figures = reference_metrics(truth.pixels.roll(1, dims=0), truth, INPUT_VIEW)
    assert figures["own_view"] == 0


def test_the_input_view_does_not_count_as_unseen():
    truth = synthetic_truth()
    sample = truth.pixels.clone()
    sample[:INPUT_VIEW] = sample[INPUT_VIEW]  # the input shown everywhere
    figures = reference_metrics(sample, truth, INPUT_VIEW)
    assert figures["own_view"] == pytest.approx(1 / V)
    assert figures["own_view_unseen"] == 0
    assert figures["psnr_masked"] > figures["psnr_masked_unseen"]


def test_true_pictures_that_coincide_share_the_hit():
    truth = synthetic_truth()
    frozen = truth._replace(pixels=truth.pixels[:, :1].expand(-1, N, -1, -1, -1).clone())
    figures = reference_metrics(frozen.pixels, frozen, INPUT_VIEW)
    assert figures["own_frame"] == pytest.approx(1 / N)
    assert figures["own_view"] == 1


def test_the_baselines_know_one_axis_each():
    truth = synthetic_truth()
    anchor = 1
    orbit = reference_metrics(true_orbit_repeated(truth, anchor), truth, INPUT_VIEW)
    assert (orbit["own_view"], orbit["own_frame"]) == (1, pytest.approx(1 / N))
    shown = reference_metrics(show_input(truth.pixels[INPUT_VIEW], V), truth, INPUT_VIEW)
    assert shown["own_view"] == pytest.approx(1 / V)
    assert true_orbit_repeated(truth, anchor).equal(repeat_orbit(truth.pixels[:, anchor], N))
    assert repeat_orbit(truth.pixels[:, anchor], 7)[2, 6].equal(truth.pixels[2, anchor])
    assert show_input(truth.pixels[INPUT_VIEW], 9)[8, 3].equal(truth.pixels[INPUT_VIEW, 3])


def test_the_mask_is_dilated_by_exactly_two_pixels():
    masks = torch.zeros(1, 1, 1, H, H)
    masks[..., 10, 12] = 1
    expected = torch.zeros(1, 1, 1, H, H, dtype=torch.bool)
    expected[..., 8:13, 10:15] = True
    assert reference.object_mask(torch.ones(1, 1, 3, H, H), masks).equal(expected)


def test_the_mask_holds_what_the_sample_paints_in_that_cell_alone():
    masks = torch.zeros(2, 2, 1, H, H)
    sample = torch.ones(2, 2, 3, H, H)
    sample[1, 0, 2, 20, 20] = 0.5  # one channel is enough
    mask = reference.object_mask(sample, masks)
    assert mask[1, 0, 0, 18:23, 18:23].all()
    assert mask.sum() == 25


def test_a_far_background_that_is_nearly_white_changes_no_masked_figure():
    truth = synthetic_truth()
    sample = blur(truth.pixels)
    tinted = sample.clone()
    tinted[..., :1, :] -= 0.03  # out of reach: blur, dilation and SSIM window end at row 1
    true_tinted = truth.pixels.clone()
    true_tinted[..., :1, ::2] -= 0.03  # striped, so that the whole image's gradients do change
    before = reference_metrics(sample, truth, INPUT_VIEW)
    after = reference_metrics(tinted, truth._replace(pixels=true_tinted), INPUT_VIEW)
    for name in ("psnr_masked", "ssim_masked", "sharpness"):
        assert after[name] == before[name]
    assert after["psnr"] < before["psnr"]


def test_a_ghost_is_an_error_and_a_missing_object_too():
    truth = synthetic_truth()
    ghost = truth.pixels.clone()
    ghost[..., :4, :4] = 0
    assert reference_metrics(ghost, truth, INPUT_VIEW)["psnr_masked"] < 15
    assert reference_metrics(torch.ones_like(ghost), truth, INPUT_VIEW)["psnr_masked"] < 15


def test_tables_hold_every_view_and_frame_by_itself():
    truth = synthetic_truth()
    sample = truth.pixels.clone()
    sample[2] += 0.1 * truth.masks[2]
    rows = reference_tables(sample, truth)
    assert {(r["axis"], r["index"]) for r in rows} == {("view", v) for v in range(V)} | {
        ("frame", f) for f in range(N)
    }
    table = {(r["axis"], r["index"], r["metric"]): r["value"] for r in rows}
    assert len(table) == len(rows) == (V + N) * len(reference.POOLED_NAMES)
    error = 0.01 * 12 * 14 / (16 * 18)
    assert table["view", 2, "psnr_masked"] == pytest.approx(-10 * math.log10(error), abs=1e-3)
    assert table["view", 1, "psnr_masked"] == 100
    assert table["frame", 3, "psnr_masked"] == pytest.approx(-10 * math.log10(error / V), abs=1e-3)


def test_what_cannot_be_measured_is_nan():
    truth = synthetic_truth()
    column = Truth(*(x[-1:] for x in truth))  # one view, the input's: nothing is unseen
    figures = reference_metrics(column.pixels, column, 0)
    assert all(math.isnan(value) == name.endswith("_unseen") for name, value in figures.items())
    broken = reference_metrics(torch.full_like(truth.pixels, torch.nan), truth, INPUT_VIEW)
    assert all(math.isnan(value) for value in broken.values())  # above all, not 100 dB


def test_on_the_world_a_repeated_orbit_is_right_at_its_anchor_and_shown_inputs_at_their_view():
    world4d = pytest.importorskip("d2.data.world4d")
    matrices = world4d.full_matrix("test", [0, 1])
    for truth in map(Truth, matrices.pixels, matrices.masks, matrices.depth):
        num_views, num_frames = truth.pixels.shape[:2]
        anchor = 2
        still = true_orbit_repeated(truth, anchor)
        by_frame = {
            r["index"]: r["value"]
            for r in reference_tables(still, truth)
            if _is(r, "frame", "own_view")
        }
        assert by_frame[anchor] == 1 == max(by_frame.values())
        figures = reference_metrics(still, truth, num_views - 1)
        assert figures["own_frame_unseen"] == pytest.approx(1 / num_frames)
        shown = reference_metrics(show_input(truth.pixels[-1], num_views), truth, num_views - 1)
        assert (shown["own_view"], shown["own_view_unseen"]) == (pytest.approx(1 / num_views), 0)


def _is(row: dict[str, str | int | float], axis: str, metric: str) -> bool:
    return (row["axis"], row["metric"]) == (axis, metric)

"""The figure of where priors disagree: what it shows, and what it leaves out."""

from __future__ import annotations

import re

import torch

from d2.report.disagreement import disagreement_figure

SIGMA = torch.tensor([80.0, 10.0, 1.0, 0.1])


def opacities(figure: str) -> list[float]:
    return [float(value) for value in re.findall(r'fill-opacity="([0-9.]+)"', figure)]


def test_the_furthest_cell_is_the_darkest() -> None:
    distance = torch.ones(4, 2, 3)
    distance[:, 1, 2] = 2.0
    of_cells = opacities(disagreement_figure(SIGMA, distance, 1))
    assert len(of_cells) == 3 * 6  # three thirds of the levels
    assert [i for i, o in enumerate(of_cells) if o == max(of_cells)] == [5, 11, 17]


def test_the_curve_has_a_point_a_level_from_high_to_low() -> None:
    points = re.search(r'points="([^"]+)"', disagreement_figure(SIGMA.flip(0), torch.rand(4, 2, 2), 0))
    assert points is not None
    across = [float(point.split(",")[0]) for point in points[1].split()]
    assert len(across) == 4 and across == sorted(across)


def test_what_is_unknown_is_not_shown() -> None:
    distance = torch.rand(4, 2, 2)
    distance[0] = torch.nan
    distance[:, 0, 0] = torch.nan
    figure = disagreement_figure(SIGMA, distance, 0)
    assert len(opacities(figure)) == 3 * 3 and "nan" not in figure and "σ 10" in figure
    assert disagreement_figure(SIGMA, torch.full((4, 2, 2), torch.nan), 0) == ""
    assert disagreement_figure(torch.zeros(0), torch.zeros(0, 2, 2), 0) == ""

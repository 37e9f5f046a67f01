"""The figure of where priors disagree: what it shows, and what it leaves out."""

from __future__ import annotations

import re
from typing import Any

import torch

from d2.report.disagreement import disagreement_figure

SIGMA = torch.tensor([80.0, 10.0, 1.0, 0.1])


def darkness(map_: dict[str, Any]) -> list[float]:
    return [float(cell["opacity"]) for cell in map_["cells"]]


def test_the_furthest_cell_is_the_darkest() -> None:
    distance = torch.ones(4, 2, 3)
    distance[:, 1, 2] = 2.0
    figure = disagreement_figure(SIGMA, distance, 1)
    assert figure is not None and len(figure["maps"]) == 3  # thirds of the levels
    for map_ in figure["maps"]:
        of_cells = darkness(map_)
        assert len(of_cells) == 6 and [i for i, o in enumerate(of_cells) if o == max(of_cells)] == [
            5
        ]


def test_the_curve_has_a_point_a_level_from_high_to_low() -> None:
    figure = disagreement_figure(SIGMA.flip(0), torch.rand(4, 2, 2), 0)
    assert figure is not None
    across = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', figure["curve"])]
    assert len(across) == 4 and across == sorted(across)


def test_what_is_unknown_is_not_shown() -> None:
    distance = torch.rand(4, 2, 2)
    distance[0] = torch.nan
    distance[:, 0, 0] = torch.nan
    figure = disagreement_figure(SIGMA, distance, 0)
    assert figure is not None and "nan" not in str(figure)
    assert [len(map_["cells"]) for map_ in figure["maps"]] == [3] * 3 and figure["maps"][0][
        "high"
    ] == "10"
    assert disagreement_figure(SIGMA, torch.full((4, 2, 2), torch.nan), 0) is None
    assert disagreement_figure(torch.zeros(0), torch.zeros(0, 2, 2), 0) is None

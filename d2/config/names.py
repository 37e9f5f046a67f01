"""Names: of experiments, of runs, and what a misspelt one may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

from d2.files import asset


class Label(NamedTuple):
    """What a run is called where many of them stand side by side."""

    name: str  # of the variant, the point of a sweep, or the output folder
    group: str | None  # of the study or the sweep
    command: str
    tags: tuple[str, ...]  # the preset, the priors


def experiments() -> list[str]:
    """The names of all experiments with a sweep.yaml."""
    return sorted(path.parent.name for path in asset("experiments").glob("*/sweep.yaml"))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean sampler.num_steps?` where a name or the end of a dotted key looks like the
    word; else nothing."""
    known = list(known)
    last = word.rpartition(".")[2]
    exact = [name for name in known if name.rpartition(".")[2] == last]
    alike = exact[:1] or get_close_matches(word, known, 1, 0.75)
    if not alike:
        ends = {name.rpartition(".")[2]: name for name in reversed(known)}
        alike = [ends[end] for end in get_close_matches(last, ends, 1, 0.75)]
    return f", did you mean {alike[0]}?" if alike else ""

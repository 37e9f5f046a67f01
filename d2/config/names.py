"""Names that people choose, and what a misspelt one may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from d2.files import asset


def experiments() -> list[str]:
    """The names of all experiments with a sweep.yaml."""
    return sorted(path.parent.name for path in asset("experiments").glob("*/sweep.yaml"))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean sampler.num_steps?` where a name or the end of a dotted key looks like the word; else nothing."""
    known = list(known)
    last = word.rpartition(".")[2]
    exact = [name for name in known if name.rpartition(".")[2] == last]
    alike = exact[:1] or get_close_matches(word, known, 1, 0.75)
    if not alike:
        ends = {name.rpartition(".")[2]: name for name in reversed(known)}
        alike = [ends[end] for end in get_close_matches(last, ends, 1, 0.75)]
    return f", did you mean {alike[0]}?" if alike else ""

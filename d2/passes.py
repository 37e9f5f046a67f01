"""The samplings that make up a scene, and where each of them stands: what lets a scene go on where
it was stopped.

A scene takes several calls of `sample_matrix`: orbits, perhaps a clip, the joint sampling,
baselines. Each is a pass. All of it depends on names and numbers alone, so a pass that is begun
again with its x and memory ends in the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from d2.sampling import Memory, State, Step

Trace = dict[str, list[Tensor]]  # what `on_step` keeps of the steps, in their order


class Sample(Protocol):
    """`sample_matrix` with all its rules bound."""

    def __call__(
        self,
        x: Tensor,  # matrix
        plan: Sequence[Step],
        *,
        on_step: Callable[[State], None] | None = None,
        memory: Memory | None = None,
    ) -> Tensor: ...


# sample, x, plan, on_step, trace -> the matrix at the plan's end; `trace` is what `on_step` appends
# to
Run = Callable[[Sample, Tensor, Sequence[Step], Callable[[State], None] | None, Trace], Tensor]


class Pass(NamedTuple):
    """Where one of them stands."""

    done: int  # steps of its plan
    x: Tensor  # matrix, after them
    memory: Memory
    trace: dict[str, tuple[Tensor, ...]]


def straight(
    sample: Sample,
    x: Tensor,  # matrix
    plan: Sequence[Step],
    on_step: Callable[[State], None] | None,
    trace: Trace,
) -> Tensor:
    """A pass from its beginning to its end, of which nothing is kept."""
    return sample(x, plan, on_step=on_step)


class Journal:
    """The passes of one scene by their names; `changed` is called after every step of any of
    them."""

    def __init__(self, passes: dict[str, Pass], changed: Callable[[], None]):
        self.passes, self.changed = passes, changed

    def named(self, name: str) -> Run:
        """A `Run` of the passes `name.0`, `name.1` and so on: one that is finished is not sampled
        again."""
        number = -1

        def run(
            sample: Sample,
            x: Tensor,  # matrix
            plan: Sequence[Step],
            on_step: Callable[[State], None] | None,
            trace: Trace,
        ) -> Tensor:
            nonlocal number
            number += 1
            key = f"{name}.{number}"
            start = self.passes.get(key, Pass(0, x, ({}, {}), {}))
            trace.update({kept: list(values) for kept, values in start.trace.items()})
            done = start.done

            def see(state: State) -> None:
                nonlocal done
                if on_step is not None:
                    on_step(state)
                done += 1
                seen = {kept: tuple(values) for kept, values in trace.items()}
                self.passes[key] = Pass(done, state.x, state.memory, seen)
                self.changed()

            left = plan[start.done :]
            return (
                sample(start.x.to(x), left, on_step=see, memory=start.memory)
                if left
                else start.x.to(x)
            )

        return run

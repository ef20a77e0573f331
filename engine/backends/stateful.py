"""A graph that takes a sequence in chunks: its output `state_N_out` is the next chunk's input `state_N`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine.backends.base import Backend
from valle2.engine.bundle.contract import OUT_SUFFIX, STATE_PREFIX

Array = NDArray[Any]


class Stateful:
    """The state of one sequence of batch 1. The graph also takes `started`, False for the first chunk."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.started = False
        self.states = {
            tensor.name: np.zeros(
                [axis if isinstance(axis, int) else 1 for axis in tensor.axes], tensor.dtype
            )
            for tensor in backend.spec.inputs
            if tensor.name.startswith(STATE_PREFIX)
        }

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the next chunk; returns the outputs without the states. Raises what `Backend.run` raises."""
        return run_together([self], feeds)


def run_together(sequences: Sequence[Stateful], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run the next chunk of several sequences of one graph, which all have started or all have not.

    Args:
        feeds: with a row for each sequence.

    Returns:
        The outputs without the states. Each sequence keeps its own; after an error it keeps the one it had.
    """
    first = sequences[0]
    joined = {name: np.concatenate([one.states[name] for one in sequences]) for name in first.states}
    found = first.backend.run({**feeds, "started": np.array(first.started), **joined})
    states = {name: found.pop(name + OUT_SUFFIX) for name in joined}
    for row, one in enumerate(sequences):
        one.states = {name: state[row : row + 1] for name, state in states.items()}
        one.started = True
    return found

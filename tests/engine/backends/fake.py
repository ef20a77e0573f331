"""A test double: a Python function in place of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import DTypeLike

from valle2.engine.backends.base import Array, ArrayBuffer, Backend, Buffer, Step
from valle2.engine.bundle.specs import GraphSpec


class FakeBackend(Backend):
    """A backend whose outputs `function` computes from the inputs."""

    def __init__(self, spec: GraphSpec, function: Callable[[Mapping[str, Array]], dict[str, Array]]) -> None:
        self.spec = spec
        self.function = function

    def run_checked(self, feeds: Mapping[str, Array], outputs: tuple[str, ...]) -> dict[str, Array]:
        found = self.function(feeds)
        return {name: found[name] for name in outputs}

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> ArrayBuffer:
        return ArrayBuffer(np.zeros(shape, dtype))

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Step:
        def step() -> None:
            found = self.function({name: buffer.read() for name, buffer in inputs.items()})
            for name, buffer in outputs.items():
                buffer.write(found[name])

        return step

    def close(self) -> None:
        pass

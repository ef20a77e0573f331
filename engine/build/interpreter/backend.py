"""An interpreted network as a `Backend`, so that the runtime can speak through it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike

from valle2.engine.backends.base import Array, ArrayBuffer, Backend, Buffer, Step, check_feeds
from valle2.engine.backends.trt.api import load, parsed
from valle2.engine.build.interpreter.network import InterpretedNetwork
from valle2.engine.build.precision import converted_spec, load_graph
from valle2.engine.bundle.specs import GraphSpec


class InterpretedBackend(Backend):
    """One interpreted graph.

    Args:
        network: the network. spec: its tensors.
    """

    def __init__(self, network: InterpretedNetwork, spec: GraphSpec) -> None:
        self.network, self.spec = network, spec

    def run_checked(self, feeds: Mapping[str, Array], outputs: tuple[str, ...]) -> dict[str, Array]:
        found = self.network.run(feeds)
        given = [*feeds.values(), *self.network.constants.values()]
        return {name: owned(found[name], given) for name in outputs}

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        return ArrayBuffer(np.zeros(shape, dtype))

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Step:
        def step() -> None:
            feeds = {name: buffer.read() for name, buffer in inputs.items()}
            check_feeds(self.spec, feeds)
            found = self.network.run(feeds)
            for name, buffer in outputs.items():
                buffer.write(found[name])

        return step

    def close(self) -> None:
        """Nothing to free: the network goes with its last reference."""


def owned(value: Array, given: list[Array]) -> Array:
    """The value, copied if it is a view or one of the arrays that were given."""
    shared = not value.flags.owndata or any(value is one for one in given)
    return value.copy() if shared else value


def interpret_graph(
    folder: Path, spec: GraphSpec, *, precision: str = "fp32", target: str = "tensorrt-rtx"
) -> InterpretedBackend:
    """Parse a graph of a bundle as `valle2 build` does, and interpret the network.

    Args:
        folder: the bundle. spec: the graph's entry. precision: as `valle2 build --precision`; the codec stays
            in float32. target: the edition of TensorRT whose parser is used.

    Raises:
        BackendError: TensorRT is absent, or its parser refuses the graph.
        InterpreterError: a layer of the network is unknown.
    """
    trt = load(target)
    if precision == "fp32":
        return interpret_file(trt, folder / spec.file, spec)
    model = load_graph(folder / spec.file, precision)
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / Path(spec.file).name
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.stem}.weights")
        return interpret_file(trt, path, converted_spec(spec, model))


def interpret_file(trt: Any, path: Path, spec: GraphSpec) -> InterpretedBackend:
    """Parse and interpret one file; `InterpretedNetwork` keeps the parser's memory."""
    with parsed(trt, path) as network:
        return InterpretedBackend(InterpretedNetwork(network), spec)

"""An interpreted network as a `Backend`, so that the runtime can speak through it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import DTypeLike

from valle2.engine.backends.base import Array, ArrayBuffer, Backend, Buffer, Step
from valle2.engine.backends.trt.api import load, parsed
from valle2.engine.build.interpreter.network import InterpretedNetwork
from valle2.engine.build.precision import converted_spec, load_graph
from valle2.engine.bundle.specs import GraphSpec


class InterpretedBackend(Backend):
    """One interpreted graph.

    Args:
        network: the network. spec: its tensors. owner: what is closed with the backend.
    """

    def __init__(self, network: InterpretedNetwork, spec: GraphSpec, owner: ExitStack | None = None) -> None:
        self.network, self.spec, self.owner = network, spec, owner or ExitStack()

    def run_checked(self, feeds: Mapping[str, Array], outputs: tuple[str, ...]) -> dict[str, Array]:
        found = self.network.run(feeds)
        return {name: np.array(found[name]) for name in outputs}

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        return ArrayBuffer(np.zeros(shape, dtype))

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Step:
        def step() -> None:
            found = self.run({name: buffer.read() for name, buffer in inputs.items()}, tuple(outputs))
            for name, buffer in outputs.items():
                buffer.write(found[name])

        return step

    def close(self) -> None:
        self.owner.close()


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
    owner = ExitStack()
    trt = load(target)
    with ExitStack() as opened:
        if precision == "fp32":
            path = folder / spec.file
        else:
            model = load_graph(folder / spec.file, precision)
            spec = converted_spec(spec, model)
            path = Path(opened.enter_context(tempfile.TemporaryDirectory())) / Path(spec.file).name
            onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.stem}.weights")
        network = InterpretedNetwork(opened.enter_context(parsed(trt, path)))
        owner = opened.pop_all()
    return InterpretedBackend(network, spec, owner)

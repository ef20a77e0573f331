"""Evaluates every layer of a network in order, and checks each result against what TensorRT inferred.

Layers of constants are computed once. The others run at every call and free their inputs after the last use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from valle2.engine.backends.trt.api import Parsed, layers
from valle2.engine.build.interpreter import arithmetic, products, shapes
from valle2.engine.build.interpreter.values import (
    Array,
    Evaluate,
    InterpreterError,
    numpy_type,
    sizes,
    typed_layer,
)

LAYERS: dict[str, Callable[[Any, Any], Evaluate]] = {
    **arithmetic.LAYERS,
    **products.LAYERS,
    **shapes.LAYERS,
}


@dataclass(frozen=True, slots=True)
class Declared:
    """A tensor as the network declares it: name, type, and sizes with -1 for a dynamic axis."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Any) -> Declared:
        return cls(tensor.name, numpy_type(tensor.dtype), sizes(tensor.shape))

    def fits(self, value: Array) -> bool:
        """Whether a value has this type and these sizes."""
        return (
            value.dtype == self.dtype
            and len(value.shape) == len(self.shape)
            and all(want in (-1, size) for want, size in zip(self.shape, value.shape, strict=True))
        )


@dataclass(frozen=True, slots=True)
class LayerStep:
    """One layer: what it reads, what it makes, and the function that computes it."""

    name: str
    kind: str
    inputs: tuple[str | None, ...]
    outputs: tuple[Declared, ...]
    evaluate: Evaluate

    def run(self, values: dict[str, Array]) -> None:
        """Compute the outputs and add them to `values`.

        Raises:
            InterpreterError: an output has another shape than TensorRT inferred, or the layer refuses.
        """
        try:
            found = self.evaluate([None if name is None else values[name] for name in self.inputs])
        except (InterpreterError, ValueError, IndexError) as error:
            raise InterpreterError(f"{self.kind} {self.name}: {error}") from None
        for declared, result in zip(
            self.outputs, found if isinstance(found, tuple) else (found,), strict=True
        ):
            value = np.asarray(result)
            value = value if value.dtype == declared.dtype else value.astype(declared.dtype)
            if not declared.fits(value):
                raise InterpreterError(
                    f"{self.kind} {self.name} made {declared.name} {value.shape}; "
                    f"TensorRT inferred {declared.shape}"
                )
            values[declared.name] = value


class InterpretedNetwork:
    """A network that is ready to be evaluated.

    Args:
        parsed: the network. It is kept, because constants are views of the parser's memory.

    Raises:
        InterpreterError: a layer or one of its attributes is unknown here.
    """

    def __init__(self, parsed: Parsed) -> None:
        network = parsed.network
        self.parsed = parsed
        self.inputs = [Declared.of(network.get_input(index)) for index in range(network.num_inputs)]
        self.outputs = [Declared.of(network.get_output(index)) for index in range(network.num_outputs)]
        self.constants: dict[str, Array] = {}
        self.steps: list[LayerStep] = []
        for step in ordered(steps_of(parsed.trt, network), {tensor.name for tensor in self.inputs}):
            if all(name is None or name in self.constants for name in step.inputs):
                step.run(self.constants)
            else:
                self.steps.append(step)
        self.last_uses = last_uses(self.steps, {tensor.name for tensor in self.outputs})
        read = {name for step in self.steps for name in step.inputs} | {out.name for out in self.outputs}
        self.constants = {name: value for name, value in self.constants.items() if name in read}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Evaluate the network.

        Args:
            feeds: an array for every input, by name.

        Returns:
            Every output by name.

        Raises:
            InterpreterError: an input does not fit, or a layer does what TensorRT leaves undefined.
        """
        for tensor in self.inputs:
            if tensor.name not in feeds or not tensor.fits(feeds[tensor.name]):
                given = feeds.get(tensor.name)
                got = "nothing" if given is None else f"{given.dtype} {given.shape}"
                raise InterpreterError(
                    f"input {tensor.name} is {got}; expected {tensor.dtype} {tensor.shape}"
                )
        values = self.constants | dict(feeds)
        with np.errstate(all="ignore"):
            for step, freed in zip(self.steps, self.last_uses, strict=True):
                step.run(values)
                for name in freed:
                    del values[name]
        return {tensor.name: values[tensor.name] for tensor in self.outputs}


def steps_of(trt: Any, network: Any) -> Iterable[LayerStep]:
    """Every layer as a step.

    Raises:
        InterpreterError: a layer is unknown.
    """
    for layer in layers(network):
        kind = layer.type.name
        if kind not in LAYERS:
            raise InterpreterError(f"layer {layer.name} is a {kind}, which the interpreter does not evaluate")
        reads = [layer.get_input(index) for index in range(layer.num_inputs)]
        makes = tuple(Declared.of(layer.get_output(index)) for index in range(layer.num_outputs))
        names = tuple(None if tensor is None else str(tensor.name) for tensor in reads)
        yield LayerStep(str(layer.name), kind, names, makes, LAYERS[kind](trt, typed_layer(trt, layer)))


def ordered(steps: Iterable[LayerStep], known: set[str]) -> Iterable[LayerStep]:
    """The steps in an order in which every input is made before it is read.

    Raises:
        InterpreterError: a layer reads what no layer makes.
    """
    ready, waiting = set(known), list(steps)
    while waiting:
        later = []
        for step in waiting:
            if all(name is None or name in ready for name in step.inputs):
                ready |= {tensor.name for tensor in step.outputs}
                yield step
            else:
                later.append(step)
        if len(later) == len(waiting):
            raise InterpreterError(f"layer {later[0].name} reads a tensor that no layer makes")
        waiting = later


def last_uses(steps: list[LayerStep], kept: set[str]) -> list[list[str]]:
    """By step, the tensors that no later step reads and that are no outputs."""
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        for name in (*step.inputs, *(tensor.name for tensor in step.outputs)):
            if name is not None and name not in kept:
                last[name] = index
    freed: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        freed[index].append(name)
    return freed

"""An engine in device memory: its profiles, and the execution contexts that calls take and return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from valle2.engine.backends.trt.api import messages_of
from valle2.engine.backends.trt.buffers import Shape
from valle2.engine.backends.trt.cuda import Cuda
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.errors import BackendError


class LoadedEngine:
    """One engine on GPU 0, and the stream that all its calls run on.

    Args:
        trt: TensorRT's module. cuda: the stream. spec: the engine's tensors. data: the file's bytes.

    Raises:
        BackendError: TensorRT does not take the engine.
    """

    def __init__(self, trt: Any, cuda: Cuda, spec: GraphSpec, data: bytes) -> None:
        self.trt, self.cuda, self.spec = trt, cuda, spec
        self.messages = messages_of(trt)
        self.messages.clear()
        self.runtime = trt.Runtime(self.messages.logger)
        self.engine = self.runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise BackendError(f"{spec.file}: TensorRT does not take its engine: {self.messages.reason()}")
        self.contexts: list[tuple[int, Any]] = []

    def take_context(self, profile: int) -> tuple[int, Any]:
        """A context that no call uses, and the profile that it is set to.

        That is the profile asked for if such a context is free, else another one, or -1 for a new context.
        """
        if not self.contexts:
            return -1, self.engine.create_execution_context()
        fitting = [index for index, (known, _) in enumerate(self.contexts) if known == profile]
        return self.contexts.pop(fitting[0] if fitting else -1)

    def return_context(self, profile: int, context: Any) -> None:
        """Let the next call take a context."""
        self.contexts.append((profile, context))

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first profile that takes these input shapes.

        Raises:
            BackendError: none does; the message lists the ranges.
        """
        ranges = [self.ranges(index) for index in range(self.engine.num_optimization_profiles)]
        for index, known in enumerate(ranges):
            if all(is_within(shapes[name], *known[name]) for name in known):
                return index
        known = ranges[-1]
        wrong = next((n for n in known if not is_within(shapes[n], *known[n])), next(iter(known)))
        limits = ", ".join(f"{r[wrong][0]} to {r[wrong][1]}" for r in ranges)
        raise BackendError(
            f"{self.spec.file}: input {wrong} is {shapes[wrong]}; the engine takes {limits}: "
            "build it with a larger --max-batch or --max-frames"
        )

    def ranges(self, profile: int) -> dict[str, tuple[Shape, Shape]]:
        """The least and the greatest shape of every input under a profile."""
        found = {}
        for tensor in self.spec.inputs:
            low, _, high = self.engine.get_tensor_profile_shape(tensor.name, profile)
            found[tensor.name] = (tuple(low), tuple(high))
        return found

    def checked(self, value: Any, refusal: str) -> Any:
        """The result of a TensorRT call.

        Raises:
            BackendError: it is None or False; refusal says what was refused.
        """
        if value is None or value is False:
            raise BackendError(f"{self.spec.file}: the engine {refusal}: {self.messages.reason()}")
        return value

    def alias_of(self, output: str) -> str | None:
        """The input whose buffer an output updates in place. TensorRT before 10.15 has no aliases."""
        ask = getattr(self.engine, "get_aliased_input_tensor", None)
        return ask(output) if ask else None

    def close(self) -> None:
        self.contexts.clear()
        self.engine = self.runtime = None


def is_within(shape: Shape, low: Shape, high: Shape) -> bool:
    """Is a shape within a profile's range?"""
    return len(shape) == len(low) and all(a <= x <= b for a, x, b in zip(low, shape, high, strict=True))

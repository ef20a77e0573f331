"""The interface every backend has, and its checks. Named arrays in, named arrays out; never speech.

`Backend.run` takes and returns numpy arrays. `Backend.bind` fixes the buffers of a call once and
gives a `Step` whose call moves no address and allocates nothing: the decode loop's door.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from valle2.engine.bundle.specs import GraphSpec, TensorSpec
from valle2.engine.errors import BackendError

Array = NDArray[Any]
Step = Callable[[], None]
HALF_OF_TENSORRT = "bfloat16"
"""numpy has no such type: what TensorRT returns in it arrives in another."""


class Buffer(ABC):
    """Memory of one tensor on the backend's device, at an address that does not move."""

    shape: tuple[int, ...]

    @abstractmethod
    def read(self) -> Array:
        """The values. On a CPU a view of the buffer, valid until the next step; elsewhere a copy."""

    @abstractmethod
    def write(self, values: Array) -> None:
        """Overwrite the whole buffer. values: the buffer's shape and dtype."""

    @abstractmethod
    def rows(self, part: slice) -> Buffer:
        """The same memory, only these rows of the first axis; part: consecutive rows."""


class Closing(ABC):
    """Something that is closed when its `with` ends."""

    @abstractmethod
    def close(self) -> None:
        """Free what it holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Backend(Closing):
    """One loaded graph. Closing it frees its device memory."""

    spec: GraphSpec

    def run(self, feeds: Mapping[str, Array], outputs: tuple[str, ...] = ()) -> dict[str, Array]:
        """Run once.

        Args:
            feeds: every input by name. outputs: the outputs wanted, all when empty.

        Returns:
            Arrays owned by the caller.

        Raises:
            BackendError: a name, dtype or shape does not fit the graph, the device failed, or an output has
                another shape than the manifest says.
        """
        check_feeds(self.spec, feeds)
        found = self.run_checked(feeds, outputs or tuple(tensor.name for tensor in self.spec.outputs))
        check_results(self.spec, found)
        return found

    @abstractmethod
    def run_checked(self, feeds: Mapping[str, Array], outputs: tuple[str, ...]) -> dict[str, Array]:
        """Run with inputs that have been checked."""

    @abstractmethod
    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        """Allocate a zeroed buffer on the device."""

    @abstractmethod
    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Step:
        """Fix every buffer of a call. An input and an output may share one (in-place caches)."""


def check_feeds(spec: GraphSpec, feeds: Mapping[str, Array]) -> None:
    """Compare names, dtypes and shapes with the graph; named axes must agree across inputs."""
    expected = {tensor.name: tensor for tensor in spec.inputs}
    if set(feeds) != set(expected):
        missing, extra = sorted(set(expected) - set(feeds)), sorted(set(feeds) - set(expected))
        raise BackendError(f"{spec.file}: missing inputs {missing}, unknown inputs {extra}")
    sizes: dict[str, int] = {}
    for name, tensor in expected.items():
        check_feed(spec.file, tensor, feeds[name], sizes)


def check_feed(file: str, tensor: TensorSpec, value: Array, sizes: dict[str, int]) -> None:
    """Check one input; `sizes` collects what the named axes are."""
    fits = len(value.shape) == len(tensor.axes) and all(
        size == (axis if isinstance(axis, int) else sizes.setdefault(axis, size))
        for axis, size in zip(tensor.axes, value.shape, strict=True)
    )
    if not fits or value.dtype != np.dtype(tensor.dtype):
        known = {axis: sizes[axis] for axis in tensor.axes if axis in sizes}
        raise BackendError(
            f"{file}: input {tensor.name} is {value.dtype} {value.shape}; "
            f"expected {tensor.dtype} {tensor.axes} with {known}"
        )


def check_results(spec: GraphSpec, found: Mapping[str, Array]) -> None:
    """Compare outputs with the graph's entry: their types, number of axes, and the sizes that are fixed."""
    for tensor in spec.outputs:
        if tensor.name in found:
            check_shape(spec.file, tensor, found[tensor.name])


def check_shape(file: str, tensor: TensorSpec, value: Array) -> None:
    """Compare one output. An axis of 0 is one that the exporter does not know."""
    fits = len(value.shape) == len(tensor.axes) and all(
        isinstance(axis, str) or axis in (0, size)
        for axis, size in zip(tensor.axes, value.shape, strict=True)
    )
    if not fits or tensor.dtype not in (value.dtype.name, HALF_OF_TENSORRT):
        raise misfit(file, tensor.name, value, f"{tensor.dtype} {tensor.axes}")


def sized(spec: GraphSpec, name: str, value: Array, shape: tuple[int, ...]) -> Array:
    """An output whose size follows from what was fed; the graph's entry does not say it.

    Raises:
        BackendError: it has another size.
    """
    if value.shape != shape:
        raise misfit(spec.file, name, value, str(shape))
    return value


def misfit(file: str, name: str, value: Array, expected: str) -> BackendError:
    return BackendError(
        f"{file}: output {name} is {value.dtype} {value.shape}; expected {expected}: "
        "this graph is not the one that was exported, export the bundle again"
    )


class ArrayBuffer(Buffer):
    """A numpy array as a buffer."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape = array.shape

    def read(self) -> Array:
        return self.array

    def write(self, values: Array) -> None:
        self.array[...] = values

    def rows(self, part: slice) -> ArrayBuffer:
        return ArrayBuffer(self.array[part])

"""The interface of a backend, and the checks of what goes in and comes out.

`Backend.run` takes and returns numpy arrays by name. `Backend.bind` fixes the buffers of a call once and
returns a `Step`, which allocates nothing and changes no address. The decode loop calls steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from valle2.engine.bundle.specs import GraphSpec, TensorSpec
from valle2.engine.errors import BackendError

Array = NDArray[Any]
Step = Callable[[], None]
Entered = TypeVar("Entered", bound="Closing")
BFLOAT16 = "bfloat16"
"""numpy has no such type, so an output of this type arrives in another one."""


class Buffer(ABC):
    """Memory of one tensor on the backend's device, at an address that does not change."""

    shape: tuple[int, ...]

    @abstractmethod
    def read(self) -> Array:
        """The values. On a CPU this is a view that is valid until the next step; elsewhere it is a copy."""

    @abstractmethod
    def write(self, values: Array) -> None:
        """Overwrite the whole buffer. values: the buffer's shape and dtype."""

    @abstractmethod
    def rows(self, part: slice) -> Buffer:
        """Consecutive rows of the first axis, in the same memory."""


class Closing(ABC):
    """A context manager whose `with` block closes it."""

    @abstractmethod
    def close(self) -> None:
        """Free memory and other resources; the object cannot be used afterwards."""

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Backend(Closing):
    """One loaded graph. Closing it frees its device memory.

    spec: its entry in the manifest. captures_calls: whether bound calls are captured, for which the first two
    calls of each binding pay. waits: whether a bound call may return only when the device has finished it.
    Without it a backend may return earlier; calls still run one after another.
    """

    spec: GraphSpec
    captures_calls: bool = False
    waits: bool = True

    def run(self, feeds: Mapping[str, Array], outputs: tuple[str, ...] = ()) -> dict[str, Array]:
        """Run the graph once.

        Args:
            feeds: an array for every input, by name. outputs: names of the outputs wanted, empty for all.

        Returns:
            The outputs by name. The caller owns the arrays.

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
        """Run the graph once; the inputs fit it. Arguments and result are those of `run`."""

    @abstractmethod
    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        """Allocate a zeroed buffer on the device."""

    @abstractmethod
    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Step:
        """Fix the buffers of a call, and return a function that runs the graph on them.

        Args:
            inputs: a buffer for every input. outputs: a buffer for every output that is read. An input and an
                output may share one, which is how caches are updated in place.

        Raises:
            BackendError: a buffer does not fit the graph. The step raises it when the device fails.
        """


def check_feeds(spec: GraphSpec, feeds: Mapping[str, Array]) -> None:
    """Compare names, dtypes and shapes with the graph. Axes of one name must have one size.

    Raises:
        BackendError: something differs.
    """
    expected = {tensor.name: tensor for tensor in spec.inputs}
    if set(feeds) != set(expected):
        missing, extra = sorted(set(expected) - set(feeds)), sorted(set(feeds) - set(expected))
        raise BackendError(f"{spec.file}: missing inputs {missing}, unknown inputs {extra}")
    sizes: dict[str, int] = {}
    for name, tensor in expected.items():
        check_feed(spec.file, tensor, feeds[name], sizes)


def check_feed(file: str, tensor: TensorSpec, value: Array, sizes: dict[str, int]) -> None:
    """Check one input. sizes: the sizes of named axes so far, to which this input adds."""
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
    """Compare the types, number of axes and fixed sizes of outputs with the graph's entry."""
    for tensor in spec.outputs:
        if tensor.name in found:
            check_shape(spec.file, tensor, found[tensor.name])


def check_shape(file: str, tensor: TensorSpec, value: Array) -> None:
    """Compare one output. An axis of 0 is one whose size the exporter does not know."""
    fits = len(value.shape) == len(tensor.axes) and all(
        isinstance(axis, str) or axis in (0, size)
        for axis, size in zip(tensor.axes, value.shape, strict=True)
    )
    if not fits or tensor.dtype not in (value.dtype.name, BFLOAT16):
        raise unexpected_output(file, tensor.name, value, f"{tensor.dtype} {tensor.axes}")


def sized(spec: GraphSpec, name: str, value: Array, shape: tuple[int, ...]) -> Array:
    """Check an output whose shape follows from the inputs, which the graph's entry does not say.

    Returns:
        The value.

    Raises:
        BackendError: it has another shape.
    """
    if value.shape != shape:
        raise unexpected_output(spec.file, name, value, str(shape))
    return value


def unexpected_output(file: str, name: str, value: Array, expected: str) -> BackendError:
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

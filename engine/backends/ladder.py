"""Calls of a graph at a fixed set of sizes, each of which a backend can capture as a CUDA graph.

A capture replays a call for the same addresses and sizes. Requests have any length, so their inputs are
padded to the next of a few sizes, the rungs of a ladder. Every rung has buffers of its own, which are bound
once. All are captured when a model is loaded and none under traffic, because a capture stops every request.

The graph must take the lengths of its rows, and padding must not change what it returns for a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from valle2.engine.backends.base import Array, Backend, Buffer, Closing, Step, check_feeds
from valle2.engine.bundle.specs import TensorSpec

Sizes = Mapping[str, int]
"""Sizes of a graph's named axes."""
OutputShapes = Callable[[Sizes], Mapping[str, tuple[int, ...]]]
"""By name, the shapes of the outputs that are read, of a call of these sizes."""
Example = Callable[[Sizes], Mapping[str, Array]]
"""The inputs of some call of these sizes, full of values."""
MOSTLY, CLOSE, TINY = 0.9, 1e-3, 1e-6
"""How near a captured call is to the same call before: the least share of equal whole numbers; the difference
of other numbers, as a share of the greatest and by itself. A capture may get another kernel of a library."""
WARM_CALLS = 2
"""A backend that captures calls does so at the second call of a binding."""


def lengths_up_to(first: int, last: int, growth: float, step: int) -> list[int]:
    """Lengths from `first` to `last`: each is `growth` times the one before, and a multiple of `step`.

    The last one may be no multiple.
    """
    found = [min(first, last)]
    while found[-1] < last:
        longer = max(found[-1] + step, round(found[-1] * growth / step) * step)
        found.append(min(longer, last))
    return found


@dataclass(slots=True)
class Rung:
    """A call of one size. held: what its input buffers hold now."""

    sizes: Sizes
    inputs: dict[str, Buffer]
    outputs: dict[str, Buffer]
    held: dict[str, Array]
    step: Step = field(repr=False)

    def fits(self, sizes: Sizes) -> bool:
        """Are a call's sizes within this one's?"""
        return all(size <= self.sizes[name] for name, size in sizes.items())

    def run(self, feeds: Mapping[str, Array], padding: Mapping[str, int]) -> dict[str, Array]:
        """Run padded inputs. Only what differs from the call before goes to the device."""
        for name, buffer in self.inputs.items():
            padded = np.full_like(self.held[name], padding.get(name, 0))
            padded[tuple(slice(size) for size in feeds[name].shape)] = feeds[name]
            if not np.array_equal(padded, self.held[name]):
                buffer.write(padded)
                self.held[name] = padded
        self.step()
        return {name: np.array(buffer.read()) for name, buffer in self.outputs.items()}


class Ladder(Closing):
    """A graph with bound calls of several sizes. Closing it frees its buffers, and not the backend.

    Args:
        backend: the loaded graph, opened with `stepped`, so that it captures bound calls where it can.
        rungs: sizes of the named axes of its inputs, the cheapest call first. outputs: see `OutputShapes`.
        padding: by input, what rows and positions of padding hold; 0 for the others.

    Raises:
        BackendError: no memory for the buffers, or an output has another name.
    """

    def __init__(
        self,
        backend: Backend,
        rungs: Iterable[Sizes],
        outputs: OutputShapes,
        padding: Mapping[str, int] | None = None,
    ) -> None:
        self.backend, self.outputs, self.padding = backend, outputs, dict(padding or {})
        self.rungs = [self.bind(sizes) for sizes in rungs]

    def bind(self, sizes: Sizes) -> Rung:
        """Make the buffers of one rung and bind a call over them."""
        spec, shapes = self.backend.spec, self.outputs(sizes)
        held = {
            tensor.name: np.full(shape_of(tensor, sizes), self.padding.get(tensor.name, 0), tensor.dtype)
            for tensor in spec.inputs
        }
        inputs = {name: self.backend.buffer(values.shape, values.dtype) for name, values in held.items()}
        for name, values in held.items():
            inputs[name].write(values)
        dtypes = {tensor.name: tensor.dtype for tensor in spec.outputs}
        outputs = {name: self.backend.buffer(shape, dtypes[name]) for name, shape in shapes.items()}
        return Rung(sizes, inputs, outputs, held, self.backend.bind(inputs, outputs))

    def close(self) -> None:
        self.rungs.clear()

    @property
    def size(self) -> int:
        """Bytes of all buffers on the device."""
        dtypes = {tensor.name: tensor.dtype for tensor in self.backend.spec.outputs}
        made = sum(
            prod(buffer.shape) * np.dtype(dtypes[name]).itemsize
            for rung in self.rungs
            for name, buffer in rung.outputs.items()
        )
        return made + sum(values.nbytes for rung in self.rungs for values in rung.held.values())

    def warm_up(self, example: Example) -> bool:
        """Run every rung until it is captured. The largest comes first, whose memory the others reuse.

        Args:
            example: makes the inputs of a call.

        Returns:
            Whether every rung, once all are captured, replays what it returned before it was captured. If
            not, a capture reads memory that another one has overwritten, and no call may go to the ladder.
        """
        before = []
        for rung in reversed(self.rungs):
            before.append((rung, rung.run(example(rung.sizes), self.padding)))
            for _ in range(WARM_CALLS - 1):
                rung.step()
        return all(
            is_same(values, rung.run(example(rung.sizes), self.padding)[name])
            for rung, found in before
            for name, values in found.items()
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array] | None:
        """Run the graph once at the next size.

        Args:
            feeds: see `Backend.run`.

        Returns:
            The outputs of the rung, with padding behind what was asked for; None if the call fits no rung.

        Raises:
            BackendError: a name, dtype or shape does not fit the graph, or the device failed.
        """
        check_feeds(self.backend.spec, feeds)
        sizes = sizes_of(self.backend.spec.inputs, feeds)
        rung = next((rung for rung in self.rungs if rung.fits(sizes)), None)
        return rung.run(feeds, self.padding) if rung else None


def is_same(one: Array, other: Array) -> bool:
    """Whether two results of a call differ by no more than the order of sums explains."""
    if one.dtype.kind in "iub":
        return bool((one == other).mean() >= MOSTLY)
    most = CLOSE * float(np.abs(one).max()) + TINY
    return bool(np.abs(one - other).max() <= most)  # not a number is never the same


def shape_of(tensor: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a tensor in a call of these sizes."""
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes)


def sizes_of(tensors: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> dict[str, int]:
    """The sizes of named axes in a call."""
    return {
        axis: size
        for tensor in tensors
        for axis, size in zip(tensor.axes, feeds[tensor.name].shape, strict=True)
        if isinstance(axis, str)
    }

"""Layers that move values: constants, slices, reshapes, gathers and scatters."""

from __future__ import annotations

from typing import Any

import numpy as np

from valle2.engine.build.interpreter.values import (
    Array,
    Evaluate,
    Inputs,
    InterpreterError,
    numpy_type,
    sizes,
)


def constant(trt: Any, layer: Any) -> Evaluate:
    """IConstantLayer."""
    value = constant_value(layer)
    return lambda inputs: value


def constant_value(layer: Any) -> Array:
    """The weights of a constant. The types that numpy lacks come as an address."""
    shape, target = sizes(layer.shape), numpy_type(layer.get_output(0).dtype)
    weights = layer.weights
    if isinstance(weights, np.ndarray):
        return weights.reshape(shape) if weights.dtype == target else weights.view(target).reshape(shape)
    return raw_weights(weights, target, int(np.prod(shape))).reshape(shape)


def raw_weights(weights: Any, target: np.dtype[Any], count: int) -> Array:
    """Weights by address. Two values of four bits share a byte, the first in its lower half."""
    import ctypes

    nibbles = target.name == "int4"
    size = (count + 1) // 2 if nibbles else count * target.itemsize
    data = np.frombuffer(ctypes.string_at(weights.ptr, size), np.uint8)
    if not nibbles:
        return data.view(target)
    halves = np.stack([data & 15, data >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(target)


def shape(trt: Any, layer: Any) -> Evaluate:
    """IShapeLayer."""
    return lambda inputs: np.array(inputs[0].shape, np.int64)


def cut(trt: Any, layer: Any) -> Evaluate:
    """ISliceLayer: start, size and stride of every axis, or of the axes in its sixth input.

    Outside the input, the mode decides: an error, wrap around, clamp, a fill value or reflect.
    """
    mode = layer.mode.name
    static = [None if part is None else sizes(part) for part in (layer.start, layer.shape, layer.stride)]
    fixed_axes = None if layer.axes is None else sizes(layer.axes)

    def evaluate(inputs: Inputs) -> Any:
        given: list[Any] = [*inputs, *[None] * (6 - len(inputs))]
        parts: list[Any] = [
            static[index - 1] if given[index] is None else given[index] for index in (1, 2, 3)
        ]
        axes = fixed_axes if given[5] is None else given[5]
        value = given[0]
        chosen = range(value.ndim) if axes is None else [int(axis) % value.ndim for axis in axes]
        outside = np.zeros((1,) * value.ndim, bool)
        starts, counts, strides = parts
        for axis, start, size, stride in zip(chosen, starts, counts, strides, strict=True):
            index = int(start) + int(stride) * np.arange(int(size))
            inside, known = bounded(index, value.shape[axis], mode)
            value = np.take(value, inside, axis=axis) if len(inside) else empty(value, axis)
            if not known.all():
                outside = outside | ~known.reshape(
                    [-1 if other == axis else 1 for other in range(value.ndim)]
                )
        if not outside.any():
            return value
        fill = given[4] if given[4] is not None else np.zeros((), value.dtype)
        return np.where(outside, fill, value)

    return evaluate


def empty(value: Array, axis: int) -> Array:
    return value[tuple(slice(0, 0) if other == axis else slice(None) for other in range(value.ndim))]


def bounded(index: Array, size: int, mode: str) -> tuple[Array, Array]:
    """The indices within 0..size-1 that a mode reads, and where those of "FILL" are inside."""
    inside = (index >= 0) & (index < size)
    every = np.ones(len(index), bool)
    if inside.all():
        return index, every
    if mode == "WRAP":
        return index % size, every
    if mode == "CLAMP":
        return np.clip(index, 0, size - 1), every
    if mode == "REFLECT":
        period = max(1, 2 * size - 2)
        folded = index % period
        return np.where(folded < size, folded, period - folded), every
    if mode == "FILL":
        return np.clip(index, 0, max(0, size - 1)), inside
    raise InterpreterError(f"a slice reads {index.min()}..{index.max()} of an axis of {size}")


def shuffle(trt: Any, layer: Any) -> Evaluate:
    """IShuffleLayer: transpose, reshape, transpose."""
    first, second = sizes(layer.first_transpose), sizes(layer.second_transpose)
    placeholder = layer.zero_is_placeholder
    wanted = layer.get_input(1) is None if layer.num_inputs > 1 else True
    static = reshape_sizes(layer) if wanted else None

    def evaluate(inputs: Inputs) -> Any:
        value = inputs[0].transpose(first[: inputs[0].ndim])
        target = static if len(inputs) < 2 or inputs[1] is None else sizes(inputs[1])
        if target is not None:
            if placeholder:
                target = tuple(size or value.shape[axis] for axis, size in enumerate(target))
            value = value.reshape(target)
        return value.transpose(second[: value.ndim])

    return evaluate


def reshape_sizes(layer: Any) -> tuple[int, ...] | None:
    """The sizes of a reshape, None where the layer only transposes."""
    try:
        return None if layer.reshape_dims is None else sizes(layer.reshape_dims)
    except ValueError:
        return None


def squeeze(trt: Any, layer: Any) -> Evaluate:
    """ISqueezeLayer: drops the axes of its second input, or without one every axis that is fixed to 1."""
    single = tuple(axis for axis, size in enumerate(layer.get_input(0).shape) if size == 1)

    def evaluate(inputs: Inputs) -> Any:
        given = inputs[1] if len(inputs) > 1 else None
        return np.squeeze(inputs[0], axis=single if given is None else sizes(np.atleast_1d(given)))

    return evaluate


def unsqueeze(trt: Any, layer: Any) -> Evaluate:
    """IUnsqueezeLayer: adds the axes of its second input."""
    return lambda inputs: np.expand_dims(inputs[0], sizes(np.atleast_1d(inputs[1])))


def concatenation(trt: Any, layer: Any) -> Evaluate:
    """IConcatenationLayer."""
    axis = layer.axis
    return lambda inputs: np.concatenate(inputs, axis=axis)


def checked_index(index: Array, size: int, *, dynamic: bool) -> tuple[Array, Array]:
    """Indices of an axis, and where they are outside. A negative one counts from the end of a fixed axis.

    Raises:
        InterpreterError: an index is negative and the axis is dynamic, which TensorRT leaves undefined.
    """
    if dynamic and np.any(index < 0):
        raise InterpreterError(f"a gather reads index {index.min()} of a dynamic axis; expected 0 or more")
    index = np.where(index < 0, index + size, index)
    outside = (index < 0) | (index >= size)
    return np.where(outside, 0, index), outside


def gather(trt: Any, layer: Any) -> Evaluate:
    """IGatherLayer in its three modes. An index outside the data reads 0."""
    mode, axis, together = layer.mode.name, layer.axis, layer.num_elementwise_dims
    dynamic = [size < 0 for size in layer.get_input(0).shape]

    def evaluate(inputs: Inputs) -> Any:
        data, index = inputs
        if mode == "ND":
            return gather_nd(data, index, together, dynamic)
        used, outside = checked_index(index, data.shape[axis], dynamic=dynamic[axis])
        if mode == "ELEMENT":
            found = data[along(used, axis)]
            return np.where(outside, np.zeros((), data.dtype), found) if outside.any() else found
        if together:
            rows = [
                gather_axis(row, at, lost, axis - 1)
                for row, at, lost in zip(data, used, outside, strict=True)
            ]
            return np.stack(rows)
        return gather_axis(data, used, outside, axis)

    return evaluate


def gather_axis(data: Array, used: Array, outside: Array, axis: int) -> Array:
    """Parts of the data along one axis."""
    found = np.take(data, used, axis=axis)
    if not outside.any():
        return found
    lost = outside.reshape((1,) * axis + outside.shape + (1,) * (data.ndim - axis - 1))
    return np.where(lost, np.zeros((), data.dtype), found)


def gather_nd(data: Array, index: Array, together: int, dynamic: list[bool]) -> Array:
    """Parts of the data by tuples of indices, which are the last axis of `index`."""
    width, lead = index.shape[-1], index.shape[:together]
    grid = [axis.reshape(axis.shape + (1,) * (index.ndim - 1 - together)) for axis in np.indices(lead)]
    found, lost = [], np.zeros(index.shape[:-1], bool)
    for part in range(width):
        axis = together + part
        used, outside = checked_index(index[..., part], data.shape[axis], dynamic=dynamic[axis])
        found.append(used)
        lost |= outside
    values = data[tuple(grid + found)]
    hidden = lost.reshape(lost.shape + (1,) * (values.ndim - lost.ndim))
    return np.where(hidden, np.zeros((), data.dtype), values) if lost.any() else values


def along(index: Array, axis: int) -> tuple[Array, ...]:
    """Subscripts that take `index` on one axis, and each element's own position on the others."""
    grid = np.ogrid[tuple(slice(0, size) for size in index.shape)]
    return tuple(index if other == axis else part for other, part in enumerate(grid))


def scatter(trt: Any, layer: Any) -> Evaluate:
    """IScatterLayer: the data with the updates written at the indices."""
    mode, axis = layer.mode.name, layer.axis

    def evaluate(inputs: Inputs) -> Any:
        data, index, updates = inputs
        found = data.copy()
        if mode == "ELEMENT":
            if np.any(index < 0) or np.any(index >= data.shape[axis]):
                raise InterpreterError(
                    f"a scatter writes at {index.min()}..{index.max()} of {data.shape[axis]}"
                )
            found[along(index, axis)] = updates
        else:
            found[tuple(np.moveaxis(index, -1, 0))] = updates
        return found

    return evaluate


def fill(trt: Any, layer: Any) -> Evaluate:
    """IFillLayer, LINSPACE: start + sum over axes of step * position."""
    if layer.operation.name != "LINSPACE":
        raise InterpreterError(f"a fill is {layer.operation.name}; expected LINSPACE")
    target, alpha, beta = numpy_type(layer.to_type), layer.alpha, layer.beta
    static = None if layer.shape is None else sizes(layer.shape)

    def evaluate(inputs: Inputs) -> Any:
        given: list[Any] = [*inputs, *[None] * (3 - len(inputs))]
        extents: Any = static if given[0] is None else sizes(given[0])
        start = alpha if given[1] is None else given[1]
        steps = np.atleast_1d(beta if given[2] is None else given[2])
        value = np.asarray(start)
        for axis, step in zip(np.indices(extents), steps, strict=True):
            value = value + axis * step
        return np.broadcast_to(value, extents).astype(target)

    return evaluate


def one_hot(trt: Any, layer: Any) -> Evaluate:
    """IOneHotLayer: the second value of `values` where the index is the position on the new axis."""
    axis = layer.axis

    def evaluate(inputs: Inputs) -> Any:
        index, (off, on), depth = inputs
        return np.where(np.expand_dims(index, axis) == positions(index.ndim + 1, axis, int(depth)), on, off)

    return evaluate


def positions(ndim: int, axis: int, size: int) -> Array:
    """0..size-1 along one of `ndim` axes."""
    return np.arange(size).reshape([-1 if other == axis % ndim else 1 for other in range(ndim)])


def non_zero(trt: Any, layer: Any) -> Evaluate:
    """INonZeroLayer: a column of indices for each element that is not 0."""
    target = numpy_type(layer.indices_type)
    return lambda inputs: np.stack(np.nonzero(inputs[0])).astype(target)


LAYERS = {
    "CONCATENATION": concatenation,
    "CONSTANT": constant,
    "FILL": fill,
    "GATHER": gather,
    "NON_ZERO": non_zero,
    "ONE_HOT": one_hot,
    "SCATTER": scatter,
    "SHAPE": shape,
    "SHUFFLE": shuffle,
    "SLICE": cut,
    "SQUEEZE": squeeze,
    "UNSQUEEZE": unsqueeze,
}

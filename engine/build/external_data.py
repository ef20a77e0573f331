"""Writes a graph and its weights: each weight once, and in float16 where that is exact.

A float32 weight whose values are all float16 numbers is stored as float16, and a `Cast` restores it. So a
checkpoint that was saved in float16 takes half the space and computes the same float32 numbers. Weights are
read, compared and written one after another, so memory holds at most one of them twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

EXTERNAL_FROM = 1024
"""Bytes from which on a weight lies outside of the graph's own file."""
SAMPLE = 4096
"""Values of a weight that are tried in float16 before the others."""
CHUNK, COLUMNS = 1 << 20, 32
Array = NDArray[Any]
Written = tuple[TensorProto, Array]
"""A weight of a written graph: its entry, and its bytes."""


def write_graph(
    model: onnx.ModelProto, path: Path, shared: Path | None = None, apart: Mapping[str, Array] | None = None
) -> Path:
    """Write `path` and, for large weights, `path` with the suffix `.weights`.

    Args:
        model: the graph. The call changes it and removes its large weights.
        shared: a graph in the same folder. Weights that it also has are read from its file.
        apart: values by name, for weights whose data the graph does not hold.

    Returns:
        The path.
    """
    known = list(written_weights(shared)) if shared else []
    weights, casts = path.with_suffix(".weights"), []
    with weights.open("wb") as out:
        for weight in model.graph.initializer:
            values = contiguous(values_of(weight, apart or {}))
            small = exact_half(values)
            if small is not None:
                casts.append(cast_back(weight))
                values = small
            place(weight, values, known, out)
    if not weights.stat().st_size:
        weights.unlink()
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    onnx.save_model(model, str(path))
    return path


def values_of(weight: TensorProto, apart: Mapping[str, Array]) -> Array:
    """The values of a weight: as float32 if it is that, otherwise as bytes."""
    if weight.name in apart:
        return apart[weight.name]
    if weight.data_type == TensorProto.FLOAT or not weight.HasField("raw_data"):
        return numpy_helper.to_array(weight)
    return np.frombuffer(weight.raw_data, np.uint8)


def contiguous(values: Array) -> Array:
    """The values in C order. Copying a transposed matrix by a few columns at a time is 3 times as fast."""
    if values.flags.c_contiguous or values.ndim != 2:
        return np.ascontiguousarray(values)
    out = np.empty(values.shape, values.dtype)
    for start in range(0, values.shape[1], COLUMNS):
        out[:, start : start + COLUMNS] = values[:, start : start + COLUMNS]
    return out


def place(weight: TensorProto, values: Array, known: list[Written], out: IO[bytes]) -> None:
    """Put the values of a weight into the graph, or refer to `known`, or write them at the end of `out`."""
    data = values.reshape(-1).view(np.uint8)
    if data.nbytes < EXTERNAL_FROM:
        if not weight.HasField("raw_data"):
            weight.raw_data = data.tobytes()
        return
    weight.ClearField("raw_data")
    del weight.external_data[:]
    weight.data_location = TensorProto.EXTERNAL
    for other, held in known:
        if (other.data_type, other.dims) == (weight.data_type, weight.dims) and equal(held, data):
            weight.external_data.extend(other.external_data)
            return
    entries = {"location": Path(out.name).name, "offset": out.tell(), "length": data.nbytes}
    for key, value in entries.items():
        weight.external_data.add(key=key, value=str(value))
    out.write(data.data)


def written_weights(path: Path) -> Iterator[Written]:
    """The large weights of a written graph, mapped from their files, the last first."""
    files: dict[str, Array] = {}
    for weight in reversed(onnx.load(str(path), load_external_data=False).graph.initializer):
        if weight.external_data:
            at = ExternalDataInfo(weight)
            if at.location not in files:
                files[at.location] = np.memmap(path.parent / at.location, np.uint8, "r")
            start = at.offset or 0
            yield weight, files[at.location][start : start + (at.length or 0)]


def equal(one: Array, other: Array) -> bool:
    """Are these the same bytes? It stops at the first part that differs."""
    return len(one) == len(other) and all(
        np.array_equal(one[start : start + CHUNK], other[start : start + CHUNK])
        for start in range(0, len(one), CHUNK)
    )


def exact_half(values: Array) -> Array | None:
    """A large float32 weight in float16 if that is exact, else None."""
    if values.dtype != np.float32 or values.nbytes < EXTERNAL_FROM:
        return None
    flat = values.reshape(-1)
    if to_half_if_exact(flat[:: 1 + len(flat) // SAMPLE]) is None:
        return None
    return to_half_if_exact(flat)


def to_half_if_exact(values: Array) -> Array | None:
    """Float32 values in float16 if that is exact, else None."""
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        return None
    small = values.astype(np.float16)
    return small if np.array_equal(small.astype(np.float32), values) else None


def cast_back(weight: TensorProto) -> onnx.NodeProto:
    """Make the entry of a weight one of float16, under another name; returns the `Cast` that restores it."""
    name, dims = weight.name, list(weight.dims)
    weight.CopyFrom(TensorProto(name=f"{name}_half", dims=dims, data_type=TensorProto.FLOAT16))
    return helper.make_node("Cast", [weight.name], [name], f"{name}_cast", to=TensorProto.FLOAT)

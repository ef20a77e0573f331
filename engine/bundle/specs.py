"""The file and the tensors of a graph, as a manifest or a build's record lists them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from valle2.engine.bundle.schema import (
    AXIS,
    DTYPES,
    MAX_AXIS,
    MAX_RANK,
    MAX_TENSORS,
    TENSOR,
    check_graph_name,
    entries,
    listed,
    matching,
    one_of,
    whole,
    with_keys,
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph input or output. axes: a number for a fixed axis, a name for a dynamic one."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """A graph's file in the bundle and its tensors."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def graph(self) -> str:
        """Its name: "ar" for `ar.onnx`, and for `ar-portable.onnx`, the same graph in another lowering."""
        return PurePosixPath(self.file).stem.partition("-")[0]


def parse_graphs(value: object) -> dict[str, GraphSpec]:
    """Graphs by name, from parsed JSON; a ValueError says what is wrong."""
    return {name: parse_graph(graph) for name, graph in entries("graphs", value).items()}


def parse_graph(value: object) -> GraphSpec:
    """One graph, from parsed JSON; a ValueError says what is wrong."""
    parts = ("file", "inputs", "outputs")
    found = with_keys("a graph", value, parts, parts)
    file = check_graph_name("a graph's file", found["file"])
    return GraphSpec(file, *(parse_tensors(f"{part} of {file}", found[part]) for part in parts[1:]))


def parse_tensors(what: str, value: object) -> tuple[TensorSpec, ...]:
    """A list of tensors with different names."""
    found = tuple(parse_tensor(what, tensor) for tensor in listed(what, value, MAX_TENSORS))
    if len({tensor.name for tensor in found}) < len(found):
        raise ValueError(f"{what} have the same name twice")
    return found


def parse_tensor(what: str, value: object) -> TensorSpec:
    """One tensor."""
    parts = ("name", "dtype", "axes")
    found: dict[str, Any] = with_keys(f"a tensor of {what}", value, parts, parts)
    name = matching(f"a name among {what}", found["name"], TENSOR)
    axes = listed(f"the axes of {name}", found["axes"], MAX_RANK)
    dtype = one_of(f"the type of {name}", found["dtype"], DTYPES)
    return TensorSpec(name, dtype, tuple(parse_axis(name, axis) for axis in axes))


def parse_axis(name: str, value: object) -> int | str:
    """A size, 0 for an unknown one of an output, or a name."""
    if isinstance(value, str):
        return matching(f"an axis of {name}", value, AXIS)
    return whole(f"an axis of {name}", value, (0, MAX_AXIS))

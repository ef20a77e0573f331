"""Estimates the device memory that a bundle needs and the bytes that a step moves, without running it.

Weights are counted in the graphs. The sizes of caches and other inputs and outputs come from the manifest.
Activations are laid out operator by operator without fusion, so they are an upper estimate. Needs onnx.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from valle2.engine.build.precision import inline_ifs
from valle2.engine.build.weight_formats import WIDTHS
from valle2.engine.bundle.contract import CACHE_PREFIX
from valle2.engine.bundle.engine_files import graph_precision
from valle2.engine.bundle.graph_file import readable
from valle2.engine.bundle.manifest import Manifest
from valle2.engine.bundle.precisions import CUDA_LOWERING, CUDA_METHODS
from valle2.engine.bundle.profiles import Limits, largest_sizes, positions
from valle2.engine.errors import BackendError

MB, GB = 1e6, 1e9
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten")
CACHE_PASSES = {"ort": 1, "portable": 1, "primitive": 5}
"""How often a step reads or writes a whole cache. Attention reads it once.

The primitive lowering cannot update it in place. Each of two copies reads and writes it again.
"""
OUTPUT_SHAPES = {"GroupQueryAttention": (0, 3, 4)}
"""Operators without shape inference in onnx: for each output, the index of an input of the same shape."""


@dataclass(frozen=True, slots=True)
class BudgetQuery:
    """What the budget is for.

    Args:
        limits: batch and length. precision: of AR and NAR.
        memory: bytes of the device; 0 leaves out `slots_that_fit`.
        bandwidth: bytes a second of the device; 0 leaves out the time of a step.
    """

    limits: Limits
    precision: str
    memory: float = 0.0
    bandwidth: float = 0.0

    def __post_init__(self) -> None:
        if self.precision not in WIDTHS:
            raise BackendError(f"unknown precision {self.precision!r}; expected one of {', '.join(WIDTHS)}")
        if self.memory < 0 or self.bandwidth < 0:
            raise BackendError(
                f"device memory is {self.memory / GB} GB, bandwidth {self.bandwidth / GB} GB/s; "
                "expected positive numbers"
            )


@dataclass(frozen=True, slots=True)
class GraphMemory:
    """Bytes of one graph at one batch size.

    Args:
        weights: all of them. read: those that every call reads, without tables of embeddings.
        cache: the KV caches of all rows. buffers: other inputs and outputs.
        activations: the most that operators keep between inputs and outputs at any time.
    """

    weights: int
    read: int
    cache: int
    buffers: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.buffers + self.activations


def budget(folder: Path, manifest: Manifest, query: BudgetQuery) -> dict[str, Any]:
    """The budget of a bundle.

    Returns:
        `graphs`: MB of every graph. `slots`: rows. `total_mb`: MB of all rows; `slot_mb`: of one more row.
        `slots_that_fit`: rows that fit the memory. `step`: the MB that one AR step of these rows moves at
        least, and its ms at the bandwidth. `fused`, of a bundle that can have a decode graph of fused
        operators: the same for that graph, and the MB that it takes beside the others.

    Raises:
        BackendError: limits beyond the model, or a graph that cannot be read.
    """
    paths = {name: folder / spec.file for name, spec in manifest.graphs.items()}
    models = {name: read_graph(path) for name, path in paths.items()}
    slots = query.limits.max_batch

    def memory_of(rows: int) -> dict[str, GraphMemory]:
        found = {}
        for name, model in models.items():
            with readable(paths[name]):
                found[name] = graph_memory(manifest, name, model, query, rows)
        return found

    def total(rows: int) -> int:
        return sum(entry.total for entry in memory_of(rows).values())

    now = memory_of(slots)
    ar = now["ar"]
    step = ar.read + ar.cache // copies(manifest) * CACHE_PASSES[manifest.lowering]
    found: dict[str, Any] = {
        "graphs": [row(manifest, name, query, entry) for name, entry in now.items()],
        "slots": slots,
        "slot_mb": round((total(slots + 1) - total(slots)) / MB, 1),
        "total_mb": round(total(slots) / MB, 1),
        "step": {"mb": round(step / MB, 1)},
    }
    if query.memory:
        most = int(query.memory * slots // max(1, ar.cache))
        found["slots_that_fit"] = bisect_right(range(1, most + 1), query.memory, key=total)
    if query.bandwidth:
        found["step"]["ms"] = round(step / query.bandwidth * 1e3, 2)
    if manifest.lowering == CUDA_LOWERING and query.precision in CUDA_METHODS:
        with readable(paths["ar"]):
            found["fused"] = fused_step(manifest, models, query, now)
    return found


def fused_step(
    manifest: Manifest,
    models: Mapping[str, onnx.ModelProto],
    query: BudgetQuery,
    now: Mapping[str, GraphMemory],
) -> dict[str, float]:
    """A step of `ar_step` after the longest text and all frames of the query.

    AR and NAR stay in float16, the AR for prefills, so its weights are there twice. So are those of the NAR,
    which has a graph for one row and one for several, unless there is one slot. A step reads the caches as
    far as they are filled.

    Args:
        models: the graphs by name. now: their memory in the precision of the query.
    """
    half = {name: weight_bytes(models[name], "fp16")[0] for name in ("ar", "nar")}
    kept = sum(held - now[name].weights for name, held in half.items())
    kept += half["nar"] * (query.limits.max_batch > 1)
    weights, read = weight_bytes(models["ar"], query.precision)
    filled = positions(manifest, query.limits.max_frames or manifest.sizes["max_frames"])
    moved = read + now["ar"].cache * filled // manifest.cache_length
    found = {"more_mb": round((kept + weights) / MB, 1), "step_mb": round(moved / MB, 1)}
    if query.bandwidth:
        found["step_ms"] = round(moved / query.bandwidth * 1e3, 2)
    return found


def row(manifest: Manifest, name: str, query: BudgetQuery, found: GraphMemory) -> dict[str, Any]:
    """One graph for a table, in MB."""
    precision = graph_precision(manifest.graphs[name], query.precision)
    parts = ("weights", "cache", "buffers", "activations")
    return {"graph": name, "precision": precision} | {
        f"{part}_mb": round(getattr(found, part) / MB, 1) for part in parts
    }


def copies(manifest: Manifest) -> int:
    """Copies of the caches: the primitive lowering does not update them in place and needs a second one."""
    return 2 if manifest.lowering == "primitive" else 1


def read_graph(path: Path) -> onnx.ModelProto:
    """A graph, without the values of its weights.

    Raises:
        BackendError: it is not an ONNX graph.
    """
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's and onnx's errors share no base class
        raise BackendError(f"{path} is not a readable ONNX graph ({type(error).__name__})") from None


def graph_memory(
    manifest: Manifest, name: str, model: onnx.ModelProto, query: BudgetQuery, rows: int
) -> GraphMemory:
    """The memory of a graph with this many rows."""
    precision = graph_precision(manifest.graphs[name], query.precision)
    sizes = largest_sizes(manifest, name, Limits(rows, query.limits.max_frames))
    weights, read = weight_bytes(model, precision)
    tensors = tensor_bytes(model, sizes, int(WIDTHS[precision].other))
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    caches = sum(tensors[n.name] for n in model.graph.input if n.name.startswith(CACHE_PREFIX))
    buffers = sum(tensors[n] for n in names if not n.startswith(CACHE_PREFIX))
    return GraphMemory(weights, read, caches * copies(manifest), buffers, peak(model, tensors))


def weight_bytes(model: onnx.ModelProto, precision: str) -> tuple[int, int]:
    """Bytes of all weights in a precision, and of those that are not only looked up by row."""
    stored = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(stored.get(name, name), set()).add(f"{node.op_type} {place}")
    total = read = 0
    for weight in model.graph.initializer:
        by = readers.get(weight.name, set()) - {"Cast 0"}
        matrix = len(weight.dims) == 2 and by <= {"MatMul 1", "Gemm 1"}
        width: float = helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
        if weight.data_type in FLOATS:
            width = WIDTHS[precision].product if matrix else WIDTHS[precision].other
        size = int(prod(weight.dims) * width)
        total += size
        read += 0 if by == {"Gather 0"} else size
    return total, read


def tensor_bytes(model: onnx.ModelProto, sizes: Mapping[str, int], width: int) -> dict[str, int]:
    """Bytes of every tensor, by name.

    Args:
        sizes: of the named axes; `guess_size` estimates sizes that depend on values. width: bytes of a float.
    """
    sized = onnx.ModelProto.FromString(model.SerializeToString())
    for value in sized.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    make_inferable(sized)
    graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    shapes = known_shapes(graph, max(size for name, size in sizes.items() if name != "batch"))
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type.elem_type
        item = width if kind in FLOATS else helper.tensor_dtype_to_np_dtype(kind).itemsize
        found[value.name] = prod(shapes[value.name]) * item
    return found


def known_shapes(graph: onnx.GraphProto, longest: int) -> dict[str, list[int]]:
    """The shape of every tensor in numbers; a size that onnx cannot infer is guessed from its node."""
    values = (*graph.input, *graph.value_info, *graph.output)
    dims = {value.name: list(value.type.tensor_type.shape.dim) for value in values}
    shapes = {weight.name: list(weight.dims) for weight in graph.initializer}
    shapes |= {v.name: [dim.dim_value or longest for dim in dims[v.name]] for v in graph.input}
    symbols: dict[str, int] = {}
    for node in graph.node:
        for name in node.output:
            sizes = [dim.dim_value or symbols.get(dim.dim_param, 0) for dim in dims.get(name, ())]
            for axis, dim in enumerate(dims.get(name, ())):
                if not sizes[axis]:
                    sizes[axis] = symbols[dim.dim_param] = guess_size(node, axis, sizes, shapes, longest)
            shapes[name] = sizes
    return shapes


def guess_size(
    node: onnx.NodeProto, axis: int, made: list[int], shapes: Mapping[str, list[int]], longest: int
) -> int:
    """Guess the size of an axis that depends on values. made: the output's sizes, 0 where unknown."""
    inputs = [shapes.get(name, []) for name in node.input]
    if node.op_type == "Reshape":
        return max(1, prod(inputs[0]) // prod(size for size in made if size)) if made.count(0) == 1 else 1
    if node.op_type == "Concat":
        return sum(shape[axis] for shape in inputs if axis < len(shape))
    if node.op_type == "Range":
        return longest
    same = [shape[axis] for shape in inputs if len(shape) == len(made)]
    return max(same, default=longest)


def make_inferable(model: onnx.ModelProto) -> None:
    """Replace operators without shape inference by operators whose outputs have the same shapes."""
    inline_ifs(model)
    nodes = []
    for node in model.graph.node:
        for place, name in enumerate(node.output if node.op_type in OUTPUT_SHAPES else ()):
            nodes.append(
                helper.make_node("Identity", [node.input[OUTPUT_SHAPES[node.op_type][place]]], [name])
            )
        if node.op_type not in OUTPUT_SHAPES:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def peak(model: onnx.ModelProto, tensors: Mapping[str, int]) -> int:
    """The most bytes alive between operators in the graph's order, without inputs, outputs and weights."""
    outer = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    roots: dict[str, str] = {}
    last: dict[str, int] = {}
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            last[roots.get(name, name)] = index
        if node.op_type in VIEWS:
            roots[node.output[0]] = roots.get(node.input[0], node.input[0])
    alive = most = 0
    for index, node in enumerate(model.graph.node):
        made = [name for name in node.output if name not in outer and name not in roots]
        alive += sum(tensors.get(name, 0) for name in made)
        most = max(most, alive)
        used = {roots.get(name, name) for name in node.input} | set(made)
        ended = [n for n in used if n not in outer and last.get(n, index) == index]
        alive -= sum(tensors.get(name, 0) for name in ended)
    return most

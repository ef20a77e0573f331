"""Converts a stored float32 graph to another precision. No torch.

Everything that `logits` and the caches are computed from takes the new type. The sampler, which follows the
logits, stays in float32 because its cumulative sums decide which code is drawn. A graph without logits stays
in float32 as a whole: the codec computes logarithms and phases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from valle2.engine.build.quantize import store_weights
from valle2.engine.build.weight_formats import STORAGES, compute_precision
from valle2.engine.bundle.contract import CACHE_PREFIX, LOGITS, MASK_VALUE
from valle2.engine.bundle.specs import GraphSpec, TensorSpec
from valle2.engine.errors import BackendError

PRECISIONS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
LOWEST = float(np.finfo(np.float32).min)
"""How the exporter's tracer hides a position. It has no float16, so `MASK_VALUE` takes its place."""


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a graph that changes type: the indices of its nodes, and the names of their outputs."""

    nodes: frozenset[int]
    made: frozenset[str]


def load_graph(path: Path, precision: str) -> onnx.ModelProto:
    """Read a graph of a bundle and convert it to a precision.

    Args:
        path: the `.onnx` file, with its weights beside it.
        precision: "fp32", "fp16" or "bf16". With "int8", "int4" or "fp8" only the weights of matrix products
            are stored in that type, and the graph computes in float16.

    Raises:
        BackendError: an unknown precision, a file that is no ONNX graph, or a weight beyond the type's range.
    """
    known = (*PRECISIONS, *STORAGES)
    if precision not in known:
        raise BackendError(f"unknown precision {precision!r}; expected one of {', '.join(known)}")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's and onnx's errors share no base class
        raise BackendError(f"{path} is not a readable ONNX graph ({type(error).__name__})") from None
    unpack(model)
    if precision != "fp32" and any(value.name == LOGITS for value in model.graph.output):
        if precision in STORAGES:
            store_weights(model, STORAGES[precision])
        convert(model, PRECISIONS[compute_precision(precision)])
    return model


def converted_spec(spec: GraphSpec, model: onnx.ModelProto) -> GraphSpec:
    """The tensors of the converted graph: names and axes as in the bundle, types as they are now."""
    kinds = {
        value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
        for value in [*model.graph.input, *model.graph.output]
    }
    renamed = {"float": "float32"}

    def typed(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, dtype=renamed.get(kinds[t.name], kinds[t.name])) for t in tensors)

    return replace(spec, inputs=typed(spec.inputs), outputs=typed(spec.outputs))


def unpack(model: onnx.ModelProto) -> None:
    """Undo `external_data`: replace each float16 weight and its `Cast` by the weight in its own type."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in weights:
            weight = weights[node.input[0]]
            model.graph.initializer.append(retyped(weight, attribute(node, "to").i, node.output[0]))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | {value.name for value in model.graph.output}
    left = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)


def inline_ifs(model: onnx.ModelProto) -> None:
    """Replace each `If` whose `else` branch is a single operator by that operator.

    The exporter writes such an `If` around attention without a cache. `else` takes every input. `then` is
    faster for rows that fill every position, and on a CPU it exists in float32 only.
    """
    for node in model.graph.node:
        if node.op_type == "If" and len(inner := attribute(node, "else_branch").g.node) == 1:
            only = onnx.NodeProto.FromString(inner[0].SerializeToString())
            only.output[0] = node.output[0]
            node.CopyFrom(only)


def convert(model: onnx.ModelProto, kind: int) -> None:
    """Give the nodes of `find_region` the type `kind`, and put a `Cast` on every border of the region."""
    inline_ifs(model)
    floats = float_tensors(model)
    region = find_region(model)
    for index in region.nodes:
        retype_node(model.graph.node[index], kind)
    split_weights(model, region, kind)
    for value in [*model.graph.input, *model.graph.output]:
        if value.name.startswith(CACHE_PREFIX):
            value.type.tensor_type.elem_type = kind
    cast_borders(model, region, floats, kind)
    del model.graph.value_info[:]


def find_region(model: onnx.ModelProto) -> Region:
    """The nodes that the logits and the caches are computed from."""
    makers = {name: i for i, node in enumerate(model.graph.node) for name in node.output}
    todo = [value.name for value in model.graph.output if value.name.startswith((LOGITS, CACHE_PREFIX))]
    nodes: set[int] = set()
    while todo:
        index = makers.get(todo.pop())
        if index is not None and index not in nodes:
            nodes.add(index)
            todo += model.graph.node[index].input
    made = {name for index in nodes for name in model.graph.node[index].output}
    return Region(frozenset(nodes), frozenset(made))


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 tensors except weights."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=False)
    graph = inferred.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def retype_node(node: onnx.NodeProto, kind: int) -> None:
    """Change the types in the attributes of a node."""
    for entry in node.attribute:
        if entry.name == "to" and entry.i == TensorProto.FLOAT:
            entry.i = kind
        if entry.type == onnx.AttributeProto.TENSOR and entry.t.data_type == TensorProto.FLOAT:
            entry.t.CopyFrom(retyped(entry.t, kind, entry.t.name))


def split_weights(model: onnx.ModelProto, region: Region, kind: int) -> None:
    """Retype the weights of the region. A weight that is also read outside is kept in both types."""
    weights = {w.name: w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT}
    outside = {n for i, node in enumerate(model.graph.node) if i not in region.nodes for n in node.input}
    inside = {name for index in region.nodes for name in model.graph.node[index].input}
    for name in sorted(inside & set(weights)):
        if name not in outside:
            weights[name].CopyFrom(retyped(weights[name], kind, name))
            continue
        model.graph.initializer.append(retyped(weights[name], kind, f"{name}_typed"))
        for index in region.nodes:
            rename(model.graph.node[index].input, name, f"{name}_typed")


def cast_borders(model: onnx.ModelProto, region: Region, floats: set[str], kind: int) -> None:
    """Put a `Cast` where a float tensor enters or leaves the region. Caches change their type instead."""
    outputs = {value.name for value in model.graph.output}
    nodes = list(enumerate(model.graph.node))
    read_outside = {name for index, node in nodes if index not in region.nodes for name in node.input}
    leaving = {n for n in region.made & floats & (read_outside | outputs) if not n.startswith(CACHE_PREFIX)}
    read_inside = {name for index in region.nodes for name in model.graph.node[index].input}
    entering = {n for n in (read_inside & floats) - region.made if not n.startswith(CACHE_PREFIX)}
    ordered: list[onnx.NodeProto] = [cast(name, f"{name}_typed", kind) for name in sorted(entering)]
    for index, node in nodes:
        if index in region.nodes:
            for name in entering | leaving:
                rename(node.input, name, f"{name}_typed")
                rename(node.output, name, f"{name}_typed")
        ordered.append(node)
        made = [n.removesuffix("_typed") for n in node.output if n.removesuffix("_typed") in leaving]
        ordered += [cast(f"{name}_typed", name, TensorProto.FLOAT) for name in made]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}_cast", to=kind)


def rename(names: Any, old: str, new: str) -> None:
    """Replace a name in a node's list of inputs or outputs."""
    for position, name in enumerate(names):
        if name == old:
            names[position] = new


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    found: onnx.AttributeProto = next(entry for entry in node.attribute if entry.name == name)
    return found


def retyped(tensor: TensorProto, kind: int, name: str) -> TensorProto:
    """A copy of a tensor in another floating type.

    Raises:
        BackendError: a finite value does not fit the type.
    """
    values = numpy_helper.to_array(tensor)
    if tensor.data_type == TensorProto.FLOAT:
        values = np.where(values == LOWEST, np.float32(MASK_VALUE), values)
    with np.errstate(over="ignore"):
        small = values.astype(helper.tensor_dtype_to_np_dtype(kind))
    if not np.array_equal(np.isinf(small), np.isinf(values)):
        raise BackendError(
            f"weight {tensor.name} does not fit {helper.tensor_dtype_to_string(kind)}; "
            "use bf16, which TensorRT's engines have, or fp32"
        )
    return numpy_helper.from_array(small, name)

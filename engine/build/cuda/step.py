"""The decode graph for CUDA: one new position of every row, rewritten from the AR graph of the same bundle.

A prefill stays on the AR graph, and both share the KV caches. A step sees every position before it, also in a
model whose text attends in both directions. So `GroupQueryAttention` needs no mask here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from valle2.engine.build.cuda.reader import (
    Block,
    GraphReader,
    Linear,
    Norm,
    UnsupportedGraphError,
    Weight,
    given,
)
from valle2.engine.build.cuda.sampler import CLASSES, SamplerSizes, write_sampler
from valle2.engine.build.cuda.writer import GraphWriter
from valle2.engine.bundle.contract import CACHE_PREFIX, EOS_CODE, LOGITS, OUT_SUFFIX, STEP
from valle2.engine.bundle.signatures import step_tensors
from valle2.engine.bundle.specs import GraphSpec, TensorSpec

OPSET = 24
HEAD_STEP, ROTARY_STEP, MAX_HEAD = 8, 16, 256
"""Of what `GroupQueryAttention` takes heads to be a multiple, also with rotary positions, and their width."""
KINDS = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT, "bool": TensorProto.BOOL}


@dataclass(frozen=True, slots=True)
class ARParts:
    """What a decode step computes with.

    Args:
        codes: (1025, d), the code table. group: the product that embeds a group, None for one code.
        positions: (groups, d) of a group's position, None for rotary positions.
        blocks: the layers. last: the normalisation after them, None if they normalise last.
        head: (d, G * 1025), from the hidden vector to the logits of all slots.
        heads, head_width, capacity: of the caches. argmax_ends: see `export.models.config`.
    """

    codes: Weight
    group: Linear | None
    positions: Weight | None
    blocks: list[Block]
    last: Norm | None
    head: Linear
    heads: int
    head_width: int
    capacity: int
    argmax_ends: bool


def step_graph(model: onnx.ModelProto, sizes: Mapping[str, int], window: int) -> onnx.ModelProto:
    """The decode graph in float32.

    Args:
        model: the AR graph in the lowering "portable", its weights in float32. It is not changed.
        sizes: the manifest's. window: codes of history that the runtime keeps.

    Raises:
        UnsupportedGraphError: the graph has a form without a fused version.
    """
    parts = read_ar(GraphReader(model), sizes["layers"])
    return write_step(parts, sizes, window)


def read_ar(graph: GraphReader, layers: int) -> ARParts:
    """Take an AR graph apart."""
    try:
        return read_parts(graph, layers)
    except (KeyError, IndexError, ValueError) as error:
        raise UnsupportedGraphError(f"its form is unknown ({type(error).__name__}: {error})") from None


def read_parts(graph: GraphReader, layers: int) -> ARParts:
    hidden, head = read_head(graph)
    last = None
    if graph.makers[hidden].op_type != "Gather":
        hidden, last = graph.norm(hidden)
    name = graph.through(hidden, "Gather", "GatherElements")
    blocks: list[Block] = []
    for index in reversed(range(layers)):
        name, block, attention = graph.block(name)
        check_attention(graph, attention, index)
        blocks.insert(0, block)
        check_width(graph, index, rotary=block.rotary is not None)
    table, group, positions = read_embedding(graph, name)
    dims = graph.inputs[f"{CACHE_PREFIX}key_0"].type.tensor_type.shape.dim
    heads, capacity, width = (dim.dim_value for dim in dims[1:])
    if not capacity:
        raise UnsupportedGraphError("its caches have no fixed length")
    return ARParts(table, group, positions, blocks, last, head, heads, width, capacity, ends_at_argmax(graph))


def read_head(graph: GraphReader) -> tuple[str, Linear]:
    """The hidden vector before the head, and the head with the group's own product multiplied in."""
    source, head = graph.linear(LOGITS)
    source = graph.through(source, "Reshape")
    made = graph.makers[source]
    if made.op_type not in ("Gemm", "MatMul"):
        return source, head
    hidden, spread = graph.linear(source)
    if spread.bias is not None:
        raise UnsupportedGraphError("the group's product has a bias")
    width = head.weight.shape[0]
    slots = spread.weight.reshape(len(spread.weight), -1, width) @ head.weight
    bias = None if head.bias is None else np.tile(head.bias, slots.shape[1])
    return hidden, Linear(slots.reshape(len(slots), -1), bias)


def read_embedding(graph: GraphReader, name: str) -> tuple[Weight, Linear | None, Weight | None]:
    """The code table, the group's product and the position table of the embedding of a group."""
    source, positions = graph.node(name, "Where").input[2], None
    made = graph.makers[source]
    if made.op_type == "Add":
        source, other = made.input
        positions = graph.weight(graph.node(other, "Gather").input[0])
        made = graph.makers[source]
    if made.op_type == "Where":  # `<bos>` or a group
        source = made.input[2]
    group = None
    if graph.makers[source].op_type in ("MatMul", "Gemm"):
        source, group = graph.linear(source)
    table = graph.node(graph.through(source, "Reshape"), "Gather")
    codes = graph.weight(table.input[0])
    if codes is None or table.input[1] != "codes" or (group and group.bias is not None):
        raise UnsupportedGraphError("the embedding of a group is unknown")
    return codes, group, positions


def check_attention(graph: GraphReader, node: onnx.NodeProto, layer: int) -> None:
    """Refuse attention over other tensors than the layer's caches, or with another scale."""
    for name, part in zip(node.input[1:3], ("key", "value"), strict=True):
        scatter = graph.node(name, "TensorScatter")
        if scatter.input[0] != f"{CACHE_PREFIX}{part}_{layer}":
            raise UnsupportedGraphError(f"layer {layer} attends over {scatter.input[0]}")
    width = graph.inputs[f"{CACHE_PREFIX}key_{layer}"].type.tensor_type.shape.dim[3].dim_value
    if not math.isclose(given(node, "scale", 0.0), 1 / math.sqrt(width), rel_tol=1e-5):
        raise UnsupportedGraphError(f"layer {layer} scales its scores otherwise")


def check_width(graph: GraphReader, layer: int, *, rotary: bool) -> None:
    """Refuse heads that `GroupQueryAttention` does not take."""
    width = graph.inputs[f"{CACHE_PREFIX}key_{layer}"].type.tensor_type.shape.dim[3].dim_value
    step = ROTARY_STEP if rotary else HEAD_STEP
    if width % step or width > MAX_HEAD:
        raise UnsupportedGraphError(
            f"its heads are {width} wide; GroupQueryAttention takes multiples of {step} up to {MAX_HEAD}"
        )


def takes_rotary(width: int) -> bool:
    """Whether `GroupQueryAttention` takes heads of this width with rotary positions."""
    return width % ROTARY_STEP == 0 and width <= MAX_HEAD


def ends_at_argmax(graph: GraphReader) -> bool:
    """Whether the sampler compares the likeliest class with `<eos>`."""
    ranked = next(node for node in graph.model.graph.node if node.op_type == "TopK")
    slices = {
        node.output[0]
        for node in graph.model.graph.node
        if node.op_type == "Slice" and node.input[0] == ranked.output[1]
    }
    return any(
        node.op_type == "Equal" and node.input[0] in slices and graph.weight(node.input[1]) == EOS_CODE
        for node in graph.model.graph.node
    )


def write_step(parts: ARParts, sizes: Mapping[str, int], window: int) -> onnx.ModelProto:
    """The graph of these parts."""
    graph, group = GraphWriter(), sizes["group_size"]
    draws = sizes["max_frames"] // group
    embedded, places = write_embedding(graph, parts, group)
    last = graph.cast("past_lengths", "last_positions", TensorProto.INT32)
    total = graph.const("cache_length", np.array(parts.capacity, np.int32))

    def attend(source: str, name: str, layer: int) -> str:
        packed = graph.linear(source, parts.blocks[layer].qkv, f"{name}.qkv")
        caches = [f"{CACHE_PREFIX}{part}_{layer}" for part in ("key", "value")]
        tables = rotary_tables(graph, parts.blocks[layer], parts.capacity)
        return graph.contrib(
            "GroupQueryAttention",
            [packed, "", "", *caches, last, total, *tables],
            [name, *(f"{cache}{OUT_SUFFIX}" for cache in caches)],
            num_heads=parts.heads,
            kv_num_heads=parts.heads,
            do_rotary=int(bool(tables)),
        )

    hidden = graph.blocks(embedded, places, parts.blocks, parts.last, attend)
    scores = graph.linear(hidden, parts.head, "scores")
    logits = graph.view(scores, LOGITS, -1, group, CLASSES)
    write_sampler(graph, logits, SamplerSizes(group, window, draws, parts.argmax_ends))
    one = graph.scalar(1, np.int64)
    graph.op("Add", ["past_lengths", "new_lengths"], f"past_lengths{OUT_SUFFIX}")
    graph.op("Add", ["steps", one], f"steps{OUT_SUFFIX}")
    wanted = step_tensors(sizes, parts.capacity, window)
    return graph.model(STEP, values(wanted.inputs), values(wanted.outputs), OPSET)


def write_embedding(graph: GraphWriter, parts: ARParts, group: int) -> tuple[str, str]:
    """The embedding of the latest group (B, 1, d), and its position's (B, 1, d), empty for none."""
    width = parts.codes.shape[1]
    rows = graph.op("Gather", [graph.const("code_table", parts.codes), "codes"], "code_rows", axis=0)
    embedded = graph.view(rows, "code_group", -1, 1, group * width)
    if parts.group is not None:
        embedded = graph.linear(embedded, parts.group, "group")
    if parts.positions is None:
        return embedded, ""
    index = graph.op("Sub", ["past_lengths", "text_lengths"], "group_index")
    # a row for each position of the cache; idle rows before the end of their text read some row from the end
    table = graph.const("code_positions", lengthened(parts.positions, parts.capacity))
    places = graph.op("Gather", [table, index], "place_rows", axis=0)
    return embedded, graph.view(places, "places", -1, 1, width)


def rotary_tables(graph: GraphWriter, block: Block, capacity: int) -> list[str]:
    """The tables of rotary positions with a row for each position of the cache; none without them.

    Positions behind the model's last one have its angles.
    """
    if block.rotary is None:
        return []
    tables = zip(("cosines", "sines"), block.rotary, strict=True)
    return [graph.const(name, lengthened(table, capacity)) for name, table in tables]


def lengthened(table: Weight, rows: int) -> Weight:
    """A table with so many rows: of a shorter one the last row is repeated."""
    return table[np.minimum(np.arange(rows), len(table) - 1)]


def values(tensors: Mapping[str, Any]) -> list[onnx.ValueInfoProto]:
    """Inputs or outputs of a graph; an axis without a size gets a name of its own."""
    return [
        helper.make_tensor_value_info(
            name, KINDS[kinds[0]], [axis or f"{name}_{n}" for n, axis in enumerate(axes)]
        )
        for name, (kinds, axes) in tensors.items()
    ]


def written_spec(model: onnx.ModelProto, file: str) -> GraphSpec:
    """The tensors of a graph that a `GraphWriter` has written, after a conversion to another type."""

    def tensors(found: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(value.name, *typed_axes(value.type.tensor_type)) for value in found)

    return GraphSpec(file, tensors(model.graph.input), tensors(model.graph.output))


def typed_axes(kind: onnx.TypeProto.Tensor) -> tuple[str, tuple[int | str, ...]]:
    """The dtype and the axes of a tensor."""
    axes = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return helper.tensor_dtype_to_np_dtype(kind.elem_type).name, axes

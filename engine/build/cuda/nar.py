"""The NAR for one row without padding on CUDA, rewritten with fused operators.

Full attention over such a row needs no mask, so ONNX Runtime takes its flash kernel. With rotary positions,
`GroupQueryAttention` also rotates: it counts the positions of the row, as the model does. It puts out keys
and values that nobody reads, because its CUDA kernel demands these outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from valle2.engine.build.cuda.nar_input import drop_text_masks, join_tail, move_biases, pack_codebooks
from valle2.engine.build.cuda.nar_output import fuse_choice, fuse_head
from valle2.engine.build.cuda.reader import Block, GraphReader, Norm, UnsupportedGraphError
from valle2.engine.build.cuda.rewrite import replace_nodes
from valle2.engine.build.cuda.step import takes_rotary
from valle2.engine.build.cuda.writer import GraphWriter
from valle2.engine.bundle.contract import LOGITS
from valle2.engine.bundle.nar_inputs import BATCH_AXIS

OPTIONAL = pack_codebooks, drop_text_masks, move_biases, join_tail, fuse_head, fuse_choice
"""Rewrites of what lies around the blocks. Each is left out where the graph has another form."""


def nar_graph(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The NAR for one row in float32.

    Args:
        model: the NAR in the lowering "portable", its weights in float32. It is not changed.
        sizes: the manifest's.

    Raises:
        UnsupportedGraphError: the blocks have a form without a fused version.
    """
    made: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    try:
        source, hidden, blocks, last = read_blocks(GraphReader(made), sizes["nar_layers"])
    except (KeyError, IndexError, ValueError) as error:
        raise UnsupportedGraphError(f"its form is unknown ({type(error).__name__}: {error})") from None
    graph = GraphWriter()
    seen = whole_row(graph, source, blocks[0], sizes)
    result = graph.blocks(
        source,
        "",
        blocks,
        last,
        lambda source, name, layer: attend(graph, blocks[layer], sizes, seen, source, name),
        write_pick(graph, GraphReader(made), blocks[-1].picked),
    )
    replace_nodes(made, hidden, graph, result)
    for value in made.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH_AXIS:
                dim.dim_value = 1
    for rewrite in OPTIONAL:
        with suppress(UnsupportedGraphError, KeyError, IndexError, ValueError):
            rewrite(made, sizes)
    return made


def read_blocks(graph: GraphReader, layers: int) -> tuple[str, str, list[Block], Norm | None]:
    """The input of the first block, the tensor before the head, the blocks, and the norm after them."""
    hidden = graph.node(LOGITS, "MatMul", "Add").input[0]
    if graph.makers[LOGITS].op_type == "Add":
        hidden = graph.node(hidden, "MatMul").input[0]
    name, last = hidden, None
    if graph.is_norm(hidden) and graph.makers[graph.norm(hidden)[0]].op_type == "Add":
        inner = graph.norm(hidden)
        if ends_block(graph, inner[0]):
            name, last = inner
    blocks: list[Block] = []
    for _ in range(layers):
        name, block, _ = graph.block(name)
        blocks.insert(0, block)
    if any(block.picked for block in blocks[:-1]):
        raise UnsupportedGraphError("a block before the last drops positions")
    return name, hidden, blocks, last


def ends_block(graph: GraphReader, name: str) -> bool:
    """Whether a tensor is the output of a block that normalises first."""
    try:
        return graph.block(name)[1].norm_first
    except UnsupportedGraphError:
        return False


def write_pick(graph: GraphWriter, reader: GraphReader, places: str) -> Callable[[str, str, str], str] | None:
    """How the positions of the target are taken: they lie side by side, so a `Slice` does it.

    None where they are made in another way.
    """
    try:
        part = reader.node(reader.through(places, "Reshape"), "Slice")
        counted = reader.node(part.input[0], "Range")
        start = reader.node(reader.through(part.input[1], "Reshape", "Gather", "Reshape"), "Add")
        least = reader.node(start.input[0], "ReduceMin")
    except (UnsupportedGraphError, KeyError, IndexError):
        return None
    if least.input[0] != "prompt_lengths" or reader.weight(counted.input[0]) != 0:
        return None
    ends: list[str] = []

    def pick(source: str, _: str, name: str) -> str:
        if not ends:
            ends.append(graph.op("Add", ["prompt_lengths", start.input[1]], "target_start"))
            ends.append(graph.view(counted.input[1], "target_end", 1))
        return graph.op("Slice", [source, *ends, graph.ints(1)], name)

    return pick


@dataclass(frozen=True, slots=True)
class SeenPositions:
    """Which positions of its row an attention sees, as names of tensors.

    Args:
        places: the rotary positions (B, S), or a number that the first position of a row has.
        ends: gives the last position of each row (B,) and S, both int32, as `GroupQueryAttention` takes them.
        lengths: positions that are seen of each row, (B,) int32. Empty where all are.
    """

    places: str
    ends: Callable[[], list[str]]
    lengths: str = ""


def whole_row(graph: GraphWriter, source: str, block: Block, sizes: Mapping[str, int]) -> SeenPositions:
    """All positions of the one row (1, S, d) are seen."""
    if block.rotary is None or not takes_rotary(head_width(block, sizes)):
        return SeenPositions(block.places, list)
    count = graph.op("Shape", [source], "row_length", start=1, end=2)
    count = graph.cast(count, "row_length_32", TensorProto.INT32)
    last = graph.op("Sub", [count, graph.const("one_32", np.array([1], np.int32))], "last_position")
    total = graph.op("Squeeze", [count, graph.ints(0)], "row_total")
    rotary_tables(graph, block)
    return SeenPositions(block.places, lambda: [last, total])


def head_width(block: Block, sizes: Mapping[str, int]) -> int:
    """Numbers of one head of a block."""
    return int(block.qkv.weight.shape[1]) // 3 // sizes["nar_heads"]


def rotary_tables(graph: GraphWriter, block: Block) -> list[str]:
    return [graph.const(*table) for table in zip(("cosines", "sines"), block.rotary or (), strict=False)]


def attend(
    graph: GraphWriter, block: Block, sizes: Mapping[str, int], seen: SeenPositions, source: str, name: str
) -> str:
    """Full attention: (B, S, d) -> (B, S, H*D). Without rotary positions, its product is part of it."""
    width, heads = block.qkv.weight.shape[1] // 3, sizes["nar_heads"]
    if block.rotary is None:
        weight = graph.const(f"{name}.weight", block.qkv.weight)
        bias = np.zeros(3 * width, np.float32) if block.qkv.bias is None else block.qkv.bias
        inputs = [source, weight, graph.const(f"{name}.bias", bias), *filter(None, [seen.lengths])]
        return graph.contrib("Attention", inputs, [name], num_heads=heads, qkv_hidden_sizes=[width] * 3)
    packed, tables = graph.linear(source, block.qkv, f"{name}.qkv"), rotary_tables(graph, block)
    if takes_rotary(head_width(block, sizes)):
        outputs = [name, f"{name}.keys", f"{name}.values"]
        kind = {"num_heads": heads, "kv_num_heads": heads, "do_rotary": 1, "causal": 0}
        inputs = [packed, "", "", "", "", *seen.ends(), *tables]
        return graph.contrib("GroupQueryAttention", inputs, outputs, **kind)
    parts = [f"{name}.{part}" for part in ("query", "key", "value")]
    split = helper.make_node("Split", [packed], parts, f"{name}.split", axis=2, num_outputs=3)
    graph.nodes.append(split)
    for index in range(2):
        inputs, rotated = [parts[index], seen.places, *tables], f"{parts[index]}.rotated"
        parts[index] = graph.contrib("RotaryEmbedding", inputs, [rotated], num_heads=heads)
    if seen.lengths:
        parts += ["", seen.lengths]
    return graph.contrib("MultiHeadAttention", parts, [name], num_heads=heads)

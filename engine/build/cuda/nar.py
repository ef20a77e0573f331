"""The NAR for one row without padding on CUDA: its blocks rewritten with fused operators.

Full attention over such a row needs no mask, so ONNX Runtime takes its flash kernel. Around the blocks, only
the embedding of the frames is rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import onnx
from onnx import TensorProto, helper

from valle2.engine.build.cuda.reader import Block, GraphReader, Norm, UnsupportedGraphError, given
from valle2.engine.build.cuda.writer import GraphWriter
from valle2.engine.build.quantize import DOMAIN, drop_unused
from valle2.engine.bundle.contract import LOGITS
from valle2.engine.bundle.nar_inputs import BATCH_AXIS


def nar_graph(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The NAR for one row in float32.

    Args:
        model: the NAR in the lowering "portable", its weights in float32. It is not changed.
        sizes: the manifest's.

    Raises:
        UnsupportedGraphError: the graph has a form without a fused version.
    """
    made: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    with suppress(UnsupportedGraphError, KeyError, IndexError):
        pack_codebooks(made, sizes["codebooks"])
    try:
        source, hidden, blocks, last = read_blocks(GraphReader(made), sizes["nar_layers"])
    except (KeyError, IndexError, ValueError) as error:
        raise UnsupportedGraphError(f"its form is unknown ({type(error).__name__}: {error})") from None
    graph = GraphWriter()
    result = graph.blocks(source, "", blocks, last, lambda *packed: attend(graph, blocks, sizes, *packed))
    replace_nodes(made, hidden, graph, result)
    for value in made.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH_AXIS:
                dim.dim_value = 1
    return made


def pack_codebooks(model: onnx.ModelProto, books: int) -> None:
    """Embed all codebooks of the frames at once, where they are embedded one after another.

    The embedding of a frame is the sum over its codebooks that are seen: a product of a vector of zeros and
    ones with the rows of the table.

    Raises:
        UnsupportedGraphError: they are embedded otherwise. The graph is as before.
    """
    reader, graph = GraphReader(model), GraphWriter()
    total = last_sum(reader, books)
    name, offsets, prompts, tables = total, [0], set(), set()
    for book in range(books - 1, 0, -1):
        name, added = reader.node(name, "Add").input
        mask, rows = reader.node(added, "Mul").input
        seen = reader.node(reader.through(mask, "Unsqueeze", "Cast"), "Or")
        later = reader.node(seen.input[1], "Greater")
        table, offset = codebook_rows(reader, rows, book)
        if later.input[0] != "stage" or reader.weight(later.input[1]) != book:
            raise UnsupportedGraphError(f"codebook {book} is seen at other stages")
        offsets.insert(1, offset)
        prompts.add(seen.input[0])
        tables.add(table)
    tables.add(codebook_rows(reader, name, 0)[0])
    if len(prompts) != 1 or len(tables) != 1:
        raise UnsupportedGraphError("codebooks are embedded in different ways")
    earlier = graph.op("Greater", ["stage", graph.const("books", np.arange(books))], "earlier_books")
    prompt = graph.op("Unsqueeze", [prompts.pop(), graph.ints(2)], "prompt_frames")
    seen_name = graph.cast(graph.op("Or", [earlier, prompt], "seen_books"), "seen_numbers", TensorProto.FLOAT)
    ids = graph.op("Add", ["codes", graph.const("book_offsets", np.array(offsets, np.int64))], "book_rows")
    rows = graph.op("Gather", [tables.pop(), ids], "book_embeddings", axis=0)
    weights = graph.op("Unsqueeze", [seen_name, graph.ints(2)], "book_weights")
    summed = graph.op("MatMul", [weights, rows], "book_sum")
    result = graph.op("Squeeze", [summed, graph.ints(2)], "frame_embeddings")
    replace_nodes(model, total, graph, result)


def last_sum(reader: GraphReader, books: int) -> str:
    """The sum to which the last codebook is added."""
    for node in reader.model.graph.node:
        if node.op_type == "Add" and len(node.input) == 2 and node.input[1] in reader.makers:
            product = reader.makers[node.input[1]]
            if product.op_type == "Mul" and product.input[1] in reader.makers:
                with suppress(UnsupportedGraphError):
                    codebook_rows(reader, product.input[1], books - 1)
                    return str(node.output[0])
    raise UnsupportedGraphError("codebooks are not embedded one after another")


def codebook_rows(reader: GraphReader, name: str, book: int) -> tuple[str, int]:
    """The table that a codebook's rows come from, and its first row there."""
    rows, offset = reader.node(name, "Gather"), 0
    index = rows.input[1]
    if reader.node(index, "Add", "Gather").op_type == "Add":
        index, first = reader.split_weight(reader.node(index, "Add"))
        offset = int(first)
    column = reader.node(index, "Gather")
    if column.input[0] != "codes" or reader.weight(column.input[1]) != book or given(column, "axis", 0) != 2:
        raise UnsupportedGraphError(f"{name} is not codebook {book}")
    return rows.input[0], offset


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


def attend(
    graph: GraphWriter, blocks: list[Block], sizes: Mapping[str, int], source: str, name: str, layer: int
) -> str:
    """Full attention: (1, S, d) -> (1, S, H*D). Without rotary positions, its product is part of it."""
    block, heads = blocks[layer], sizes["nar_heads"]
    width = block.qkv.weight.shape[1] // 3
    if block.rotary is None:
        weight = graph.const(f"{name}.weight", block.qkv.weight)
        bias = np.zeros(3 * width, np.float32) if block.qkv.bias is None else block.qkv.bias
        inputs = [source, weight, graph.const(f"{name}.bias", bias)]
        return graph.contrib("Attention", inputs, [name], num_heads=heads, qkv_hidden_sizes=[width] * 3)
    packed = graph.linear(source, block.qkv, f"{name}.qkv")
    parts = [f"{name}.{part}" for part in ("query", "key", "value")]
    split = helper.make_node("Split", [packed], parts, f"{name}.split", axis=2, num_outputs=3)
    graph.nodes.append(split)
    names = ("cosines", "sines")
    tables = [graph.const(*table) for table in zip(names, block.rotary, strict=True)]
    for index in range(2):
        inputs, rotated = [parts[index], block.places, *tables], f"{parts[index]}.rotated"
        parts[index] = graph.contrib("RotaryEmbedding", inputs, [rotated], num_heads=heads)
    return graph.contrib("MultiHeadAttention", parts, [name], num_heads=heads)


def replace_nodes(model: onnx.ModelProto, old: str, graph: GraphWriter, result: str) -> None:
    """Put new nodes where `old` was made, name their result so, and drop what nobody reads any more."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if old in node.output:
            nodes += graph.nodes
        else:
            nodes.append(node)
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == result:
                    names[index] = old
    read = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(nodes):
        if read & set(node.output):
            read |= set(node.input)
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(graph.weights.values())
    drop_unused(model)
    if DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))

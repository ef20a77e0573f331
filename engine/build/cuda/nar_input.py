"""The input of the NAR's first block for one row: the embedding of the frames, `<eos>` and the stage."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import onnx

from valle2.engine.build.cuda.reader import GraphReader, Linear, UnsupportedGraphError, Weight, given
from valle2.engine.build.cuda.rewrite import read_instead, replace_nodes
from valle2.engine.build.cuda.writer import GraphWriter
from valle2.engine.bundle.contract import CODEBOOK_SIZE

BOOK_ROWS, BOOK_WEIGHTS = "book_rows", "book_weights"
"""Names of what the choice of codes shares with the embedding.

BOOK_ROWS: (1, T, Q) int64, rows of all code tables. BOOK_WEIGHTS: (1, T, 1, Q), 1 for codes that are seen.
"""


def pack_codebooks(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Embed all codebooks of the frames at once, where they are embedded one after another.

    The embedding of a frame is the sum over its codebooks that are seen: a product of a vector of zeros and
    ones with the rows of the table.

    Raises:
        UnsupportedGraphError: they are embedded otherwise. The graph is as before.
    """
    reader, graph, books = GraphReader(model), GraphWriter(), sizes["codebooks"]
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
    counts = np.tri(books, books, -1, dtype=np.float32)  # by stage, 1 for the codebooks before it
    earlier = graph.op("Gather", [graph.const("earlier_books", counts), "stage"], "earlier", axis=0)
    prompt = graph.op("Unsqueeze", [prompts.pop(), graph.ints(2)], "prompt_frames")
    seen_name = graph.op("Where", [prompt, graph.const("one", np.ones(1, np.float32)), earlier], "seen_books")
    ids = graph.op("Add", ["codes", graph.const("book_offsets", np.array(offsets, np.int64))], BOOK_ROWS)
    rows = graph.op("Gather", [tables.pop(), ids], "book_embeddings", axis=0)
    weights = graph.op("Unsqueeze", [seen_name, graph.ints(2)], BOOK_WEIGHTS)
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


def has_shared_rows(reader: GraphReader) -> bool:
    """Whether `BOOK_ROWS` and `BOOK_WEIGHTS` are there, codebook q at row 1024 q, the whole prompt seen."""
    if BOOK_WEIGHTS not in reader.makers or BOOK_ROWS not in reader.makers:
        return False
    offsets = reader.weight(reader.makers[BOOK_ROWS].input[1])
    seen = reader.node(reader.through(BOOK_WEIGHTS, "Unsqueeze"), "Where")
    prompt = reader.node(reader.through(seen.input[0], "Unsqueeze"), "Less")
    if offsets is None or reader.through(prompt.input[1], "Unsqueeze") != "prompt_lengths":
        return False
    return np.array_equal(offsets, np.arange(len(offsets)) * CODEBOOK_SIZE)


def frame_numbers(reader: GraphReader) -> str:
    """The name of 0..T-1, (T,) or (1, T), which the embedding compares with the lengths of the prompts.

    Raises:
        UnsupportedGraphError: it does not.
    """
    for node in reader.model.graph.node:
        with suppress(UnsupportedGraphError):
            if node.op_type == "Less" and reader.through(node.input[1], "Unsqueeze") == "prompt_lengths":
                return str(node.input[0])
    raise UnsupportedGraphError("no frames are compared with the prompts")


def drop_text_masks(model: onnx.ModelProto, _: Mapping[str, int]) -> None:
    """Leave out products with a mask of the text: in a row without padding all of it is seen.

    Raises:
        UnsupportedGraphError: there are none.
    """
    reader, found = GraphReader(model), {}
    for node in model.graph.node:
        with suppress(UnsupportedGraphError, KeyError):
            if node.op_type == "Mul" and masks_text(reader, node.input[1]):
                found[node.output[0]] = node.input[0]
    if not found:
        raise UnsupportedGraphError("the text has no masks")
    for name, source in found.items():
        read_instead(model, name, source)


def masks_text(reader: GraphReader, name: str) -> bool:
    """Whether a tensor is 1 for each position before the end of the text."""
    seen = reader.node(reader.through(reader.through(name, "Cast"), "Unsqueeze"), "Less")
    counted = reader.node(seen.input[0], "Range")
    first, step = (reader.weight(part) for part in (counted.input[0], counted.input[2]))
    return first == 0 and step == 1 and reader.through(seen.input[1], "Unsqueeze") == "text_lengths"


def move_biases(model: onnx.ModelProto, _: Mapping[str, int]) -> None:
    """Let each bias before a ReLU be part of `Max` and of the next product's bias, see `writer`.

    Raises:
        UnsupportedGraphError: no ReLU lies between two products with biases.
    """
    names = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    done = 0
    for name in names:
        with suppress(UnsupportedGraphError, StopIteration):
            reader, graph = GraphReader(model), GraphWriter()
            source, bias = reader.split_weight(reader.node(reader.through(name, "Relu"), "Add"))
            product = next(node for node in model.graph.node if name in node.input)
            added = next(node for node in model.graph.node if product.output[0] in node.input)
            inner, linear = reader.linear(added.output[0])
            if inner != name or linear.bias is None or bias.ndim != 1 or reader.count(name) > 1:
                continue
            raised = graph.op("Max", [source, graph.const(f"{name}.floor", -bias)], f"{name}.raised")
            moved = bias.astype(np.float64) @ linear.weight.astype(np.float64) + linear.bias
            whole = graph.linear(raised, Linear(linear.weight, moved.astype(np.float32)), f"{name}.next")
            replace_nodes(model, added.output[0], graph, whole)
            done += 1
    if not done:
        raise UnsupportedGraphError("no ReLU lies between two products with biases")


def join_tail(model: onnx.ModelProto, _: Mapping[str, int]) -> None:
    """Take `<eos>` and the stage after the frames of one row from one table.

    Raises:
        UnsupportedGraphError: they are embedded otherwise.
    """
    write_tail(model, several=False)


def join_tails(model: onnx.ModelProto, _: Mapping[str, int]) -> None:
    """The same for several rows. Raises what `join_tail` raises."""
    write_tail(model, several=True)


def write_tail(model: onnx.ModelProto, *, several: bool) -> None:
    """Embed `<eos>` and the stage with few nodes."""
    reader, graph = GraphReader(model), GraphWriter()
    eos_name, stage_name = tail_parts(reader)
    eos, eos_places = split_position(reader, eos_name)
    stage, stage_places = split_position(reader, stage_name)
    rows = reader.node(reader.through(stage, "Expand"), "Gather")
    first = reader.weight(reader.through(eos, "Expand"))
    table = reader.weight(rows.input[0])
    if first is None or table is None or rows.input[1] != "stage":
        raise UnsupportedGraphError("the stage has no table")
    both = np.stack([np.broadcast_to(first, table.shape), table], axis=1)
    found = graph.op("Gather", [graph.const("tail_table", both), "stage"], "tail_rows", axis=0)
    if eos_places is not None and stage_places is None and eos_places[1] == "frame_lengths" and not several:
        place = graph.op("Gather", [*eos_places], "end_position", axis=0)
        moved = graph.op("Add", [place, graph.const("end_row", first[None])], "end")
        last = graph.op("Gather", [rows.input[0], graph.view("stage", "stage_row", 1)], "stage_part", axis=0)
        found = graph.op("Concat", [moved, last], "tail_sum", axis=0)
    elif eos_places is not None and stage_places is not None:
        positions, place = eos_places
        if stage_places[0] != positions or place != "frame_lengths":
            raise UnsupportedGraphError("the end has other positions than the frames")
        one = reader.split_weight(reader.node(stage_places[1], "Add"))
        if one[0] != "frame_lengths" or one[1] != 1:
            raise UnsupportedGraphError("the stage has another position than the one after the end")
        lengths = graph.view("frame_lengths", "tail_starts", -1, 1) if several else "frame_lengths"
        places = graph.op("Add", [lengths, graph.const("tail_steps", np.arange(2))], "tail_places")
        added = graph.op("Gather", [positions, places], "tail_positions", axis=0)
        found = graph.op("Add", [found, added], "tail_sum")
    elif stage_places is not None or eos_places is not None:
        raise UnsupportedGraphError("one of both has a position")
    elif several:
        count = graph.op("Shape", ["text"], "tail_count", start=0, end=1)
        shape = graph.op("Concat", [count, graph.ints(1), graph.ints(1)], "tail_shape", axis=0)
        found = graph.op("Expand", [found, shape], "tails")
    result = found if several else graph.op("Unsqueeze", [found, graph.ints(0)], "tail")
    stack = next(node for node in model.graph.node if eos_name in through_views(reader, node))
    replace_nodes(model, stack.output[0], graph, result)


def tail_parts(reader: GraphReader) -> tuple[str, str]:
    """The embeddings (B, d) of `<eos>` and the stage: the parts of the `Concat` along the positions."""
    for node in reader.model.graph.node:
        if node.op_type == "Concat" and given(node, "axis", 0) == 1 and len(node.input) == 2:
            with suppress(UnsupportedGraphError):
                one, other = through_views(reader, node)
                stage = split_position(reader, other)[0]
                if reader.node(reader.through(stage, "Expand"), "Gather").input[1] == "stage":
                    return one, other
    raise UnsupportedGraphError("nothing follows the frames")


def through_views(reader: GraphReader, node: onnx.NodeProto) -> list[str]:
    """The inputs of a node before their `Unsqueeze`, those that have one."""
    made = [reader.makers.get(name) for name in node.input]
    return [maker.input[0] for maker in made if maker is not None and maker.op_type == "Unsqueeze"]


def split_position(reader: GraphReader, name: str) -> tuple[str, tuple[str, str] | None]:
    """An embedding -> without its position, and the position's table and index, None for none."""
    made = reader.node(name, "Add", "Expand")
    if made.op_type == "Expand":
        return name, None
    rows = reader.node(made.input[1], "Gather")
    return made.input[0], (rows.input[0], rows.input[1])


def padded(table: Weight) -> Weight:
    """A table (Q - 1, ...) of the codebooks after the first, with zeros for the first one."""
    return np.concatenate([np.zeros_like(table[:1]), table])

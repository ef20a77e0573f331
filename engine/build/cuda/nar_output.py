"""The end of the NAR: the head, and the choice of codes (`valle2.export.models.nar`).

Axes: B rows, T frames, T' frames of the target, D width of a code's vector.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from valle2.engine.build.cuda.nar_input import BOOK_ROWS, BOOK_WEIGHTS, frame_numbers, has_shared_rows, padded
from valle2.engine.build.cuda.reader import GraphReader, UnsupportedGraphError
from valle2.engine.build.cuda.rewrite import replace_nodes
from valle2.engine.build.cuda.writer import GraphWriter
from valle2.engine.bundle.contract import LOGITS

CHOSEN = "codes_out"


def fuse_head(model: onnx.ModelProto, _: Mapping[str, int]) -> None:
    """Take the head's rows of the stage with one node, and multiply by them as they lie.

    Raises:
        UnsupportedGraphError: the head is the same at every stage, or has another form.
    """
    reader, graph = GraphReader(model), GraphWriter()
    scores = reader.node(LOGITS, "MatMul", "Add")
    product = scores if scores.op_type == "MatMul" else reader.node(scores.input[0], "MatMul")
    rows = reader.node(reader.through(product.input[1], "Transpose"), "Gather")
    table, index = rows.input[0], "stage"
    if reader.makers[table].op_type == "Reshape":  # tied to the code tables: rows 1024 * stage + 0..1023
        table = reader.through(table, "Reshape")
        start, counted = reader.split_weight(reader.node(reader.through(rows.input[1], "Reshape"), "Add"))
        stage, size = reader.split_weight(reader.node(start, "Mul"))
        places = np.arange(reader.weights[table].dims[1])
        if stage != "stage" or size != len(places) or not np.array_equal(counted, places):
            raise UnsupportedGraphError("the head is no part of the code tables")
    else:
        rows = reader.node(table, "Gather")
        table, index = rows.input[0], reader.through(rows.input[1], "Reshape")
        if len(reader.weights[table].dims) != 3:
            raise UnsupportedGraphError("the head has no table of matrices")
    taken = graph.op("Gather", [table, index], "head_rows", axis=0)
    made = graph.contrib("FusedMatMul", [product.input[0], taken], ["head_scores"], transB=1)
    replace_nodes(model, product.output[0], graph, made)


def fuse_choice(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Choose the codes of the target of one row. See `write_choice`."""
    write_choice(model, sizes, several=False)


def fuse_choices(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Choose codes for all frames of several rows. See `write_choice`."""
    write_choice(model, sizes, several=True)


def write_choice(model: onnx.ModelProto, sizes: Mapping[str, int], *, several: bool) -> None:
    """Choose the codes of least expected risk with few nodes.

    Of |v|^2 - 2 x v, the squared distance of x and v less |x|^2, one `Gemm` makes the whole. The move towards
    the prompt's mean is a sum over frames with two weights: one of the prompt's frames, one of the target's.

    Raises:
        UnsupportedGraphError: codes are chosen in another way.
    """
    reader, graph = GraphReader(model), GraphWriter()
    distances = reader.node(reader.node(CHOSEN, "ArgMin").input[0], "Sub")
    doubled, two = reader.split_weight(reader.node(distances.input[1], "Mul"))
    near = reader.node(doubled, "MatMul")
    vectors = reader.through(near.input[1], "Transpose")
    reader.square(reader.through(distances.input[0], "ReduceSum"), vectors)
    stored = reader.node(reader.through(vectors, "Gather"), "Gather")
    table = reader.weight(stored.input[0])
    stage, one = reader.split_weight(reader.node(reader.through(stored.input[1], "Reshape"), "Sub"))
    if table is None or two != 2 or stage != "stage" or one != 1 or len(table) != sizes["codebooks"] - 1:
        raise UnsupportedGraphError("the vectors of codes are unknown")
    wanted, shift = reader.node(near.input[0], "MatMul", "Add"), ""
    if wanted.op_type == "Add":
        shift = reader.through(wanted.input[1], "Unsqueeze")
        wanted = reader.node(wanted.input[0], "MatMul")
    if reader.through(wanted.input[0], "Softmax") != LOGITS or wanted.input[1] != vectors:
        raise UnsupportedGraphError("the wanted vectors are unknown")
    whole = padded(table)
    width = whole.shape[2]
    name = graph.const("vector_table", whole)
    taken = graph.op("Gather", [name, "stage"], "stage_vectors", axis=0)
    squares = graph.const("vector_squares", (whole.astype(np.float64) ** 2).sum(axis=2).astype(np.float32))
    lengths = graph.op("Gather", [squares, "stage"], "stage_squares", axis=0)
    likely = graph.op("Softmax", [LOGITS], "code_probs", axis=-1)
    found = graph.op("MatMul", [likely, taken], "expected_vectors")
    if shift:
        rows = graph.view(name, "vector_rows", -1, width)
        moved = (write_shifts if several else write_shift)(graph, reader, shift, found, rows)
        found = graph.op("Add", [found, moved], "wanted_vectors")
    flat = graph.view(found, "wanted_rows", -1, width)
    risks = graph.op("Gemm", [flat, taken, lengths], "risks", alpha=-2.0, transB=1)
    best = graph.op("ArgMin", [risks], "best_codes", axis=1, keepdims=0)
    shape = graph.op("Shape", ["codes"], "codes_shape", start=0, end=2) if several else graph.ints(1, -1)
    replace_nodes(model, CHOSEN, graph, graph.op("Reshape", [best, shape], "chosen_codes"))


def write_shift(graph: GraphWriter, reader: GraphReader, shift: str, found: str, rows: str) -> str:
    """The move (1, 1, D) towards the mean of the prompt.

    There are P frames of prompt and T' of the target, and Z = (P + c) (T' + c) with a doubt c. The move is
    T' / Z times the sum of the prompt's vectors, less P / Z times the sum of the target's.

    Args:
        shift: name of the old one. found: the expected vectors (1, T', D). rows: all vectors (Q * 1024, D).
    """
    known, doubt = write_known(graph, reader, rows), find_doubt(reader, shift)
    said = graph.op("Concat", [known, found], "said_vectors", axis=1)
    # sizes: computed on the host
    target = graph.op("Shape", [found], "target_frames", start=1, end=2)
    frames = graph.op("Shape", ["codes"], "all_frames", start=1, end=2)
    prompt = graph.op("Sub", [frames, target], "prompt_frames_count")
    counts = [
        graph.cast(count, f"{name}_number", TensorProto.FLOAT)
        for name, count in (("target", target), ("prompt", prompt))
    ]
    number = graph.const("mean_doubt", np.array([doubt], np.float32))
    doubted = [graph.op("Add", [count, number], f"{count}_doubted") for count in counts]
    scale = graph.op("Mul", doubted, "mean_scale")
    above = graph.op("Div", [counts[0], scale], "prompt_weight")
    below = graph.op("Div", [counts[1], scale], "target_share")
    below = graph.op("Sub", [graph.const("zero", np.zeros(1, np.float32)), below], "target_weight")
    end = graph.op("Squeeze", [graph.op("Add", [frames, target], "said_count"), graph.ints(0)], "said_end")
    zero, one = graph.scalar(0, np.int64), graph.scalar(1, np.int64)
    counted = graph.op("Range", [zero, end, one], "said_frames")
    first = graph.op("Less", [counted, prompt], "said_by_prompt")
    weights = graph.op("Where", [first, above, below], "said_weights")
    return graph.op("MatMul", [graph.view(weights, "said_row", 1, 1, -1), said], "mean_shift")


def write_shifts(graph: GraphWriter, reader: GraphReader, shift: str, found: str, rows: str) -> str:
    """The moves (B, 1, D) of several rows, each towards the mean of its prompt.

    A row has P frames of prompt and F frames in all, and Z = (P + c) (F - P + c) with a doubt c. With k the
    vectors that are known of a frame and w the expected one, the move of `write_shift` is 1/Z times

        F sum_prompt(k) + P sum_prompt(w) - P sum_all(k) - P sum_all(w)

    So each frame needs no weight of its own, and frames behind the row's are left out of both sums.

    Args:
        found: the expected vectors (B, T, D). The others are those of `write_shift`.
    """
    known, doubt = write_known(graph, reader, rows), find_doubt(reader, shift)
    ends = [graph.view(name, f"{name}_column", -1, 1) for name in ("prompt_lengths", "frame_lengths")]
    both = graph.op("Concat", ends, "frame_counts", axis=1)
    inside = graph.op(
        "Less", [frame_numbers(reader), graph.op("Unsqueeze", [both, graph.ints(2)], "ends")], "in_sums"
    )
    masks = graph.cast(inside, "sum_masks", TensorProto.FLOAT)
    said = graph.op("Concat", [known, found], "said_vectors", axis=2)
    sums = graph.op("MatMul", [masks, said], "said_sums")  # (B, 2, 2 D): known and expected, prompt and all
    terms = np.array([[0, 1, -1, -1, 1, -1, 0, 0], [1, 0, 0, 0, 0, 1, 0, 0]], np.float32)
    doubts = np.array([0, 0, 0, 0, doubt, doubt, 1, 1], np.float32)  # two ones: parts of equal size
    counts = graph.cast(both, "frame_numbers_float", TensorProto.FLOAT)
    made = graph.op(
        "Gemm", [counts, graph.const("mean_terms", terms), graph.const("mean_doubts", doubts)], "mean_parts"
    )
    parts = ["mean_shares", "mean_factors"]
    split = helper.make_node("Split", [made, graph.ints(4, 4)], parts, "mean_split", axis=1)
    graph.nodes.append(split)
    scale = graph.op("ReduceProd", [parts[1], graph.ints(1)], "mean_scale", keepdims=1)
    shares = graph.op(
        "Unsqueeze", [graph.op("Div", [parts[0], scale], "mean_weights"), graph.ints(1)], "mean_row"
    )
    return graph.op("MatMul", [shares, graph.view(sums, "mean_sums", 0, 4, -1)], "mean_shifts")


def write_known(graph: GraphWriter, reader: GraphReader, rows: str) -> str:
    """The sum (B, T, D) of the vectors that are known of each frame."""
    if not has_shared_rows(reader):
        raise UnsupportedGraphError("the embedding of the frames has another form")
    known = graph.op("Gather", [rows, BOOK_ROWS], "known_vectors", axis=0)
    known = graph.op("MatMul", [BOOK_WEIGHTS, known], "known_sums")
    return graph.op("Squeeze", [known, graph.ints(2)], "frame_vectors")


def find_doubt(reader: GraphReader, shift: str) -> float:
    """The number c of n / (n + c), by which a mean of n frames counts."""
    todo, seen, found = [shift], set[str](), set[float]()
    while todo:
        node = reader.makers.get(todo.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        todo += node.input
        made = reader.makers.get(node.input[1]) if node.op_type == "Div" else None
        if made is not None and made.op_type == "Add" and made.input[0] == node.input[0]:
            weight = reader.weight(made.input[1])
            found.update([] if weight is None or weight.size != 1 else [float(weight)])
    if len(found) != 1:
        raise UnsupportedGraphError("the confidence in a mean is unknown")
    return found.pop()

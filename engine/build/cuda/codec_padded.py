"""The codec's decoder of CUDA for rows with padding, so that it can be called at a fixed set of lengths.

A row's samples depend on frames behind it in two places: a convolution reads neighbours, and the windowed
frames of the spectrum overlap. Alone, a row has zeros there. So both get zeros for frames behind the row's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from valle2.engine.build.cuda.codec import codec_graph, overlaps, read_overlap
from valle2.engine.build.cuda.reader import GraphReader, UnsupportedGraphError, given
from valle2.engine.build.cuda.rewrite import keep_nodes
from valle2.engine.build.cuda.writer import GraphWriter

LENGTHS = "frame_lengths"
"""The input that no other decoder has: frames of each row, (B,) int64."""
OF_ONE_FRAME = frozenset(
    [
        "Add",
        "BiasGelu",
        "Clip",
        "Concat",
        "Conv",
        "Cos",
        "Exp",
        "Gather",
        "Gelu",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "ReduceSum",
        "Sin",
        "SkipLayerNormalization",
        "Slice",
        "Split",
        "Transpose",
    ]
)
"""Operators that, `Conv` apart, compute each frame by itself in the decoders that we know."""


def padded_codec_graph(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The decoder in float32. Samples behind the frames of a row are of no use.

    Args:
        model: the decoder, its weights in float32. It is not changed.

    Raises:
        UnsupportedGraphError: it has another form.
    """
    stored = GraphReader(model)
    sums = overlaps(stored)
    if sums != [value.name for value in model.graph.output]:
        raise UnsupportedGraphError("its samples are more than one sum of overlapping frames")
    windowed = read_overlap(stored, sums[0])[0]
    made = codec_graph(model, sizes)
    convolutions = [node for node in made.graph.node if node.op_type == "Conv"]
    check_form(GraphReader(made), windowed, convolutions)
    graph = GraphWriter()
    by_channel, by_frame = write_masks(graph)
    masked: dict[str, str] = {}
    for name, mask in [*((node.input[0], by_channel) for node in convolutions), (windowed, by_frame)]:
        masked[name] = masked.get(name) or f"{name}.masked"
        if masked[name] not in {node.output[0] for node in graph.nodes}:
            graph.op("Mul", [name, mask], masked[name])
    insert(made, graph, masked, windowed)
    shape = made.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    made.graph.input.append(helper.make_tensor_value_info(LENGTHS, TensorProto.INT64, [shape]))
    return made


def check_form(reader: GraphReader, windowed: str, convolutions: list[onnx.NodeProto]) -> None:
    """Refuse a decoder that mixes frames elsewhere, or whose convolutions change their number."""
    todo, seen = [windowed], set[str]()
    while todo:
        node = reader.makers.get(todo.pop())
        if node is None or node.output[0] in seen:
            continue
        if node.op_type not in OF_ONE_FRAME:
            raise UnsupportedGraphError(f"{node.op_type} may mix frames")
        seen.add(node.output[0])
        todo += node.input
    for node in convolutions:
        width, dilation = given(node, "kernel_shape", [1])[0], given(node, "dilations", [1])[0]
        if given(node, "strides", [1]) != [1] or sum(given(node, "pads", [])) != dilation * (width - 1):
            raise UnsupportedGraphError("a convolution changes the number of frames")


def write_masks(graph: GraphWriter) -> tuple[str, str]:
    """1 for frames of the row and 0 behind them: (B, 1, T) and (B, T, 1)."""
    count = graph.op(
        "Squeeze", [graph.op("Shape", ["codes"], "held", start=1, end=2), graph.ints(0)], "held_end"
    )
    places = graph.op("Range", [graph.scalar(0, np.int64), count, graph.scalar(1, np.int64)], "held_frames")
    inside = graph.op("Less", [places, graph.view(LENGTHS, "row_ends", -1, 1)], "in_row")
    mask = graph.cast(inside, "row_mask", TensorProto.FLOAT)
    by_channel, by_frame = (
        graph.op("Unsqueeze", [mask, graph.ints(axis)], f"mask_{axis}") for axis in (1, 2)
    )
    return by_channel, by_frame


def insert(model: onnx.ModelProto, graph: GraphWriter, masked: Mapping[str, str], windowed: str) -> None:
    """Put each product with a mask behind the tensor that it masks, and let convolutions read it."""
    masks = [node for node in graph.nodes if node.output[0] not in masked.values()]
    products = {node.input[0]: node for node in graph.nodes if node.output[0] in masked.values()}
    nodes = list(masks)
    for node in model.graph.node:
        reads = [windowed] if node.op_type != "Conv" else [node.input[0]]
        for index, name in enumerate(node.input):
            if name in reads:
                node.input[index] = masked[name]
        nodes.append(node)
        nodes += [products[name] for name in node.output if name in products]
    model.graph.initializer.extend(graph.weights.values())
    keep_nodes(model, nodes)

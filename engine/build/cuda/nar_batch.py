"""The NAR for several rows of different lengths on CUDA, rewritten with fused operators.

Text and frames are padded apart, so padding lies between them. The rewritten graph moves the frames of each
row, and what follows them, to the left before the first block. Then the length of a row says which positions
are seen, and the attention needs no mask: ONNX Runtime has kernels for lengths.

It returns every frame, those of the prompt too. So the size of its output does not depend on data, no value
leaves the device, and a call of fixed sizes can be captured as a CUDA graph (`engine.backends.ladder`). It
joins and divides tensors in equal parts alone: for others ONNX Runtime copies the sizes from host memory that
it frees, and a replay would copy what lies there then (microsoft/onnxruntime#32121).

Axes: B rows, T frames, S positions: text, frames and what follows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto

from valle2.engine.build.cuda.nar import SeenPositions, attend, read_blocks
from valle2.engine.build.cuda.nar_input import frame_numbers, join_tails, move_biases, pack_codebooks
from valle2.engine.build.cuda.nar_output import fuse_choices, fuse_head
from valle2.engine.build.cuda.reader import GraphReader, UnsupportedGraphError, given
from valle2.engine.build.cuda.rewrite import replace_nodes
from valle2.engine.build.cuda.writer import GraphWriter

SCATTER_OPSET = 24
"""The first version of ONNX that has `TensorScatter`."""
OPTIONAL = pack_codebooks, move_biases, join_tails, fuse_head, fuse_choices
"""Rewrites of what lies around the blocks that also hold for rows with padding."""


def nar_batch_graph(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The NAR for several rows in float32. Arguments and errors are those of `nar.nar_graph`.

    Logits (B, T, 1024) and codes (B, T) are those of frame t of a row at t. What it returns for frames of the
    prompt, and behind the frames of a row, is of no use.
    """
    made: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    reader, graph = GraphReader(made), GraphWriter()
    try:
        source, hidden, blocks, last = read_blocks(reader, sizes["nar_layers"])
        rows = PackedRows(graph, reader, source)
    except (KeyError, IndexError, ValueError) as error:
        raise UnsupportedGraphError(f"its form is unknown ({type(error).__name__}: {error})") from None
    if not blocks[-1].picked:
        raise UnsupportedGraphError("its last block keeps all positions")
    blocks[-1] = replace(blocks[-1], picked="")
    seen = SeenPositions(graph.ints(0), lambda: [rows.last, rows.total], rows.lengths)
    result = graph.blocks(
        rows.packed,
        "",
        blocks,
        last,
        lambda source, name, layer: attend(graph, blocks[layer], sizes, seen, source, name),
    )
    replace_nodes(made, hidden, graph, rows.frames(result))
    for rewrite in OPTIONAL:
        with suppress(UnsupportedGraphError, KeyError, IndexError, ValueError):
            rewrite(made, sizes)
    if any(node.op_type == "ReduceMin" and "prompt_lengths" in node.input for node in made.graph.node):
        raise UnsupportedGraphError("its codes are chosen in another way")
    return made


class PackedRows:
    """Writes how positions move.

    `TensorScatter` writes the frames of a row over the padding of its text, and then what follows them over
    the padding of the frames. What is left over stands behind them, where nobody sees it.

    Args:
        graph: gets the nodes. reader: of the exported graph.
        source: name of the first block's input (B, S, d), padded between its parts.

    packed: name of that input without padding between its parts.
    lengths: name of the positions that are seen of each row, (B,) int32. last: of the last of them.
    total: name of S, int32.
    """

    def __init__(self, graph: GraphWriter, reader: GraphReader, source: str) -> None:
        joined = reader.node(source, "Concat")
        versions = {entry.domain: entry.version for entry in reader.model.opset_import}
        if given(joined, "axis", 0) != 1 or len(joined.input) not in (2, 3) or versions[""] < SCATTER_OPSET:
            raise UnsupportedGraphError("its positions are not text, frames and what follows them")
        self.graph, self.numbers, op = graph, frame_numbers(reader), graph.op
        words, frames, *tail = joined.input
        after = len(reader.node(tail[0], "Concat").input) if tail else 0
        # sizes: computed on the host
        self.batch = op("Shape", ["text"], "rows_size", start=0, end=1)
        text = op("Shape", ["text"], "text_size", start=1, end=2)
        more = op("Shape", ["codes"], "frames_size", start=1, end=2)
        if after:
            more = op("Add", [more, graph.ints(after)], "size_behind_text")
        self.size = op("Add", [text, more], "row_size")
        widths = op("Concat", [graph.ints(0, 0, 0, 0), more, graph.ints(0)], "text_pads", axis=0)
        end = op("Squeeze", [self.size, graph.ints(0)], "row_end")
        self.total = graph.cast(end, "row_total", TensorProto.INT32)
        # on the device
        ends = op("Add", ["text_lengths", "frame_lengths"], "frame_ends")
        longer = op("Pad", [words, widths], "text_in_row")
        self.packed = op("TensorScatter", [longer, frames, "text_lengths"], "frames_in_row", axis=1)
        if tail:
            self.packed = op("TensorScatter", [self.packed, tail[0], ends], "packed", axis=1)
        self.lengths = self.positions(ends, after, "row_lengths")
        self.last = self.positions(ends, after - 1, "last_positions")

    def positions(self, ends: str, more: int, name: str) -> str:
        """The ends of the frames and some more, (B,) int32."""
        if more:
            ends = self.graph.op("Add", [ends, self.graph.ints(more)], f"{name}_64")
        return self.graph.cast(ends, name, TensorProto.INT32)

    def frames(self, source: str) -> str:
        """The frames (B, T, d) of packed rows (B, S, d)."""
        graph, zero = self.graph, self.graph.ints(0)
        # sizes: computed on the host
        whole = graph.op("Mul", [self.batch, self.size], "all_size")
        ends = [graph.op("Squeeze", [size, zero], f"{size}_number") for size in (whole, self.size)]
        # on the device
        starts = graph.op("Range", [graph.scalar(0, np.int64), *ends], "row_starts")
        first = graph.op("Add", [starts, "text_lengths"], "first_frames")
        places = graph.op("Add", [graph.view(first, "first_frame", -1, 1), self.numbers], "frame_places")
        flat = graph.op("Flatten", [source], "flat_positions", axis=2)
        return graph.op("Gather", [flat, places], "frames_of_rows", axis=0)

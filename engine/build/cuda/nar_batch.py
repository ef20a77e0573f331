"""The NAR for several rows of different lengths on CUDA, rewritten with fused operators.

Text and frames are padded apart, so padding lies between them. The rewritten graph moves each row's positions
to the left before the first block. Then the length of a row says which positions are seen, and the attention
needs no mask: ONNX Runtime has kernels for lengths. Full attention does not depend on the order of positions.

Axes: B rows, T' frames of the target, S positions: text, frames and what follows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import onnx
from onnx import TensorProto

from valle2.engine.build.cuda.nar import SeenPositions, attend, read_blocks
from valle2.engine.build.cuda.nar_input import move_biases, pack_codebooks
from valle2.engine.build.cuda.nar_output import fuse_head
from valle2.engine.build.cuda.reader import GraphReader, UnsupportedGraphError
from valle2.engine.build.cuda.rewrite import replace_nodes
from valle2.engine.build.cuda.writer import GraphWriter

OPTIONAL = pack_codebooks, move_biases, fuse_head
"""Rewrites of what lies around the blocks that also hold for rows with padding."""


def nar_batch_graph(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The NAR for several rows in float32. Arguments and errors are those of `nar.nar_graph`.

    What it returns for positions behind the frames of a row is of no use, as before.
    """
    made: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    try:
        source, hidden, blocks, last = read_blocks(GraphReader(made), sizes["nar_layers"])
    except (KeyError, IndexError, ValueError) as error:
        raise UnsupportedGraphError(f"its form is unknown ({type(error).__name__}: {error})") from None
    if not blocks[-1].picked:
        raise UnsupportedGraphError("its last block keeps all positions")
    graph = GraphWriter()
    rows = PackedRows(graph, source)
    seen = SeenPositions(graph.ints(0), rows.last_and_total, rows.lengths)
    result = graph.blocks(
        rows.pack(source),
        "",
        blocks,
        last,
        lambda source, name, layer: attend(graph, blocks[layer], sizes, seen, source, name),
        rows.pick,
    )
    replace_nodes(made, hidden, graph, result)
    for rewrite in OPTIONAL:
        with suppress(UnsupportedGraphError, KeyError, IndexError, ValueError):
            rewrite(made, sizes)
    return made


class PackedRows:
    """Writes how positions move.

    Args:
        graph: gets the nodes. source: name of the first block's input (B, S, d), padded between its parts.

    lengths: name of the positions that are seen of each row, (B,) int32.
    """

    def __init__(self, graph: GraphWriter, source: str) -> None:
        self.graph = graph
        op, zero, one = graph.op, graph.scalar(0, np.int64), graph.scalar(1, np.int64)
        # sizes: computed on the host
        text = op("Shape", ["text"], "text_size", start=1, end=2)
        frames = op("Shape", ["codes"], "frames_size", start=1, end=2)
        self.size = op("Shape", [source], "row_size", start=1, end=2)
        batch = op("Shape", [source], "rows_size", start=0, end=1)
        held = op("Add", [text, frames], "text_and_frames")
        tail = op("Sub", [self.size, held], "tail_size")
        whole = op("Squeeze", [op("Mul", [batch, self.size], "all_size"), graph.ints(0)], "all_end")
        end = op("Squeeze", [self.size, graph.ints(0)], "row_end")
        # on the device
        self.texts = graph.view("text_lengths", "text_ends", -1, 1)
        self.ends = op("Add", [self.texts, graph.view("frame_lengths", "frame_counts", -1, 1)], "frame_ends")
        starts = op("Range", [zero, whole, end], "row_starts")
        self.starts = graph.view(starts, "row_starts_column", -1, 1)
        self.places = op("Range", [zero, end, one], "places")
        self.text_gap = op("Sub", [text, self.texts], "text_gap")
        self.both_gaps = op("Sub", [held, self.ends], "both_gaps")
        total = op("Add", [self.ends, tail], "row_ends")
        self.lengths = graph.view(graph.cast(total, "row_lengths_32", TensorProto.INT32), "row_lengths", -1)
        self.end, self.picked, self.last = end, "", ""

    def last_and_total(self) -> list[str]:
        """Two inputs of `GroupQueryAttention`: the last position of each row (B,), and S. Both are int32."""
        if not self.last:
            one = self.graph.const("one_32", np.array([1], np.int32))
            self.last = self.graph.op("Sub", [self.lengths, one], "last_positions")
            self.end = self.graph.cast(self.end, "row_total", TensorProto.INT32)
        return [self.last, self.end]

    def pack(self, source: str) -> str:
        """Each row with its padding moved to the end, where any position may stand.

        A position moves by the padding that lies before it: none, that of the text, or all.
        """
        op = self.graph.op
        in_text = op("Less", [self.places, self.texts], "in_text")
        in_frames = op("Less", [self.places, self.ends], "in_frames")
        moved = op("Where", [in_frames, self.text_gap, self.both_gaps], "gap_of_frames")
        moved = op("Where", [in_text, self.graph.scalar(0, np.int64), moved], "gap_before")
        places = op("Add", [self.places, moved], "padded_places")
        last = op("Sub", [self.size, self.graph.ints(1)], "last_place")
        places = op("Min", [places, last], "places_within")
        return self.gather(source, op("Add", [places, self.starts], "packed_places"), "packed")

    def pick(self, source: str, wanted: str, name: str) -> str:
        """The positions of the target. wanted: their numbers (T',) in padded rows."""
        if not self.picked:
            moved = self.graph.op("Sub", [wanted, self.text_gap], "target_places_in_rows")
            self.picked = self.graph.op("Add", [moved, self.starts], "target_places")
        return self.gather(source, self.picked, name)

    def gather(self, source: str, places: str, name: str) -> str:
        """Positions of (B, S, d). places: their numbers (B, N) among all positions of all rows."""
        flat = self.graph.op("Flatten", [source], f"{name}_flat", axis=2)
        return self.graph.op("Gather", [flat, places], name, axis=0)

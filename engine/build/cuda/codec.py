"""A codec's decoder on CUDA with fewer nodes. It stays in float32.

Every rewrite is left out where the graph has another form: a decoder of another codec keeps what it has.
Axes: B rows, T frames, C channels, K bins of a spectrum.

A block of ConvNeXt takes 8 nodes: the convolution between two changes of layout, the norm, two products, the
activation with its bias, and the sum with the residual. The block's scale is part of the second product.
`SkipLayerNormalization` makes the sum. Its normalisation is read after the last block alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from valle2.engine.backends.registry import open_backend
from valle2.engine.build.cuda.reader import GraphReader, UnsupportedGraphError, given
from valle2.engine.build.cuda.rewrite import read_instead, replace_nodes
from valle2.engine.build.cuda.step import written_spec
from valle2.engine.build.cuda.writer import GraphWriter
from valle2.engine.build.external_data import write_graph

REJECTED = UnsupportedGraphError, KeyError, IndexError, ValueError


def codec_graph(model: onnx.ModelProto, _: Mapping[str, int]) -> onnx.ModelProto:
    """The decoder in float32.

    Args:
        model: the decoder, its weights in float32. It is not changed.

    Raises:
        UnsupportedGraphError: no part of it has a form with fewer nodes.
    """
    made: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    done = 0
    for rewrite in (pack_tables, join_inverse_transform):
        with suppress(*REJECTED):
            rewrite(made)
            done += 1
    for name in overlaps(GraphReader(made)):
        with suppress(*REJECTED):
            join_overlaps(made, name)
            done += 1
    for name in [node.output[0] for node in made.graph.node if node.op_type == "Add"]:
        with suppress(*REJECTED):
            fuse_residual(made, name)
            done += 1
    for name in [node.output[0] for node in made.graph.node if node.op_type == "Gelu"]:
        with suppress(*REJECTED):
            fuse_activation(made, name)
            done += 1
    for name in [node.output[0] for node in made.graph.node if node.op_type == "Transpose"]:
        with suppress(*REJECTED):
            skip_transposes(made, name)
    if not done:
        raise UnsupportedGraphError("no part of it has a form with fewer nodes")
    return made


def pack_tables(model: onnx.ModelProto) -> None:
    """Take the vectors of all codebooks with one node, where they are summed one after another."""
    reader, graph = GraphReader(model), GraphWriter()
    total = max((chain_of(reader, node.output[0]) for node in model.graph.node), key=len)
    if len(total) < 2:
        raise UnsupportedGraphError("codebooks are not summed one after another")
    name, tables = total[0], []
    for book, part in enumerate(total[1:]):
        rows = reader.node(part, "Gather")
        column = reader.node(rows.input[1], "Gather")
        if (
            column.input[0] != "codes"
            or reader.weight(column.input[1]) != book
            or given(column, "axis", 0) != 2
        ):
            raise UnsupportedGraphError(f"{part} is not codebook {book}")
        tables.append(constant(reader, rows.input[0]))
    sizes = np.cumsum([0, *(len(table) for table in tables[:-1])])
    ids = graph.op("Add", ["codes", graph.const("book_offsets", sizes)], "book_rows")
    found = graph.op(
        "Gather", [graph.const("book_vectors", np.concatenate(tables)), ids], "book_parts", axis=0
    )
    summed = graph.op("ReduceSum", [found, graph.ints(2)], "book_sum", keepdims=0)
    replace_nodes(model, name, graph, summed)


def chain_of(reader: GraphReader, name: str) -> list[str]:
    """A sum of rows of tables -> its name and its terms in order; a list of one for any other tensor."""
    terms: list[str] = []
    at = name
    while (node := reader.makers.get(at)) is not None and node.op_type == "Add":
        made = reader.makers.get(node.input[1])
        if made is None or made.op_type != "Gather":
            return [name]
        terms.insert(0, node.input[1])
        at = node.input[0]
    first = reader.makers.get(at)
    return [name, at, *terms] if terms and first is not None and first.op_type == "Gather" else [name]


def constant(reader: GraphReader, name: str) -> NDArray[Any]:
    """A weight, or one table of a stack of them."""
    values = reader.weight(name)
    if values is not None:
        return values
    node = reader.node(name, "Gather")
    stack, index = reader.weight(node.input[0]), reader.weight(node.input[1])
    if stack is None or index is None or index.size != 1 or given(node, "axis", 0) != 0:
        raise UnsupportedGraphError(f"{name} is computed")
    return np.asarray(stack[int(index)])


def fuse_residual(model: onnx.ModelProto, name: str) -> None:
    """residual + scale * (x W + b) -> one product and one `SkipLayerNormalization`."""
    reader, graph = GraphReader(model), GraphWriter()
    residual, scaled = reader.node(name, "Add").input
    scaled, scale = reader.split_weight(reader.node(scaled, "Mul"))
    source, linear = reader.linear(scaled)
    if scale.ndim != 1 or linear.bias is None:
        raise UnsupportedGraphError("a residual without scale or bias")
    weight = graph.const(f"{name}.weight", linear.weight * scale)
    product = graph.op("MatMul", [source, weight], f"{name}.product")
    readers = [node for node in model.graph.node if name in node.input]
    parts, at = [product, residual], ""
    if [node.op_type for node in readers] == ["LayerNormalization"]:
        norm, at = reader.norm(readers[0].output[0])[1], readers[0].output[0]
        gain, shift, epsilon = norm.gain, norm.shift, norm.epsilon
    else:
        gain, shift, epsilon = np.ones(len(scale), np.float32), None, 1e-5
    parts.append(graph.const(f"{at or name}.gain" if at else f"ones_{len(scale)}", gain))
    parts.append("" if shift is None else graph.const(f"{at}.shift", shift))
    parts.append(graph.const(f"{name}.bias", linear.bias * scale))
    outputs = [f"{name}.normed"] if at else [f"{name}.normed", "", "", f"{name}.sum"]
    graph.contrib("SkipLayerNormalization", parts, outputs, epsilon=epsilon)
    replace_nodes(model, at or name, graph, outputs[-1])


def fuse_activation(model: onnx.ModelProto, name: str) -> None:
    """A bias and the exact GELU -> `BiasGelu`."""
    reader, graph = GraphReader(model), GraphWriter()
    node = reader.node(name, "Gelu")
    source, bias = reader.split_weight(reader.node(node.input[0], "Add"))
    if bias.ndim != 1 or given(node, "approximate", b"none") != b"none":
        raise UnsupportedGraphError("an activation without a vector as bias")
    made = graph.contrib("BiasGelu", [source, graph.const(f"{name}.bias", bias)], [f"{name}.fused"])
    replace_nodes(model, name, graph, made)


def skip_transposes(model: onnx.ModelProto, name: str) -> None:
    """Read what a `Transpose` of a `Transpose` restores."""
    reader = GraphReader(model)
    outer = reader.node(name, "Transpose")
    inner = reader.node(outer.input[0], "Transpose")
    perms = [given(node, "perm", []) for node in (inner, outer)]
    if [perms[0][axis] for axis in perms[1]] != list(range(len(perms[0]))):
        raise UnsupportedGraphError("two changes of layout that restore nothing")
    read_instead(model, name, inner.input[0])


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A spectrum in the graph.

    Args:
        parts: names of its real and imaginary parts (B, T, K).
        halves: names of its logarithms of magnitudes, and of its phases.
        bins: K.
    """

    parts: tuple[str, str]
    halves: tuple[str, str]
    bins: int


def join_overlaps(model: onnx.ModelProto, name: str) -> None:
    """Add the overlaps of windowed frames with one sum.

    With the hops of a frame as rows, row i moves by i frames if it is followed by zeros and the flat rows are
    cut again, one frame shorter.

    Args:
        name: of the samples (B, T * hop) without the margins.
    """
    reader, graph = GraphReader(model), GraphWriter()
    frames, overlap, hop = read_overlap(reader, name)
    # sizes: computed on the host
    batch = graph.op("Shape", [frames], f"{name}.rows", start=0, end=1)
    count = graph.op("Shape", [frames], f"{name}.frames", start=1, end=2)
    longer = graph.op("Add", [count, graph.ints(overlap - 1)], f"{name}.count")
    hops, size, one, rest = graph.ints(overlap), graph.ints(hop), graph.ints(1), graph.ints(-1)

    def shaped(source: str, part: str, *sizes: str) -> str:
        shape = graph.op("Concat", [batch, *sizes], f"{name}.{part}_shape", axis=0)
        return graph.op("Reshape", [source, shape], f"{name}.{part}")

    split = shaped(frames, "hops", count, hops, size)
    turned = graph.op("Transpose", [split], f"{name}.by_place", perm=[0, 2, 1, 3])
    widths = graph.const(f"pads_{overlap}", np.array([0, 0, 0, 0, 0, 0, overlap, 0]))
    flat = shaped(graph.op("Pad", [turned, widths], f"{name}.padded"), "flat", rest, size)
    cut = graph.op("Slice", [flat, graph.ints(0), graph.ints(-overlap), one], f"{name}.cut")
    moved = shaped(cut, "moved", hops, longer, size)
    summed = graph.op("ReduceSum", [moved, one], f"{name}.sums", keepdims=0)
    margin = (overlap - 1) * hop // 2
    whole = shaped(summed, "whole", rest)
    inner = graph.op("Slice", [whole, graph.ints(margin), graph.ints(-margin), one], f"{name}.inner")
    replace_nodes(model, name, graph, inner)


def read_overlap(reader: GraphReader, name: str) -> tuple[str, int, int]:
    """The windowed frames (B, T, overlap * hop) whose overlaps are added; the overlap; samples of a hop."""
    total = reader.through(reader.node(name, "Slice").input[0], "Reshape")
    terms = 1
    while reader.node(total, "Add", "Pad").op_type == "Add":
        total, terms = reader.makers[total].input[0], terms + 1
    view = reader.node(reader.through(total, "Pad", "Gather"), "Reshape")
    shape = reader.node(view.input[1], "Concat")
    overlap, hop = (reader.weight(name) for name in shape.input[2:])
    if overlap is None or hop is None or int(overlap[0]) != terms:
        raise UnsupportedGraphError("frames overlap in another way")
    return view.input[0], terms, int(hop[0])


def join_inverse_transform(model: onnx.ModelProto) -> None:
    """Make windowed frames of a spectrum by one product.

    Everything between them is linear and the same for each frame. So the matrix is found by running it on the
    identity.
    """
    reader, graph = GraphReader(model), GraphWriter()
    spectrum = read_spectrum(reader)
    frames = next(read_overlap(reader, name)[0] for name in overlaps(reader, spectrum))
    matrix = graph.const("inverse_transform", linear_map(model, spectrum.parts, frames, spectrum.bins))
    both = graph.op("Concat", list(spectrum.parts), "spectrum", axis=-1)
    replace_nodes(model, frames, graph, graph.op("MatMul", [both, matrix], "windowed"))
    split_halves(model, spectrum)


def overlaps(reader: GraphReader, spectrum: Spectrum | None = None) -> list[str]:
    """Names of samples whose frames overlap, of all or of those that depend on a spectrum."""
    found = []
    for node in reader.model.graph.node:
        with suppress(*REJECTED):
            frames = read_overlap(reader, node.output[0])[0]
            if spectrum is None or depends(reader, frames, spectrum.parts[0]):
                found.append(node.output[0])
    return found


def depends(reader: GraphReader, name: str, on: str) -> bool:
    """Whether a tensor is computed from another one."""
    todo, seen = [name], set[str]()
    while todo:
        at = todo.pop()
        if at == on:
            return True
        if at in reader.makers and at not in seen:
            seen.add(at)
            todo += reader.makers[at].input
    return False


def read_spectrum(reader: GraphReader) -> Spectrum:
    """A magnitude times the cosine and the sine of a phase, both from halves of one product."""
    found = {}
    for node in reader.model.graph.node:
        made = reader.makers.get(node.input[1]) if node.op_type == "Mul" else None
        if made is not None and made.op_type in ("Cos", "Sin"):
            found[made.op_type] = (node.output[0], node.input[0], made.input[0])
    if set(found) != {"Cos", "Sin"} or found["Cos"][1:] != found["Sin"][1:]:
        raise UnsupportedGraphError("no spectrum of magnitude and phase")
    _, magnitude, second = found["Cos"]
    kinds = ("Exp", "Clip") if reader.makers[magnitude].op_type == "Exp" else ("Clip", "Exp")
    first = reader.through(magnitude, *kinds)
    halves = [reader.node(name, "Slice") for name in (first, second)]
    spans = [[reader.weight(name) for name in node.input[1:4]] for node in halves]
    bins = int(np.asarray(spans[1][0]).reshape(-1)[0])
    ends = [int(np.asarray(spans[half][1]).reshape(-1)[0]) for half in range(2)]
    if halves[0].input[0] != halves[1].input[0] or ends[0] != bins or ends[1] < 2 * bins:
        raise UnsupportedGraphError("magnitudes and phases are no halves of one product")
    return Spectrum((found["Cos"][0], found["Sin"][0]), (first, second), bins)


def linear_map(model: onnx.ModelProto, parts: tuple[str, str], frames: str, bins: int) -> NDArray[np.float32]:
    """The matrix (2 K, N) by which both parts (B, T, K) of a spectrum become `frames` (B, T, N)."""
    needed, nodes = {frames}, list[onnx.NodeProto]()
    for node in reversed(model.graph.node):
        if needed & set(node.output) and not set(parts) & set(node.output):
            needed |= set(node.input)
            nodes.insert(0, node)
    tensors = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", "t", bins]) for name in parts
    ]
    made = helper.make_tensor_value_info(frames, onnx.TensorProto.FLOAT, ["b", "t", "n"])
    weights = [weight for weight in model.graph.initializer if weight.name in needed]
    graph = helper.make_graph(nodes, "inverse", tensors, [made], weights)
    inner = helper.make_model(graph, opset_imports=model.opset_import, ir_version=10)
    ones, zeros = np.eye(bins, dtype=np.float32), np.zeros((bins, bins), np.float32)
    pairs = np.concatenate([ones, zeros])[None], np.concatenate([zeros, ones])[None]
    with TemporaryDirectory() as folder:
        file = write_graph(inner, Path(folder) / "inverse.onnx")
        with open_backend(file.parent, written_spec(inner, file.name)) as backend:
            found = backend.run(dict(zip(parts, pairs, strict=True)))[frames]
    return np.asarray(found[0])


def split_halves(model: onnx.ModelProto, spectrum: Spectrum) -> None:
    """Divide the last product into magnitudes and phases with one node."""
    reader = GraphReader(model)
    nodes = [reader.makers[name] for name in spectrum.halves]
    product = nodes[0].input[0]
    sizes = numpy_helper.from_array(np.array([spectrum.bins] * 2), "halves")
    model.graph.initializer.append(sizes)
    first = min(list(model.graph.node).index(node) for node in nodes)
    made = helper.make_node("Split", [product, "halves"], list(spectrum.halves), "split_halves", axis=-1)
    model.graph.node[first].CopyFrom(made)
    other = next(node for node in nodes if node.op_type == "Slice")
    model.graph.node.remove(other)

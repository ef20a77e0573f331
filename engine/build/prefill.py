"""Rewrites an AR graph into a prefill graph for a CPU: one row, many new positions, 8-bit caches. No torch.

A decode step is bound by the bytes of its weights, a prefill by arithmetic. So the prefill graph has its own
operators (docs/notes/precision.md):

- matrix products of whole numbers, with one scale per position (`quantize.row_product`)
- attention as two blocked products. `GroupQueryAttention` over 8-bit caches multiplies position by position.

The graph only fills the caches. So it has no head and no sampler, and of the last block only its keys and
values. The AR graph then takes the row's last position, which draws the first codes.

No result depends on how many positions a call takes, except for the order of the float32 sums of attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from valle2.engine.backends.registry import open_backend
from valle2.engine.build.cuda.reader import UnsupportedGraphError
from valle2.engine.build.cuda.step import written_spec
from valle2.engine.build.external_data import write_graph
from valle2.engine.build.kv_int8 import Ranges, channel_scales, random_prefix, whole_caches
from valle2.engine.build.rotary import ATTENTION, fuse_rotary, keep_nodes
from valle2.engine.bundle.contract import CACHE_PREFIX, MASK_VALUE, OUT_SUFFIX, PREFILL
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.errors import BackendError

PLAIN = {"num_heads", "kv_num_heads", "causal"}
"""The attributes of attention without further options."""
TOTAL, MASK, NEW_LENGTHS = 6, 10, 16
"""Indices of the number of positions, a mask and the new lengths among the inputs of the operator."""
TOLERANCE = 0.05
"""Of the caches: root mean square of the difference from the source's, over that of the source's. Rounding
to 8 bits makes about 0.01."""
SEEN = "_seen"
"""What the name of a mask ends with that covers the filled positions alone."""
POSITIONS = 40
"""Random tokens, and groups of random codes, to compare with."""


def prefill_graph(source: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """The prefill graph in float32, with caches of 8 bits.

    Args:
        source: an AR graph in float32. ranges: of its caches, see `kv_int8.cache_ranges`.

    Raises:
        UnsupportedGraphError: the attention has options that have no counterpart here.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source)
    fuse_rotary(model)
    found = [node for node in model.graph.node if node.op_type == ATTENTION]
    if not found:
        raise UnsupportedGraphError(f"the graph has no {ATTENTION}")
    masks = {node.output[0]: check_attention(node) for node in found}
    nodes, tensors = shared_nodes()
    known: set[str] = set()
    for node in model.graph.node:
        if node.op_type == ATTENTION:
            mask = masks[node.output[0]]
            nodes += [] if mask in known else mask_nodes(mask)
            known.add(mask)
            made, scales = attention(node, ranges, f"{mask}{SEEN}")
            nodes += made
            tensors += scales
        else:
            nodes.append(node)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(CACHE_PREFIX):
            value.type.tensor_type.elem_type = TensorProto.INT8
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].ClearField("dim_param")
            value.type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.initializer.extend(tensors)
    keep_caches(model, nodes)
    return model


def check_attention(node: onnx.NodeProto) -> str:
    """The name of the mask of an attention, empty if it is causal. Other options are refused."""
    given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    inputs = [*node.input, *[""] * NEW_LENGTHS][TOTAL + 1 : NEW_LENGTHS]
    mask = str(inputs.pop(MASK - TOTAL - 1))
    wrong = sorted(given.keys() - PLAIN) + [name for name in inputs if name]
    if given.get("causal", 1) == bool(mask) or given["num_heads"] != given["kv_num_heads"]:
        wrong.append("heads or a mask of its own")
    if wrong:
        raise UnsupportedGraphError(f"{node.name or ATTENTION} has {', '.join(wrong)}")
    return mask


def shared_nodes() -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """What every block reads, but for the mask: the number of positions after the call, and constants."""
    node = helper.make_node
    nodes = [
        node("Shape", ["text"], ["prefill_new"], start=1),
        node("Add", ["past_lengths", "prefill_new"], ["prefill_total"]),
    ]
    values: dict[str, NDArray[Any]] = {
        "prefill_zero": np.array(0),
        "prefill_one": np.array(1),
        "prefill_begin": np.array([0]),
        "prefill_axis": np.array([2]),
        "prefill_keys": np.array([3]),
        "prefill_last": np.array([1]),
        "prefill_hidden": np.array(MASK_VALUE, np.float32),
        "prefill_shown": np.array(0, np.float32),
        "prefill_unit": np.array(1, np.float32),
        "prefill_middle": np.array(0, np.int8),
    }
    return nodes, [numpy_helper.from_array(value, name) for name, value in values.items()]


def mask_nodes(mask: str) -> list[onnx.NodeProto]:
    """What is added to the scores (new, total), from a mask (1, 1, new, capacity), or if causal from none."""
    node = helper.make_node
    if mask:
        bounds = ["prefill_begin", "prefill_total", "prefill_keys"]
        return [node("Slice", [mask, *bounds], [f"{mask}{SEEN}"])]
    return [
        node("Squeeze", ["past_lengths"], ["prefill_first"]),
        node("Squeeze", ["prefill_total"], ["prefill_end"]),
        node("Range", ["prefill_first", "prefill_end", "prefill_one"], ["prefill_rows"]),
        node("Range", ["prefill_zero", "prefill_end", "prefill_one"], ["prefill_columns"]),
        node("Unsqueeze", ["prefill_rows", "prefill_last"], ["prefill_column"]),
        node("Greater", ["prefill_columns", "prefill_column"], ["prefill_later"]),
        node("Where", ["prefill_later", "prefill_hidden", "prefill_shown"], [SEEN]),
    ]


def attention(
    node: onnx.NodeProto, ranges: Ranges, mask: str
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """One block's attention, and its caches after it. mask: is added to the scores.

    It is softmax(q K^T / sqrt(D)) V. Keys and values are K = k C_k and V = v C_v, of the codes C in the
    caches and the scales of their channels. So k goes into the queries, and v into the result.
    """
    query, key, value, *caches = node.input[:5]
    heads, width = ranges[caches[0]].shape
    out = node.output[0]
    layout = f"{out}_layout"
    tensors = [numpy_helper.from_array(np.array([1, -1, heads, width]), layout)]
    nodes, factors = [], []
    for fresh, cache, written in zip((key, value), caches, node.output[1:], strict=True):
        scales = channel_scales(cache, ranges)
        tensors.append(scales)
        nodes += [
            *split_heads(fresh, layout, f"{cache}_new"),
            helper.make_node("Div", [f"{cache}_new", scales.name], [f"{cache}_steps"]),
            helper.make_node(
                "QuantizeLinear", [f"{cache}_steps", "prefill_unit", "prefill_middle"], [f"{cache}_codes"]
            ),
            helper.make_node("TensorScatter", [cache, f"{cache}_codes", "past_lengths"], [written], axis=2),
            helper.make_node(
                "Slice", [written, "prefill_begin", "prefill_total", "prefill_axis"], [f"{cache}_seen"]
            ),
            helper.make_node("Cast", [f"{cache}_seen"], [f"{cache}_floats"], to=TensorProto.FLOAT),
        ]
        factors.append(scales.name)
    merged, root = f"{out}_merged", f"{out}_root"
    tensors.append(numpy_helper.from_array(np.array([1, -1, heads * width]), merged))
    tensors.append(numpy_helper.from_array(np.array(1 / math.sqrt(width), np.float32), root))
    nodes += [
        *split_heads(query, layout, f"{out}_query"),
        helper.make_node("Mul", [factors[0], root], [f"{out}_factor"]),  # of constants
        helper.make_node("Mul", [f"{out}_query", f"{out}_factor"], [f"{out}_scaled"]),
        helper.make_node("Transpose", [f"{caches[0]}_floats"], [f"{out}_keys"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", [f"{out}_scaled", f"{out}_keys"], [f"{out}_dots"]),
        helper.make_node("Add", [f"{out}_dots", mask], [f"{out}_scores"]),
        helper.make_node("Softmax", [f"{out}_scores"], [f"{out}_shares"], axis=-1),
        helper.make_node("MatMul", [f"{out}_shares", f"{caches[1]}_floats"], [f"{out}_sums"]),
        helper.make_node("Mul", [f"{out}_sums", factors[1]], [f"{out}_heads"]),
        helper.make_node("Transpose", [f"{out}_heads"], [f"{out}_places"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"{out}_places", merged], [out]),
    ]
    return nodes, tensors


def split_heads(source: str, layout: str, name: str) -> list[onnx.NodeProto]:
    """(1, S, d) -> (1, heads, S, D)."""
    return [
        helper.make_node("Reshape", [source, layout], [f"{name}_split"]),
        helper.make_node("Transpose", [f"{name}_split"], [name], perm=[0, 2, 1, 3]),
    ]


def keep_caches(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Give the graph these nodes, without whatever its caches do not need."""
    given = {value.name for value in model.graph.input}
    outputs = [value for value in model.graph.output if value.name.startswith(CACHE_PREFIX)]
    for node in nodes:
        if counts_rows(node) and node.input[0] in given:
            node.input[0] = "text"  # every input has the row as its first axis
    set_values(model.graph.output, outputs)
    keep_nodes(model, nodes)
    read = {name for node in model.graph.node for name in node.input}
    set_values(model.graph.input, [value for value in model.graph.input if value.name in read])
    model.graph.ClearField("value_info")
    model.graph.name = PREFILL


def set_values(field: Any, values: list[onnx.ValueInfoProto]) -> None:
    """Give a graph these inputs or outputs."""
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)


def counts_rows(node: onnx.NodeProto) -> bool:
    """Is it the size of a tensor's first axis alone?"""
    given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return node.op_type == "Shape" and (given.get("start", 0), given.get("end")) == (0, 1)


def check_prefill(
    folder: Path, spec: GraphSpec, model: onnx.ModelProto, sizes: Mapping[str, int], ranges: Ranges
) -> None:
    """Fill caches with random tokens and codes, in two calls, and compare them with those of the source.

    Args:
        folder: where the source lies. spec: its tensors. model: the prefill graph in float32.

    Raises:
        BackendError: the caches differ by more than their rounding.
    """
    words = min(POSITIONS, sizes["max_text"])
    groups = min(POSITIONS, sizes["max_frames"] // sizes["group_size"])
    prefix, ends = random_prefix(sizes, words, groups, 0), (0, words, words + 1 + groups)
    with open_backend(folder, spec) as backend:
        whole = whole_caches(backend, prefix)
    caches = {name: np.zeros(values.shape, np.int8) for name, values in whole.items()}
    with TemporaryDirectory() as made:
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        file = write_graph(copy, Path(made) / f"{PREFILL}.onnx")
        with open_backend(file.parent, written_spec(model, file.name)) as backend:
            for start, end in pairwise(ends):
                feeds = {**prefix, **caches, "past_lengths": np.array([start])}
                feeds |= {name: prefix[name][:, start:end] for name in ("text", "codes")}
                found = backend.run(feeds)
                caches = {name: found[f"{name}{OUT_SUFFIX}"] for name in caches}
    for name, expected in whole.items():
        scales = numpy_helper.to_array(channel_scales(name, ranges))
        noise = np.mean((caches[name] * scales - expected) ** 2) / np.mean(expected**2)
        if not noise <= TOLERANCE**2:
            raise BackendError(f"the prefill graph differs from {spec.file} in {name}")

"""Lowerings: how attention over the KV cache is written into a graph.

Each lowering is a function with the signature of `valle2.export.models.ar.Attend` and the results of
`attend_eager`.
"""

from __future__ import annotations

import math

import onnx
import torch
from torch import Tensor

from valle2.engine.build.precision import attribute
from valle2.engine.bundle.contract import MASK_VALUE
from valle2.export.models.ar import Attend, Cache, Window, merge_heads, split_heads, write_cache
from valle2.export.models.nar import FullAttend

PORTABLE_OPSET = 24
PRIMITIVE_OPSET = 18


def attend_ort(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """ONNX Runtime's fused `GroupQueryAttention`. Old and new cache may share one buffer."""
    if not window.causal:
        return attend_ort_masked(query, key, value, cache, window)
    heads = cache[0].shape[1]
    total = window.past + window.new
    out, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [
            query,
            key,
            value,
            cache[0],
            cache[1],
            (total - 1).clamp(min=0).to(torch.int32),
            total.max().to(torch.int32),
            *[None] * 9,
            window.new.to(torch.int32),
        ],
        {"num_heads": heads, "kv_num_heads": heads},
        dtypes=[query.dtype, query.dtype, query.dtype],
        shapes=[query.shape, cache[0].shape, cache[1].shape],
        version=1,
    )
    return out, (keys, values)


def attend_ort_masked(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """`GroupQueryAttention` with an additive mask: one row of any length, or many rows of one position.

    The operator takes no new lengths per row beside a mask, so it writes every new position. The mask hides
    written padding until a later call overwrites it.
    """
    heads, capacity = cache[0].shape[1], cache[0].shape[2]
    last = window.past + query.shape[1] - 1
    hidden = torch.where(window.mask, 0.0, MASK_VALUE).to(query.dtype)
    out, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [query, key, value, *cache, last.to(torch.int32), scalar_size(capacity), *[None] * 3, hidden],
        {"num_heads": heads, "kv_num_heads": heads, "causal": 0},
        dtypes=[query.dtype, query.dtype, query.dtype],
        shapes=[query.shape, cache[0].shape, cache[1].shape],
        version=1,
    )
    return out, (keys, values)


def scalar_size(size: int) -> Tensor:
    """A size as a scalar int32 tensor, also if the axis is dynamic."""
    return torch.arange(size)[-1:].reshape(()).to(torch.int32) + 1


def attend_portable(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """Standard operators of opset 24: `TensorScatter` at each row's position, `Attention` with a mask.

    The mask is explicit. TensorRT ignores `nonpad_kv_seqlen`, and it aligns `is_causal` to the upper left,
    which is wrong for a cache.
    """
    heads, width = cache[0].shape[1], cache[0].shape[3]
    updated = [
        torch.onnx.ops.symbolic(
            "TensorScatter",
            [old, split_heads(fresh, heads), window.past],
            {"axis": 2},
            dtype=old.dtype,
            shape=old.shape,
            version=PORTABLE_OPSET,
        )
        for old, fresh in zip(cache, (key, value), strict=True)
    ]
    split = split_heads(query, heads)
    out = torch.onnx.ops.symbolic(
        "Attention",
        [split, updated[0], updated[1], window.mask],
        {"scale": 1 / math.sqrt(width)},
        dtype=query.dtype,
        shape=split.shape,
        version=PORTABLE_OPSET,
    )
    return merge_heads(out), (updated[0], updated[1])


def attend_primitive(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """Scatter, MatMul, Where and Softmax: operators of TensorRT 10.3, which parses neither fused operator."""
    keys, values = write_cache(key, value, cache, window)
    split = split_heads(query, keys.shape[1]) * (1 / math.sqrt(keys.shape[3]))
    scores = torch.where(window.mask, split @ keys.transpose(2, 3), MASK_VALUE)
    return merge_heads(torch.softmax(scores, dim=3) @ values), (keys, values)


def attend_full_ort(query: Tensor, key: Tensor, value: Tensor, heads: int, lengths: Tensor) -> Tensor:
    """Full attention over each row's first positions: `GroupQueryAttention` with neither cache nor mask.

    Only its first output is requested, since the others would copy keys and values. `use_blockwise_attention`
    rewrites the node.
    """
    return torch.onnx.ops.symbolic(
        "com.microsoft::GroupQueryAttention",
        [query, key, value, None, None, (lengths - 1).to(torch.int32), scalar_size(query.shape[1])],
        {"num_heads": heads, "kv_num_heads": heads, "causal": 0},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )


def use_blockwise_attention(graph: onnx.GraphProto) -> None:
    """Let rows without padding attend block by block, without a matrix of scores.

    `MultiHeadAttention` works block by block and takes no lengths. `GroupQueryAttention` takes lengths and
    holds all scores at once. Each of the latter without a cache becomes an `If` with both as its branches. A
    single row always takes the first branch.
    """
    nodes = list(graph.node)
    found = [node for node in nodes if node.op_type == "GroupQueryAttention" and not node.input[3]]
    if not found:
        return
    last, total = found[0].input[5:7]
    one = onnx.helper.make_tensor("one", onnx.TensorProto.INT32, [], [1])
    full = [
        onnx.helper.make_node("Constant", [], ["blockwise_one"], value=one),
        onnx.helper.make_node("ReduceMin", [last], ["blockwise_last"], keepdims=0),
        onnx.helper.make_node("Add", ["blockwise_last", "blockwise_one"], ["blockwise_least"]),
        onnx.helper.make_node("Equal", ["blockwise_least", total], ["blockwise"]),
    ]
    del graph.node[:]
    for node in nodes:
        if node is found[0]:
            graph.node.extend(full)
        graph.node.append(branches(node) if node in found else node)


def branches(node: onnx.NodeProto) -> onnx.NodeProto:
    """The `If` that replaces a `GroupQueryAttention` without a cache. The node is its else branch."""
    out, heads = node.output[0], attribute(node, "num_heads").i
    full = onnx.helper.make_node(
        "MultiHeadAttention", node.input[:3], [f"{out}_then"], domain=node.domain, num_heads=heads
    )
    ragged = onnx.NodeProto.FromString(node.SerializeToString())
    ragged.output[0] = f"{out}_else"
    graphs = {}
    for way, inner in (("then", full), ("else", ragged)):
        kind = onnx.helper.make_tensor_value_info(inner.output[0], onnx.TensorProto.FLOAT, None)
        graphs[f"{way}_branch"] = onnx.helper.make_graph([inner], f"{out}_{way}", [], [kind])
    return onnx.helper.make_node("If", ["blockwise"], [out], name=node.name, **graphs)


LOWERINGS: dict[str, Attend] = {
    "ort": attend_ort,
    "portable": attend_portable,
    "primitive": attend_primitive,
}
FULL_ATTENTION: dict[str, FullAttend | None] = {"ort": attend_full_ort, "portable": None, "primitive": None}
"""The NAR's attention by lowering. None is the module's own attention with a mask."""
OPSETS = {"ort": PORTABLE_OPSET, "portable": PORTABLE_OPSET, "primitive": PRIMITIVE_OPSET}

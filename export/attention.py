"""How cached attention is written into a graph: one function per lowering, all taking the same arguments.

Each has the signature of `valle2.export.models.ar.Attend` and the numbers of `attend_eager`.
"""

from __future__ import annotations

import math

import onnx
import torch
from torch import Tensor

from valle2.engine.build.precision import attribute
from valle2.export.models.ar import Attend, Cache, Window, attend_eager, merge_heads, split_heads, write_cache
from valle2.export.models.nar import FullAttend

PORTABLE_OPSET = 24
PRIMITIVE_OPSET = 18
MASKED = -6e4  # finite in float16 too, and far below every score


def attend_ort(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """ONNX Runtime's fused `GroupQueryAttention`, past and present meant to share one buffer."""
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

    It refuses new lengths per row beside a mask, so every new position is written; what is padding there
    is hidden by the mask until it is overwritten.
    """
    heads, capacity = cache[0].shape[1], cache[0].shape[2]
    last = window.past + query.shape[1] - 1
    hidden = torch.where(window.mask, 0.0, MASKED).to(query.dtype)
    out, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [query, key, value, *cache, last.to(torch.int32), whole(capacity), *[None] * 3, hidden],
        {"num_heads": heads, "kv_num_heads": heads, "causal": 0},
        dtypes=[query.dtype, query.dtype, query.dtype],
        shapes=[query.shape, cache[0].shape, cache[1].shape],
        version=1,
    )
    return out, (keys, values)


def whole(capacity: int) -> Tensor:
    """A cache length as a scalar tensor, also where the length is dynamic."""
    return torch.arange(capacity)[-1:].reshape(()).to(torch.int32) + 1


def attend_portable(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """Standard opset 24: `TensorScatter` at each row's position, `Attention` with an explicit mask.

    The mask is explicit because TensorRT ignores `nonpad_kv_seqlen` and aligns `is_causal` to the
    upper left, which is wrong against a cache.
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
    """Scatter, MatMul, Where and Softmax: what TensorRT 10.3 parses, which has neither of the fused two."""
    keys, values = write_cache(key, value, cache, window)
    split = split_heads(query, keys.shape[1]) * (1 / math.sqrt(keys.shape[3]))
    scores = torch.where(window.mask, split @ keys.transpose(2, 3), MASKED)
    return merge_heads(torch.softmax(scores, dim=3) @ values), (keys, values)


def attend_full_ort(query: Tensor, key: Tensor, value: Tensor, heads: int, lengths: Tensor) -> Tensor:
    """Full attention over each row's first positions, without a mask: `GroupQueryAttention` without a cache.

    Its first output alone is asked for: the others would be copies of keys and values. See `blockwise` for
    what becomes of it.
    """
    return torch.onnx.ops.symbolic(
        "com.microsoft::GroupQueryAttention",
        [query, key, value, None, None, (lengths - 1).to(torch.int32), whole(query.shape[1])],
        {"num_heads": heads, "kv_num_heads": heads, "causal": 0},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )


def blockwise(graph: onnx.GraphProto) -> None:
    """Let rows that fill every position, as a single row does, attend without writing scores down.

    `MultiHeadAttention` goes through the keys block by block and takes no lengths; `GroupQueryAttention`
    takes them and holds all scores at once. So each of the latter without a cache becomes an `If` with both.
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
    """`If` in place of a `GroupQueryAttention` without a cache, which is its second branch."""
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
FULL: dict[str, FullAttend | None] = {"ort": attend_full_ort, "portable": None, "primitive": None}
"""The NAR's attention; None is the module's own, with a mask."""
OPSETS = {"ort": PORTABLE_OPSET, "portable": PORTABLE_OPSET, "primitive": PRIMITIVE_OPSET}
EAGER: Attend = attend_eager

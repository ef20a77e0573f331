"""Replaces rotary positions by one operator for each query and key. No torch.

An exported AR graph rotates with ten operators, which read short pieces of memory. Each costs a decode step
about a microsecond. `RotaryEmbedding` computes the same: with halves a and b of a head, and the angle of a
position, (a cos - b sin, b cos + a sin).
"""

from __future__ import annotations

import onnx
from onnx import helper

from valle2.engine.build.quantize import DOMAIN, drop_unused

ATTENTION = "GroupQueryAttention"


def fuse_rotary(model: onnx.ModelProto) -> int:
    """Replace them in an AR graph, in place; returns how many. Whatever has another form stays as it is."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    heads = {
        name: helper.get_node_attr_value(node, "num_heads")
        for node in graph.node
        if node.op_type == ATTENTION
        for name in node.input[:2]
    }
    tables = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    nodes, count = [], 0
    for node in graph.node:
        found = rotation(node, makers) if node.output[0] in heads else None
        if found and {found[2], found[3]} <= tables:
            name = node.output[0]
            options = {"num_heads": heads[name], "domain": DOMAIN}
            nodes.append(helper.make_node("RotaryEmbedding", found, [name], f"{name}_rotary", **options))
            count += 1
        else:
            nodes.append(node)
    if count:
        keep_nodes(model, nodes)
    return count


def rotation(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> tuple[str, str, str, str] | None:
    """What a node rotates, the positions, and the tables of cosines and sines, by name; None if nothing."""

    def made(name: str, kind: str) -> list[str]:
        maker = makers.get(name)
        return list(maker.input) if maker is not None and maker.op_type == kind else []

    joined = made(node.input[0], "Concat") if node.op_type == "Reshape" else []
    if len(joined) != 2:
        return None
    products = [
        made(part, "Mul")
        for name, kind in zip(joined, ("Sub", "Add"), strict=True)
        for part in made(name, kind)
    ]
    if [len(product) for product in products] != [2] * 4:
        return None
    (a, cos), (b, sin) = products[:2]
    split = makers.get(a)
    if products[2:] != [[b, cos], [a, sin]] or split is None or list(split.output) != [a, b]:
        return None
    angles = [made((made(angle, "Unsqueeze") or [""])[0], "Gather") for angle in (cos, sin)]
    source = made((made(a, "Split") or [""])[0], "Reshape")
    if not source or not all(angles) or angles[0][1] != angles[1][1]:
        return None
    return source[0], angles[0][1], angles[0][0], angles[1][0]


def keep_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Give a graph without subgraphs these nodes, without those that no output needs."""
    needed, kept = {value.name for value in model.graph.output}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
            needed.update(node.input)
    del model.graph.node[:]
    model.graph.node.extend(kept[::-1])
    drop_unused(model)

"""Puts new nodes into a graph in place of old ones."""

from __future__ import annotations

import onnx

from valle2.engine.build.cuda.writer import GraphWriter
from valle2.engine.build.quantize import DOMAIN, drop_unused


def replace_nodes(model: onnx.ModelProto, old: str, graph: GraphWriter, result: str) -> None:
    """Put new nodes where `old` was made, name their result so, and drop what nobody reads any more.

    The new nodes may read what is made before `old`, and inputs of the graph.
    """
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if old in node.output:
            nodes += graph.finished()
        else:
            nodes.append(node)
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == result:
                    names[index] = old
    read = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(nodes):
        if read & set(node.output):
            read |= set(node.input)
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    known = {weight.name for weight in model.graph.initializer}
    model.graph.initializer.extend(graph.weights[name] for name in graph.weights if name not in known)
    del model.graph.value_info[:]
    if DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    drop_unused(model)

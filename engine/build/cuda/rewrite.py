"""Puts new nodes into a graph in place of old ones."""

from __future__ import annotations

import onnx

from valle2.engine.build.cuda.writer import GraphWriter
from valle2.engine.build.quantize import DOMAIN


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
    model.graph.initializer.extend(new_weights(model, graph))
    keep_nodes(model, nodes)
    if DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def read_instead(model: onnx.ModelProto, old: str, new: str) -> None:
    """Let every node that reads `old` read `new`, and drop what nobody reads any more."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
    keep_nodes(model, list(model.graph.node))


def new_weights(model: onnx.ModelProto, graph: GraphWriter) -> list[onnx.TensorProto]:
    """The weights of the new nodes that the model lacks. An equal name means an equal weight."""
    known = {weight.name for weight in model.graph.initializer}
    return [weight for name, weight in graph.weights.items() if name not in known]


def keep_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Give the model these nodes, in this order, but for those whose results nobody reads."""
    read = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(nodes):
        if read & set(node.output):
            read |= set(node.input)
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    del model.graph.value_info[:]
    read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    for index in reversed(range(len(model.graph.initializer))):  # in place: weights can be gigabytes
        if model.graph.initializer[index].name not in read:
            del model.graph.initializer[index]

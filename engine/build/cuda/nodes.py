"""Counts the nodes of a graph that launch work on a GPU.

The rule, for a graph as it is written, before ONNX Runtime's own fusions:

- A view (`VIEWS`) launches nothing: it changes the shape of the same numbers.
- A node whose inputs are all constant is computed once, when the graph is loaded.
- A node that computes sizes from sizes runs on the host.
- Every other node launches at least one kernel.

The nodes of a layer are those between the attention of one layer and the attention of the next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from valle2.engine.backends.ort.providers import HOST_TYPES
from valle2.engine.bundle.graph_file import readable

VIEWS = frozenset(["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Constant", "Shape", "Size"])
FROM_SIZES = frozenset(["Range", "ConstantOfShape", "Expand"])
"""Operators that make a tensor on the GPU from sizes on the host."""
HOST_INPUTS: dict[str, tuple[int, ...]] = {
    "Range": (0, 1, 2),
    "ConstantOfShape": (0,),
    "Slice": (1, 2, 3, 4),
    "GroupQueryAttention": (6,),
    **dict.fromkeys(
        ["Reshape", "Expand", "Squeeze", "Unsqueeze", "Split", "Pad", "TopK", "CumSum", "Tile"], (1,)
    ),
    **dict.fromkeys(["ReduceSum", "ReduceMin", "ReduceMax", "ReduceMean", "ReduceProd"], (1,)),
}
"""Inputs that operators of the CUDA provider read on the host: sizes, axes and counts."""
ATTENTION = frozenset(["Attention", "GroupQueryAttention", "MultiHeadAttention", "If"])
"""The operator of a layer's attention. The exporter writes an `If` around full attention."""


def launching_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that launch work, see above."""
    return [node for node in device_nodes(model)[0] if node.op_type not in VIEWS]


def transfers(model: onnx.ModelProto) -> list[str]:
    """Names of tensors that one of host and GPU makes and the other reads.

    Each is a copy, and ONNX Runtime captures no graph that has one.
    """
    nodes, on_host, constant = device_nodes(model)
    found = []
    for node in nodes:
        by_host = HOST_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if name not in constant and (name in on_host) != (index in by_host):
                found.append(name)
    return list(dict.fromkeys(found))


def device_nodes(model: onnx.ModelProto) -> tuple[list[onnx.NodeProto], set[str], set[str]]:
    """The nodes that run on the GPU, views among them; what the host makes; and what is constant."""
    constant = {weight.name for weight in model.graph.initializer} | {""}
    on_host: set[str] = set()
    found = []
    for node in model.graph.node:
        inputs = set(node.input)
        if node.op_type in ("Shape", "Size"):
            on_host.update(node.output)
        elif (node.input and inputs <= constant) or node.op_type == "Constant":
            constant.update(node.output)
        elif inputs <= on_host | constant and node.op_type in HOST_TYPES - FROM_SIZES:
            on_host.update(node.output)
        else:
            found.append(node)
    return found, on_host, constant


def count_nodes(model: onnx.ModelProto) -> dict[str, float]:
    """The nodes that launch work: `per_layer`, `beside` the layers, and in `total`.

    A graph with fewer than two layers of attention has all of its nodes beside them.
    """
    nodes = launching_nodes(model)
    layers = [node for node in nodes if node.op_type in ATTENTION]
    if len(layers) < 2:
        return {"per_layer": 0.0, "beside": len(nodes), "total": len(nodes)}
    between = reached(model, layers[0], backwards=False) & reached(model, layers[-1], backwards=True)
    shared = [node for node in nodes if node.output[0] in between]
    per_layer = len(shared) / (len(layers) - 1)
    return {
        "per_layer": round(per_layer, 2),
        "beside": round(len(nodes) - per_layer * len(layers), 2),
        "total": len(nodes),
    }


def reached(model: onnx.ModelProto, start: onnx.NodeProto, *, backwards: bool) -> set[str]:
    """Tensors that a node makes or that depend on it; `backwards`, those that it reads or depends on."""
    nodes = list(model.graph.node)
    if backwards:
        nodes.reverse()
    found = set(start.input if backwards else start.output) - {""}
    for node in nodes:
        here, there = (node.output, node.input) if backwards else (node.input, node.output)
        if found & set(here):
            found |= set(there) - {""}
    return found


def count_file(path: Path) -> dict[str, float]:
    """`count_nodes` of a file. Its weights are not read.

    Raises:
        BackendError: it is not a graph.
    """
    with readable(path):
        return count_nodes(onnx.load(str(path), load_external_data=False))


def count_bundle(folders: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By graph, the counts. folders: by graph, what `find_graphs` returns."""
    return {name: count_file(found.folder / found.spec.file) for name, found in folders.items()}

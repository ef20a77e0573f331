"""Which nodes launch work on a GPU, and what `valle2 inspect --nodes` prints."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from valle2.engine.build.cuda.nodes import count_nodes, launching_nodes, transfers
from valle2.runtime.cli.main import main


def graph_of(layers: int) -> ModelProto:
    """Layers of attention and a product, between an embedding and a head. Shapes come from sizes."""
    nodes = [
        helper.make_node("Transpose", ["table"], ["turned"]),  # constant
        helper.make_node("Gather", ["turned", "ids"], ["x0"], "embed"),
        helper.make_node("Shape", ["ids"], ["size"]),
        helper.make_node("Concat", ["size", "four"], ["shape"], axis=0),  # on the host
        helper.make_node("Range", ["zero", "length", "one"], ["places"], "places"),
    ]
    for layer in range(layers):
        nodes += [
            helper.make_node("Reshape", [f"x{layer}", "shape"], [f"heads{layer}"]),  # a view
            helper.make_node("Attention", [f"heads{layer}"] * 3, [f"heard{layer}"], f"attention{layer}"),
            helper.make_node("MatMul", [f"heard{layer}", "weight"], [f"x{layer + 1}"], f"product{layer}"),
        ]
    nodes.append(helper.make_node("Softmax", [f"x{layers}"], ["out"], "head"))
    weights = {"table": np.zeros((4, 4), np.float32), "weight": np.zeros((4, 4), np.float32)}
    weights |= {"four": np.array([4]), "zero": np.array(0), "one": np.array(1), "length": np.array(3)}
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [None])
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    return helper.make_model(helper.make_graph(nodes, "test", [ids], [out], tensors))


def test_views_constants_and_sizes_launch_nothing() -> None:
    names = [node.name for node in launching_nodes(graph_of(1))]
    assert names == ["embed", "attention0", "product0", "head"]


def test_a_layer_reaches_from_attention_to_attention() -> None:
    assert count_nodes(graph_of(3)) == {"per_layer": 2.0, "beside": 2.0, "total": 8}
    assert count_nodes(graph_of(1)) == {"per_layer": 0.0, "beside": 4, "total": 4}


def test_transfers_are_found() -> None:
    """A size of the host that the GPU adds, and lengths of the GPU that say where a slice ends."""
    assert transfers(graph_of(2)) == []
    nodes = [
        helper.make_node("Shape", ["ids"], ["size"]),
        helper.make_node("Add", ["size", "one"], ["more"]),
        helper.make_node("Add", ["ids", "more"], ["moved"]),
        helper.make_node("Slice", ["moved", "one", "ids"], ["out"]),
    ]
    ids, out = (helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in ("ids", "out"))
    weights = [numpy_helper.from_array(np.array([1]), "one")]
    model = helper.make_model(helper.make_graph(nodes, "test", [ids], [out], weights))
    assert transfers(model) == ["more", "ids"]


def test_inspect_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "demo", "--nodes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lowering"] == "portable" and set(found["nodes"]["ar"]) == {"per_layer", "beside", "total"}
    assert main(["inspect", "demo", "--nodes", "--precision", "int4"]) == 1
    assert "has no int4 graphs" in capsys.readouterr().err

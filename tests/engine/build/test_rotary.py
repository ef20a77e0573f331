"""Rotary positions as one operator: the graph computes the same, and other forms stay as they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from valle2.engine import open_backend, read_manifest
from valle2.engine.build.cuda.step import written_spec
from valle2.engine.build.external_data import write_graph
from valle2.engine.build.kv_int8 import random_prefix, whole_caches
from valle2.engine.build.precision import load_graph
from valle2.engine.build.rotary import fuse_rotary
from valle2.engine.bundle.contract import AR
from valle2.runtime.tts import find_model

DEMO = find_model("demo")


def caches(folder: Path, model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    file = write_graph(copy, folder / "ar.onnx")
    with open_backend(folder, written_spec(model, file.name)) as backend:
        return whole_caches(backend, random_prefix(read_manifest(DEMO).sizes, 9, 20, 0))


def test_the_graph_computes_the_same_with_fewer_operators(tmp_path: Path) -> None:
    manifest = read_manifest(DEMO)
    model = load_graph(DEMO / manifest.graphs[AR].file, "fp32")
    (tmp_path / "whole").mkdir()
    (tmp_path / "fused").mkdir()
    whole, before = caches(tmp_path / "whole", model), len(model.graph.node)
    layers = manifest.sizes["layers"]
    assert fuse_rotary(model) == 2 * layers
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["RotaryEmbedding"] == 2 * layers
    assert len(model.graph.node) <= before - 2 * layers * 9
    fused = caches(tmp_path / "fused", model)
    assert all(np.abs(fused[name] - values).max() < 1e-5 for name, values in whole.items())
    assert fuse_rotary(model) == 0


@pytest.mark.parametrize("kind", ["Sub", "Gather", "Split"])
def test_another_form_stays_as_it_is(kind: str) -> None:
    model = load_graph(DEMO / read_manifest(DEMO).graphs[AR].file, "fp32")
    for node in model.graph.node:
        if node.op_type == kind == "Split":
            node.output[:] = list(node.output)[::-1]  # the halves change places
        elif node.op_type == kind:
            node.op_type = "Add"
    before = model.SerializeToString()
    assert fuse_rotary(model) == 0
    assert model.SerializeToString() == before

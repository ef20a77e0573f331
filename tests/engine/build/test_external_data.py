"""A graph is written with each weight once, in C order, and in float16 only where that is exact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from valle2.engine.build.external_data import EXTERNAL_FROM, SAMPLE, write_graph

Weights = Mapping[str, NDArray[Any]]
GENERATOR = np.random.default_rng(0)


def graph(weights: Weights, apart: Weights | None = None) -> onnx.ModelProto:
    """A graph that returns its weights; it holds no values for those of `apart`."""
    held = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()]
    held += [
        TensorProto(name=name, dims=value.shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype))
        for name, value in (apart or {}).items()
    ]
    outs = [helper.make_tensor_value_info(f"{one.name}_out", one.data_type, one.dims) for one in held]
    nodes = [helper.make_node("Identity", [one.name], [f"{one.name}_out"]) for one in held]
    return helper.make_model(helper.make_graph(nodes, "weights", [], outs, held))


def read(path: Path) -> dict[str, NDArray[Any]]:
    """The weights of a written graph."""
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(str(path)).graph.initializer}


def test_weights_held_and_apart_are_written_once_in_c_order(tmp_path: Path) -> None:
    values: dict[str, NDArray[Any]] = {
        "square": GENERATOR.standard_normal((70, 33)).astype(np.float32),
        "turned": GENERATOR.standard_normal((70, 33)).astype(np.float32).T,
        "cube": GENERATOR.standard_normal((7, 9, 11)).astype(np.float32).transpose(2, 0, 1),
        "index": np.arange(400),
        "small": np.array([1, 2.5], np.float32),
    }
    large = {name: value for name, value in values.items() if name != "small"}
    held = write_graph(graph(values), tmp_path / "held.onnx")
    apart = write_graph(graph({"small": values["small"]}, large), tmp_path / "apart.onnx", apart=large)
    for path in (held, apart):
        onnx.checker.check_model(str(path))
        for name, found in read(path).items():
            assert np.array_equal(found, values[name]) and found.dtype == values[name].dtype
        total = sum(value.nbytes for value in large.values())
        assert path.with_suffix(".weights").stat().st_size == total and path.stat().st_size < EXTERNAL_FROM


@pytest.mark.parametrize("wrong", [None, 12_345, 0], ids=["exact", "one is not", "too large"])
def test_weights_are_halved_where_that_is_exact(wrong: int | None, tmp_path: Path) -> None:
    value = GENERATOR.standard_normal(5 * SAMPLE).astype(np.float16).astype(np.float32)
    if wrong is not None:
        value[wrong] = 1 + 2.0**-20 if wrong else 1e5
    found = read(write_graph(graph({"weight": value}), tmp_path / "one.onnx"))
    name, kind = ("weight_half", np.float16) if wrong is None else ("weight", np.float32)
    assert list(found) == [name] and found[name].dtype == kind and np.array_equal(found[name], value)
    casts = [node for node in onnx.load(str(tmp_path / "one.onnx")).graph.node if node.op_type == "Cast"]
    assert [list(node.output) for node in casts] == ([["weight"]] if wrong is None else [])


def test_weights_that_another_graph_has_are_not_written_again(tmp_path: Path) -> None:
    one, other = GENERATOR.standard_normal((2, 600)).astype(np.float32)
    near = one.copy()
    near[-1] += 1
    first = write_graph(graph({"zero": np.zeros(600, np.float32), "one": one}), tmp_path / "first.onnx")
    same = write_graph(graph({"renamed": one}), tmp_path / "same.onnx", first)
    more = {"other": other, "one": one, "near": near, "row": one[None]}
    further = write_graph(graph(more), tmp_path / "more.onnx", first)
    assert np.array_equal(read(same)["renamed"], one) and not same.with_suffix(".weights").exists()
    assert further.with_suffix(".weights").stat().st_size == 3 * one.nbytes
    assert all(np.array_equal(found, more[name]) for name, found in read(further).items())

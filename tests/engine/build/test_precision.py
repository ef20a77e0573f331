"""A graph in half precision: the network changes, the sampler does not, logits differ by rounding only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from valle2.engine import BackendError, GraphSpec, TensorSpec, read_manifest
from valle2.engine.build.precision import load_graph, retyped
from valle2.engine.bundle.engine_files import graph_precision
from valle2.engine.bundle.nar_inputs import NARInputs

HALF_TOLERANCE = {"ar": 2e-2, "nar": 2e-2}
"""Greatest difference of the logits, which span about 3 in the toy models."""
FLOAT_TOLERANCE = 1e-6


def feeds(folder: Path, graph: str) -> dict[str, NDArray[np.generic]]:
    """Inputs of one call with rows of different lengths; caches in float32."""
    rng = np.random.default_rng(3)
    if graph == "nar":
        return NARInputs[NDArray[np.generic]](
            text=rng.integers(0, 30, (2, 9)),
            text_lengths=np.array([9, 4]),
            codes=rng.integers(0, 1024, (2, 24, 8)),
            prompt_lengths=np.array([8, 6]),
            frame_lengths=np.array([24, 20]),
            stage=np.array(3),
        ).feeds()
    made: dict[str, NDArray[np.generic]] = {}
    sizes = {"batch": 2, "new": 9, "slots": 10, "draws": 4}
    for spec in read_manifest(folder).graphs["ar"].inputs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
        made[spec.name] = np.zeros(shape, spec.dtype)
    made |= {
        "text": rng.integers(0, 30, (2, 9)),
        "codes": rng.integers(0, 1024, (2, 9, 2)),
        "text_lengths": np.array([3, 5]),
        "new_lengths": np.array([9, 7]),
        "repeat_window": np.array([10, 10]),
        "threshold": np.ones(2, np.float32),
    }
    return made


def run(model: onnx.ModelProto, inputs: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {value.name: value.type for value in session.get_inputs()}
    fed = {n: v.astype(np.float16) if kinds[n] == "tensor(float16)" else v for n, v in inputs.items()}
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, fed), strict=True))


def gap(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())


@pytest.mark.parametrize("lowering", ["portable", "primitive"])
@pytest.mark.parametrize("graph", ["ar", "nar"])
def test_half_precision_agrees_with_float32(
    fixed_bundles: dict[str, Path], lowering: str, graph: str
) -> None:
    folder = fixed_bundles[lowering]
    inputs = feeds(folder, graph)
    whole = run(load_graph(folder / f"{graph}.onnx", "fp32"), inputs)
    half = run(load_graph(folder / f"{graph}.onnx", "fp16"), inputs)
    for name, expected in whole.items():
        assert half[name].dtype == (np.float16 if name.startswith("cache_") else expected.dtype)
    difference = gap(half["logits"], whole["logits"])
    assert 0 < difference < HALF_TOLERANCE[graph]


@pytest.mark.parametrize("graph", ["ar", "nar", "codec_decoder", "codec_encoder"])
def test_float32_is_the_stored_graph(fixed_bundles: dict[str, Path], graph: str) -> None:
    path = fixed_bundles["portable"] / f"{graph}.onnx"
    shapes = {"audio": (1, 1600), "codes": (1, 9, 8)}
    inputs = feeds(path.parent, graph) if graph in HALF_TOLERANCE else None
    for spec in read_manifest(path.parent).graphs[graph].inputs:
        if inputs is None:
            inputs = {spec.name: np.ones(shapes[spec.name], spec.dtype)}
    assert inputs is not None
    stored, unpacked = run(onnx.load(str(path)), inputs), run(load_graph(path, "fp32"), inputs)
    for name, expected in stored.items():
        assert np.allclose(unpacked[name], expected, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("precision, kind", [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
@pytest.mark.parametrize("graph", ["ar", "nar"])
def test_the_network_changes_type_and_the_sampler_does_not(
    fixed_bundles: dict[str, Path], graph: str, precision: str, kind: int
) -> None:
    model = load_graph(fixed_bundles["portable"] / f"{graph}.onnx", precision)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    kinds |= {weight.name: weight.data_type for weight in model.graph.initializer}
    heavy = [n for n in model.graph.node if n.op_type in ("MatMul", "Attention", "LayerNormalization")]
    assert heavy and all(kinds[node.output[0]] == kind for node in heavy)
    after = [n for n in model.graph.node if n.op_type in ("LogSoftmax", "CumSum", "Exp", "TopK")]
    assert all(kinds[node.output[0]] == TensorProto.FLOAT for node in after)
    large = [
        w for w in model.graph.initializer if np.prod(w.dims) >= 1024 and w.data_type != TensorProto.INT64
    ]
    assert large and all(weight.data_type == kind for weight in large)
    names = {weight.name for weight in large}
    assert not any(n.op_type == "Cast" and n.input[0] in names for n in model.graph.node)


def test_bf16_differs_from_fp16_in_nothing_but_the_type(fixed_bundles: dict[str, Path]) -> None:
    path = fixed_bundles["portable"] / "ar.onnx"
    half, brain, whole = (load_graph(path, precision) for precision in ("fp16", "bf16", "fp32"))
    assert [(n.op_type, *n.input, *n.output) for n in half.graph.node] == [
        (n.op_type, *n.input, *n.output) for n in brain.graph.node
    ]
    exact = {weight.name: numpy_helper.to_array(weight) for weight in whole.graph.initializer}
    for weight in brain.graph.initializer:
        if weight.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(weight).astype(np.float32)
            assert np.allclose(values, exact[weight.name], rtol=2**-8, atol=0)


def test_the_codec_stays_in_float32(fixed_bundles: dict[str, Path]) -> None:
    folder = fixed_bundles["portable"]
    graphs = read_manifest(folder).graphs
    assert graph_precision(graphs["codec_decoder"], "fp16") == "fp32"
    assert graph_precision(graphs["nar"], "fp16") == "fp16"
    model = load_graph(folder / "codec_decoder.onnx", "fp16")
    assert {w.data_type for w in model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}


def test_a_weight_beyond_the_type_is_refused() -> None:
    weight = numpy_helper.from_array(np.array([1.0, 1e6], np.float32), "big")
    with pytest.raises(BackendError, match=r"big does not fit .*FLOAT16; use bf16, which TensorRT's .*fp32"):
        retyped(weight, TensorProto.FLOAT16, "big")
    least = numpy_helper.from_array(np.array([np.finfo(np.float32).min, -np.inf], np.float32), "mask")
    small = numpy_helper.to_array(retyped(least, TensorProto.FLOAT16, "mask"))
    assert small[0] == np.float16(-6e4) and np.isneginf(small[1])


def test_a_weight_read_on_both_sides_exists_in_both_types(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["logits"]),
        helper.make_node("Mul", ["logits", "scale"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "both",
        [value("x", TensorProto.FLOAT, [2])],
        [value("logits", TensorProto.FLOAT, [2]), value("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.array([3.0, 0.1], np.float32), "scale")],
    )
    path = tmp_path / "both.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    model = load_graph(path, "fp16")
    assert {w.data_type for w in model.graph.initializer} == {TensorProto.FLOAT, TensorProto.FLOAT16}
    found = run(model, {"x": np.array([1.0, 1.0], np.float32)})
    assert found["logits"].dtype == found["y"].dtype == np.float32
    assert found["y"][1] == np.float32(np.float16(0.1)) * np.float32(0.1)


def test_bad_precision_and_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="unknown precision 'int3'; expected one of fp32, fp16, bf16"):
        load_graph(tmp_path / "a.onnx", "int3")
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="not a readable ONNX graph"):
        load_graph(tmp_path / "a.onnx", "fp16")
    spec = GraphSpec("a.onnx", (), (TensorSpec("logits", "float32", ("batch",)),))
    assert graph_precision(spec, "bf16") == "bf16"

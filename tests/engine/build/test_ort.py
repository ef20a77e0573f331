"""Graphs with 8- and 4-bit weights: how far their logits are from float32, and which builds are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from valle2.engine import BackendError, Placement, find_graphs, open_backend, read_manifest
from valle2.engine.build import ort as module
from valle2.engine.build.kv_int8 import cache_ranges
from valle2.engine.build.ort import build_graphs
from valle2.engine.build.quantize import quantise
from valle2.engine.bundle.contract import PREFILL
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.engine.bundle.precisions import DYNAMIC, METHODS, RECORD_FILE, Method, graph_folder
from valle2.engine.derived.codes import block_codes
from valle2.runtime import Request, Settings, Valle2
from valle2.runtime.cli.main import main

Arrays = dict[str, NDArray[Any]]
# Root mean square of the difference, divided by that of the float32 logits. docs/precision.md lists the
# values of the toy and the demo. The bounds are 1.5 times as large, for the kernels of other processors.
NOISE = {
    ("fp16", "ar"): 0.0006,
    ("fp16", "nar"): 0.0006,
    ("int8", "ar"): 0.04,
    ("int4", "ar"): 0.26,
    ("int8", "nar"): 0.04,
    ("int4", "nar"): 0.04,
}


@pytest.fixture(scope="module")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "toy"
    shutil.copytree(bundle, folder)
    for precision in METHODS:
        build_graphs(folder, precision)
    return folder


@pytest.fixture
def ours(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "ours"))


def feeds_of(bundle: Path, graph: str) -> Arrays:
    rng, sizes = np.random.default_rng(0), read_manifest(bundle).sizes
    if graph == "nar":
        return NARInputs(
            text=rng.integers(0, 30, (1, 12)),
            text_lengths=np.array([12]),
            codes=rng.integers(0, 1024, (1, 60, 8)),
            prompt_lengths=np.array([20]),
            frame_lengths=np.array([60]),
            stage=np.array(3),
        ).feeds()
    group, width = sizes["group_size"], sizes["d_model"] // sizes["heads"]
    caches = [f"cache_{part}_{layer}" for layer in range(sizes["layers"]) for part in ("key", "value")]
    return {
        "text": rng.integers(0, 30, (1, 40)),
        "codes": rng.integers(0, 1024, (1, 40, group)),
        "text_lengths": np.array([12]),
        "past_lengths": np.zeros(1, np.int64),
        "new_lengths": np.array([40]),
        "steps": np.zeros(1, np.int64),
        "history": np.full((1, 10), -1),
        "uniforms": np.zeros((1, 4, group, 2), np.float32),
        "top_p": np.zeros(1, np.float32),
        "repeat_window": np.array([10]),
        "threshold": np.ones(1, np.float32),
    } | {name: np.zeros((1, sizes["heads"], 64, width), np.float32) for name in caches}


def logits(bundle: Path, graph: str, precision: str, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    manifest = read_manifest(bundle)
    found = find_graphs(bundle, manifest, precision)[graph]
    kinds = {tensor.name: tensor.dtype for tensor in found.spec.inputs}
    typed = {name: value.astype(kinds[name]) for name, value in feeds.items()}
    return open_backend(found.folder, found.spec, Placement(threads=1)).run(typed, ("logits",))["logits"]


@pytest.mark.parametrize("precision, graph", NOISE)
def test_noise_of_the_logits(built: Path, precision: str, graph: str) -> None:
    feeds = feeds_of(built, graph)
    whole, small = (logits(built, graph, name, feeds) for name in ("fp32", precision))
    noise = float(np.sqrt(np.mean((small - whole) ** 2) / np.mean(whole**2)))
    assert 0 < noise < NOISE[precision, graph]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_matrix_is_replaced(built: Path, precision: str) -> None:
    layers = read_manifest(built).sizes["layers"]
    for graph in METHODS[precision]:
        path = graph_folder(built, precision, "ort") / f"{graph}.onnx"
        model = onnx.load(str(path), load_external_data=False)
        kinds = [node.op_type for node in model.graph.node]
        if graph == PREFILL:  # of the last block only the keys and values; attention has two products
            assert kinds.count("MatMulIntegerToFloat") > 4 * (layers - 1)
            assert "Gemm" not in kinds and kinds.count("MatMul") == 2 * (layers - 1)
            continue
        replaced = kinds.count("MatMulNBits") + kinds.count("DynamicQuantizeMatMul")
        assert replaced >= 4 * layers
        assert "Gemm" not in kinds and kinds.count("MatMul") <= 1  # the NAR's head is gathered by stage


@pytest.mark.parametrize("bits, block", [(8, 16), (8, 128), (4, 32)])
def test_codes_are_the_nearest(bits: int, block: int) -> None:
    weight = np.random.default_rng(0).standard_normal((100, 24)).astype(np.float32)
    codes, scales = block_codes(weight, bits, block)
    whole = codes.astype(np.int64)
    if bits == 4:
        whole = np.stack([whole & 15, whole >> 4], axis=3).reshape(*whole.shape[:2], -1)
    back = ((whole - 2 ** (bits - 1)) * scales[..., None]).reshape(24, -1)[:, :100].T
    steps = np.repeat(np.abs(scales), block, axis=1)[:, :100].T
    highest = 2**bits - 1 == whole.reshape(24, -1)[:, :100].T
    gap = np.abs(back - weight)
    assert np.all(gap <= np.where(highest, 1.0001, 0.5001) * steps), "there is no code above the highest"
    assert np.mean(gap <= 0.5001 * steps) > 0.9


@pytest.mark.parametrize("draw", ["normal", "uniform", "signs"])
@pytest.mark.parametrize("shape", [(1, 65, 40), (3, 7, 24), (40, 256, 64)])
def test_integer_products_are_whole_on_any_processor(draw: str, shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    rng = np.random.default_rng(0)
    x = np.full((rows, inputs), 3.0, np.float32)  # nearly all at the end of the range
    x[:, ::16] = -0.01
    weight = {
        "normal": rng.standard_normal((inputs, outputs)),
        "uniform": rng.uniform(-1, 1, (inputs, outputs)),
        "signs": rng.choice([-1.0, 1.0], (inputs, outputs)),
    }[draw].astype(np.float32)
    model = one_product(weight, rows)
    quantise(model, DYNAMIC)
    codes, scales = (numpy_helper.to_array(w) for w in model.graph.initializer[:2])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    step = np.float32(3.01) / 255
    zero = np.rint(0.01 / step)
    exact = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) @ codes.astype(np.float64) * step * scales
    found = session.run(None, {"x": x})[0]
    assert np.abs(found - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("precision, slack", [("int8", 0.0), ("int4", 1e-5)])  # see METHODS
def test_rows_are_multiplied_as_if_alone(precision: str, slack: float) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1024, 96)).astype(np.float32)
    x = rng.standard_normal((16, 1024)).astype(np.float32)
    model = one_product(weight, 16)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    quantise(model, METHODS[precision]["ar"])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    alone = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    for count in range(1, 17):
        beside = session.run(None, {"x": x[:count]})[0]
        assert np.abs(beside - alone[:count]).max() <= slack * np.abs(alone).max()


@pytest.mark.parametrize("method", [DYNAMIC, METHODS["int8"]["ar"], METHODS["int4"]["ar"]])
def test_biases_go_along_with_products(method: Method) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 32)).astype(np.float32)
    bias, x = rng.standard_normal(32).astype(np.float32), rng.standard_normal((5, 64)).astype(np.float32)
    plain, biased, kept = (one_product(weight, 5, added) for added in ((), (bias,), (bias[None],)))
    found = []
    for model, kinds in ((plain, 1), (biased, 1), (kept, 2)):
        assert quantise(model, method) == 1
        assert len(model.graph.node) == kinds
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"x": x})[0])
    assert np.allclose(found[1], found[0] + bias, atol=1e-5)
    assert np.allclose(found[2], found[1], atol=1e-5)


def test_a_product_that_is_read_twice_keeps_its_bias_apart() -> None:
    model = one_product(np.ones((64, 32), np.float32), 5, (np.ones(32, np.float32),))
    model.graph.output.append(helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, (5, 32)))
    assert quantise(model, DYNAMIC) == 1
    assert [node.op_type for node in model.graph.node] == ["DynamicQuantizeMatMul", "Add"]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    whole, product = session.run(["y", "p"], {"x": np.ones((5, 64), np.float32)})
    assert np.allclose(whole, product + 1)


def one_product(
    weight: NDArray[np.float32], rows: int, added: tuple[NDArray[np.float32], ...] = ()
) -> onnx.ModelProto:
    """A graph of x times the weight, plus each of the vectors."""
    inputs, outputs = weight.shape
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p" if added else "y"])]
    nodes += [helper.make_node("Add", ["b", "p"], ["y"]) for _ in added]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (rows, inputs))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (rows, outputs))],
        [numpy_helper.from_array(weight, "w"), *(numpy_helper.from_array(bias, "b") for bias in added)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_codes_alone_and_beside_others_are_the_same(built: Path, precision: str) -> None:
    tts = Valle2.load(built, precision=precision, slots=3)
    voice, settings = tts.voice("amber"), [Settings(top_p=0.6, seed=seed) for seed in range(3)]
    texts = ["hello there", "the fox", "a fox the apple"]
    requests = [Request(text, voice, own) for text, own in zip(texts, settings, strict=True)]
    alone = [tts.synthesize(request.text, voice, request.settings).codes for request in requests]
    beside = [speech.codes for speech in tts.synthesize_batch(requests)]
    assert all(np.array_equal(one, other) for one, other in zip(alone, beside, strict=True))


def test_half_is_spoken_listed_and_timed(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(built), "--precision", "fp16", "--json"]
    assert main(["say", "hello there", "-o", str(built.with_suffix(".wav")), *options]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] > 0
    assert main(["inspect", str(built), "--json"]) == 0
    assert {"ort-fp16", "ort-int8", "ort-int4"} == set(json.loads(capsys.readouterr().out)["built"])
    assert main(["bench", "latency", "--text", "hello", "--repeats", "1", "--threads", "1", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["precision"] == "fp16"


@pytest.mark.parametrize("precision, kind", [("fp16", "float16"), ("int8", "int8"), ("int4", "int8")])
def test_caches_are_small(built: Path, precision: str, kind: str) -> None:
    caches = Valle2.load(built, precision=precision).model.ar.caches
    assert {str(cache.read().dtype) for cache in caches.values()} == {kind}


def test_caches_reach_twice_as_far_as_random_codes(built: Path) -> None:
    manifest = read_manifest(built)
    model = onnx.load(str(graph_folder(built, "int8", "ort") / "ar.onnx"))
    scales = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    ranges = cache_ranges(built, manifest.graphs["ar"], manifest.sizes)
    assert len(ranges) == 2 * manifest.sizes["layers"]
    for name, reached in ranges.items():
        assert reached.min() > 0
        assert np.allclose(scales[f"{name}_scales"], 2 * reached[None, :, None, :] / 127)


def test_the_default_precision_is_used_if_it_is_built(
    ours: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Valle2.load(bundle).precision == "fp32"
    assert Valle2.load(ours).precision == "int8"
    assert Valle2.load(ours, precision="fp32").precision == "fp32"
    out = str(ours.with_suffix(".wav"))
    assert main(["say", "hello there", "-o", out, "--model", str(ours), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "int8"
    path = graph_folder(ours, "int8", "ort") / RECORD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": 0}))
    assert Valle2.load(ours).precision == "fp32"  # the build is of another version


def test_a_build_without_tensors_is_stale(ours: Path) -> None:
    path = graph_folder(ours, "fp16", "ort") / RECORD_FILE
    values = json.loads(path.read_text())
    del values["specs"]["ar"]
    path.write_text(json.dumps(values))
    assert "by another valle2; build it again with: valle2 build" in refusal(ours, "fp16")
    values["specs"]["ar"] = {"file": "ar.onnx"}
    path.write_text(json.dumps(values))
    assert "has no fp16 graphs" in refusal(ours, "fp16")


def refusal(bundle: Path, precision: str = "int8") -> str:
    with pytest.raises(BackendError) as error:
        Valle2.load(bundle, precision=precision)
    return str(error.value)


def test_no_build_names_the_command(bundle: Path) -> None:
    assert refusal(bundle) == (
        f"{bundle} has no int8 graphs; build them with: valle2 build {bundle} --target ort --precision int8"
    )


def test_a_build_of_another_graph_or_method_is_stale(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graph_folder(ours, "int8", "ort") / RECORD_FILE
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"sources": {**values["sources"], "nar": "0"}}))
    assert "was built from another bundle" in refusal(ours)
    path.write_text(json.dumps(values))
    Valle2.load(ours, precision="int8")
    monkeypatch.setitem(METHODS, "int8", {**METHODS["int8"], "ar": Method("blocks", 8, 32)})
    assert "by another valle2; build it again with: valle2 build" in refusal(ours)


@pytest.mark.parametrize("name", ["ar.weights", "nar.onnx"])
def test_a_damaged_or_absent_file_is_refused(ours: Path, name: str) -> None:
    path = graph_folder(ours, "int8", "ort") / name
    path.write_bytes(path.read_bytes()[:-1])
    assert "is damaged or absent" in refusal(ours)
    path.unlink()
    assert "is damaged or absent" in refusal(ours)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {"../x": "0"}}'])
def test_a_damaged_record_counts_as_no_build(ours: Path, text: str) -> None:
    (graph_folder(ours, "int8", "ort") / RECORD_FILE).write_text(text)
    assert "has no int8 graphs" in refusal(ours)


def test_a_build_cut_short_leaves_the_earlier_one(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "hash_files", stop)
    with pytest.raises(KeyboardInterrupt):
        build_graphs(ours, "int8")
    assert sorted(p.name for p in (ours / "engines").iterdir()) == ["ort-fp16", "ort-int4", "ort-int8"]
    Valle2.load(ours, precision="int8")
    shutil.rmtree(ours / "engines")
    with pytest.raises(KeyboardInterrupt):
        build_graphs(ours, "int8")
    assert list((ours / "engines").iterdir()) == []


def test_refused_bundles_and_precisions(fixed_bundles: dict[str, Path], bundle: Path) -> None:
    with pytest.raises(BackendError, match="lowering portable; --target ort makes int8 of ort alone: export"):
        build_graphs(fixed_bundles["portable"], "int8")
    with pytest.raises(
        BackendError, match="unknown precision 'int2'; expected one of fp32, fp16, int8, int4"
    ):
        build_graphs(bundle, "int2")
    assert build_graphs(bundle, "fp32") == []
    assert not (bundle / "engines").exists()


def test_a_graph_without_products_stays_as_it_is() -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out]))
    assert quantise(model, Method("dynamic")) == 0
    assert [entry.op_type for entry in model.graph.node] == ["Neg"]

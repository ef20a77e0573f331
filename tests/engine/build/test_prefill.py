"""The prefill graph of a CPU: its caches beside eager PyTorch, in any chunks and company; what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from tests.conftest import Trace, toy_config
from tests.export import test_parity as parity
from valle2.engine import Backend, BackendError, Placement, find_graphs, open_backend, read_manifest
from valle2.engine.build import ort as module
from valle2.engine.build.cuda.reader import UnsupportedGraphError
from valle2.engine.build.kv_int8 import cache_ranges, channel_scales
from valle2.engine.build.ort import build_graph, build_graphs, build_prefill
from valle2.engine.build.precision import load_graph
from valle2.engine.build.prefill import check_prefill, prefill_graph
from valle2.engine.build.quantize import quantise
from valle2.engine.bundle.contract import AR, PREFILL
from valle2.engine.bundle.precisions import METHODS, ROWS, graph_folder
from valle2.engine.bundle.specs import GraphSpec
from valle2.export.bundle import graph_spec
from valle2.export.graphs import ar_graph
from valle2.export.models import ARModel, Style
from valle2.runtime import Settings, Valle2
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.sampling import uniforms
from valle2.runtime.generation.sequence import Sequence

STEPS = 30
GREEDY = Settings(top_p=0.0, threshold=1.0)
NOISE = 0.04  # of the caches, measured: 0.009 to 0.013
SLACK = 0.5  # of the logits, which span about 3: twice the bound of tests/export/test_small.py


@dataclass(frozen=True)
class Made:
    """A toy in int8. scales: of its caches."""

    model: ARModel
    backend: Backend
    prefiller: Backend
    scales: dict[str, NDArray[np.float32]]

    def runner(
        self, rows: int, chunk: int = 64, *, whole: bool = False, whole_text: bool = False
    ) -> ARRunner:
        """whole: prefill with the AR graph alone. whole_text: the first chunk takes all of the text."""
        return ARRunner(
            self.backend,
            self.model.config.to_dict(),
            parity.CAPACITY,
            rows,
            10,
            chunk=chunk,
            whole_text=whole_text,
            prefiller=None if whole else self.prefiller,
        )

    def caches(self, row: Sequence, chunk: int = 64, **options: bool) -> dict[str, NDArray[np.int8]]:
        """The caches after a row's prefill, (heads, positions, D). options: of `runner`."""
        runner = self.runner(1, chunk, **options)
        runner.enter(0, row)
        positions = row.positions(runner.group_size)
        return {name: buffer.read()[0, :, :positions].copy() for name, buffer in runner.caches.items()}


def build_toy(model: ARModel, folder: Path, spec: GraphSpec, built: Path) -> Made:
    """Build the graphs of int8. folder: with the graph of `spec`. built: where they go."""
    built.mkdir(exist_ok=True)
    sizes = model.config.to_dict()
    _, small = build_graph(folder, built, spec, METHODS["int8"][AR], sizes)
    _, prefill = build_prefill(folder, built, spec, ROWS, sizes)
    ranges = cache_ranges(folder, spec, sizes)
    scales = {name: numpy_helper.to_array(channel_scales(name, ranges))[0] for name in ranges}
    return Made(model, open_backend(built, small), open_backend(built, prefill), scales)


@pytest.fixture(scope="module")
def made(
    ar_export: Callable[[int, str, int], tuple[ARModel, Path, GraphSpec]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int], Made]:
    @cache
    def make(group_size: int) -> Made:
        model, folder, spec = ar_export(group_size, "ort", parity.CAPACITY)
        return build_toy(model, folder, spec, tmp_path_factory.mktemp("built"))

    return make


def some_rows(model: ARModel, settings: Settings) -> list[Sequence]:
    """Rows whose prefixes have from 2 to 60 positions."""
    rng, group = np.random.default_rng(0), model.config.group_size
    return [
        Sequence(
            np.append(rng.integers(0, model.config.vocab_size, text - 1), model.config.vocab_size),
            rng.integers(0, 1024, groups * group),
            uniforms(seed, 0, STEPS, group),
            settings,
        )
        for seed, (text, groups) in enumerate([(1, 0), (24, 35), (9, 0), (3, 20)])
    ]


@pytest.mark.parametrize("group_size", parity.GROUPS)
def test_caches_are_those_of_eager_torch_in_any_chunks(made: Callable[[int], Made], group_size: int) -> None:
    toy = made(group_size)
    for row in some_rows(toy.model, GREEDY):
        expected = eager_caches(toy.model, row)
        found = toy.caches(row)
        for name, whole in expected.items():
            gap = found[name] * toy.scales[name] - whole
            assert np.mean(gap**2) < NOISE**2 * np.mean(whole**2)
        for chunk in (1, 7):
            for name, values in toy.caches(row, chunk).items():
                apart = np.abs(values.astype(int) - found[name])
                assert apart.max() <= 1 and np.mean(apart) < 1e-3  # the order of attention's sums


def eager_caches(model: ARModel, row: Sequence) -> dict[str, NDArray[np.float32]]:
    """Keys and values of a row's prefix in eager PyTorch in float32, by name, (heads, positions, D)."""
    positions, group = row.positions(model.config.group_size), model.config.group_size
    text, codes = np.zeros((1, positions), np.int64), np.zeros((1, positions, group), np.int64)
    text[0, : len(row.text)] = row.text
    codes[0, len(row.text) + 1 :] = row.prompt.reshape(-1, group)
    length = torch.tensor([len(row.text)])
    counts = torch.zeros(1, dtype=torch.int64), torch.tensor([positions])
    window = model.window(*counts, positions, positions, length)
    inputs = torch.from_numpy(text), torch.from_numpy(codes), length
    with torch.no_grad():
        _, caches = model.forward_cached(*inputs, window, model.empty_caches(1, positions))
    parts = ("key", "value")
    return {
        f"cache_{part}_{layer}": values[0].numpy()
        for layer, pair in enumerate(caches)
        for part, values in zip(parts, pair, strict=True)
    }


@pytest.mark.parametrize("settings", [GREEDY, Settings(top_p=0.6)], ids=["greedy", "seeded"])
@pytest.mark.parametrize("group_size", parity.GROUPS)
def test_codes_alone_and_in_a_ragged_batch(
    made: Callable[[int], Made], group_size: int, settings: Settings
) -> None:
    toy = made(group_size)
    rows = some_rows(toy.model, settings)
    batch = parity.decoded(toy.runner(4, 16), rows, STEPS)
    assert [parity.decoded(toy.runner(1, 16), [row], STEPS)[0] for row in rows] == batch
    for row, found in zip(rows, batch, strict=True):
        if settings is GREEDY:
            assert parity.as_likely(toy.model, row, found, STEPS, SLACK)


def test_the_ar_graph_takes_the_last_position_alone(made: Callable[[int], Made]) -> None:
    toy = made(2)
    one, long = some_rows(toy.model, GREEDY)[:2]
    assert toy.runner(1).chunk_ends(one) == [1, 2]
    assert toy.runner(1, 20).chunk_ends(long) == [20, 40, 59, 60]
    assert toy.runner(1, 20, whole=True).chunk_ends(long) == [20, 40, 60]


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_a_row_is_multiplied_as_if_alone(op: str) -> None:
    rng = np.random.default_rng(0)
    weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((96, 40), (40,)))
    shape: tuple[Any, ...] = (1, "rows", 96) if op == "MatMul" else ("rows", 96)
    inputs = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (*shape[:-1], 40))
    nodes = [helper.make_node(op, ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph(nodes, "product", [inputs], [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert quantise(model, ROWS) == 1
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = rng.standard_normal((33, 96)).astype(np.float32) * np.logspace(-6, 3, 33, dtype=np.float32)[:, None]
    x[5] = 0
    lead = (1,) if op == "MatMul" else ()
    alone = np.concatenate([session.run(None, {"x": r.reshape(*lead, 1, 96)})[0] for r in x], len(lead))
    beside = session.run(None, {"x": x.reshape(*lead, 33, 96)})[0]
    assert np.array_equal(beside, alone)
    exact = x.astype(np.float64) @ weight
    gap = np.abs(beside.reshape(33, 40) - bias - exact).max(axis=1)
    assert np.all(gap <= 0.02 * np.abs(x).max(axis=1) * np.sqrt(96) + 1e-6)
    assert np.array_equal(beside.reshape(33, 40)[5], bias)


def test_text_that_sees_itself_both_ways(trace: Trace, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ARModel(replace(toy_config(2, 512), style=Style(text_ahead=True))).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    graph = ar_graph(model, "ort", parity.CAPACITY)
    toy = build_toy(
        model, tmp_path, graph_spec(trace(graph, tmp_path / "ar.onnx"), graph), tmp_path / "built"
    )
    for row in some_rows(model, GREEDY):
        found = toy.caches(row, whole_text=True)
        for name, whole in eager_caches(model, row).items():
            gap = found[name] * toy.scales[name] - whole
            assert np.mean(gap**2) < NOISE**2 * np.mean(whole**2)
        alone = parity.decoded(toy.runner(1, 16, whole_text=True), [row], STEPS)[0]
        assert parity.as_likely(model, row, alone, STEPS, SLACK)


def test_unknown_attention_has_no_prefill_graph(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedGraphError, match="no GroupQueryAttention"):
        prefill_graph(helper.make_model(helper.make_graph([], "g", [], [])), {})
    manifest = read_manifest(bundle)
    for name, value in (("softcap", 2.0), ("kv_num_heads", 1), ("causal", 0)):
        model = load_graph(bundle / manifest.graphs[AR].file, "fp32")
        node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
        kept = [entry for entry in node.attribute if entry.name != name]
        node.ClearField("attribute")
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
        with pytest.raises(UnsupportedGraphError, match="softcap" if name == "softcap" else "of its own"):
            prefill_graph(model, {})
    ours = Path(shutil.copytree(bundle, tmp_path / "ours"))

    def refused(*args: object) -> None:
        raise UnsupportedGraphError("its form is unknown")

    monkeypatch.setattr(module, "prefill_graph", refused)
    said: list[str] = []
    build_graphs(ours, "int8", progress=said.append)
    assert f"no {PREFILL}: its form is unknown" in said
    assert PREFILL not in find_graphs(ours, read_manifest(ours), "int8")
    with Valle2.load(ours, precision="int8", threads=1) as tts:
        assert tts.model.ar.prefiller is None
        assert len(tts.synthesize("hello", tts.voice("amber"), Settings(max_frames=8)).codes)


def test_a_graph_that_computes_something_else_is_refused(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    spec, sizes = manifest.graphs[AR], manifest.sizes
    ranges = cache_ranges(bundle, spec, sizes)
    model = prefill_graph(load_graph(bundle / spec.file, "fp32"), ranges)
    check_prefill(bundle, spec, model, sizes, ranges)
    mask = next(node for node in model.graph.node if node.op_type == "Greater")
    mask.op_type = "Less"
    with pytest.raises(BackendError, match=r"the prefill graph differs from ar\.onnx in cache_"):
        check_prefill(bundle, spec, model, sizes, ranges)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_build_has_it_and_shares_what_it_can(bundle: Path, tmp_path: Path, precision: str) -> None:
    ours = Path(shutil.copytree(bundle, tmp_path / "ours"))
    build_graphs(ours, precision)
    folder, manifest = graph_folder(ours, precision, "ort"), read_manifest(ours)
    graph = onnx.load(str(folder / f"{PREFILL}.onnx"), load_external_data=False).graph
    outside = [weight for weight in graph.initializer if weight.external_data]
    places = {weight.name: ExternalDataInfo(weight).location for weight in outside}
    assert set(places.values()) == {"ar.weights", f"{PREFILL}.weights"}
    assert all(places[name] == "ar.weights" for name in places if "table" in name)
    assert PREFILL in Placement(precision=precision).locate_graphs(ours, manifest)
    with Valle2.load(ours, precision=precision, threads=1) as tts:
        assert tts.model.ar.prefiller is not None

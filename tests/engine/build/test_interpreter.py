"""Parsed TensorRT networks, evaluated in numpy: equal to eager PyTorch, and different where wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.conftest import Trace
from tests.engine.build.test_audit import (
    Change,
    causal_upper_left,
    inverted_choice,
    lengths_instead_of_mask,
    mask_without_the_past,
    no_mask,
    nodes,
    plain_softmax,
    swapped_caches,
)
from tests.export.models.test_nar import STYLES, toy_nar
from tests.export.test_parity import (
    EARLY,
    TOLERANCE,
    agrees,
    check_early_ends,
    decoded,
    ragged_rows,
    steps_beside_eager,
)
from valle2.engine import GraphSpec, Placement, open_backend, read_manifest
from valle2.engine.backends.trt.api import attention_of, layers, load, parsed
from valle2.engine.build.interpreter import InterpretedBackend, InterpretedNetwork, interpret_graph
from valle2.engine.build.interpreter.values import InterpreterError
from valle2.export.bundle import graph_spec
from valle2.export.graphs import nar_graph
from valle2.export.models import ARModel
from valle2.export.verify import verify_ar, verify_nar
from valle2.runtime import Settings
from valle2.runtime.generation.ar_runner import ARRunner

trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
FIXED = ["portable", "primitive"]
CAPACITY = 320
Export = Callable[[int, str, int], tuple[ARModel, Path, GraphSpec]]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("lowering", FIXED)
def test_logits_of_prefill_and_200_steps_equal_eager(ar_export: Export, lowering: str, batch: int) -> None:
    model, folder, spec = ar_export(2, lowering, CAPACITY)
    worst, same = steps_beside_eager(model, interpret_graph(folder, spec), batch)
    assert worst < TOLERANCE and same == 1.0


@pytest.mark.parametrize("lowering", FIXED)
def test_rows_may_prefill_while_others_decode(ar_export: Export, lowering: str) -> None:
    model, folder, spec = ar_export(2, lowering, CAPACITY)
    assert verify_ar(model, interpret_graph(folder, spec), CAPACITY, batch=4) < TOLERANCE


@pytest.mark.parametrize("lowering", FIXED)
def test_greedy_codes_of_200_steps_equal_the_reference(ar_export: Export, lowering: str) -> None:
    model, folder, spec = ar_export(2, lowering, CAPACITY)
    steps = 200
    runner = ARRunner(interpret_graph(folder, spec), model.config.to_dict(), CAPACITY, 4, 10)
    rows = ragged_rows(model, Settings(top_p=0.0, threshold=1.0), steps)
    found = decoded(runner, rows, steps)
    assert max(len(codes) for codes, _ in found) == steps * 2
    assert all(agrees(model, row, codes, steps, cached=True) for row, codes in zip(rows, found, strict=True))


@pytest.mark.parametrize("lowering", FIXED)
def test_an_early_end_is_rejected_as_in_the_reference(ar_export: Export, lowering: str) -> None:
    model, folder, spec = ar_export(2, lowering, CAPACITY)
    runner = ARRunner(interpret_graph(folder, spec), model.config.to_dict(), CAPACITY, 4, 10)
    check_early_ends(model, runner, EARLY[0])


@pytest.mark.parametrize("style", ["valle2", "rotary"])
@pytest.mark.parametrize("lowering", FIXED)
def test_every_nar_stage_equals_eager(trace: Trace, tmp_path: Path, lowering: str, style: str) -> None:
    model = toy_nar(STYLES[style])
    graph = nar_graph(model, lowering)
    spec = graph_spec(trace(graph, tmp_path / "nar.onnx"), graph)
    assert verify_nar(model, interpret_graph(tmp_path, spec)) < TOLERANCE


@pytest.mark.parametrize("lowering", FIXED)
def test_the_codec_equals_onnx_runtime(fixed_bundles: dict[str, Path], lowering: str) -> None:
    folder, rng = fixed_bundles[lowering], np.random.default_rng(0)
    manifest = read_manifest(folder)
    given: dict[str, dict[str, Any]] = {
        "codec_encoder": {"audio": rng.normal(0, 0.1, (2, manifest.codec["hop"] * 25)).astype(np.float32)},
        "codec_decoder": {"codes": rng.integers(0, 1024, (2, 25, 8))},
    }
    for graph, feeds in given.items():
        spec = manifest.graphs[graph]
        expected = open_backend(folder, spec, Placement(threads=1)).run(feeds)
        found = interpret_graph(folder, spec).run(feeds)
        for name, value in expected.items():
            assert np.abs(found[name] - value).max() < 1e-5, name


@pytest.mark.parametrize("lowering", FIXED)
def test_half_precision_is_near_float32(ar_export: Export, lowering: str) -> None:
    """The graph that `valle2 build --precision fp16` parses; the outputs of every layer are rounded."""
    model, folder, spec = ar_export(2, lowering, CAPACITY)
    worst, _ = steps_beside_eager(model, interpret_graph(folder, spec, precision="fp16"), 2, steps=20)
    assert 1e-5 < worst < 0.1


# -- graphs that are wrong on purpose --------------------------------------------------------------


def wrong_scale(model: onnx.ModelProto) -> None:
    for node in nodes(model, "Attention"):
        next(a for a in node.attribute if a.name == "scale").f *= 2


def mask_off_by_one(model: onnx.ModelProto) -> None:
    """Hide the newest position: compare with < in place of <=."""
    name = nodes(model, "Attention")[0].input[3]
    next(node for node in model.graph.node if name in node.output).op_type = "Less"


def cache_one_position_late(model: onnx.ModelProto) -> None:
    one = numpy_helper.from_array(np.ones(1, np.int64), "one_late")
    model.graph.initializer.append(one)
    late = helper.make_node("Add", ["past_lengths", "one_late"], ["late_positions"], "late")
    for node in nodes(model, "TensorScatter"):
        assert node.input[2] == "past_lengths"
        node.input[2] = "late_positions"
    model.graph.node.insert(0, late)


def text_from_the_table_of_codes(model: onnx.ModelProto) -> None:
    """Look up the text's embeddings in the codes' table."""
    first, second = [node for node in nodes(model, "Gather") if "table" in node.input[0]][:2]
    first.input[0] = second.input[0]


def wrong_gather_axis(model: onnx.ModelProto) -> None:
    """Take each row's last position along the axis of the rows."""
    next(a for a in nodes(model, "GatherElements")[0].attribute if a.name == "axis").i = 0


def late_scatter(model: onnx.ModelProto) -> None:
    """Write the primitive caches one position late."""
    one = numpy_helper.from_array(np.ones((), np.int64), "one_late")
    model.graph.initializer.append(one)
    for index, node in enumerate(nodes(model, "ScatterElements")):
        late = helper.make_node("Add", [node.input[1], "one_late"], [f"late_{index}"], f"late_{index}")
        node.input[1] = late.output[0]
        model.graph.node.insert(list(model.graph.node).index(node), late)


WRONG = [
    ("portable", lengths_instead_of_mask),
    ("portable", causal_upper_left),
    ("portable", no_mask),
    ("portable", mask_without_the_past),
    ("portable", swapped_caches),
    ("portable", wrong_scale),
    ("portable", mask_off_by_one),
    ("portable", cache_one_position_late),
    ("portable", text_from_the_table_of_codes),
    ("portable", wrong_gather_axis),
    ("primitive", plain_softmax),
    ("primitive", inverted_choice),
    ("primitive", late_scatter),
]


def changed(folder: Path, spec: GraphSpec, change: Change, work: Path) -> InterpretedBackend:
    """The network of a graph that was changed before it was parsed."""
    model = onnx.load(str(folder / spec.file))
    change(model)
    onnx.save(model, str(work / spec.file))
    return interpret_graph(work, spec)


@pytest.mark.parametrize("lowering, change", WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_graph_has_other_values(
    ar_export: Export, tmp_path: Path, lowering: str, change: Change
) -> None:
    """It differs by a hundred times the tolerance, or does what TensorRT leaves undefined."""
    model, folder, spec = ar_export(2, lowering, CAPACITY)
    try:
        worst, _ = steps_beside_eager(model, changed(folder, spec, change, tmp_path), 2, steps=4)
    except InterpreterError:
        return
    assert worst > 100 * TOLERANCE


@pytest.mark.parametrize("kind", ["UPPER_LEFT", "LOWER_RIGHT"])
def test_a_causal_kind_in_place_of_the_mask_has_other_values(
    ar_export: Export, tmp_path: Path, kind: str
) -> None:
    """Set in the parsed network: no ONNX graph says LOWER_RIGHT."""
    model, folder, spec = ar_export(2, "portable", CAPACITY)
    changed(folder, spec, no_mask, tmp_path)
    with parsed(load("tensorrt-rtx"), tmp_path / spec.file) as network:
        for layer in layers(network.network):
            if layer.type.name == "ATTENTION_INPUT":
                attention_of(network.trt, layer).causal_kind = getattr(trt.CausalMaskKind, kind)
        worst, _ = steps_beside_eager(
            model, InterpretedBackend(InterpretedNetwork(network), spec), 2, steps=4
        )
    assert worst > 100 * TOLERANCE


# -- single layers, by TensorRT's documentation ----------------------------------------------------


def network_of(build: Callable[[Any], Any], feeds: dict[str, np.ndarray[Any, Any]]) -> Any:
    """Build a network of one layer on inputs of these shapes; returns what the interpreter makes of it."""
    from valle2.engine.backends.trt.api import Parsed, messages_of

    messages = messages_of(trt)
    builder = trt.Builder(messages.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    inputs = [
        network.add_input(name, trt.DataType.FLOAT if value.dtype.kind == "f" else trt.int64, value.shape)
        for name, value in feeds.items()
    ]
    layer = build((network, *inputs))
    for index in range(layer.num_outputs):
        layer.get_output(index).name = f"out{index}"
        network.mark_output(layer.get_output(index))
    made = InterpretedNetwork(Parsed(trt, messages, builder, network, None)).run(feeds)
    return made["out0"]


def test_slices_follow_the_documentation() -> None:
    x = np.arange(5, dtype=np.float32)

    def cut(mode: Any, start: int, size: int, stride: int) -> Any:
        def build(given: Any) -> Any:
            network, source = given
            layer = network.add_slice(source, (start,), (size,), (stride,))
            layer.mode = mode
            return layer

        return network_of(build, {"x": x}).tolist()

    assert cut(trt.SampleMode.STRICT_BOUNDS, 1, 2, 2) == [1, 3]
    assert cut(trt.SampleMode.WRAP, 3, 4, 1) == [3, 4, 0, 1]
    assert cut(trt.SampleMode.CLAMP, 3, 4, 1) == [3, 4, 4, 4]
    assert cut(trt.SampleMode.REFLECT, 3, 4, 1) == [3, 4, 3, 2]
    assert cut(trt.SampleMode.FILL, 3, 4, 1) == [3, 4, 0, 0]


def test_shuffles_follow_the_documentation() -> None:
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)

    def build(given: Any) -> Any:
        network, source = given
        layer = network.add_shuffle(source)
        layer.first_transpose = (0, 2, 1)
        layer.reshape_dims = (0, -1)
        layer.second_transpose = (1, 0)
        return layer

    assert np.array_equal(network_of(build, {"x": x}), x.transpose(0, 2, 1).reshape(1, 6).T)


def test_a_gather_outside_its_data_reads_zero() -> None:
    x, index = np.arange(1, 4, dtype=np.float32), np.array([0, 5, -1])
    found = network_of(lambda given: given[0].add_gather(given[1], given[2], 0), {"x": x, "index": index})
    assert found.tolist() == [1, 0, 3]


@pytest.mark.parametrize("stride, padding, groups", [(1, 0, 1), (2, 1, 1), (2, 1, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_equal_torch(stride: int, padding: int, groups: int, *, transposed: bool) -> None:
    import torch

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 9, 1)).astype(np.float32)
    shape = (4, 6 // groups, 3, 1) if transposed else (6, 4 // groups, 3, 1)
    kernel, bias = rng.normal(size=shape).astype(np.float32), rng.normal(size=6).astype(np.float32)

    def build(given: Any) -> Any:
        network, source = given
        add = network.add_deconvolution_nd if transposed else network.add_convolution_nd
        layer = add(source, 6, (3, 1), kernel, bias)
        layer.stride_nd, layer.padding_nd, layer.num_groups = (stride, 1), (padding, 0), groups
        return layer

    compute: Any = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
    tensors = [torch.from_numpy(value) for value in (x, kernel, bias)]
    expected = compute(*tensors, stride=(stride, 1), padding=(padding, 0), groups=groups).numpy()
    assert np.allclose(network_of(build, {"x": x}), expected, atol=1e-5)


def test_a_layer_that_is_not_known_is_named(tmp_path: Path) -> None:
    def build(given: Any) -> Any:
        return given[0].add_einsum([given[1]], "ij->ji")

    with pytest.raises(InterpreterError, match="is a EINSUM, which the interpreter does not evaluate"):
        network_of(build, {"x": np.zeros((2, 3), np.float32)})

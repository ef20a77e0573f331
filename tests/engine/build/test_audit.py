"""The audit accepts our graphs and refuses graphs that were changed for the worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import Trace
from tests.export.models.test_nar import toy_nar
from valle2.engine.backends.trt.api import load, parsed
from valle2.engine.build.audit import AuditCase, NetworkView, audit, host_inputs
from valle2.engine.build.precision import load_graph
from valle2.engine.errors import AuditError
from valle2.export.graphs import nar_graph

trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
Change = Callable[[onnx.ModelProto], object]


@contextmanager
def case(
    folder: Path, work: Path, graph: str, change: Change, precision: str = "fp16", lowering: str = "portable"
) -> Iterator[AuditCase]:
    """Change a graph of a bundle and parse it."""
    model = load_graph(folder / f"{graph}.onnx", precision)
    change(model)
    path = work / f"{graph}.onnx"
    onnx.save(model, str(path))
    expected = precision if graph in ("ar", "nar") else "fp32"
    with parsed(load("tensorrt-rtx"), path) as network:
        yield AuditCase(network, model, graph, lowering, expected)


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    found = [node for node in model.graph.node if node.op_type == kind]
    assert found, f"no {kind} in the graph"
    return found


@pytest.mark.parametrize("lowering", ["portable", "primitive"])
@pytest.mark.parametrize("graph", ["ar", "nar", "codec_encoder", "codec_decoder"])
def test_our_graphs_pass(fixed_bundles: dict[str, Path], tmp_path: Path, graph: str, lowering: str) -> None:
    with case(fixed_bundles[lowering], tmp_path, graph, lambda m: None, lowering=lowering) as found:
        audit(found)
        trips = host_inputs(found, NetworkView.over(found.parsed.network))
        assert trips == ({"prompt_lengths"} if graph == "nar" else set())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("lowering", ["portable", "primitive"])
def test_a_nar_with_vectors_passes(lowering: str, precision: str, trace: Trace, tmp_path: Path) -> None:
    trace(nar_graph(toy_nar({"nar_positions": "rotary"}, 5), lowering), tmp_path / "nar.onnx")
    (tmp_path / "parsed").mkdir()
    with case(tmp_path, tmp_path / "parsed", "nar", lambda m: None, precision, lowering) as found:
        audit(found)


def lengths_instead_of_mask(model: onnx.ModelProto) -> None:
    """Say with `nonpad_kv_seqlen` how far the cache is valid; TensorRT ignores it."""
    total = helper.make_node("Add", ["past_lengths", "new_lengths"], ["total"], "total")
    for node in nodes(model, "Attention"):
        del node.input[3:]
        node.input.extend(["", "", "", "total"])
        node.attribute.append(helper.make_attribute("is_causal", 1))
    model.graph.node.insert(0, total)


def causal_upper_left(model: onnx.ModelProto) -> None:
    for node in nodes(model, "Attention"):
        del node.input[3:]
        node.attribute.append(helper.make_attribute("is_causal", 1))


def no_mask(model: onnx.ModelProto) -> None:
    for node in nodes(model, "Attention"):
        del node.input[3:]


def mask_without_the_past(model: onnx.ModelProto) -> None:
    """Mask from position 0 on, as if the cache were empty. This is right in a prefill and wrong in a step."""
    name = nodes(model, "Attention")[0].input[3]
    maker = next(node for node in model.graph.node if name in node.output)
    query = next(n for n in model.graph.node if maker.input[1] in n.output and n.op_type == "Add")
    query.input[0] = next(name for name in query.input if not name.startswith("past"))
    zero = numpy_helper.from_array(np.zeros((), np.int64), "zero")
    model.graph.initializer.append(zero)
    query.input[1] = "zero"


def fp32_weights(model: onnx.ModelProto) -> None:
    """Leave the weights of a projection in float32 behind a Cast, which doubles memory and bandwidth."""
    names = {weight.name: weight for weight in model.graph.initializer}
    node = next(node for node in nodes(model, "MatMul") if node.input[1] in names)
    weight = names[node.input[1]]
    values = numpy_helper.to_array(weight).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    cast = helper.make_node("Cast", [weight.name], ["narrowed"], "narrowed", to=TensorProto.FLOAT16)
    node.input[1] = "narrowed"
    model.graph.node.insert(0, cast)


def swapped_caches(model: onnx.ModelProto) -> None:
    """Write the keys of layer 0 into the buffer of its values."""
    first, second = nodes(model, "TensorScatter")[:2]
    first.input[0], second.input[0] = second.input[0], first.input[0]


def copied_cache(model: onnx.ModelProto) -> None:
    """Return another tensor than the updated cache."""
    name = "cache_key_0_out"
    for node in model.graph.node:
        for position, value in enumerate(node.input):
            if value == name:
                node.input[position] = "updated"
        for position, value in enumerate(node.output):
            if value == name:
                node.output[position] = "updated"
    one = numpy_helper.from_array(np.ones((), np.float16), "one")
    model.graph.initializer.append(one)
    model.graph.node.append(helper.make_node("Mul", ["updated", "one"], [name], "copy"))


def unused_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("language", TensorProto.INT64, ["batch"]))


def data_dependent(model: onnx.ModelProto) -> None:
    """Cut a tensor to the longest row, so that every step waits for the host."""
    longest = helper.make_node("ReduceMax", ["past_lengths"], ["longest"], "longest", keepdims=1)
    start = numpy_helper.from_array(np.zeros(1, np.int64), "start")
    cut = helper.make_node("Slice", ["logits", "start", "longest", "start"], ["cut"], "cut")
    model.graph.initializer.append(start)
    model.graph.node.extend([longest, cut])
    model.graph.output.append(helper.make_tensor_value_info("cut", TensorProto.FLOAT, None))


WRONG = [
    (lengths_instead_of_mask, "has nonpad_kv_seqlen, which TensorRT drops"),
    (causal_upper_left, "causal mask UPPER_LEFT"),
    (no_mask, "attends over the whole cache without a mask"),
    (mask_without_the_past, "lets a query see other positions"),
    (fp32_weights, "is FLOAT; expected HALF"),
    (swapped_caches, "cache_key_0_out is made by KV_CACHE_UPDATE; expected KV_CACHE_UPDATE of cache_key_0"),
    (copied_cache, "cache_key_0_out is made by ELEMENTWISE"),
    (unused_input, "input language is not used"),
    (data_dependent, "values of input past_lengths decide a shape"),
]


@pytest.mark.parametrize("change, expected", WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_wrong_graphs_are_refused(
    fixed_bundles: dict[str, Path], tmp_path: Path, change: Change, expected: str
) -> None:
    with (
        case(fixed_bundles["portable"], tmp_path, "ar", change) as found,
        pytest.raises(AuditError, match=expected),
    ):
        audit(found)


def inverted_choice(model: onnx.ModelProto) -> None:
    """Show scores where the mask hides them."""
    makers = {out: node for node in model.graph.node for out in node.output}
    for node in nodes(model, "Softmax"):
        choice = makers[node.input[0]]
        choice.input[1], choice.input[2] = choice.input[2], choice.input[1]


def plain_softmax(model: onnx.ModelProto) -> None:
    makers = {out: node for node in model.graph.node for out in node.output}
    for node in nodes(model, "Softmax"):
        node.input[0] = makers[node.input[0]].input[1]


@pytest.mark.parametrize(
    "change, expected",
    [
        (plain_softmax, "softmax over the whole cache without a mask"),
        (inverted_choice, "hides the cache where its mask says to see it"),
    ],
    ids=["plain_softmax", "inverted_choice"],
)
def test_a_wrong_attention_of_plain_operators_is_refused(
    fixed_bundles: dict[str, Path], tmp_path: Path, change: Change, expected: str
) -> None:
    with (
        case(fixed_bundles["primitive"], tmp_path, "ar", change, lowering="primitive") as found,
        pytest.raises(AuditError, match=expected),
    ):
        audit(found)


def test_half_of_a_float32_graph_is_refused(fixed_bundles: dict[str, Path], tmp_path: Path) -> None:
    with case(fixed_bundles["portable"], tmp_path, "ar", lambda m: None, precision="fp32") as found:
        wrong: Any = AuditCase(found.parsed, found.model, found.graph, found.lowering, "fp16")
        with pytest.raises(AuditError, match="runs in FLOAT; expected HALF"):
            audit(wrong)

"""Checks a parsed TensorRT network for what the parser accepts although it would be wrong or slow.

Every build runs it between parsing and building. It walks the network that TensorRT made, not the ONNX graph.
Only the values of the attention masks are computed from the nodes of the ONNX graph. onnx's reference
computes them, so a machine needs no other runtime than TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from valle2.engine.backends.trt.api import Parsed, attention_of, input_tensors, layers, output_tensors
from valle2.engine.build.weight_formats import compute_precision
from valle2.engine.bundle.contract import CACHE_PREFIX, LOGITS, OUT_SUFFIX
from valle2.engine.errors import AuditError

TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
CACHE_WRITERS = {"portable": "KV_CACHE_UPDATE", "primitive": "SCATTER"}
HOST_INPUTS = {"nar": {"prompt_lengths"}}
"""Per graph, the inputs whose values may decide a shape, at the cost of one copy to the host each.

The NAR cuts off the prompt.
"""
FLOATS = ("FLOAT", "HALF", "BF16")
LARGE_WEIGHT = 1024
"""Elements from which on the type of a weight matters."""
COMPUTE_LAYERS = ("MATRIX_MULTIPLY", "CONVOLUTION", "ATTENTION_INPUT", "KV_CACHE_UPDATE")
SHAPE_INPUTS = {"SLICE": (1, 2, 3), "SHUFFLE": (1,), "FILL": (0,), "RESIZE": (1,)}
LOOPS = ("TRIP_LIMIT", "RECURRENCE")
"""Layers of an LSTM, which only codecs have. They run on the device."""
FORBIDDEN = ("NON_ZERO", "NMS", "CONDITION", *LOOPS, "PLUGIN", "PLUGIN_V2", "PLUGIN_V3")
TRANSPARENT = ("CAST", "SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE")
MASK_INPUT = 3
"""Index of the mask among the inputs of an ATTENTION_INPUT layer."""
DROPPED_INPUT = 6
"""Index of `nonpad_kv_seqlen` among the inputs of ONNX Attention; TensorRT's parser ignores it."""


@dataclass(frozen=True, slots=True)
class AuditCase:
    """What is audited.

    Args:
        parsed: the network. model: the ONNX graph that was parsed. graph: its name in the manifest.
        lowering: the bundle's. precision: this graph's.
    """

    parsed: Parsed
    model: onnx.ModelProto
    graph: str
    lowering: str
    precision: str


@dataclass(frozen=True, slots=True)
class NetworkView:
    """The layers of a network, and by tensor name the layer that makes it. Inputs have no maker."""

    layers: tuple[Any, ...]
    makers: Mapping[str, Any]

    @classmethod
    def over(cls, network: Any) -> NetworkView:
        found = tuple(layers(network))
        return cls(found, {tensor.name: layer for layer in found for tensor in output_tensors(layer)})

    def kind(self, name: str) -> str:
        """The type of the layer that makes a tensor, empty for an input."""
        return str(self.makers[name].type.name) if name in self.makers else ""

    def ancestors(self, *names: str, stop: str = "") -> set[str]:
        """The tensors and all that they are computed from; the search ends at layers of type `stop`."""
        seen, todo = set[str](), list(names)
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.makers and self.kind(name) != stop:
                todo += [tensor.name for tensor in input_tensors(self.makers[name])]
        return seen

    def source(self, name: str) -> str:
        """The tensor that casts and reshapes made this one from."""
        while self.kind(name) in TRANSPARENT:
            name = self.makers[name].get_input(0).name
        return name


def audit(case: AuditCase) -> None:
    """Refuse a network that would be wrong or slower than designed.

    Raises:
        AuditError: there are findings; the message lists all, each with its tensor or layer.
    """
    network = NetworkView.over(case.parsed.network)
    found = [text for check in CHECKS for text in check(case, network)]
    if found:
        raise AuditError(f"graph {case.graph} is refused: {'; '.join(found)}")


def check_masks(case: AuditCase, network: NetworkView) -> Iterator[str]:
    """The mask of every attention over a cache shows exactly the valid positions."""
    caches = cache_inputs(case)
    if not caches:
        return
    masks = [mask for layer in network.layers for mask in attention_masks(case, network, layer, caches)]
    if len(masks) != len(caches) // 2:
        yield f"{len(masks)} attentions over the cache were found; expected {len(caches) // 2}"
    yield from sorted({text for _, text in masks if text})
    for name in sorted({name for name, text in masks if name and not text}):
        if not mask_is_right(case.model, name):
            yield f"mask {name} lets a query see other positions than those up to its own"


def attention_masks(
    case: AuditCase, network: NetworkView, layer: Any, caches: set[str]
) -> Iterator[tuple[str, str]]:
    """If a layer is an attention over a cache: the name of its mask, and what is wrong with it."""
    reads = input_tensors(layer)
    kind = layer.type.name
    if kind == "ATTENTION_INPUT" and network.ancestors(reads[1].name) & caches:
        yield fused_mask(case, network, layer)
    elif kind == "SOFTMAX" and reads[0].shape[-1] == cache_length(case) and len(reads[0].shape) > 2:
        yield written_mask(network, reads[0].name, layer.name, caches)


def fused_mask(case: AuditCase, network: NetworkView, layer: Any) -> tuple[str, str]:
    """The mask of an IAttention. A causal kind counts from the first position, not from the cached ones."""
    kind = attention_of(case.parsed.trt, layer).causal_kind.name
    mask = layer.get_input(MASK_INPUT) if layer.num_inputs > MASK_INPUT else None
    if kind != "NONE":
        return "", f"{layer.name} has the causal mask {kind}, which does not know the cache's valid length"
    if mask is None:
        return "", f"{layer.name} attends over the whole cache without a mask"
    return network.source(mask.name), ""


def written_mask(network: NetworkView, scores: str, name: str, caches: set[str]) -> tuple[str, str]:
    """The mask of an attention that is written as MatMul, Where and Softmax."""
    scores = network.source(scores)
    if network.kind(scores) != "SELECT":
        return "", f"{name} is a softmax over the whole cache without a mask"
    mask, shown, _ = input_tensors(network.makers[scores])
    if not network.ancestors(shown.name) & caches:
        return "", f"{name} hides the cache where its mask says to see it"
    return network.source(mask.name), ""


def check_aliases(case: AuditCase, network: NetworkView) -> Iterator[str]:
    """Each cache is updated from its own input, in place where the lowering can."""
    expected = CACHE_WRITERS[case.lowering]
    for name in sorted(cache_inputs(case)):
        out = f"{name}{OUT_SUFFIX}"
        kind = network.kind(out)
        if kind != expected or network.makers[out].get_input(0).name != name:
            yield f"{out} is made by {kind or 'nothing'}; expected {expected} of {name}"


def check_inputs(case: AuditCase, network: NetworkView) -> Iterator[str]:
    """Every input reaches an output, and no operator has an input that the parser drops."""
    outputs = [tensor.name for tensor in network_outputs(case)]
    reached = network.ancestors(*outputs)
    for tensor in network_inputs(case):
        if tensor.name not in reached:
            yield f"input {tensor.name} is not used"
    for node in case.model.graph.node:
        if node.op_type == "Attention" and any(node.input[DROPPED_INPUT:]):
            yield f"{node.name} has nonpad_kv_seqlen, which TensorRT drops; write an explicit mask"


def check_types(case: AuditCase, network: NetworkView) -> Iterator[str]:
    """Large weights and heavy layers have the graph's type, and float32 where they come after the logits."""
    typed = [value.name for value in case.model.graph.output if value.name.startswith((LOGITS, CACHE_PREFIX))]
    before_logits = network.ancestors(*typed)
    for layer in network.layers:
        kind, made = layer.type.name, output_tensors(layer)
        if not made:
            continue
        tensor = made[0]
        inside = not typed or tensor.name in before_logits
        expected = TYPES[compute_precision(case.precision) if inside else "fp32"]
        if kind == "CONSTANT" and tensor.dtype.name in FLOATS and np.prod(tensor.shape) >= LARGE_WEIGHT:
            if tensor.dtype.name != expected:
                yield f"weight {layer.name} is {tensor.dtype.name}; expected {expected}"
        elif kind in COMPUTE_LAYERS and input_tensors(layer)[0].dtype.name != expected:
            yield f"{layer.name} runs in {input_tensors(layer)[0].dtype.name}; expected {expected}"
    quantised = sum(node.op_type == "DequantizeLinear" for node in case.model.graph.node)
    kept = sum(layer.type.name == "DEQUANTIZE" for layer in network.layers)
    if quantised != kept:
        yield f"{kept} weights are stored as {case.precision}; expected {quantised}"


def check_trips(case: AuditCase, network: NetworkView) -> Iterator[str]:
    """No other values go to the host than `HOST_INPUTS`; nothing branches, loops or needs a plugin."""
    for layer in network.layers:
        recurrent = case.graph.startswith("codec_") and layer.type.name in LOOPS
        if layer.type.name in FORBIDDEN and not recurrent:
            yield f"{layer.name} is a {layer.type.name}, which needs the host or a plugin"
    for name in sorted(host_inputs(case, network) - HOST_INPUTS.get(case.graph, set())):
        yield f"the values of input {name} decide a shape, so every call waits for the host"


CHECKS: tuple[Callable[[AuditCase, NetworkView], Iterator[str]], ...] = (
    check_masks,
    check_aliases,
    check_inputs,
    check_types,
    check_trips,
)


def host_inputs(case: AuditCase, network: NetworkView) -> set[str]:
    """Inputs from whose values, not sizes, a shape is computed."""
    roots = [
        layer.get_input(index).name
        for layer in network.layers
        for index in SHAPE_INPUTS.get(layer.type.name, ())
        if index < layer.num_inputs and layer.get_input(index) is not None
    ]
    return network.ancestors(*roots, stop="SHAPE") & {t.name for t in network_inputs(case) if is_whole(t)}


def is_whole(tensor: Any) -> bool:
    return tensor.dtype.name in ("INT32", "INT64")


def network_inputs(case: AuditCase) -> list[Any]:
    network = case.parsed.network
    return [network.get_input(index) for index in range(network.num_inputs)]


def network_outputs(case: AuditCase) -> list[Any]:
    network = case.parsed.network
    return [network.get_output(index) for index in range(network.num_outputs)]


def cache_inputs(case: AuditCase) -> set[str]:
    return {tensor.name for tensor in network_inputs(case) if tensor.name.startswith(CACHE_PREFIX)}


def cache_length(case: AuditCase) -> int:
    """Positions of the caches (batch, heads, positions, width), 0 without any."""
    lengths = (t.shape[2] for t in network_inputs(case) if t.name.startswith(CACHE_PREFIX))
    return int(next(lengths, 0))


def mask_is_right(model: onnx.ModelProto, name: str) -> bool:
    """Compute the mask of rows with different numbers of cached positions, and compare it.

    Query s of a row with `past` cached positions sees positions <= past + s.
    """
    part = subgraph_of(model, name)
    length = next(v for v in model.graph.input if v.name.startswith(CACHE_PREFIX)).type.tensor_type.shape.dim[
        2
    ]
    past, steps = np.array([0, 7, length.dim_value - 3]), 3
    feeds = {value.name: example_input(value, past, steps) for value in part.graph.input}
    mask = np.asarray(cast(list[Any], ReferenceEvaluator(part).run(None, feeds))[0])
    query = past[:, None, None, None] + np.arange(steps)[:, None]
    expected = np.arange(length.dim_value) <= query
    if mask.dtype != np.bool_ or mask.shape[-2:] != expected.shape[-2:]:
        return False
    return bool((mask == expected).all())


def example_input(value: onnx.ValueInfoProto, past: np.ndarray[Any, Any], steps: int) -> np.ndarray[Any, Any]:
    """An input for rows with `past` (B,) cached and `steps` new positions each."""
    if value.name == "past_lengths":
        return past
    sizes = {"batch": len(past), "new": steps}
    shape = [d.dim_value or sizes.get(d.dim_param, 1) for d in value.type.tensor_type.shape.dim]
    filled = steps if value.name == "new_lengths" else 1
    return np.full(shape, filled, helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def subgraph_of(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The part of a graph that computes one tensor."""
    makers = {out: node for node in model.graph.node for out in node.output}
    needed, todo = set[str](), [name]
    while todo:
        tensor = todo.pop()
        if tensor not in needed:
            needed.add(tensor)
            todo += makers[tensor].input if tensor in makers else []
    graph = helper.make_graph(
        [node for node in model.graph.node if set(node.output) & needed],
        "part",
        [value for value in model.graph.input if value.name in needed],
        [helper.make_tensor_value_info(name, TensorProto.BOOL, None)],
        [weight for weight in model.graph.initializer if weight.name in needed],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)

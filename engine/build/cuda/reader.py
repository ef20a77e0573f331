"""Reads an exported graph back into the parts of the model: blocks, embedding, head and caches.

It walks from outputs to inputs and knows the forms that our exporter writes. Everything else is refused with
a reason, and the caller keeps the graph as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from valle2.engine.errors import Valle2Error

Weight = NDArray[np.float32]


class UnsupportedGraphError(Valle2Error):
    """The graph has a form that has no fused version. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix product. weight: (K, N) float32. bias: (N,) float32, None for none."""

    weight: Weight
    bias: Weight | None = None


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation of the last axis.

    Args:
        kind: "layer" (mean and variance) or "rms". gain: (d,), or (stages, d) with a row for each stage of
            the NAR. shift: of the same shape, None for "rms".
        epsilon: is added to the variance or mean square.
    """

    kind: str
    gain: Weight
    shift: Weight | None
    epsilon: float


@dataclass(frozen=True, slots=True)
class Block:
    """A Transformer block, see `valle2.export.models.ar.Block`.

    Args:
        activation: "gelu", "gelu_tanh", "relu" or "silu". gated: half of `up` gates the other half.
        rotary: cosines and sines (positions, D / 2) of its rotary positions, None for none.
        places: name of the rotary positions (B, S), empty for none.
        picked: name of the positions that go on after the attention, empty for all.
    """

    norm_first: bool
    norm1: Norm
    qkv: Linear
    out: Linear
    norm2: Norm
    up: Linear
    activation: str
    gated: bool
    down: Linear
    rotary: tuple[Weight, Weight] | None = None
    places: str = ""
    picked: str = ""


class GraphReader:
    """Walks one graph. model: with its weights in their own types, see `precision.unpack`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.makers = {name: node for node in model.graph.node for name in node.output if name}
        self.weights = {weight.name: weight for weight in model.graph.initializer}
        self.inputs = {value.name: value for value in model.graph.input}

    def count(self, name: str) -> int:
        """How many inputs of nodes a tensor is."""
        return sum(list(node.input).count(name) for node in self.model.graph.node)

    def weight(self, name: str) -> NDArray[Any] | None:
        """The values of a weight, or of a transposed weight; None for a tensor that is computed."""
        if name in self.weights:
            return numpy_helper.to_array(self.weights[name])
        node = self.makers.get(name)
        if node is not None and node.op_type == "Transpose" and node.input[0] in self.weights:
            values = numpy_helper.to_array(self.weights[node.input[0]])
            return np.transpose(values, given(node, "perm", list(range(values.ndim))[::-1]))
        return None

    def node(self, name: str, *kinds: str) -> onnx.NodeProto:
        """The node that makes a tensor, if it is of one of these operators.

        Raises:
            UnsupportedGraphError: it is another one, or an input of the graph.
        """
        node: onnx.NodeProto | None = self.makers.get(name)
        if node is None or node.op_type not in kinds:
            made = node.op_type if node else "an input"
            raise UnsupportedGraphError(f"{name} comes from {made}; expected {' or '.join(kinds)}")
        return node

    def through(self, name: str, *kinds: str) -> str:
        """The input of a chain of operators with one input each, the last first."""
        for kind in kinds:
            name = self.node(name, kind).input[0]
        return name

    def split_weight(self, node: onnx.NodeProto) -> tuple[str, Weight]:
        """The computed input of an operator of two inputs, and the weight that is its other input."""
        for source, other in (node.input, reversed(node.input)):
            if (weight := self.weight(other)) is not None:
                return source, weight
        raise UnsupportedGraphError(f"{node.op_type} {node.output[0]} has no weight")

    def linear(self, name: str) -> tuple[str, Linear]:
        """A matrix product and its bias -> its input, and both."""
        node, bias = self.node(name, "Add", "MatMul", "Gemm"), None
        if node.op_type == "Add":
            source, bias = self.split_weight(node)
            node = self.node(source, "MatMul")
        weight = self.weight(node.input[1])
        if weight is None or weight.ndim != 2:
            raise UnsupportedGraphError(f"the product {node.output[0]} has no constant matrix")
        if node.op_type == "Gemm":
            if len(node.input) > 2:
                bias = self.weight(node.input[2])
            weight = weight.T if given(node, "transB", 0) else weight
        return node.input[0], Linear(weight, bias)

    def is_norm(self, name: str) -> bool:
        """Whether a tensor is normalised: `LayerNormalization`, or a gain times a quotient."""
        try:
            self.norm(name)
        except UnsupportedGraphError:
            return False
        return True

    def norm(self, name: str) -> tuple[str, Norm]:
        """A normalisation -> its input, and what it does."""
        node = self.node(name, "LayerNormalization", "Mul")
        if node.op_type == "LayerNormalization":
            gain, shift = (self.gain(part) for part in (*node.input[1:], "")[:2])
            if gain is None:
                raise UnsupportedGraphError(f"the gain of {name} is computed")
            return node.input[0], Norm("layer", gain, shift, given(node, "epsilon", 1e-5))
        scaled, gain = self.split_gain(node)
        inner = self.node(scaled, "Mul")
        if self.weight(inner.input[1]) is not None:
            return self.length_norm(inner, gain)
        return self.rms_norm(inner, gain)

    def gain(self, name: str) -> Weight | None:
        """A gain or shift (d,), or the table (stages, d) from which the row of the stage is taken."""
        made = self.makers.get(name)
        if made is None or made.op_type not in ("Gather", "Squeeze"):
            return self.weight(name)
        rows = self.makers.get(made.input[0])
        if rows is None or rows.op_type != "Gather" or self.makers[rows.input[1]].input[0] != "stage":
            return None
        table = self.weight(rows.input[0])
        return table if table is not None and table.ndim == 2 and given(rows, "axis", 0) == 0 else None

    def split_gain(self, node: onnx.NodeProto) -> tuple[str, Weight]:
        """The normalised input of a product with a gain, and the gain."""
        for source, other in (node.input, reversed(node.input)):
            if (gain := self.gain(other)) is not None:
                return source, gain
        raise UnsupportedGraphError(f"{node.op_type} {node.output[0]} has no gain")

    def rms_norm(self, node: onnx.NodeProto, gain: Weight) -> tuple[str, Norm]:
        """x / sqrt(mean(x^2) + epsilon) * gain."""
        source, divisor = node.input
        sum_ = self.node(self.through(divisor, "Reciprocal", "Sqrt"), "Add")
        mean, epsilon = self.split_weight(sum_)
        self.square(self.through(mean, "ReduceMean"), source)
        return source, Norm("rms", gain, None, float(epsilon))

    def length_norm(self, node: onnx.NodeProto, gain: Weight) -> tuple[str, Norm]:
        """x / max(length, epsilon) * sqrt(d) * gain.

        This is an "rms" norm with hardly any epsilon, but for vectors shorter than its own.
        """
        quotient, factor = self.split_weight(node)
        divided = self.node(quotient, "Div")
        clip = self.node(divided.input[1], "Clip")
        self.square(self.through(clip.input[0], "Sqrt", "ReduceSum"), divided.input[0])
        least = self.weight(clip.input[1])
        if least is None or not math.isclose(float(factor) ** 2, gain.shape[-1], rel_tol=1e-4):
            raise UnsupportedGraphError(f"{quotient} is no normalisation by length")
        return divided.input[0], Norm("rms", gain, None, float(least) ** 2 / gain.shape[-1])

    def square(self, name: str, source: str) -> None:
        """Refuse a tensor that is not source times source."""
        if list(self.node(name, "Mul").input) != [source, source]:
            raise UnsupportedGraphError(f"{name} is not the square of {source}")

    def activation(self, name: str) -> tuple[str, str, bool]:
        """An activation -> its input, its kind, and whether half of the input gates the rest."""
        node = self.node(name, "Gelu", "Relu", "Mul")
        if node.op_type == "Gelu":
            tanh = given(node, "approximate", b"none") == b"tanh"
            return node.input[0], "gelu_tanh" if tanh else "gelu", False
        if node.op_type == "Relu":
            return node.input[0], "relu", False
        one, other = node.input
        if self.makers[other].op_type == "Sigmoid":
            if self.makers[other].input[0] != one:
                raise UnsupportedGraphError(f"{name} is neither silu nor a gate")
            return one, "silu", False
        half, kind, _ = self.activation(one)
        split = self.node(other, "Split")
        if list(split.output) != [half, other]:
            raise UnsupportedGraphError(f"{name} is no gate over one product")
        return split.input[0], kind, True

    def block(self, name: str) -> tuple[str, Block, onnx.NodeProto]:
        """The block whose output is `name` -> its input, its parts, and its node of attention."""
        norm_first = not self.is_norm(name)
        summed, norm2 = (name, None) if norm_first else self.norm(name)
        residual, fed = self.node(summed, "Add").input
        activated, down = self.linear(fed)
        raised, activation, gated = self.activation(activated)
        inner, up = self.linear(raised)
        if norm_first:
            inner, norm2 = self.norm(inner)
            first, norm1 = residual, None
        else:
            first, norm1 = self.norm(residual)
        source, attended = self.node(first, "Add").input
        merged, out = self.linear(attended)
        source, merged, picked = self.unpicked(source, merged)
        packed, rotary, places, attention = self.attention(merged)
        projected, qkv = self.linear(packed)
        if norm_first:
            projected, norm1 = self.norm(projected)
        if inner != residual or projected != source or norm1 is None or norm2 is None:
            raise UnsupportedGraphError(f"{name} is no Transformer block")
        choices = activation, gated, down, rotary, places, picked
        parts = Block(norm_first, norm1, qkv, out, norm2, up, *choices)
        return source, parts, attention

    def unpicked(self, residual: str, attended: str) -> tuple[str, str, str]:
        """Residual and attended before some positions of both are picked, and the name of these positions."""
        one, other = self.makers.get(residual), self.makers[attended]
        if one is None or {one.op_type, other.op_type} != {"Gather"} or one.input[1] != other.input[1]:
            return residual, attended, ""
        if self.weight(one.input[0]) is not None or {given(node, "axis", 0) for node in (one, other)} != {1}:
            return residual, attended, ""
        return one.input[0], other.input[0], one.input[1]

    def attention(self, name: str) -> tuple[str, tuple[Weight, Weight] | None, str, onnx.NodeProto]:
        """Attention with merged heads -> packed query, key and value; rotary tables and places; its node."""
        node = self.node(self.through(name, "Reshape", "Transpose"), "Attention")
        query = self.node(self.through(node.input[0], "Transpose"), "Reshape")
        made, rotary, places = self.makers[query.input[0]], None, ""
        if made.op_type == "Reshape":
            rotary, places, made = self.rotary(made)
        keys = {given(made, "num_outputs", 0), len(made.output)}
        if made.op_type != "Split" or keys != {3}:
            raise UnsupportedGraphError(f"{name} has query, key and value of different products")
        return made.input[0], rotary, places, node

    def rotary(self, node: onnx.NodeProto) -> tuple[tuple[Weight, Weight], str, onnx.NodeProto]:
        """Rotated heads -> cosines and sines, their places, and the `Split` into query, key and value."""
        joined = self.node(node.input[0], "Concat")
        less = self.node(joined.input[0], "Sub")
        tables, halves, places = [], set(), ""
        for part in less.input:
            half, angle = self.node(part, "Mul").input
            row = self.node(self.through(angle, "Unsqueeze"), "Gather")
            table, places = self.weight(row.input[0]), row.input[1]
            if table is None:
                raise UnsupportedGraphError(f"the angles of {part} are computed")
            tables.append(table)
            halves.add(self.node(half, "Split").input[0])
        if len(halves) != 1:
            raise UnsupportedGraphError(f"{node.output[0]} does not rotate halves of one head")
        return (tables[0], tables[1]), places, self.makers[self.through(halves.pop(), "Reshape")]


def given(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    return next(
        (helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default
    )

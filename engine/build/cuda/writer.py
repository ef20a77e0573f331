"""Writes a graph node by node, and Transformer blocks with the fused operators of ONNX Runtime.

A bias and a residual sum are part of `SkipLayerNormalization`, and the bias before GELU is part of
`BiasGelu`, which computes the exact GELU. With a bias b before ReLU, relu(x + b) = max(x, -b) + b. So one
`Max` does both, and the last term is part of the bias of the next product. A reshape launches no kernel, so
shapes change freely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from valle2.engine.build.cuda.reader import Block, Linear, Norm, Weight
from valle2.engine.build.quantize import DOMAIN

Attend = Callable[[str, str, int], str]
"""(input (B, S, d) of the product for query, key and value, name of the result, layer) -> (B, S, H*D)."""
Pick = Callable[[str, str, str], str]
"""(tensor (B, S, d), name of the positions that go on, name of the result) -> those positions."""


MOST_PARTS = 32
"""ONNX Runtime divides a tensor into so many parts without a copy from the host."""


class GraphWriter:
    """Collects nodes and weights. Every method that adds a node returns the name of its first output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.staged: dict[str, Weight] = {}

    def const(self, name: str, values: NDArray[Any] | np.generic) -> str:
        """A weight. An equal name means an equal weight."""
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(
                np.ascontiguousarray(values).reshape(values.shape), name
            )
        return name

    def vector(self, name: str, values: Weight) -> str:
        """A weight (d,), or the row of (stages, d) that the graph's input `stage` names."""
        if values.ndim == 1:
            return self.const(name, values)
        self.staged[name] = values
        return name

    def finished(self) -> list[onnx.NodeProto]:
        """All nodes. The rows of a stage come first: one node takes many of them, and one divides them."""
        parts, names = GraphWriter(), list(self.staged)
        for first in range(0, len(names), MOST_PARTS):
            taken, staged = names[first : first + MOST_PARTS], f"staged_{first}" if first else "staged"
            table = parts.const(f"{staged}_vectors", np.stack([self.staged[name] for name in taken], axis=1))
            parts.op("Gather", [table, "stage"], staged, axis=0)
            rows = [f"{name}.row" for name in taken]
            split = helper.make_node(
                "Split", [staged], rows, f"{staged}.split", axis=0, num_outputs=len(rows)
            )
            parts.nodes.append(split)
            for row, name in zip(rows, taken, strict=True):
                parts.view(row, name, -1)
        self.weights |= parts.weights
        return parts.nodes + self.nodes

    def op(self, kind: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, domain=domain, **attributes))
        return name

    def contrib(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> str:
        """Add a node of ONNX Runtime's own operators."""
        node = helper.make_node(kind, list(inputs), list(outputs), outputs[0], domain=DOMAIN, **attributes)
        self.nodes.append(node)
        return outputs[0]

    def view(self, source: str, name: str, *shape: int) -> str:
        """Another shape of the same numbers."""
        return self.op("Reshape", [source, self.ints(*shape)], name)

    def ints(self, *values: int) -> str:
        """A vector of int64."""
        return self.const("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: float, dtype: type[np.generic]) -> str:
        """A number as a tensor without axes."""
        kind = np.dtype(dtype).name
        return self.const(f"{kind}_{value}", np.array(value, dtype))

    def cast(self, source: str, name: str, kind: int) -> str:
        return self.op("Cast", [source], name, to=kind)

    # -- parts of a model -----------------------------------------------------------------------

    def product(self, source: str, linear: Linear, name: str) -> str:
        """The product without its bias."""
        return self.op("MatMul", [source, self.const(f"{name}.weight", linear.weight)], name)

    def linear(self, source: str, linear: Linear, name: str) -> str:
        """The product and its bias."""
        if linear.bias is None:
            return self.product(source, linear, name)
        product = self.product(source, linear, f"{name}.product")
        return self.op("Add", [product, self.const(f"{name}.bias", linear.bias)], name)

    def norm(self, source: str, norm: Norm, name: str) -> str:
        """A normalisation of one tensor."""
        parts = [source, self.vector(f"{name}.gain", norm.gain)]
        if norm.kind == "rms":
            return self.op("SimplifiedLayerNormalization", parts, name, axis=-1, epsilon=norm.epsilon)
        if norm.shift is not None:
            parts.append(self.vector(f"{name}.shift", norm.shift))
        return self.op("LayerNormalization", parts, name, axis=-1, epsilon=norm.epsilon)

    def skip_norm(
        self,
        source: str,
        skip: str,
        norm: Norm,
        name: str,
        bias: Weight | None = None,
        *,
        summed: bool = False,
    ) -> tuple[str, str]:
        """Normalise source + bias + skip. Returns the names of the result and, if `summed`, of the sum."""
        parts = [source, skip, self.vector(f"{name}.gain", norm.gain)]
        kind = "SkipSimplifiedLayerNormalization"
        if norm.kind == "layer":
            kind = "SkipLayerNormalization"
            parts.append("" if norm.shift is None else self.vector(f"{name}.shift", norm.shift))
        if bias is not None:
            parts.append(self.const(f"{name}.bias", bias))
        outputs = [name, "", "", f"{name}.sum"] if summed else [name]
        self.contrib(kind, parts, outputs, epsilon=norm.epsilon)
        return name, outputs[-1]

    def activate(self, source: str, block: Block, name: str) -> str:
        """The bias of `up`, the activation and the gate."""
        bias = block.up.bias
        fused = {"gelu": "BiasGelu", "gelu_tanh": "FastGelu"}.get(block.activation)
        if fused and bias is not None and not block.gated:
            return self.contrib(fused, [source, self.const(f"{name}.bias", bias)], [name])
        if bias is not None and has_moved_bias(block):
            return self.op("Max", [source, self.const(f"{name}.floor", -bias)], name)
        if bias is not None:
            source = self.op("Add", [source, self.const(f"{name}.bias", bias)], f"{name}.biased")
        if not block.gated:
            return self.activation(source, block.activation, name)
        halves = [f"{name}.half", f"{name}.value"]
        self.nodes.append(
            helper.make_node("Split", [source], halves, f"{name}.split", axis=-1, num_outputs=2)
        )
        return self.op("Mul", [self.activation(halves[0], block.activation, f"{name}.gate"), halves[1]], name)

    def activation(self, source: str, kind: str, name: str) -> str:
        """An activation alone. `QuickGelu` with alpha 1 is x * sigmoid(x), which is silu."""
        if kind == "silu":
            return self.contrib("QuickGelu", [source], [name], alpha=1.0)
        if kind == "relu":
            return self.op("Relu", [source], name)
        return self.op("Gelu", [source], name, approximate="tanh" if kind == "gelu_tanh" else "none")

    def pick(self, source: str, places: str, name: str) -> str:
        """Some positions of (B, S, d). places: the name of their numbers."""
        return self.op("Gather", [source, places], name, axis=1)

    def blocks(
        self,
        source: str,
        added: str,
        blocks: Sequence[Block],
        last: Norm | None,
        attend: Attend,
        pick: Pick | None = None,
    ) -> str:
        """All blocks over `source`, or over source + added where `added` is given.

        Args:
            last: the normalisation after the last block, None for none.
            pick: takes the positions that go on after the last attention; `self.pick` by default.
        """
        pick = pick or self.pick
        first = blocks[0].norm1 if blocks[0].norm_first else None
        if first is None:
            residual = self.op("Add", [source, added], "embedded") if added else source
            normed = residual
        elif added:
            normed, residual = self.skip_norm(source, added, first, "norm_0", summed=True)
        else:
            normed, residual = self.norm(source, first, "norm_0"), source
        for index, block in enumerate(blocks):
            following = blocks[index + 1].norm1 if index + 1 < len(blocks) else last
            at = f"block_{index}"
            attended = attend(normed, f"{at}.attended", index)
            if block.picked:
                attended = pick(attended, block.picked, f"{at}.picked")
                residual = pick(residual, block.picked, f"{at}.picked_residual")
            out = self.product(attended, block.out, f"{at}.out")
            if block.norm_first:
                inner, residual = self.skip_norm(
                    out, residual, block.norm2, f"{at}.norm2", block.out.bias, summed=True
                )
            else:
                inner, residual = self.skip_norm(out, residual, block.norm1, f"{at}.norm1", block.out.bias)
                following = block.norm2
            raised = self.product(inner, block.up, f"{at}.up")
            fed = self.product(self.activate(raised, block, f"{at}.active"), block.down, f"{at}.down")
            if following is None:
                raise ValueError("blocks that normalise first need a last normalisation")
            summed = block.norm_first and index + 1 < len(blocks)
            normed, residual = self.skip_norm(
                fed, residual, following, f"norm_{index + 1}", down_bias(block), summed=summed
            )
        return normed

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        opset: int,
    ) -> onnx.ModelProto:
        """The graph as a model."""
        graph = helper.make_graph(self.finished(), name, inputs, outputs, list(self.weights.values()))
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, producer_name="valle2", ir_version=10)


def has_moved_bias(block: Block) -> bool:
    """Whether the bias before the activation is added after it, see above."""
    return block.activation == "relu" and not block.gated and block.up.bias is not None


def down_bias(block: Block) -> Weight | None:
    """The bias after the second product of the feed-forward part."""
    if not has_moved_bias(block) or block.up.bias is None:
        return block.down.bias
    moved = block.up.bias.astype(np.float64) @ block.down.weight.astype(np.float64)
    return (moved if block.down.bias is None else moved + block.down.bias).astype(np.float32)

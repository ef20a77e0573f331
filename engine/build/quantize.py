"""Quantises the weights of matrix products to 8 or 4 bits. No torch.

There are four ways, because the graphs have different bottlenecks:

- `blocks` is for the AR. Its step reads every weight for one position, so memory bandwidth limits it.
  Weights have a scale per block of inputs (`MatMulNBits`). Activations are rounded to 8 bits per row and
  block, so the rows of a batch do not influence each other.
- `dynamic` is for the NAR, which arithmetic limits. Weights have a scale per output, and activations have one
  scale per call (`DynamicQuantizeMatMul`, 8-bit integer kernels). Rows of one call share that scale.
- `rows` is for prefills of the AR. It is `dynamic` with a scale per row of activations, from its greatest
  size, so that rows do not influence each other (`MatMulIntegerToFloat`).
- `dequantised` is for TensorRT. It stores the weights in standard operators (`DequantizeLinear` before the
  product).

The first three also take over a bias that is added to the product. Embeddings, norms, attention and
everything after the logits stay in float32. For the KV caches of the AR see `kv_int8`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from valle2.engine.build.weight_formats import Storage
from valle2.engine.bundle.precisions import Method
from valle2.engine.derived.codes import LEAST_SCALE, Weight, block_codes, dynamic_codes

DOMAIN = "com.microsoft"
INT8_PRODUCTS = 4
"""The `accuracy_level` of `MatMulNBits` that rounds activations to int8 and multiplies integers."""
ROW_ZERO, ROW_TOP = 128, 127
"""The unsigned code of zero, and the greatest distance from it."""
ROW_CONSTANTS: dict[str, NDArray[Any]] = {
    "rows_first": np.array([0]),
    "rows_last": np.array([-1]),
    "rows_least": np.array(ROW_TOP * LEAST_SCALE, np.float32),
    "rows_step": np.array(1 / ROW_TOP, np.float32),
    "rows_middle": np.array([ROW_ZERO], np.uint8),
    "rows_zero": np.array(ROW_ZERO, np.uint8),
    "rows_one": np.array(1, np.float32),
}
"""What every `row_product` of a graph reads."""


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product with a constant weight.

    Args:
        node: the product. weight: (K, N) float32, transposed if `Gemm` transposes it.
        output: name of the result, with the bias added if there is one.
        bias: name of a vector (N,) that is added to the product, empty for none.
    """

    node: onnx.NodeProto
    weight: Weight
    output: str
    bias: str = ""


Replaced = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def quantise(model: onnx.ModelProto, method: Method) -> int:
    """Replace every matrix product that has a constant weight, in place; returns how many there were."""
    count = replace_products(model, lambda found: contrib_product(found, method), biased=True)
    if count and DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return count


def store_weights(model: onnx.ModelProto, storage: Storage) -> int:
    """Store the constant weight of every matrix product in a smaller type, in place; returns how many."""
    return replace_products(model, lambda found: dequantised(found, storage))


def contrib_product(found: Product, method: Method) -> Replaced:
    return PRODUCTS[method.kind](found, method)


def replace_products(
    model: onnx.ModelProto, replaced_by: Callable[[Product], Replaced], *, biased: bool = False
) -> int:
    """Replace every matrix product that has a constant weight by other nodes and weights.

    Args:
        replaced_by: makes them. biased: whether they also add the bias of the product.

    Returns:
        How many products there were.
    """
    weights = {w.name: w for w in model.graph.initializer}
    made = {p.node.output[0]: p for node in model.graph.node if (p := product(node, weights)) is not None}
    sums = biases(model, made, weights) if biased else {}
    taken = {found.output for found in sums.values()}
    nodes = []
    for node in model.graph.node:
        name = node.output[0]
        if name in made:
            replaced, tensors = replaced_by(sums.get(name, made[name]))
            nodes += replaced
            known = {entry.name for entry in model.graph.initializer}
            model.graph.initializer.extend(entry for entry in tensors if entry.name not in known)
        elif name not in taken:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unused(model)
    return len(made)


def biases(
    model: onnx.ModelProto, made: dict[str, Product], weights: dict[str, onnx.TensorProto]
) -> dict[str, Product]:
    """By their old outputs, the products that are only read by an addition of a constant vector (N,)."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(value.name for value in model.graph.output)
    found = {}
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        for name, bias in (node.input, reversed(node.input)):
            plain = bias in weights and name in made and readers[name] == 1
            if plain and list(weights[bias].dims) == [made[name].weight.shape[1]]:
                found[name] = replace(made[name], output=node.output[0], bias=bias)
    return found


def product(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> Product | None:
    """The node as a product with a constant float32 matrix, None if it is anything else."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights:
        return None
    weight = weights[node.input[1]]
    if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) != 2:
        return None
    values = numpy_helper.to_array(weight)
    given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "Gemm":
        plain = given.get("transA", 0) == 0 and given.get("alpha", 1) == 1 and given.get("beta", 1) == 1
        if not plain or len(node.input) > 2:
            return None
        values = values.T if given.get("transB", 0) else values
    return Product(node, values, node.output[0])


def block_product(found: Product, method: Method) -> Replaced:
    """`MatMulNBits`: codes around 2^(bits-1), and a scale per block from its entry of greatest size."""
    codes, scales = block_codes(found.weight, method.bits, method.block)
    name, (inputs, outputs) = found.output, found.weight.shape
    tensors = [tensor(codes, f"{name}_codes"), tensor(scales, f"{name}_scales")]
    node = helper.make_node(
        "MatMulNBits",
        [found.node.input[0], *(entry.name for entry in tensors), "", "", found.bias],
        [name],
        f"{name}_product",
        domain=DOMAIN,
        K=inputs,
        N=outputs,
        bits=method.bits,
        block_size=method.block,
        accuracy_level=INT8_PRODUCTS,
    )
    return [node], tensors


def dynamic_product(found: Product, method: Method) -> Replaced:
    """`DynamicQuantizeMatMul`: signed 8-bit weights with a scale per output."""
    codes, scales = dynamic_codes(found.weight)
    name = found.output
    tensors = [
        tensor(codes, f"{name}_codes"),
        tensor(scales, f"{name}_scales"),
        tensor(np.zeros_like(scales, np.int8), f"{name}_zeros"),
    ]
    node = helper.make_node(
        "DynamicQuantizeMatMul",
        [found.node.input[0], *(entry.name for entry in tensors), found.bias],
        [name],
        f"{name}_product",
        domain=DOMAIN,
    )
    return [node], tensors


def row_product(found: Product, method: Method) -> Replaced:
    """`MatMulIntegerToFloat` of x (1, S, K), or (S, K) before a `Gemm`, with a scale per row of x.

    Row i has the scale s = max_k |x[i, k]| / 127 and the codes round(x[i] / s) + 128. A sum of whole numbers
    is exact in any order, so row i of the result depends on row i of x alone.
    """
    codes, scales = dynamic_codes(found.weight)
    name, source = found.output, found.node.input[0]
    single = found.node.op_type == "Gemm"

    def own(part: str) -> str:
        return f"{name}_{part}"

    tensors = [
        tensor(codes, own("codes")),
        tensor(scales, own("scales")),
        tensor(np.zeros_like(scales, np.int8), own("zeros")),
        *(tensor(value, shared) for shared, value in ROW_CONSTANTS.items()),
    ]
    node, row_scales = helper.make_node, own("row_scales")
    nodes = [
        node("Abs", [source], [own("sizes")]),
        node("ReduceMax", [own("sizes"), "rows_last"], [own("greatest")], keepdims=0),
        node("Max", [own("greatest"), "rows_least"], [own("kept")]),
        node("Mul", [own("kept"), "rows_step"], [row_scales]),
        node("Unsqueeze", [row_scales, "rows_last"], [own("columns")]),
    ]
    if not single:
        nodes.append(node("Squeeze", [row_scales, "rows_first"], [own("scales_1d")]))
        row_scales = own("scales_1d")
    zeros = [own("codes"), "rows_one", own("scales"), "rows_zero", own("zeros")]
    axis = 0 if single else 1
    nodes += [
        node("Shape", [row_scales], [own("count")]),
        node("Expand", ["rows_middle", own("count")], [own("middles")]),
        node("QuantizeLinear", [source, row_scales, own("middles")], [own("row_codes")], axis=axis),
        node("MatMulIntegerToFloat", [own("row_codes"), *zeros], [own("whole")], domain=DOMAIN),
        node("Mul", [own("whole"), own("columns")], [own("plain") if found.bias else name]),
    ]
    if found.bias:
        nodes.append(node("Add", [own("plain"), found.bias], [name]))
    return nodes, tensors


def dequantised(found: Product, storage: Storage) -> Replaced:
    """`DequantizeLinear` of symmetric codes, then the product; a scale per output or per block of inputs."""
    inputs = found.weight.shape[0]
    block = storage.block or inputs
    padded = np.pad(found.weight, ((0, -inputs % block), (0, 0)))
    blocks = padded.reshape(-1, block, found.weight.shape[1])
    scales = np.maximum(np.abs(blocks).max(axis=1) / storage.top, LEAST_SCALE).astype(np.float32)
    kind = getattr(onnx.TensorProto, storage.kind)
    ratios = blocks / scales[:, None]
    whole = (
        ratios if storage.kind.startswith("FLOAT") else np.clip(np.rint(ratios), -storage.top, storage.top)
    )
    codes = whole.reshape(padded.shape)[:inputs].astype(helper.tensor_dtype_to_np_dtype(kind))
    name = found.output
    tensors = [
        tensor(codes, f"{name}_codes"),
        tensor(scales if storage.block else scales[0], f"{name}_scales"),
    ]
    axes: dict[str, Any] = {"axis": 0, "block_size": storage.block} if storage.block else {"axis": 1}
    names, weight_name = [entry.name for entry in tensors], f"{name}_weight"
    nodes = [
        helper.make_node("DequantizeLinear", names, [weight_name], f"{name}_dequantised", **axes),
        helper.make_node("MatMul", [found.node.input[0], weight_name], [name], f"{name}_product"),
    ]
    return nodes, tensors


PRODUCTS: dict[str, Callable[[Product, Method], Replaced]] = {
    "blocks": block_product,
    "dynamic": dynamic_product,
    "rows": row_product,
}


def tensor(values: NDArray[np.generic], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove the weights that no node reads."""
    read = {name for node in model.graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    kept = [weight for weight in model.graph.initializer if weight.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)

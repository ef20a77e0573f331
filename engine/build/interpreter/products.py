"""Layers with weights or scores: matrix products, convolutions, attention and the KV cache."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from valle2.engine.backends.trt.api import attention_of
from valle2.engine.build.interpreter.arithmetic import exponentials
from valle2.engine.build.interpreter.values import Array, Evaluate, Inputs, InterpreterError, sizes, wide


def matrix_multiply(trt: Any, layer: Any) -> Evaluate:
    """IMatrixMultiplyLayer: each operand as it is, transposed, or as vectors."""
    kinds = (layer.op0.name, layer.op1.name)

    def evaluate(inputs: Inputs) -> Any:
        a, b = (wide(value) for value in inputs)
        a = a.swapaxes(-1, -2) if kinds[0] == "TRANSPOSE" else a
        b = b.swapaxes(-1, -2) if kinds[1] == "TRANSPOSE" else b
        a = a[..., None, :] if kinds[0] == "VECTOR" else a
        b = b[..., None] if kinds[1] == "VECTOR" else b
        if a.ndim != b.ndim:
            raise InterpreterError(f"a product of {a.shape} and {b.shape}; expected one rank")
        found = np.matmul(a, b)
        found = found[..., 0, :] if kinds[0] == "VECTOR" else found
        return found[..., 0] if kinds[1] == "VECTOR" else found

    return evaluate


def weights_of(inputs: Inputs, index: int, stored: Any, shape: tuple[int, ...]) -> Array | None:
    """Weights that are an input, or else stored in the layer; None if there are none."""
    if index < len(inputs) and inputs[index] is not None:
        return wide(inputs[index])
    return wide(np.asarray(stored).reshape(shape)) if np.size(stored) else None


def at(value: Array, last: tuple[Any, ...]) -> Array:
    """Indices or slices of the last axes. Slices give a view."""
    index: Any = (..., *last)
    return np.asarray(value[index])


def check_padding(layer: Any) -> None:
    """Refuse padding that depends on sizes."""
    if layer.padding_mode.name != "EXPLICIT_ROUND_DOWN":
        raise InterpreterError(f"padding is {layer.padding_mode.name}; expected EXPLICIT_ROUND_DOWN")


def convolution(trt: Any, layer: Any) -> Evaluate:
    """IConvolutionLayer: a sum over the kernel's positions of matrix products, each for every group."""
    check_padding(layer)
    groups, maps, window = layer.num_groups, layer.num_output_maps, sizes(layer.kernel_size_nd)
    stride, dilation = sizes(layer.stride_nd), sizes(layer.dilation_nd)
    edges = list(zip(sizes(layer.pre_padding), sizes(layer.post_padding), strict=True))
    kernel, bias = layer.kernel, layer.bias

    def evaluate(inputs: Inputs) -> Any:
        x = wide(inputs[0])
        weights = weights_of(inputs, 1, kernel, (maps, x.shape[1] // groups, *window))
        assert weights is not None
        x = np.pad(x, [(0, 0), (0, 0), *edges])
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)]
        out = [(n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, stride, strict=True)]
        found = np.zeros((len(x), groups, maps // groups, int(np.prod(out))), np.float32)
        for tap in product(*map(range, window)):
            corner = [t * d for t, d in zip(tap, dilation, strict=True)]
            cut = tuple(slice(c, c + s * (n - 1) + 1, s) for c, n, s in zip(corner, out, stride, strict=True))
            part = at(x, cut).reshape(len(x), groups, -1, found.shape[-1])
            found += np.matmul(at(weights, tap).reshape(groups, maps // groups, -1), part)
        return with_bias(found.reshape(len(x), maps, *out), weights_of(inputs, 2, bias, (maps,)))

    return evaluate


def deconvolution(trt: Any, layer: Any) -> Evaluate:
    """IDeconvolutionLayer: every input element adds its kernel to the output, whose edges are cut off."""
    check_padding(layer)
    groups, maps, window = layer.num_groups, layer.num_output_maps, sizes(layer.kernel_size_nd)
    stride, dilation = sizes(layer.stride_nd), sizes(layer.dilation_nd)
    before, after = sizes(layer.pre_padding), sizes(layer.post_padding)
    kernel, bias = layer.kernel, layer.bias

    def evaluate(inputs: Inputs) -> Any:
        x = wide(inputs[0])
        weights = weights_of(inputs, 1, kernel, (x.shape[1], maps // groups, *window))
        assert weights is not None
        extents = x.shape[2:]
        whole = [
            (n - 1) * s + d * (k - 1) + 1
            for n, s, d, k in zip(extents, stride, dilation, window, strict=True)
        ]
        found = np.zeros((len(x), maps, *whole), np.float32)
        flat = x.reshape(len(x), groups, -1, int(np.prod(extents)))
        for tap in product(*map(range, window)):
            corner = [t * d for t, d in zip(tap, dilation, strict=True)]
            cut = tuple(
                slice(c, c + s * (n - 1) + 1, s) for c, n, s in zip(corner, extents, stride, strict=True)
            )
            taps = at(weights, tap).reshape(groups, -1, maps // groups)
            part = np.matmul(taps.swapaxes(1, 2), flat).reshape(len(x), maps, *extents)
            target = at(found, cut)
            target += part
        inner = tuple(slice(b, n - a) for b, n, a in zip(before, whole, after, strict=True))
        return with_bias(at(found, inner), weights_of(inputs, 2, bias, (maps,)))

    return evaluate


def with_bias(value: Array, bias: Array | None) -> Array:
    """The bias added to each output map."""
    return value if bias is None else value + bias.reshape(1, -1, *(1,) * (value.ndim - 2))


def attention_input(trt: Any, layer: Any) -> Evaluate:
    """IAttention: normalise(query @ key^T, mask) @ value. It has no scale: the query is scaled before it.

    Heads of keys and values that are fewer than the query's serve consecutive query heads each. A boolean
    mask is true where a query sees a key; another one is added to the scores. CausalMaskKind counts from the
    first key (UPPER_LEFT) or from the last (LOWER_RIGHT).
    """
    found = attention_of(trt, layer)
    causal, norm = found.causal_kind.name, found.norm_op.name
    unknown = [
        name for name in ("key_value_lengths", "query_lengths") if getattr(found, name, None) is not None
    ]
    if found.normalization_quantize_scale is not None:
        unknown.append("normalization_quantize_scale")
    if unknown:
        raise InterpreterError(f"attention {found.name} has {', '.join(unknown)}; expected a mask alone")

    def evaluate(inputs: Inputs) -> Any:
        query, key, value = (wide(tensor) for tensor in inputs[:3])
        mask = inputs[3] if len(inputs) > 3 else None
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = np.repeat(key, repeats, axis=1), np.repeat(value, repeats, axis=1)
        scores = np.matmul(query, key.swapaxes(-1, -2))
        scores = masked(scores, mask, causal)
        if norm == "SOFTMAX":
            scores = exponentials(scores, (-1,))
        return np.matmul(scores, value)

    return evaluate


def masked(scores: Array, mask: Array | None, causal: str) -> Array:
    """Scores (B, H, S, K) with a mask and a causal kind.

    Raises:
        InterpreterError: a query sees no key, for which TensorRT defines no value.
    """
    if mask is not None and mask.dtype != np.bool_:
        scores = scores + wide(mask)
    elif mask is not None:
        if not np.all(np.any(mask, axis=-1)):
            raise InterpreterError("a query sees no position, for which TensorRT defines no value")
        scores = np.where(mask, scores, -np.inf)
    if causal == "NONE":
        return scores
    queries, keys = scores.shape[-2:]
    last = np.arange(queries)[:, None] + (keys - queries if causal == "LOWER_RIGHT" else 0)
    return np.where(np.arange(keys) <= last, scores, -np.inf)


def attention_output(trt: Any, layer: Any) -> Evaluate:
    """The end of an IAttention, which `attention_input` has computed."""
    return lambda inputs: inputs[0]


def kv_cache_update(trt: Any, layer: Any) -> Evaluate:
    """IKVCacheUpdateLayer, LINEAR: row b of the update is written from position `write_indices[b]` on.

    cache: (B, H, C, D). update: (B, H, S, D). write_indices: (B,).
    """
    if layer.cache_mode.name != "LINEAR" or layer.update_lengths is not None:
        raise InterpreterError(f"a cache update is {layer.cache_mode.name}; expected LINEAR with padded rows")

    def evaluate(inputs: Inputs) -> Any:
        cache, update, starts = inputs
        found, count = cache.copy(), update.shape[2]
        for row, start in enumerate(starts):
            if not 0 <= start <= cache.shape[2] - count:
                raise InterpreterError(
                    f"{count} positions are written from {start} on; the cache has {cache.shape[2]}"
                )
            found[row, :, start : start + count] = update[row]
        return found

    return evaluate


LAYERS = {
    "ATTENTION_INPUT": attention_input,
    "ATTENTION_OUTPUT": attention_output,
    "CONVOLUTION": convolution,
    "DECONVOLUTION": deconvolution,
    "KV_CACHE_UPDATE": kv_cache_update,
    "MATRIX_MULTIPLY": matrix_multiply,
}

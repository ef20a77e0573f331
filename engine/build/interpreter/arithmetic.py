"""Layers that compute element by element, along axes, or normalise."""

from __future__ import annotations

from collections.abc import Callable
from math import erf
from typing import Any

import numpy as np

from valle2.engine.build.interpreter.values import (
    Array,
    Evaluate,
    Inputs,
    InterpreterError,
    axes_of,
    numpy_type,
    wide,
)

ERF = np.vectorize(erf, otypes=[np.float64])


def error_function(x: Array) -> Array:
    """erf, exact to float64."""
    return ERF(x).astype(x.dtype) if x.size else x


def divide(a: Array, b: Array) -> Array:
    """The quotient; that of integers is cut off towards zero."""
    if a.dtype.kind == "f":
        return a / b
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


BINARY: dict[str, Callable[..., Any]] = {
    "SUM": np.add,
    "PROD": np.multiply,
    "MAX": np.maximum,
    "MIN": np.minimum,
    "SUB": np.subtract,
    "DIV": divide,
    "POW": np.power,
    "FLOOR_DIV": np.floor_divide,
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
    "EQUAL": np.equal,
    "GREATER": np.greater,
    "LESS": np.less,
}
UNARY: dict[str, Callable[..., Any]] = {
    "EXP": np.exp,
    "LOG": np.log,
    "SQRT": np.sqrt,
    "RECIP": np.reciprocal,
    "ABS": np.abs,
    "NEG": np.negative,
    "SIN": np.sin,
    "COS": np.cos,
    "TAN": np.tan,
    "SINH": np.sinh,
    "COSH": np.cosh,
    "ASIN": np.arcsin,
    "ACOS": np.arccos,
    "ATAN": np.arctan,
    "ASINH": np.arcsinh,
    "ACOSH": np.arccosh,
    "ATANH": np.arctanh,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "ERF": error_function,
    "NOT": np.logical_not,
    "SIGN": np.sign,
    "ROUND": np.rint,
    "ISINF": np.isinf,
    "ISNAN": np.isnan,
}
REDUCTIONS: dict[str, Any] = {"SUM": np.sum, "PROD": np.prod, "MAX": np.max, "MIN": np.min, "AVG": np.mean}


def elementwise(trt: Any, layer: Any) -> Evaluate:
    """IElementWiseLayer: inputs of one rank, whose axes of size 1 are repeated."""
    compute = BINARY[layer.op.name]

    def evaluate(inputs: Inputs) -> Any:
        a, b = inputs
        if a.ndim != b.ndim or a.dtype != b.dtype:
            raise InterpreterError(
                f"inputs are {a.dtype} {a.shape} and {b.dtype} {b.shape}; expected one type and rank"
            )
        return compute(wide(a), wide(b))

    return evaluate


def unary(trt: Any, layer: Any) -> Evaluate:
    """IUnaryLayer. ROUND takes the even neighbour of a half."""
    compute = UNARY[layer.op.name]
    return lambda inputs: compute(wide(inputs[0]))


def activation(trt: Any, layer: Any) -> Evaluate:
    """IActivationLayer, with its alpha and beta."""
    kind, alpha, beta = activation_type(trt, layer), layer.alpha, layer.beta
    known: dict[str, Any] = {
        "RELU": lambda x: np.maximum(x, 0),
        "SIGMOID": lambda x: 1 / (1 + np.exp(-x)),
        "TANH": np.tanh,
        "LEAKY_RELU": lambda x: np.where(x >= 0, x, alpha * x),
        "ELU": lambda x: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))),
        "SOFTSIGN": lambda x: x / (1 + np.abs(x)),
        "SOFTPLUS": lambda x: alpha * np.log1p(np.exp(beta * x)),
        "CLIP": lambda x: np.clip(x, alpha, beta),
        "HARD_SIGMOID": lambda x: np.clip(alpha * x + beta, 0, 1),
        "SCALED_TANH": lambda x: alpha * np.tanh(beta * x),
        "THRESHOLDED_RELU": lambda x: np.where(x > alpha, x, 0),
        "GELU_ERF": lambda x: 0.5 * x * (1 + error_function(x * np.float32(0.5**0.5))),
        "GELU_TANH": lambda x: 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3))),
    }
    if kind not in known:
        raise InterpreterError(f"activation {kind} is unknown; expected one of {', '.join(known)}")
    compute = known[kind]
    return lambda inputs: compute(wide(inputs[0]))


def activation_type(trt: Any, layer: Any) -> str:
    """The kind of an activation: `type` of its class hides the layer's own `type`."""
    return str(trt.IActivationLayer.type.__get__(layer).name)


def cast(trt: Any, layer: Any) -> Evaluate:
    """ICastLayer: floats are cut off towards zero, and a number is true unless it is 0."""
    target = numpy_type(layer.to_type)
    return lambda inputs: inputs[0].astype(target)


def select(trt: Any, layer: Any) -> Evaluate:
    """ISelectLayer: the second input where the first is true, otherwise the third."""
    return lambda inputs: np.where(*inputs)


def identity(trt: Any, layer: Any) -> Evaluate:
    return lambda inputs: inputs[0]


def reduce(trt: Any, layer: Any) -> Evaluate:
    """IReduceLayer over the axes of its mask."""
    kind = layer.op.name
    if kind not in REDUCTIONS:
        raise InterpreterError(f"reduction {kind} is unknown; expected one of {', '.join(REDUCTIONS)}")
    compute, axes, keep = REDUCTIONS[kind], axes_of(layer.axes), bool(layer.keep_dims)
    return lambda inputs: compute(wide(inputs[0]), axis=axes, keepdims=keep)


def exponentials(x: Array, axes: tuple[int, ...]) -> Array:
    """exp(x) over its sum along the axes."""
    powers = np.exp(x - np.max(x, axis=axes, keepdims=True))
    return np.asarray(powers / np.sum(powers, axis=axes, keepdims=True))


def softmax(trt: Any, layer: Any) -> Evaluate:
    """ISoftMaxLayer over the axes of its mask."""
    axes = axes_of(layer.axes)
    return lambda inputs: exponentials(wide(inputs[0]), axes)


def topk(trt: Any, layer: Any) -> Evaluate:
    """ITopKLayer: values and indices, best first. Of equal values the first comes first."""
    (axis,), sign = axes_of(layer.axes), -1 if layer.op.name == "MAX" else 1
    fixed, indices_type = layer.k, numpy_type(layer.indices_type)

    def evaluate(inputs: Inputs) -> Any:
        count = int(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else fixed
        order = np.argsort(sign * wide(inputs[0]), axis=axis, kind="stable")
        best = np.take(order, np.arange(count), axis=axis)
        return np.take_along_axis(inputs[0], best, axis), best.astype(indices_type)

    return evaluate


def cumulative(trt: Any, layer: Any) -> Evaluate:
    """ICumulativeLayer: sums up to each element along the axis that is its second input."""
    exclusive, backwards = layer.exclusive, layer.reverse

    def evaluate(inputs: Inputs) -> Any:
        x, axis = wide(inputs[0]), int(inputs[1])
        x = np.flip(x, axis) if backwards else x
        sums = np.cumsum(x, axis=axis, dtype=x.dtype)
        sums = sums - x if exclusive else sums
        return np.flip(sums, axis) if backwards else sums

    return evaluate


def normalization(trt: Any, layer: Any) -> Evaluate:
    """INormalizationLayer: (x - mean) / sqrt(variance + epsilon) * scale + bias."""
    axes, epsilon = axes_of(layer.axes), np.float32(layer.epsilon)
    if layer.num_groups != 1:
        raise InterpreterError(f"a normalization has {layer.num_groups} groups; expected 1")

    def evaluate(inputs: Inputs) -> Any:
        x, scale, bias = (wide(value) for value in inputs)
        centred = x - x.mean(axis=axes, keepdims=True)
        variance = np.mean(centred * centred, axis=axes, keepdims=True)
        return centred / np.sqrt(variance + epsilon) * scale + bias

    return evaluate


def dequantize(trt: Any, layer: Any) -> Evaluate:
    """IDequantizeLayer: a scale for the tensor, for each index of an axis, or for each block of an axis."""
    axis, target = layer.axis, numpy_type(layer.to_type)

    def evaluate(inputs: Inputs) -> Any:
        x, scale = inputs[0].astype(np.float32), wide(inputs[1])
        if any(np.any(wide(zero)) for zero in inputs[2:] if zero is not None):
            raise InterpreterError("a zero point is not 0; expected symmetric quantization")
        if scale.ndim == 1 and x.ndim > 1 and scale.size > 1:
            scale = scale.reshape([-1 if index == axis else 1 for index in range(x.ndim)])
        for index in range(scale.ndim if scale.ndim == x.ndim else 0):
            if scale.shape[index] not in (1, x.shape[index]):
                scale = np.repeat(scale, x.shape[index] // scale.shape[index], axis=index)
        return (x * scale).astype(target)

    return evaluate


LAYERS = {
    "ACTIVATION": activation,
    "CAST": cast,
    "CUMULATIVE": cumulative,
    "DEQUANTIZE": dequantize,
    "ELEMENTWISE": elementwise,
    "IDENTITY": identity,
    "NORMALIZATION": normalization,
    "REDUCE": reduce,
    "SELECT": select,
    "SOFTMAX": softmax,
    "TOPK": topk,
    "UNARY": unary,
}

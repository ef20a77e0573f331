"""Types and attributes of a network's tensors, as numpy has them, and the layers' classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine.errors import BackendError

Array = NDArray[Any]
Inputs = Sequence[Any]
"""The arrays of a layer's inputs, by index; None for an optional input that is absent."""
Evaluate = Callable[[Inputs], Any]
"""Computes a layer's output, or a tuple of its outputs."""

NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
EXTENDED = {"BF16": "bfloat16", "FP8": "float8_e4m3fn", "INT4": "int4"}
"""Types that numpy lacks; `ml_dtypes`, which onnx installs, has them."""
CLASSES = {
    "ELEMENTWISE": "IElementWiseLayer",
    "TOPK": "ITopKLayer",
    "SOFTMAX": "ISoftMaxLayer",
    "KV_CACHE_UPDATE": "IKVCacheUpdateLayer",
}
"""Names of layer classes that do not follow from the layer's type."""


class InterpreterError(BackendError):
    """The interpreter does not know a layer, or the network does what TensorRT leaves undefined."""


def numpy_type(dtype: Any) -> np.dtype[Any]:
    """The numpy type of a TensorRT type.

    Raises:
        InterpreterError: numpy and `ml_dtypes` have no such type.
    """
    name = dtype.name
    if name in NUMPY:
        return np.dtype(NUMPY[name])
    if name in EXTENDED:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, EXTENDED[name]))
        return found
    raise InterpreterError(
        f"the interpreter has no values of type {name}; expected one of {', '.join(NUMPY)}"
    )


def typed_layer(trt: Any, layer: Any) -> Any:
    """The layer as its own class, because `get_layer` returns the base class."""
    kind = layer.type.name
    plain = "I" + "".join(part.capitalize() for part in kind.split("_")) + "Layer"
    layer.__class__ = getattr(trt, CLASSES.get(kind, plain))
    return layer


def sizes(dims: Any) -> tuple[int, ...]:
    """The sizes of a `Dims`."""
    return tuple(int(size) for size in dims)


def axes_of(mask: int) -> tuple[int, ...]:
    """The axes whose bits are set."""
    return tuple(axis for axis in range(mask.bit_length()) if mask >> axis & 1)


def wide(value: Array) -> Array:
    """A float value in at least float32, in which every layer computes; other values as they are."""
    if value.dtype.kind in "biu" or value.dtype.itemsize >= 4:
        return value
    return value.astype(np.float32)

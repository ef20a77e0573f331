"""A part of a device tensor as an OrtValue of its own, in the same memory, by way of DLPack.

ONNX Runtime's Python interface copies whole OrtValues alone. A view of some rows is copied by itself.
Knows OrtValues, and imports no onnxruntime.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CODES = {"i": 0, "u": 1, "f": 2}
"""DLPack's code by numpy's kind of type. Releases of ONNX Runtime disagree on bool."""
CAPSULE = b"dltensor"


class Device(ctypes.Structure):
    """`DLDevice`."""

    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class DataType(ctypes.Structure):
    """`DLDataType`."""

    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class ManagedTensor(ctypes.Structure):
    """`DLManagedTensor`: a `DLTensor`, a context, and the function that frees it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


def c_function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of Python's C interface."""
    found = getattr(ctypes.pythonapi, name)
    found.restype, found.argtypes = result, arguments
    return found


def part_of(value: Any, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """An OrtValue over memory inside another one. It keeps the other one alive.

    ONNX Runtime frees the description with the function that it names. So the description and its shape lie
    in one block of that function's memory, and no Python code runs then.

    Args:
        value: the OrtValue that owns the memory. address: where the part begins. shape, dtype: of the part.
    """
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    first = ctypes.sizeof(ManagedTensor)
    block = c_function("PyMem_RawMalloc", ctypes.c_void_p, ctypes.c_size_t)(first + ctypes.sizeof(sizes))
    free = ctypes.cast(ctypes.pythonapi.PyMem_RawFree, ctypes.c_void_p)
    kind = DataType(CODES[dtype.kind], 8 * dtype.itemsize, 1)
    device = Device(*value.__dlpack_device__())
    tensor = ManagedTensor(address, device, len(shape), kind, block + first, None, 0, None, free)
    ctypes.memmove(block, ctypes.addressof(tensor), first)
    ctypes.memmove(block + first, sizes, ctypes.sizeof(sizes))
    capsule = c_function("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    found = type(value).from_dlpack(capsule(block, CAPSULE, None))
    found._numpy_obj = value  # ONNX Runtime's own place for the owner of the memory
    return found


def shares_memory(value: Any, dtype: np.dtype[Any]) -> bool:
    """Whether this ONNX Runtime takes tensors of this type by DLPack. value: any OrtValue."""
    known = dtype.kind in CODES
    return known and hasattr(value, "from_dlpack") and hasattr(value, "__dlpack_device__")

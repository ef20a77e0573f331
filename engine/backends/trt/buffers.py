"""Device memory of a tensor as a `Buffer`. Knows CUDA and numpy, not TensorRT."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from valle2.engine.backends.base import Array, Buffer
from valle2.engine.backends.trt.cuda import Cuda
from valle2.engine.errors import BackendError

Shape = tuple[int, ...]
HOST_TYPES = {"bfloat16": "uint16"}
"""numpy types of the same size, for values that the host only copies."""


class TrtBuffer(Buffer):
    """Device memory, or a part of another buffer's memory, which it keeps alive.

    Args:
        owner: the buffer that it is a part of, None to allocate. offset: bytes from the owner's start.
    """

    def __init__(
        self,
        cuda: Cuda,
        shape: Shape,
        dtype: np.dtype[Any],
        owner: TrtBuffer | None = None,
        offset: int = 0,
    ) -> None:
        self.cuda, self.shape, self.dtype, self.owner = cuda, shape, dtype, owner
        self.size = int(np.prod(shape)) * dtype.itemsize
        self.address: int = owner.address + offset if owner else cuda.allocate(self.size)

    def read(self) -> Array:
        values = np.empty(self.shape, self.dtype)
        self.cuda.download(values.ctypes.data, self.address, self.size)
        return values

    def write(self, values: Array) -> None:
        if values.shape != self.shape or values.dtype != self.dtype:
            raise BackendError(
                f"values are {values.dtype} {values.shape}; expected {self.dtype} {self.shape} of the buffer"
            )
        whole = np.ascontiguousarray(values)
        self.cuda.upload(self.address, whole.ctypes.data, self.size)

    def rows(self, part: slice) -> TrtBuffer:
        row = self.size // max(1, self.shape[0])
        shape = (part.stop - part.start, *self.shape[1:])
        return TrtBuffer(self.cuda, shape, self.dtype, self, part.start * row)

    def view(self, shape: Shape) -> TrtBuffer:
        """The beginning of the same memory under another shape."""
        if int(np.prod(shape)) * self.dtype.itemsize > self.size:
            raise BackendError(
                f"a view of {shape} does not fit a buffer of {self.shape}; allocate a larger one"
            )
        return TrtBuffer(self.cuda, shape, self.dtype, self)

    def free(self) -> None:
        """Free the memory; a part of another buffer has none of its own."""
        if self.owner is None and self.address:
            self.cuda.free(self.address)
            self.address = 0

    def __del__(self) -> None:
        with suppress(BackendError, AttributeError):  # a driver that shuts down has freed the memory itself
            self.free()


def host_type(dtype: DTypeLike) -> np.dtype[Any]:
    """The numpy type with a tensor's memory layout; numpy has no bfloat16."""
    return np.dtype(HOST_TYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype)


def as_trt_buffer(buffer: Buffer) -> TrtBuffer:
    """A buffer that this backend made."""
    assert isinstance(buffer, TrtBuffer), "buffer of another backend"
    return buffer

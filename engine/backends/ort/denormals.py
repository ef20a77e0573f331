"""Numbers below the least normal one taken as zeros while a graph runs, and only then. No onnxruntime.

A trained model's attention is peaked, so that many of its weights are such numbers, which Intel's processors
multiply in microcode. ONNX Runtime's option (`DENORMALS`) sets the processor's state for a session's threads,
but also, with a process's first session, for the thread that opens it, where other libraries rely on these
numbers, and for no other thread that calls. So the caller's state is set and put back here.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any

AS_ZEROS = 0x8040
"""MXCSR's flush-to-zero and denormals-are-zeros."""


class Environment(ctypes.Structure):
    """`fenv_t` of x86-64 Linux."""

    _fields_ = (("x87", ctypes.c_uint8 * 28), ("mxcsr", ctypes.c_uint32))


def c_library() -> Any:
    """What has `fegetenv` and `fesetenv` with such an `Environment`; None on other systems."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "fesetenv") and hasattr(library, "fegetenv") else None


LIBRARY = c_library()
DENORMALS = {"session.set_denormal_as_zero": "1"} if LIBRARY else {}


class DenormalsAsZeros:
    """A context in which this thread takes them so, on a system where that is known. For one thread."""

    def __init__(self) -> None:
        self.state = Environment()

    def __enter__(self) -> None:
        if LIBRARY:
            LIBRARY.fegetenv(ctypes.byref(self.state))
            before = self.state.mxcsr
            self.state.mxcsr |= AS_ZEROS
            LIBRARY.fesetenv(ctypes.byref(self.state))
            self.state.mxcsr = before

    def __exit__(self, *error: object) -> None:
        if LIBRARY:
            LIBRARY.fesetenv(ctypes.byref(self.state))

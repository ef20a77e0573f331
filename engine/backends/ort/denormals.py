"""Denormal numbers are zeros while a graph runs, and only then. No onnxruntime.

The attention of a trained model is peaked, so many of its probabilities are denormal. Intel's processors
multiply these in microcode, which is slow. ONNX Runtime's option `DENORMALS` sets the processor's state for
the threads of a session. It does not set it for the threads that call the session, except for the one that
opens the first session of a process, where the state stays changed for other libraries. So this module sets
the caller's state before a call and restores it afterwards.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any

AS_ZEROS = 0x8040
"""The bits of MXCSR for flush-to-zero and denormals-are-zeros."""


class Environment(ctypes.Structure):
    """`fenv_t` of x86-64 Linux."""

    _fields_ = (("x87", ctypes.c_uint8 * 28), ("mxcsr", ctypes.c_uint32))


def c_library() -> Any:
    """The C library, if its `fegetenv` and `fesetenv` use an `Environment`; None on other systems."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "fesetenv") and hasattr(library, "fegetenv") else None


LIBRARY = c_library()
DENORMALS = {"session.set_denormal_as_zero": "1"} if LIBRARY else {}


class DenormalsAsZeros:
    """A context in which denormal numbers are zeros for this thread. It does nothing without `LIBRARY`."""

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

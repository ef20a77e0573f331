"""The CUDA runtime through cuda-python: memory, copies, streams and graphs, with errors as exceptions."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from valle2.engine.errors import BackendError

MODULE = "cuda.bindings.runtime"


def runtime() -> Any:
    """cuda-python's runtime module.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return import_module(MODULE)
    except ImportError as error:
        raise BackendError(
            f"cuda-python is not available ({error}); install it with: pip install cuda-python"
        ) from None


def this_gpu() -> str | None:
    """Compute capability of GPU 0 as "sm89", None without a GPU or a driver."""
    try:
        cudart = import_module(MODULE)
        status, properties = cudart.cudaGetDeviceProperties(0)
    except (ImportError, RuntimeError):
        return None
    if int(status):
        return None
    return f"sm{properties.major}{properties.minor}"

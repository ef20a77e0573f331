"""The CUDA runtime through cuda-python: memory, copies, a stream and graphs, with errors as exceptions.

It does not know TensorRT. A failed call raises at once, so that the caller can free what it holds. The
process stays usable unless the device context is lost, which the message then says.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from valle2.engine.errors import BackendError

MODULE = "cuda.bindings.runtime"
OUT_OF_MEMORY = "cudaErrorMemoryAllocation"
REMEDIES = {
    OUT_OF_MEMORY: "free device memory, or build with a smaller --max-batch or --max-frames",
    "cudaErrorNoDevice": "use device cpu, or a machine with an NVIDIA GPU",
    "cudaErrorInsufficientDriver": "update the NVIDIA driver",
    "cudaErrorIllegalAddress": "the device context is lost: restart the process",
}


class Cuda:
    """Calls of the CUDA runtime on one stream.

    Args:
        cudart: cuda-python's runtime module, or a double of it.

    Raises:
        BackendError: a CUDA call failed; the message names it and what to do.
    """

    def __init__(self, cudart: Any) -> None:
        self.cudart = cudart
        self.stream = int(self.call("cudaStreamCreateWithFlags", cudart.cudaStreamNonBlocking))

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of the runtime; returns its result without the status."""
        status, *found = getattr(self.cudart, name)(*args)
        if int(status):
            code = str(getattr(status, "name", status))
            raise BackendError(
                f"{name} failed with {code}; {REMEDIES.get(code, 'check the driver: nvidia-smi')}"
            )
        return found[0] if len(found) == 1 else found

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes of zeros on the device; returns the address."""
        address = int(self.call("cudaMalloc", max(1, size)))
        self.call("cudaMemsetAsync", address, 0, max(1, size), self.stream)
        self.synchronize()
        return address

    def free(self, address: int) -> None:
        self.call("cudaFree", address)

    def upload(self, address: int, host: int, size: int) -> None:
        """Copy from host to device; the copy is done on return."""
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, host, size, kind, self.stream)
        self.synchronize()

    def download(self, host: int, address: int, size: int) -> None:
        """Copy from device to host after all work on the stream; the copy is done on return."""
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", host, address, size, kind, self.stream)
        self.synchronize()

    def copy(self, target: int, source: int, size: int) -> None:
        """Enqueue a copy on the device; it may be part of a captured graph."""
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpyAsync", target, source, size, kind, self.stream)

    def synchronize(self) -> None:
        self.call("cudaStreamSynchronize", self.stream)

    def begin_capture(self) -> None:
        mode = self.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)

    def end_capture(self) -> Any:
        """The executable graph of what was enqueued since `begin_capture`."""
        graph = self.call("cudaStreamEndCapture", self.stream)
        try:
            return self.call("cudaGraphInstantiate", graph, 0)
        finally:
            self.call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        self.call("cudaGraphLaunch", graph, self.stream)

    def free_graph(self, graph: Any) -> None:
        self.call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        self.call("cudaStreamDestroy", self.stream)


def runtime() -> Any:
    """cuda-python's runtime module.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return import_module(MODULE)
    except (ImportError, RuntimeError) as error:
        raise BackendError(
            f"cuda-python is not available ({error}); install it with: pip install cuda-bindings"
        ) from None


def this_gpu() -> str | None:
    """Compute capability of GPU 0 as "sm89", None without a GPU, a driver or cuda-python."""
    try:
        status, properties = runtime().cudaGetDeviceProperties(0)
    except (BackendError, RuntimeError):
        return None
    return None if int(status) else f"sm{properties.major}{properties.minor}"

"""Doubles of TensorRT and the CUDA runtime on host memory, which enforce their rules and log the calls.

Shapes must lie within the chosen profile. Every tensor needs an address before a call. A cache that is
updated in place has one address. Freed memory may not be used. A captured stream takes no host copy and no
new shape.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

Shape = tuple[int, ...]


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorIllegalAddress = 700


class FakeCudart:
    """The calls of the CUDA runtime that the engine makes."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, memory: int = 1 << 30) -> None:
        self.memory, self.held, self.log = memory, dict[int, Any](), list[str]()
        self.queue: list[Callable[[], None]] | None = None

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, int]:
        return Status.cudaSuccess, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        if sum(len(block) for block in self.held.values()) + size > self.memory:
            return Status.cudaErrorMemoryAllocation, 0
        block = ctypes.create_string_buffer(b"\xff" * (size + 256), size + 256)
        address = -(-ctypes.addressof(block) // 256) * 256
        self.held[address] = block
        return Status.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[Status]:
        del self.held[address]
        return (Status.cudaSuccess,)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[Status]:
        assert self.queue is None, "memory is set while a stream is captured"
        ctypes.memset(address, value, size)
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Status]:
        assert kind == 3 or self.queue is None, "a host copy is captured"
        self.log.append(f"copy{kind}")
        self.do(lambda: move(to, source, size))
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        assert self.queue is None, "a captured stream is waited for"
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:
        assert self.queue is None
        self.queue = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, list[Callable[[], None]]]:
        assert self.queue is not None
        found, self.queue = self.queue, None
        return Status.cudaSuccess, found

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Status, Any]:
        return Status.cudaSuccess, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Status]:
        self.log.append("drop")
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Status]:
        self.log.append("launch")
        for work in graph:
            work()
        return (Status.cudaSuccess,)

    def do(self, work: Callable[[], None]) -> None:
        """Run the work now, or add it to the captured graph."""
        if self.queue is None:
            work()
        else:
            self.queue.append(work)


def move(to: int, source: int, size: int) -> None:
    ctypes.memmove(to, source, size)


class Runtime:
    """Returns the engine of its module, or None for damaged bytes, as TensorRT does."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        if data != b"engine":
            self.logger.log(SimpleNamespace(name="ERROR"), "magic tag does not match")
            return None
        return self.logger.trt.engine


class ICudaEngine:
    """cache_out = cache, with x[0] added to its first element, in place or not; out = x + cache_out[0].

    x: (n,) float32. cache: (4,) float32. sized: (-1,) float32, the first element of x repeated x[0] times.
    """

    def __init__(self, cudart: FakeCudart, profiles: list[tuple[int, int]], alias: bool) -> None:
        self.cudart, self.profiles, self.alias = cudart, profiles, alias
        self.num_optimization_profiles = len(profiles)
        self.fails, self.contexts = False, 0

    def create_execution_context(self) -> IExecutionContext:
        self.contexts += 1
        return IExecutionContext(self)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Shape]:
        low, high = self.profiles[profile]
        return [(4,)] * 3 if name == "cache" else [(low,), (high,), (high,)]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return "cache" if self.alias and name == "cache_out" else None


class IExecutionContext:
    """The shapes, addresses and profile of one context."""

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self.shapes, self.addresses = engine, dict[str, Shape](), dict[str, int]()
        self.profile, self.allocators, self.captured = -1, dict[str, Any](), False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return 0 <= profile_index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        assert self.profile >= 0, "a shape is set before the profile"
        assert self.engine.cudart.queue is None, "a shape changes while the stream is captured"
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        return all(a <= x <= b for a, x, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % 256 == 0, "an address is off TensorRT's alignment"
        assert any(start <= memory < start + len(b) for start, b in self.engine.cudart.held.items())
        self.addresses[name] = memory
        return True

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self.allocators.pop(name, None)
        if output_allocator is not None:
            self.allocators[name] = output_allocator
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in ("x", "cache") if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> Shape:
        return {"out": self.shapes["x"], "cache_out": (4,), "sized": (-1,)}.get(name, ())

    def get_max_output_size(self, name: str) -> int:
        return 64

    def is_stream_capturable(self, stream: int) -> bool:
        return not self.allocators

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.engine.fails:
            return False
        names = {"x", "cache", "out", "cache_out", "sized"}
        assert names == set(self.addresses), f"no address for {names - set(self.addresses)}"
        same = self.addresses["cache"] == self.addresses["cache_out"]
        assert same == self.engine.alias, (
            "a cache that is updated in place has one address, any other has two"
        )
        self.engine.cudart.log.append("enqueue")
        self.engine.cudart.do(self.compute)
        return True

    def compute(self) -> None:
        x = floats(self.addresses["x"], self.shapes["x"][0])
        cache, updated = floats(self.addresses["cache"], 4), floats(self.addresses["cache_out"], 4)
        updated[:] = cache
        updated[0] += x[0]
        floats(self.addresses["out"], len(x))[:] = x + updated[0]
        count = int(x[0])
        floats(self.addresses["sized"], count)[:] = x[0]
        if "sized" in self.allocators:
            self.allocators["sized"].notify_shape("sized", (count,))


def floats(address: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))


class ILogger:
    """The base class of loggers."""

    trt: Any


class IOutputAllocator:
    """The base class of output allocators."""


class FakeTensorRT:
    """A module with the classes that execution uses."""

    __version__ = "11.0.double"

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.ILogger = type("ILogger", (ILogger,), {"trt": self})
        self.IOutputAllocator, self.Runtime = IOutputAllocator, Runtime

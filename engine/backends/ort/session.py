"""ONNX Runtime as a `Backend`: sessions, buffers and I/O binding."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache, cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike

from valle2.engine.backends.base import Array, ArrayBuffer, Backend, Buffer, Step
from valle2.engine.backends.ort.denormals import DENORMALS, DenormalsAsZeros
from valle2.engine.backends.ort.dlpack import part_of, shares_memory
from valle2.engine.backends.ort.memory import in_huge_pages, sparse_zeros, trim_heap
from valle2.engine.backends.ort.providers import (
    FUSED_OPTIONS,
    RECORD_ASSIGNMENT,
    check_fallback_nodes,
    find_provider,
    provider_options,
)
from valle2.engine.backends.placement import Placement
from valle2.engine.bundle.contract import BUILT_GRAPHS
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.errors import BackendError

FATAL_ONLY = 4
"""The log severity: ONNX Runtime also raises its errors, and the exceptions become one line."""
SESSION_CONFIG = {
    "session.use_env_allocators": "1",
    "session.use_device_allocator_for_initializers": "1",
    "session.force_spinning_stop": "1",
}
"""For sessions on the CPU, where a model's graphs run one after another.

Intermediate tensors lie in `shared_arena`. Weights lie in memory of the session, which frees it. A session's
threads stop spinning when its call returns: the next graph has its own threads and needs the cores.
"""
CAPTURE_OPTION = "enable_cuda_graph"
"""The option of a session that captures bound calls as CUDA graphs."""
CAPTURE_ID, NO_CAPTURE = "gpu_graph_id", -1
"""The option of a call that names its CUDA graph, and the value that runs the call without one."""
NO_WAIT = "disable_synchronize_execution_providers"
"""The option of a call that returns while the device works."""
CAPTURE_REFUSED = "cannot use the graph capture feature"


FOLDING_LIMIT = "optimization.constant_folding_max_output_size_in_bytes"
LEAST_FOLDING_LIMIT = 2**20


@cache
def shared_arena() -> None:
    """Make the one CPU arena of this process: each graph runs in the memory that the last one used."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(place, None)


def folding_limit(folder: Path) -> int:
    """Bytes of the largest constant that ONNX Runtime may compute while it opens a graph of a folder.

    Some bytes of a stranger's graph can describe a constant of gigabytes. The largest one that our own graphs
    need is a weight that is stored in float16 and read in float32.
    """
    sizes = (path.stat().st_size for path in folder.iterdir() if path.is_file())
    return max(LEAST_FOLDING_LIMIT, 2 * max(sizes, default=0))


def session_options(folder: Path, placement: Placement, *, stepped: bool) -> Any:
    """The options of a session for a graph of a folder, as ONNX Runtime's `SessionOptions`."""
    options = ort.SessionOptions()
    options.add_session_config_entry(FOLDING_LIMIT, str(folding_limit(folder)))
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = placement.threads
    # add each term of a sum as soon as it is ready, which lowers peak memory
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    on_cpu = placement.device == "cpu"
    options.add_session_config_entry(RECORD_ASSIGNMENT, "0" if on_cpu else "1")
    if on_cpu:
        shared_arena()
        options.enable_mem_pattern = stepped  # otherwise it caches one buffer plan per input length
        for name, value in (SESSION_CONFIG | DENORMALS).items():
            options.add_session_config_entry(name, value)
    return options


class OrtBuffer(ArrayBuffer):
    """A numpy array on the CPU, and the OrtValue that shares its memory."""

    def __init__(self, array: Array) -> None:
        super().__init__(array)
        self.value = ort.OrtValue.ortvalue_from_numpy(array)

    def rows(self, part: slice) -> OrtBuffer:
        return OrtBuffer(self.array[part])


class DeviceBuffer(Buffer):
    """Consecutive rows of an OrtValue in device memory. A number without axes is one row."""

    def __init__(self, value: Any, dtype: DTypeLike, part: slice) -> None:
        self.value, self.dtype, self.part = value, np.dtype(dtype), part
        whole = value.shape()
        self.shape = (part.stop - part.start, *whole[1:]) if whole else ()
        row_bytes = int(np.prod(whole[1:])) * self.dtype.itemsize
        self.address = value.data_ptr() + part.start * row_bytes

    @cached_property
    def rows_value(self) -> Any:
        """An OrtValue of these rows alone; None where this ONNX Runtime cannot make one."""
        if self.shape == tuple(self.value.shape()):
            return self.value
        if not shares_memory(self.value, self.dtype):
            return None
        return part_of(self.value, self.address, self.shape, self.dtype)

    def read(self) -> Array:
        if self.rows_value is None:
            return np.asarray(self.value.numpy())[self.part]
        return np.asarray(self.rows_value.numpy())

    def write(self, values: Array) -> None:
        if self.rows_value is not None:
            self.rows_value.update_inplace(np.require(values, requirements="C"))
            return
        whole = np.asarray(self.value.numpy()).copy()
        whole[self.part] = values
        self.value.update_inplace(whole)

    def rows(self, part: slice) -> DeviceBuffer:
        first = self.part.start
        return DeviceBuffer(self.value, self.dtype, slice(first + part.start, first + part.stop))


class OrtBackend(Backend):
    """A graph in an ONNX Runtime session, on exactly the device of its placement.

    Args:
        folder: where the graph lies, and where a provider keeps what it compiles. spec: the graph.
        placement: its engine is one of ONNX Runtime's. stepped: see `open_backend`.

    Raises:
        BackendError: the provider is absent, does not start, or leaves nodes to another one.
    """

    def __init__(self, folder: Path, spec: GraphSpec, placement: Placement, *, stepped: bool = False) -> None:
        self.spec = spec
        self.device = placement.device
        self.capture_ids = count(1)
        self.denormals_as_zeros = DenormalsAsZeros()
        path, on_cpu = folder / spec.file, placement.device == "cpu"
        provider = find_provider(placement.engine, placement.device, ort.get_available_providers())
        self.captures_calls = stepped and provider.captures
        options = session_options(folder, placement, stepped=stepped)
        given = provider_options(provider, folder, placement.engine)
        if spec.graph in BUILT_GRAPHS and not on_cpu:
            given |= FUSED_OPTIONS
        with self.denormals_as_zeros, in_huge_pages() if stepped and on_cpu else nullcontext():
            self.session = self.open_session(path, options, provider.name, given)
        if self.session.get_providers()[0] != provider.name:
            raise BackendError(
                f"{path}: {provider.name} failed to start; check the driver with: valle2 doctor"
            )
        if not on_cpu and not placement.fallback:
            check_fallback_nodes(spec.file, self.session, provider.name)
        trim_heap()

    def open_session(self, path: Path, options: Any, provider: str, given: dict[str, str]) -> Any:
        """Open a session that captures calls if it may.

        A graph in which a size is data cannot be captured. It is opened again without capture, and every call
        launches its kernels.
        """
        capture = {CAPTURE_OPTION: "1"} if self.captures_calls else {}
        # ONNX Runtime's own second attempt would use the CPU's provider again
        extra = {"enable_fallback": 0} if self.device == "cpu" else {}
        try:
            return ort.InferenceSession(str(path), options, providers=[(provider, given | capture)], **extra)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            if not self.captures_calls or CAPTURE_REFUSED not in str(error):
                raise BackendError(f"{path} does not load: {first_line(error)}") from None
        self.captures_calls = False
        return self.open_session(path, options, provider, given)

    def run_checked(self, feeds: Mapping[str, Array], outputs: tuple[str, ...]) -> dict[str, Array]:
        try:
            with self.denormals_as_zeros:
                found = self.session.run(list(outputs), dict(feeds), self.run_options(NO_CAPTURE))
        except Exception as error:
            raise BackendError(f"{self.spec.file} failed: {first_line(error)}") from None
        return dict(zip(outputs, found, strict=True))

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        try:
            if self.device == "cpu":
                return OrtBuffer(sparse_zeros(shape, dtype))
            value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), self.device, 0)
        except Exception as error:  # the system, numpy and onnxruntime each raise their own
            raise BackendError(
                f"{self.spec.file}: no memory for {shape} of {np.dtype(dtype)} ({first_line(error)}); "
                "load the model with fewer slots"
            ) from None
        return DeviceBuffer(value, dtype, slice(0, shape[0] if shape else 1))

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Step:
        """See `Backend.bind`. With CUDA graphs, the second call is captured and later calls replay it.

        A captured call runs the graph twice. So it must not read what it writes, except cached positions.
        """
        binding = self.session.io_binding()
        try:
            for name, buffer in inputs.items():
                self.bind_one(buffer, name, binding.bind_ortvalue_input, binding.bind_input)
            for name, buffer in outputs.items():
                self.bind_one(buffer, name, binding.bind_ortvalue_output, binding.bind_output)
        except Exception as error:  # the manifest may list a tensor that the graph lacks
            raise BackendError(
                f"{self.spec.file} lacks a tensor of its manifest ({first_line(error)}); "
                "export the bundle again"
            ) from None
        run, denormals_as_zeros = self.session.run_with_iobinding, self.denormals_as_zeros
        now, later = self.run_options(NO_CAPTURE), self.run_options(capture := next(self.capture_ids))
        ahead = self.run_options(capture, waits=False)

        def step() -> None:
            nonlocal now
            try:
                with denormals_as_zeros:
                    run(binding, now if self.waits or now is not later else ahead)
            except Exception as error:
                raise BackendError(f"{self.spec.file} failed: {first_line(error)}") from None
            now = later

        return step

    def bind_one(self, buffer: Buffer, name: str, by_value: Any, by_address: Any) -> None:
        """Bind host memory by its OrtValue, device memory by address, so that parts of it can be bound."""
        if isinstance(buffer, DeviceBuffer):
            by_address(name, self.device, 0, buffer.dtype, buffer.shape, buffer.address)
        else:
            assert isinstance(buffer, OrtBuffer), "buffer of another backend"
            by_value(name, buffer.value)

    def run_options(self, capture: int, *, waits: bool = True) -> ort.RunOptions | None:
        """The options of a call.

        Args:
            capture: number of its CUDA graph, which the first such call captures. waits: it returns only when
                the device has finished. An ONNX Runtime that cannot replay without waiting ignores this.
        """
        if not self.captures_calls:
            return None
        options = ort.RunOptions()
        options.add_run_config_entry(CAPTURE_ID, str(capture))
        if not waits:
            options.add_run_config_entry(NO_WAIT, "1")
        return options

    def close(self) -> None:
        del self.session


def first_line(error: Exception) -> str:
    """The first line of an error; onnxruntime adds a stack trace to it."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""ONNX Runtime: sessions and I/O binding."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike

from valle2.engine.backends.base import Array, ArrayBuffer, Backend, Buffer, Step
from valle2.engine.backends.ort.denormals import DENORMALS, DenormalsAsZeros
from valle2.engine.backends.ort.memory import give_back, in_huge_pages, sparse_zeros
from valle2.engine.backends.ort.providers import RECORDING, check_strays, find_provider, provider_options
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.errors import BackendError

FATAL_ONLY = 4
"""What ONNX Runtime prints itself. Its errors arrive as exceptions, which become one line."""
TURNS = {
    "session.use_env_allocators": "1",
    "session.use_device_allocator_for_initializers": "1",
    "session.force_spinning_stop": "1",
}
"""For a model's graphs, which run in turns on the CPU.

Intermediates lie in `shared_arena`, weights in memory of the session's own, freed with it. Threads of the
last graph would go on spinning for a while, on the cores that the next one needs.
"""


CUDA_GRAPH, GRAPH_NUMBER, UNRECORDED = "enable_cuda_graph", "gpu_graph_id", -1
"""A session's option, and the number that a call names its recording with."""
NOT_RECORDED = "cannot use the graph capture feature"


@cache
def shared_arena() -> None:
    """Make the process's arena on the CPU: a model's graphs run in turns, each in the memory of the last."""
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(where, None)


class OrtBuffer(ArrayBuffer):
    """A numpy array and the OrtValue that shares its memory (CPU)."""

    def __init__(self, array: Array) -> None:
        super().__init__(array)
        self.value = ort.OrtValue.ortvalue_from_numpy(array)

    def rows(self, part: slice) -> OrtBuffer:
        return OrtBuffer(self.array[part])


class DeviceBuffer(Buffer):
    """Rows of an OrtValue in device memory."""

    def __init__(self, value: Any, dtype: DTypeLike, part: slice) -> None:
        self.value, self.dtype, self.part = value, np.dtype(dtype), part
        whole = value.shape()
        self.shape = (part.stop - part.start, *whole[1:])
        row_bytes = int(np.prod(whole[1:])) * self.dtype.itemsize
        self.address = value.data_ptr() + part.start * row_bytes

    def read(self) -> Array:
        return np.asarray(self.value.numpy())[self.part]

    def write(self, values: Array) -> None:
        whole = values
        if self.shape != tuple(self.value.shape()):
            whole = np.asarray(self.value.numpy()).copy()
            whole[self.part] = values
        self.value.update_inplace(whole)

    def rows(self, part: slice) -> DeviceBuffer:
        first = self.part.start
        return DeviceBuffer(self.value, self.dtype, slice(first + part.start, first + part.stop))


class OrtBackend(Backend):
    """A graph in an ONNX Runtime session on exactly the device asked for.

    Args:
        path: the graph. engine: one of `providers.ENGINES`. bundle: where a provider keeps what it compiles.
        fallback: whether nodes may run on another provider than the engine's.
        stepped: see `open_backend`.

    Raises:
        BackendError: the provider is absent, does not start, or leaves nodes to another one.
    """

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        device: str,
        threads: int,
        engine: str = "ort",
        *,
        bundle: Path | None = None,
        fallback: bool = False,
        stepped: bool = False,
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.intra_op_num_threads = threads
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # sums as their parts come: less is kept
        options.add_session_config_entry(RECORDING, "1" if device != "cpu" else "0")
        if device == "cpu":
            shared_arena()
            options.enable_mem_pattern = stepped  # else a block for each new length, beside those it has
            for name, value in (TURNS | DENORMALS).items():
                options.add_session_config_entry(name, value)
        self.spec = spec
        self.device = device
        self.recordings = count(1)
        self.zeros = DenormalsAsZeros()
        chosen = find_provider(engine, device, ort.get_available_providers())
        given = provider_options(chosen, bundle or path.parent, engine)
        self.records = stepped and chosen.records
        with self.zeros, in_huge_pages() if stepped and device == "cpu" else nullcontext():
            self.session = self.opened(path, options, chosen.name, given)
        if self.session.get_providers()[0] != chosen.name:
            raise BackendError(f"{path}: {chosen.name} failed to start; check the driver with: valle2 doctor")
        if device != "cpu" and not fallback:
            check_strays(spec.file, self.session, chosen.name)
        give_back()

    def opened(self, path: Path, options: Any, provider: str, given: dict[str, str]) -> Any:
        """A session; one that cannot record, because a size is data in its graph, launches every kernel."""
        recording = {CUDA_GRAPH: "1"} if self.records else {}
        once = (
            {"enable_fallback": 0} if self.device == "cpu" else {}
        )  # a second attempt there is the first again
        try:
            return ort.InferenceSession(str(path), options, providers=[(provider, given | recording)], **once)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            if not self.records or NOT_RECORDED not in str(error):
                raise BackendError(f"{path} does not load: {first_line(error)}") from None
        self.records = False
        return self.opened(path, options, provider, given)

    def run_checked(self, feeds: Mapping[str, Array], outputs: tuple[str, ...]) -> dict[str, Array]:
        try:
            with self.zeros:
                found = self.session.run(list(outputs), dict(feeds), self.numbered(UNRECORDED))
        except Exception as error:
            raise BackendError(f"{self.spec.file} failed: {first_line(error)}") from None
        return dict(zip(outputs, found, strict=True))

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        try:
            if self.device == "cpu":
                return OrtBuffer(sparse_zeros(shape, dtype))
            value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), self.device, 0)
        except Exception as error:  # of the system, of numpy, of onnxruntime
            raise BackendError(
                f"{self.spec.file}: no memory for {shape} of {np.dtype(dtype)} ({first_line(error)}); "
                "load it with fewer slots"
            ) from None
        return DeviceBuffer(value, dtype, slice(0, shape[0]))

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Step:
        """The first call runs as it is; where calls are recorded, the second records what later ones replay.

        A recording runs the graph twice, so a call must not read what it writes, cached positions excepted.
        """
        binding = self.session.io_binding()
        try:
            for name, buffer in inputs.items():
                self.bind_one(buffer, name, binding.bind_ortvalue_input, binding.bind_input)
            for name, buffer in outputs.items():
                self.bind_one(buffer, name, binding.bind_ortvalue_output, binding.bind_output)
        except Exception as error:  # a tensor that the manifest lists and the graph lacks
            raise BackendError(f"{self.spec.file} does not take its tensors: {first_line(error)}") from None
        run, zeros = self.session.run_with_iobinding, self.zeros
        now, later = self.numbered(UNRECORDED), self.numbered(next(self.recordings))

        def step() -> None:
            nonlocal now
            try:
                with zeros:
                    run(binding, now)
            except Exception as error:
                raise BackendError(f"{self.spec.file} failed: {first_line(error)}") from None
            now = later

        return step

    def bind_one(self, buffer: Buffer, name: str, by_value: Any, by_address: Any) -> None:
        """Bind host memory by its OrtValue, device memory by address, which allows rows of a buffer."""
        if isinstance(buffer, DeviceBuffer):
            by_address(name, self.device, 0, buffer.dtype, buffer.shape, buffer.address)
        else:
            assert isinstance(buffer, OrtBuffer), "buffer of another backend"
            by_value(name, buffer.value)

    def numbered(self, recording: int) -> ort.RunOptions | None:
        """A call's options: its CUDA graph, recorded when it is first named; None where none are."""
        if not self.records:
            return None
        options = ort.RunOptions()
        options.add_run_config_entry(GRAPH_NUMBER, str(recording))
        return options

    def close(self) -> None:
        del self.session


def first_line(error: Exception) -> str:
    """onnxruntime's messages carry stack traces; the first line says what happened."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

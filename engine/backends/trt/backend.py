"""A TensorRT engine as a `Backend`: device buffers, addresses set once, a step captured as a CUDA graph.

Every bound call has an execution context of its own, since a context holds one set of addresses and one
profile; a call that ends leaves it to the next. Contexts and buffers of one backend share a stream, so calls
run in the order they are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

from numpy.typing import DTypeLike

from valle2.engine.backends.base import Array, Backend, Buffer, Step
from valle2.engine.backends.trt.api import load, lowerings_here, messages_of
from valle2.engine.backends.trt.call import BoundCall, Shape, TrtBuffer, host_type
from valle2.engine.backends.trt.cuda import Cuda, runtime, this_gpu
from valle2.engine.bundle.engine_files import Record, find_engine, graph_precision, source_hash
from valle2.engine.bundle.manifest import read_manifest
from valle2.engine.errors import BackendError


class TrtBackend(Backend):
    """One engine on GPU 0.

    Args:
        trt: TensorRT's module. cuda: the stream everything runs on. record: what the engine was built as.
        engine: the file's bytes. capture: replay bound calls as CUDA graphs.

    Raises:
        BackendError: TensorRT does not take the engine, or device memory is too small.
    """

    def __init__(self, trt: Any, cuda: Cuda, record: Record, engine: bytes, *, capture: bool = True) -> None:
        self.trt, self.cuda, self.record, self.capture = trt, cuda, record, capture
        self.spec = record.spec
        self.messages = messages_of(trt)
        self.messages.clear()
        self.runtime = trt.Runtime(self.messages.logger)
        self.engine = self.runtime.deserialize_cuda_engine(engine)
        if self.engine is None:
            raise BackendError(
                f"{self.spec.file}: TensorRT does not take its engine: {self.messages.reason()}"
            )
        self.calls: WeakSet[BoundCall] = WeakSet()
        self.contexts: list[tuple[int, Any]] = []

    def buffer(self, shape: Shape, dtype: DTypeLike) -> TrtBuffer:
        return TrtBuffer(self.cuda, shape, host_type(dtype))

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Step:
        call = BoundCall(self, inputs, outputs)
        self.calls.add(call)
        return call

    def run_checked(self, feeds: Mapping[str, Array], outputs: tuple[str, ...]) -> dict[str, Array]:
        inputs = {name: self.buffer(value.shape, value.dtype) for name, value in feeds.items()}
        for name, value in feeds.items():
            inputs[name].write(value)
        call = BoundCall(self, inputs, {}, capture=False)
        call()
        return {name: call.result(name) for name in outputs}

    def take_context(self, profile: int) -> tuple[int, Any]:
        """A context that no call has, and the profile it is set to: the one asked for, another, or -1."""
        if not self.contexts:
            return -1, self.engine.create_execution_context()
        fitting = [index for index, (known, _) in enumerate(self.contexts) if known == profile]
        return self.contexts.pop(fitting[0] if fitting else -1)

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first profile that takes these input shapes.

        Raises:
            BackendError: none does; the ranges are listed.
        """
        ranges = [self.ranges(index) for index in range(self.engine.num_optimization_profiles)]
        for index, known in enumerate(ranges):
            if all(fits(shapes[name], *known[name]) for name in known):
                return index
        known = ranges[-1]
        wrong = next((n for n in known if not fits(shapes[n], *known[n])), next(iter(known)))
        limits = ", ".join(f"{r[wrong][0]} to {r[wrong][1]}" for r in ranges)
        raise BackendError(
            f"{self.spec.file}: input {wrong} is {shapes[wrong]}; the engine takes {limits}: "
            "build it with a larger --max-batch or --max-frames"
        )

    def ranges(self, profile: int) -> dict[str, tuple[Shape, Shape]]:
        """Least and greatest shape of every input under a profile."""
        found = {}
        for tensor in self.spec.inputs:
            low, _, high = self.engine.get_tensor_profile_shape(tensor.name, profile)
            found[tensor.name] = (tuple(low), tuple(high))
        return found

    def close(self) -> None:
        for call in list(self.calls):
            call.close()
        self.contexts.clear()
        self.engine = self.runtime = None


def fits(shape: Shape, low: Shape, high: Shape) -> bool:
    """Is a shape within a profile's range?"""
    return len(shape) == len(low) and all(a <= x <= b for a, x, b in zip(low, shape, high, strict=True))


def open_engine(bundle: Path, graph: str, target: str, precision: str = "fp16") -> TrtBackend:
    """Load the engine of a graph for this machine's GPU.

    Args:
        bundle: the folder. graph: its name in the manifest. target: "tensorrt" or "tensorrt-rtx".

    Raises:
        BackendError: no TensorRT, no GPU, no engine that fits, or a damaged one; each with what to do.
    """
    trt = load(target)
    gpu = this_gpu()
    if gpu is None:
        raise BackendError(f"no CUDA GPU was found here; {target} needs one, engine 'ort' runs on the CPU")
    manifest = read_manifest(bundle, check_hashes=False).in_lowering(lowerings_here(target), target)
    wanted = {
        "target": target,
        "graph": graph,
        "source": source_hash(manifest, graph),
        "precision": graph_precision(manifest.graphs[graph], precision),
        "version": str(trt.__version__),
        "gpu": gpu,
    }
    path, record = find_engine(bundle, wanted)
    return TrtBackend(trt, Cuda(runtime()), record, path.read_bytes())

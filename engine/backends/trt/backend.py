"""A TensorRT engine as a `Backend`.

Every bound call has an execution context of its own, because a context holds one set of addresses and one
profile. A call that ends returns its context for the next one. All calls and buffers of a backend share one
stream, so calls run in the order in which they are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

from numpy.typing import DTypeLike

from valle2.engine.backends.base import Array, Backend, Buffer, Step
from valle2.engine.backends.trt.api import load, lowerings_here
from valle2.engine.backends.trt.buffers import Shape, TrtBuffer, host_type
from valle2.engine.backends.trt.call import BoundCall
from valle2.engine.backends.trt.cuda import Cuda, runtime, this_gpu
from valle2.engine.backends.trt.loaded import LoadedEngine
from valle2.engine.bundle.artifacts import source_hash
from valle2.engine.bundle.engine_files import find_engine, graph_precision
from valle2.engine.bundle.manifest import read_manifest
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.errors import BackendError


class TrtBackend(Backend):
    """One engine on GPU 0.

    Args:
        trt: TensorRT's module. cuda: the stream that everything runs on. spec: the engine's tensors.
        data: the file's bytes. capture: replay bound calls as CUDA graphs.

    Raises:
        BackendError: TensorRT does not take the engine, or device memory is too small.
    """

    def __init__(self, trt: Any, cuda: Cuda, spec: GraphSpec, data: bytes, *, capture: bool = True) -> None:
        self.cuda, self.spec, self.capture = cuda, spec, capture
        self.loaded = LoadedEngine(trt, cuda, spec, data)
        self.calls: WeakSet[BoundCall] = WeakSet()

    def buffer(self, shape: Shape, dtype: DTypeLike) -> TrtBuffer:
        return TrtBuffer(self.cuda, shape, host_type(dtype))

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Step:
        call = BoundCall(self.loaded, inputs, outputs, capture=self.capture)
        self.calls.add(call)
        return call

    def run_checked(self, feeds: Mapping[str, Array], outputs: tuple[str, ...]) -> dict[str, Array]:
        inputs = {name: self.buffer(value.shape, value.dtype) for name, value in feeds.items()}
        for name, value in feeds.items():
            inputs[name].write(value)
        call = BoundCall(self.loaded, inputs, {}, capture=False)
        call()
        return {name: call.result(name) for name in outputs}

    def close(self) -> None:
        for call in list(self.calls):
            call.close()
        self.loaded.close()


def open_engine(bundle: Path, graph: str, target: str, precision: str = "fp16") -> TrtBackend:
    """Load the engine file of a graph that was built for this machine's GPU.

    Args:
        bundle: the folder. graph: its name in the manifest. target: "tensorrt" or "tensorrt-rtx".
        precision: the one that the engine was built with.

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
    return TrtBackend(trt, Cuda(runtime()), record.spec, path.read_bytes())

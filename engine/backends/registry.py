"""Opens a graph with the backend that serves a placement. Imports a runtime only when it is needed."""

from __future__ import annotations

from pathlib import Path

from valle2.engine.backends.base import Backend
from valle2.engine.backends.ort.providers import load_onnxruntime
from valle2.engine.backends.placement import Placement
from valle2.engine.backends.trt.api import TARGETS
from valle2.engine.bundle.precisions import AUTO, STORED
from valle2.engine.bundle.specs import GraphSpec

ON_CPU = Placement()


def open_backend(
    folder: Path, spec: GraphSpec, placement: Placement = ON_CPU, *, stepped: bool = False
) -> Backend:
    """Load one graph of a bundle.

    Args:
        folder: where the graph's file lies. spec: the graph's entry in the manifest.
        placement: what runs it. Its precision matters to TensorRT alone, whose engine files are found by it.
        stepped: for a graph that is called step after step over the same buffers and reads all its weights
            each time. On "cpu", ONNX Runtime then keeps the weights in huge pages if the system has them,
            which adds about a millisecond of loading per megabyte. On "cuda" it replays bound calls as CUDA
            graphs.

    Raises:
        BackendError: the runtime or the device is absent, or the graph or its engine file does not load.
    """
    if placement.engine in TARGETS:
        from valle2.engine.backends.trt.backend import open_engine

        precision = STORED if placement.precision == AUTO else placement.precision
        return open_engine(folder, spec.graph, placement.engine, precision)
    load_onnxruntime()  # the import below would raise an ImportError
    from valle2.engine.backends.ort.session import OrtBackend

    return OrtBackend(folder, spec, placement, stepped=stepped)

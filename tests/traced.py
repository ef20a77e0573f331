"""Traces equal graphs once: later tests get a copy, even in another test process.

Tracing takes most of an export's time, and many tests export the same toy. All other steps of an export run
each time, and so does the comparison with PyTorch.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import onnx
from filelock import FileLock
from torch import Tensor

from valle2.engine.build.external_data import write_graph
from valle2.engine.bundle.files import replacing_folder
from valle2.export.graphs import Graph, export_graph


class StablePickler(pickle.Pickler):
    """Pickles equal rows to equal bytes in any process: tensors by their numbers, sets sorted."""

    def persistent_id(self, value: object) -> object:
        if isinstance(value, set):
            return "set", sorted(value)
        if isinstance(value, Tensor):
            kind = type(value).__name__, str(value.dtype), tuple(value.shape)
            return *kind, value.detach().numpy().tobytes()
        return None


def key(row: Graph) -> str:
    """A hash of everything that is traced: module, weights, inputs, axes and opset."""
    written = io.BytesIO()
    pickler = StablePickler(written)
    pickler.fast = True  # no references, which depend on which equal strings are one object
    pickler.dump(row)
    return hashlib.sha256(written.getvalue()).hexdigest()


def trace_once(kept: Path, row: Graph, path: Path, shared: Path | None = None) -> Path:
    """`export_graph`, or a copy if an equal row was traced before."""
    place = kept / key(row)
    traced = place / f"{row.name}.onnx"
    with FileLock(f"{place}.lock"):
        if not place.exists():
            with replacing_folder(place) as aside:
                export_graph(row, aside / traced.name)
    return write_graph(onnx.load(str(traced)), path, shared)

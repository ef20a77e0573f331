"""Graphs traced once: a row that equals an earlier one is copied, from another test process too.

Tracing is most of what an export costs, and many tests export the same toy. All else of an export still runs
each time, its comparison with PyTorch too.
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


class Row(pickle.Pickler):
    """The same bytes for equal rows in any process: a tensor's numbers, not its address; sets sorted."""

    def persistent_id(self, value: object) -> object:
        if isinstance(value, set):
            return "set", sorted(value)
        if isinstance(value, Tensor):
            kind = type(value).__name__, str(value.dtype), tuple(value.shape)
            return *kind, value.detach().numpy().tobytes()
        return None


def key(row: Graph) -> str:
    """Of the module with its weights, the inputs, the axes and the operator set: of all that is traced."""
    written = io.BytesIO()
    Row(written).dump(row)
    return hashlib.sha256(written.getvalue()).hexdigest()


def trace_once(kept: Path, row: Graph, path: Path, shared: Path | None = None) -> Path:
    """`export_graph` for a row that was not traced before."""
    place = kept / key(row)
    traced = place / f"{row.name}.onnx"
    with FileLock(f"{place}.lock"):
        if not place.exists():
            with replacing_folder(place) as aside:
                export_graph(row, aside / traced.name)
    return write_graph(onnx.load(str(traced)), path, shared)

"""Graphs traced once: a row that equals an earlier one is copied, from another test process too.

Tracing is most of what an export costs, and many tests export the same toy. All else of an export still runs
each time, its comparison with PyTorch too.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from valle2.engine.replace import replacing
from valle2.export.graphs import Graph, export_graph


class Row(pickle.Pickler):
    """Equal for equal rows: torch pickles a tensor with its address, this one with its numbers."""

    def persistent_id(self, value: object) -> object:
        if not isinstance(value, Tensor):
            return None
        return type(value).__name__, str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()


def key(row: Graph) -> str:
    """Of the module with its weights, the inputs, the axes and the operator set: of all that is traced."""
    written = io.BytesIO()
    Row(written).dump(row)
    return hashlib.sha256(written.getvalue()).hexdigest()


def trace_once(kept: Path, row: Graph, folder: Path) -> Path:
    """`export_graph` for a row that was not traced before."""
    place = kept / key(row)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            with replacing(place) as aside:
                export_graph(row, aside)
    shutil.copytree(place, folder, dirs_exist_ok=True)
    return folder / f"{row.name}.onnx"

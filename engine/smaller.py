"""Bundle to graphs with smaller weights, which ONNX Runtime runs faster. Needs onnx; no torch.

They are made aside and put in place whole, so that a build that is cut short leaves what was there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from valle2.engine.errors import BackendError
from valle2.engine.manifest import hash_files, read_manifest
from valle2.engine.precision import load_graph
from valle2.engine.quantize import quantise
from valle2.engine.replace import replacing
from valle2.engine.small import METHODS, RECORD, STORED, check_precision, description, graph_folder
from valle2.engine.storage import write_graph

LOWERING = "ort"
Progress = Callable[[str], None]


def build_graphs(
    bundle: str | Path, precision: str, *, progress: Progress = lambda message: None
) -> list[dict[str, Any]]:
    """Write a bundle's graphs in a precision to `BUNDLE/engines/ort-PRECISION`; nothing to do for "fp32".

    Args:
        bundle: the folder, in the lowering "ort". precision: one of `small.PRECISIONS`.
        progress: called with a line per graph.

    Returns:
        A row per graph: its name, replaced products, MB before and after.

    Raises:
        BackendError: unknown precision, another lowering, or a folder that cannot be written.
        ManifestError: not a bundle, or a damaged one.
    """
    check_precision(precision)
    path = Path(bundle)
    manifest = read_manifest(path)
    if manifest.lowering != LOWERING:
        raise BackendError(
            f"bundle {manifest.name} has the lowering {manifest.lowering}; --target ort takes {LOWERING}: "
            f"export it with valle2 export --lowering {LOWERING}"
        )
    if precision == STORED:
        return []
    folder = graph_folder(path, precision)
    rows = []
    try:
        folder.parent.mkdir(exist_ok=True)
        with replacing(folder) as aside:
            for graph in METHODS[precision]:
                progress(f"building {graph} ({precision})")
                rows.append(build_graph(path / manifest.graphs[graph].file, aside, precision, graph))
            record = description(manifest, precision) | {"files": hash_files(aside)}
            (aside / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise BackendError(f"{folder} cannot be written ({error.strerror}); free space or rights") from None
    return rows


def build_graph(source: Path, folder: Path, precision: str, graph: str) -> dict[str, Any]:
    """One graph and its weights, under the names they have in the bundle."""
    model = load_graph(source, STORED)
    replaced = quantise(model, METHODS[precision][graph])
    write_graph(model, folder / source.name)
    sizes = [sum(f.stat().st_size for f in at.glob(f"{source.stem}.*")) for at in (source.parent, folder)]
    before, after = (round(size / 1e6, 1) for size in sizes)
    return {"graph": graph, "products": replaced, "mb_before": before, "mb": after}

"""Bundle to graphs in another precision for ONNX Runtime. Needs onnx; no torch.

They are made aside and put in place whole, so that a build that is cut short leaves what was there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from valle2.engine.errors import BackendError
from valle2.engine.manifest import GraphSpec, hash_files, read_manifest
from valle2.engine.precision import converted_spec, load_graph
from valle2.engine.quantize import quantise
from valle2.engine.replace import replacing
from valle2.engine.small import (
    HALF,
    METHODS,
    STORED,
    Method,
    Record,
    check_precision,
    description,
    graph_folder,
    write_record,
)
from valle2.engine.storage import write_graph

LOWERING = "ort"
Progress = Callable[[str], None]


def build_graphs(
    bundle: str | Path, precision: str, *, progress: Progress = lambda message: None
) -> list[dict[str, Any]]:
    """Write a bundle's graphs in a precision to `BUNDLE/engines/ort-PRECISION`; nothing to do for "fp32".

    Args:
        bundle: the folder, in the lowering "ort" but for "fp16". precision: one of `small.PRECISIONS`.
        progress: called with a line per graph.

    Returns:
        A row per graph: its name, matrix products that became another operator, MB before and after.

    Raises:
        BackendError: unknown precision, another lowering, or a folder that cannot be written.
        ManifestError: not a bundle, or a damaged one.
    """
    check_precision(precision)
    path = Path(bundle)
    manifest = read_manifest(path)
    if precision == STORED:
        return []
    if manifest.lowering != LOWERING and set(METHODS[precision].values()) != {HALF}:
        raise BackendError(
            f"bundle {manifest.name} has the lowering {manifest.lowering}; --target ort makes {precision} of "
            f"{LOWERING} alone: export it with valle2 export --lowering {LOWERING}, or take fp16"
        )
    folder = graph_folder(path, precision)
    rows, specs = [], {}
    try:
        folder.parent.mkdir(exist_ok=True)
        with replacing(folder) as aside:
            for graph in METHODS[precision]:
                progress(f"building {graph} ({precision})")
                row, specs[graph] = build_graph(
                    path, aside, manifest.graphs[graph], METHODS[precision][graph]
                )
                rows.append({"graph": graph} | row)
            write_record(aside, Record(description(manifest, precision), specs, hash_files(aside)))
    except OSError as error:
        raise BackendError(f"{folder} cannot be written ({error.strerror}); free space or rights") from None
    return rows


def build_graph(
    bundle: Path, folder: Path, spec: GraphSpec, method: Method
) -> tuple[dict[str, Any], GraphSpec]:
    """One graph and its weights, under the names they have in the bundle: its row and its tensors."""
    source = bundle / spec.file
    model = load_graph(source, "fp16" if method == HALF else STORED)
    replaced = 0 if method == HALF else quantise(model, method)
    made = converted_spec(spec, model)
    write_graph(model, folder / source.name)
    sizes = [sum(f.stat().st_size for f in at.glob(f"{source.stem}.*")) for at in (bundle, folder)]
    before, after = (round(size / 1e6, 1) for size in sizes)
    return {"products": replaced, "mb_before": before, "mb": after}, made

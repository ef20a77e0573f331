"""Builds a bundle's graphs in another precision for ONNX Runtime. Needs onnx; no torch.

A folder of built graphs appears whole. A build that is interrupted leaves the earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from valle2.engine.build.external_data import write_graph
from valle2.engine.build.kv_int8 import cache_ranges, store_caches
from valle2.engine.build.precision import converted_spec, load_graph
from valle2.engine.build.quantize import quantise
from valle2.engine.build.recipe import write_recipe
from valle2.engine.bundle.files import replacing_folder
from valle2.engine.bundle.graph_file import readable
from valle2.engine.bundle.manifest import Manifest, hash_files, read_manifest
from valle2.engine.bundle.precisions import (
    FUSED,
    HALF,
    METHODS,
    STORED,
    Method,
    OrtBuildRecord,
    can_be_built,
    check_precision,
    description,
    graph_folder,
    recipe_folder,
    write_build_record,
)
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.errors import BackendError

Progress = Callable[[str], None]
Rows = list[dict[str, Any]]


def build_graphs(
    bundle: str | Path,
    precision: str,
    *,
    recipe: bool = False,
    progress: Progress = lambda message: None,
) -> Rows:
    """Build a bundle's graphs in a precision, in every lowering that can have it. "fp32" needs no build.

    Args:
        bundle: the folder. precision: one of `precisions.PRECISIONS`; all but "fp16" need the lowering "ort".
        recipe: write how the weights follow from the bundle's instead of the weights (`derived`). A process
            makes them when it first runs this precision.
        progress: called with a line per graph.

    Returns:
        A row per graph: its name and lowering, the number of matrix products that became another operator,
        and its size in MB before and after.

    Raises:
        BackendError: an unknown precision, no lowering that can have it, a folder that cannot be written, or
            a recipe in floating point.
        ManifestError: not a bundle, or a damaged one.
    """
    check_precision(precision)
    path = Path(bundle)
    manifest = read_manifest(path)
    if recipe and (precision == STORED or HALF in METHODS[precision].values()):
        raise BackendError(f"a recipe makes integers, not {precision}; leave --recipe out")
    if precision == STORED:
        return []
    fitting = [name for name in (manifest.lowering, *manifest.others) if can_be_built(precision, name)]
    if not fitting:
        raise BackendError(
            f"bundle {manifest.name} has the lowering {manifest.lowering}; --target ort makes {precision} of "
            f"{FUSED} alone: export it with valle2 export --lowering {FUSED}, or build fp16"
        )
    variants = [manifest.in_lowering([name], precision) for name in fitting]
    return [row for each in variants for row in build_lowering(path, each, precision, recipe, progress)]


def build_lowering(path: Path, manifest: Manifest, precision: str, recipe: bool, progress: Progress) -> Rows:
    """Build the graphs of one lowering into a folder of their own; returns a row per graph."""
    folder = graph_folder(path, precision, manifest.lowering)
    if recipe:
        folder = recipe_folder(path, precision)
    rows, specs = [], {}
    try:
        folder.parent.mkdir(exist_ok=True)
        with replacing_folder(folder) as made:
            for graph in METHODS[precision]:
                progress(f"building {graph} ({precision}, {manifest.lowering})")
                spec, method = manifest.graphs[graph], METHODS[precision][graph]
                row, specs[graph] = build_graph(path, made, spec, method, manifest.sizes)
                rows.append({"graph": graph, "lowering": manifest.lowering} | row)
            write_build_record(
                made, OrtBuildRecord(description(manifest, precision), specs, hash_files(made))
            )
            if recipe:
                methods = METHODS[precision]
                write_recipe(path, made, {name: (manifest.graphs[name], methods[name]) for name in methods})
    except OSError as error:
        raise BackendError(f"{folder} cannot be written ({error.strerror}); free space or rights") from None
    return rows


def build_graph(
    bundle: Path, folder: Path, spec: GraphSpec, method: Method, sizes: Mapping[str, int]
) -> tuple[dict[str, Any], GraphSpec]:
    """Build one graph and its weights, under the names that they have in the bundle.

    Args:
        bundle: the folder with the stored graph. folder: where the built graph goes. sizes: the manifest's.

    Returns:
        Its row for `build_graphs`, and its tensors.
    """
    source = bundle / spec.file
    with readable(source):
        model = load_graph(source, "fp16" if method == HALF else STORED)
        replaced = 0 if method == HALF else quantise(model, method)
        if method.cache_bits < 32:
            store_caches(model, cache_ranges(bundle, spec, sizes))
        made = converted_spec(spec, model)
        write_graph(model, folder / source.name)
    places = ((bundle, spec.graph), (folder, source.stem))
    found = [sum(f.stat().st_size for f in at.glob(f"{stem}.*")) for at, stem in places]
    before, after = (round(size / 1e6, 1) for size in found)
    return {"products": replaced, "mb_before": before, "mb": after}, made

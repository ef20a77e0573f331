"""Builds a bundle's graphs in another precision for ONNX Runtime. Needs onnx; no torch.

A folder of built graphs appears whole. A build that is interrupted leaves the earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from valle2.engine.backends.ort.providers import NAR_ROW_SINCE, lowerings_for, runs_nar_row
from valle2.engine.build.cuda.check import check_fused
from valle2.engine.build.cuda.codec import codec_graph
from valle2.engine.build.cuda.codec_padded import padded_codec_graph
from valle2.engine.build.cuda.nar import nar_graph
from valle2.engine.build.cuda.nar_batch import nar_batch_graph
from valle2.engine.build.cuda.reader import UnsupportedGraphError
from valle2.engine.build.cuda.step import step_graph, written_spec
from valle2.engine.build.external_data import write_graph
from valle2.engine.build.kv_int8 import cache_ranges, store_caches
from valle2.engine.build.precision import PRECISIONS, convert, converted_spec, load_graph
from valle2.engine.build.prefill import check_prefill, prefill_graph
from valle2.engine.build.quantize import quantise
from valle2.engine.build.recipe import write_recipe
from valle2.engine.build.rotary import fuse_rotary
from valle2.engine.bundle.contract import (
    BUILT_GRAPHS,
    FUSED_DECODER,
    NAR_BATCH,
    NAR_ROW,
    PADDED_DECODER,
    PREFILL,
    STEP,
)
from valle2.engine.bundle.files import replacing_folder
from valle2.engine.bundle.graph_file import readable
from valle2.engine.bundle.manifest import Manifest, hash_files, read_manifest
from valle2.engine.bundle.precisions import (
    CUDA_LOWERING,
    FUSED,
    FUSED_HALF,
    HALF,
    METHODS,
    SOURCES,
    STORED,
    Method,
    OrtBuildRecord,
    can_be_built,
    check_precision,
    description,
    graph_folder,
    methods_of,
    recipe_folder,
    write_build_record,
)
from valle2.engine.bundle.schema import MAX_WINDOW
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.errors import BackendError

Progress = Callable[[str], None]
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build.

    Args:
        device: "cuda" for the graphs of CUDA alone. Empty: every lowering that can have the precision, but
            "int8" and "int4" for the CPU alone.
        fused: whether CUDA gets graphs of fused operators, see `build.cuda`. Without them it runs the others.
        recipe: write how the weights follow from the bundle's instead of the weights (`derived`). A process
            makes them when it first runs this precision.
    """

    device: str = ""
    fused: bool = True
    recipe: bool = False


ALL = BuildOptions()
WRITERS: dict[str, Callable[[onnx.ModelProto, Mapping[str, int]], onnx.ModelProto]] = {
    STEP: lambda source, sizes: step_graph(source, sizes, MAX_WINDOW),
    NAR_ROW: nar_graph,
    NAR_BATCH: nar_batch_graph,
    FUSED_DECODER: codec_graph,
    PADDED_DECODER: padded_codec_graph,
}
"""By graph, the function that writes it from its source and the manifest's sizes."""
SHARED = {NAR_BATCH: NAR_ROW, PADDED_DECODER: FUSED_DECODER}
"""By graph, an earlier one with the same weights."""


def build_graphs(
    bundle: str | Path,
    precision: str,
    options: BuildOptions = ALL,
    *,
    progress: Progress = lambda message: None,
) -> Rows:
    """Build a bundle's graphs in a precision, in every lowering that can have it. "fp32" needs no build.

    Args:
        bundle: the folder. precision: one of `precisions.PRECISIONS`. On a CPU, all but "fp16" need the
            lowering "ort"; on CUDA, all need "portable".
        options: see `BuildOptions`. progress: called with a line per graph.

    Returns:
        A row per graph: its name and lowering, the number of matrix products that became another operator,
        and its size in MB before and after.

    Raises:
        BackendError: an unknown precision, no lowering that can have it, an ONNX Runtime that is too old for
            it, a folder that cannot be written, or a recipe in floating point.
        ManifestError: not a bundle, or a damaged one.
    """
    check_precision(precision)
    path = Path(bundle)
    manifest = read_manifest(path)
    if options.recipe and (options.device or precision == STORED or HALF in METHODS[precision].values()):
        raise BackendError(f"a recipe makes integers for a CPU, not {precision}; leave --recipe out")
    if precision == STORED:
        return []
    if options.device and not options.fused and HALF not in METHODS[precision].values():
        raise BackendError(
            f"{precision} on CUDA is a graph of fused operators; leave --plain out, or build fp16"
        )
    names = (manifest.lowering, *manifest.others)
    fitting = [name for name in names if can_be_built(precision, name, options.device)]
    if not fitting and options.device:
        raise BackendError(
            f"bundle {manifest.name} has the lowering {manifest.lowering}; --device cuda takes "
            f"{CUDA_LOWERING} alone: export it with valle2 export --lowering {CUDA_LOWERING}"
        )
    if not fitting:
        raise BackendError(
            f"bundle {manifest.name} has the lowering {manifest.lowering}; --target ort makes {precision} of "
            f"{FUSED} alone: export it with valle2 export --lowering {FUSED}, or build fp16"
        )
    if fitting == [FUSED]:
        check_runs(precision)
    variants = [manifest.in_lowering([name], precision) for name in fitting]
    return [row for found in variants for row in build_lowering(path, found, precision, options, progress)]


def check_runs(precision: str) -> None:
    """Refuse a precision whose graphs this ONNX Runtime does not run. Its build would run the stored graphs.

    Raises:
        BackendError: ONNX Runtime is absent, or too old.
    """
    found, runner = lowerings_for("ort", "cpu")
    if FUSED not in found:
        raise BackendError(
            f"{precision} needs the lowering {FUSED}; {runner} takes {' or '.join(found)}: "
            "use fp32 or fp16, or a newer onnxruntime (for Python 3.11 or newer)"
        )


def build_lowering(
    path: Path, manifest: Manifest, precision: str, options: BuildOptions, progress: Progress
) -> Rows:
    """Build the graphs of one lowering into a folder of their own; returns a row per graph."""
    folder = graph_folder(path, precision, manifest.lowering)
    if options.recipe:
        folder = recipe_folder(path, precision)
    rows, specs = [], {}
    try:
        folder.parent.mkdir(exist_ok=True)
        with replacing_folder(folder) as made:
            methods = methods_of(precision, manifest.lowering)
            for graph, method in methods.items():
                if graph in BUILT_GRAPHS and not (options.fused and SOURCES[graph] in manifest.graphs):
                    continue
                progress(f"building {graph} ({precision}, {manifest.lowering})")
                try:
                    row, specs[graph] = build_one(path, made, manifest, graph, method)
                except UnsupportedGraphError as reason:
                    if graph != PREFILL and method.bits < FUSED_HALF.bits:
                        raise BackendError(f"{precision} on CUDA needs the graph {graph}: {reason}") from None
                    progress(f"no {graph}: {reason}")
                    continue
                rows.append({"graph": graph, "lowering": manifest.lowering} | row)
            about = description(manifest, precision, specs)
            write_build_record(made, OrtBuildRecord(about, specs, hash_files(made)))
            if options.recipe:
                sources = {name: manifest.graphs[SOURCES.get(name, name)] for name in specs}
                write_recipe(path, made, [(sources[name], specs[name], methods[name]) for name in specs])
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
            fuse_rotary(model)
        made = converted_spec(spec, model)
        write_graph(model, folder / source.name)
    return sizes_row(replaced, (bundle, spec.graph), (folder, source.stem)), made


def sizes_row(replaced: int, *places: tuple[Path, str]) -> dict[str, Any]:
    """The row of a graph from the folders and stems of its files before and after."""
    found = [sum(f.stat().st_size for f in at.glob(f"{stem}.*")) for at, stem in places]
    before, after = (round(size / 1e6, 1) for size in found)
    return {"products": replaced, "mb_before": before, "mb": after}


def build_one(
    bundle: Path, folder: Path, manifest: Manifest, graph: str, method: Method
) -> tuple[dict[str, Any], GraphSpec]:
    """Build one graph by its method -> its row for `build_graphs`, and its tensors."""
    spec, sizes = manifest.graphs[SOURCES.get(graph, graph)], manifest.sizes
    if graph == PREFILL:
        return build_prefill(bundle, folder, spec, method, sizes)
    if graph in BUILT_GRAPHS:
        return build_fused(bundle, folder, spec, sizes, graph, method)
    return build_graph(bundle, folder, spec, method, sizes)


def build_prefill(
    bundle: Path, folder: Path, spec: GraphSpec, method: Method, sizes: Mapping[str, int]
) -> tuple[dict[str, Any], GraphSpec]:
    """Rewrite the AR for prefills on a CPU. It is first compared with its source, in float32.

    Whatever it shares with the built AR graph in `folder`, such as embeddings, it reads from that one's file.

    Raises:
        UnsupportedGraphError: the source's attention has no version for a prefill.
        BackendError: the new graph computes something else than its source.
    """
    with readable(bundle / spec.file):
        ranges = cache_ranges(bundle, spec, sizes)
        model = prefill_graph(load_graph(bundle / spec.file, STORED), ranges)
        check_prefill(bundle, spec, model, sizes, ranges)
        replaced = quantise(model, method)
        made = written_spec(model, f"{PREFILL}.onnx")
        write_graph(model, folder / made.file, shared=folder / Path(spec.file).name)
    return sizes_row(replaced, (bundle, spec.graph), (folder, PREFILL)), made


def build_fused(
    bundle: Path, folder: Path, spec: GraphSpec, sizes: Mapping[str, int], graph: str, method: Method
) -> tuple[dict[str, Any], GraphSpec]:
    """Rewrite one graph for CUDA. It is first compared with its source, in float32 on the CPU.

    A graph of `SHARED` reads the weights that it shares with another one from that one's file.

    Args:
        bundle: the folder with the source. folder: where the graph goes. spec: of the source.
        sizes: the manifest's. graph: the graph that is written.

    Returns:
        Its row for `build_graphs`, and its tensors.

    Raises:
        UnsupportedGraphError: the source has a form without a fused version.
        BackendError: the new graph computes something else than its source.
    """
    if graph in (NAR_ROW, NAR_BATCH) and not runs_nar_row():
        raise UnsupportedGraphError(f"it needs onnxruntime {'.'.join(map(str, NAR_ROW_SINCE))} or newer")
    with readable(bundle / spec.file):
        source = load_graph(bundle / spec.file, STORED)
        model = WRITERS[graph](source, sizes)
        check_fused(bundle, spec, model, sizes)
        replaced = quantise(model, replace(method, kind="blocks")) if method.bits < FUSED_HALF.bits else 0
        convert(model, PRECISIONS["fp16"])
        made = written_spec(model, f"{graph}.onnx")
        like = folder / f"{SHARED[graph]}.onnx" if graph in SHARED else folder
        write_graph(model, folder / made.file, like if like.is_file() else None)
    return sizes_row(replaced, (bundle, spec.graph), (folder, graph)), made

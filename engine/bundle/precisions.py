"""Graphs for ONNX Runtime in another precision, below `BUNDLE/engines/ort-PRECISION`: finding, refusing them.

`build.json` beside them says from what and how they were made, and lists their tensors. This module knows
neither onnx nor onnxruntime, so that a bundle opens without them; `build.ort` makes the graphs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from valle2.engine.bundle.artifacts import (
    build_command,
    build_folder,
    read_record,
    source_hash,
    write_record,
)
from valle2.engine.bundle.contract import (
    AR,
    BUILT_GRAPHS,
    DECODER,
    FUSED_DECODER,
    NAR,
    NAR_BATCH,
    NAR_ROW,
    PADDED_DECODER,
    PREFILL,
    STEP,
)
from valle2.engine.bundle.files import cache_directory
from valle2.engine.bundle.graph_file import check_graph_file
from valle2.engine.bundle.manifest import Manifest, check_file
from valle2.engine.bundle.schema import check_digests, fault_of
from valle2.engine.bundle.signatures import check_graph
from valle2.engine.bundle.specs import GraphSpec, parse_graphs
from valle2.engine.errors import BackendError, ManifestError

RECORD_FILE = "build.json"
RECIPE = 3
"""Raised when a method writes other weights than before, so that older builds are refused."""
STORED, FUSED = "fp32", "ort"
"""The precision that a bundle is stored in, and the lowering that uses ONNX Runtime's own attention."""
AUTO = "auto"
"""Stands for the result of `default_precision`."""
DEFAULT_CPU_PRECISION = "int8"
"""Used on a CPU if it is built or a recipe makes it. It costs the demo under one point of word error rate
(docs/precision.md)."""


@dataclass(frozen=True, slots=True)
class Method:
    """How the weights of a graph are stored.

    Args:
        kind: "blocks", "dynamic" or "rows", see `build.quantize`; or "half": weights, caches and computation
            in float16, see `build.precision`; or "fused": the same with fused operators, see `build.cuda`.
        bits: of a weight: 32, 16, 8 or 4. A "fused" codec of 32 bits computes in float32.
        block: for "blocks", and for "fused" with fewer than 16 bits: how many inputs share a scale, a power
            of two, at least 16.
        cache_bits: of a number in the KV caches: 32, or 8 as in `build.kv_int8`. "half" ignores it.
    """

    kind: str
    bits: int = 8
    block: int = 0
    cache_bits: int = 32


DYNAMIC = Method("dynamic")
HALF = Method("half", 16)
FUSED_HALF = Method("fused", 16)
FUSED_WHOLE = Method("fused", 32)
ROWS = Method("rows", 8, 0, 8)
METHODS: dict[str, dict[str, Method]] = {
    "fp16": {AR: HALF, NAR: HALF},
    "int8": {AR: Method("blocks", 8, 64, 8), PREFILL: ROWS, NAR: DYNAMIC},
    "int4": {AR: Method("blocks", 4, 32, 8), PREFILL: ROWS, NAR: DYNAMIC},
}
"""The graphs that change in each precision, chosen by measurement (docs/precision.md). Others run as stored.

The product of a row must not depend on the other rows of a batch, which limits the block sizes. With 8 bits,
kernels for AVX-512 VNNI add in another order when a block holds 128 inputs or more. With 4 bits, kernels for
processors without AVX-512 do when a block holds more than 16, which changes a product by a millionth.
"""
PRECISIONS = (STORED, *METHODS)
SOURCES = {
    STEP: AR,
    PREFILL: AR,
    NAR_ROW: NAR,
    NAR_BATCH: NAR,
    FUSED_DECODER: DECODER,
    PADDED_DECODER: DECODER,
}
"""The graphs of a bundle that others are rewritten from."""
CUDA_LOWERING = "portable"
"""The lowering that CUDA runs, whose AR gets a decode graph of fused operators."""
FUSED_REST = {
    NAR_ROW: FUSED_HALF,
    NAR_BATCH: FUSED_HALF,
    FUSED_DECODER: FUSED_WHOLE,
    PADDED_DECODER: FUSED_WHOLE,
}
CUDA_METHODS: dict[str, dict[str, Method]] = {
    "fp16": {AR: HALF, NAR: HALF, STEP: FUSED_HALF, **FUSED_REST},
    "int8": {AR: HALF, NAR: HALF, STEP: Method("fused", 8, 64), **FUSED_REST},
    "int4": {AR: HALF, NAR: HALF, STEP: Method("fused", 4, 32), **FUSED_REST},
}
"""The graphs of `CUDA_LOWERING` in each precision. Only a decode step is limited by its weights' bytes."""


@dataclass(frozen=True, slots=True)
class LocatedGraph:
    """A graph to load: the folder of its file, and the tensors of that file."""

    folder: Path
    spec: GraphSpec


@dataclass(frozen=True, slots=True)
class OrtBuildRecord:
    """What `build.json` says.

    Args:
        about: see `description`. specs: the tensors of every built graph. files: sha256 by file name.
    """

    about: dict[str, Any]
    specs: dict[str, GraphSpec]
    files: dict[str, str]


def graph_folder(bundle: Path, precision: str, lowering: str) -> Path:
    """`ort-PRECISION` for the lowering "ort", `ort-PRECISION-LOWERING` for another one."""
    return build_folder(bundle, f"ort-{precision}" + (f"-{lowering}" if lowering != FUSED else ""))


def recipe_folder(bundle: Path, precision: str) -> Path:
    """Where a recipe lies that makes the weights of a precision at first use, see `derived.recipe`."""
    return build_folder(bundle, f"ort-{precision}-recipe")


def cached_folder(manifest: Manifest, precision: str) -> Path:
    """Where this user's graphs of a precision lie that were made by a recipe.

    Raises:
        Valle2Error: the user has no folder for such files.
    """
    key = json.dumps(description(manifest, precision), sort_keys=True)
    name = f"ort-{precision}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return cache_directory() / "graphs" / name


def recipe_record(bundle: Path, manifest: Manifest, precision: str) -> OrtBuildRecord | None:
    """What a bundle's recipe makes; None without a current recipe, or where the bundle has the graphs."""
    if precision == STORED or manifest.lowering != FUSED:
        return None
    if read_build_record(graph_folder(bundle, precision, FUSED)) is not None:
        return None
    record = read_build_record(recipe_folder(bundle, precision))
    return record if is_current(record, manifest, precision) else None


def can_be_built(precision: str, lowering: str, device: str = "") -> bool:
    """Can a lowering be built in a precision? Only operators of ONNX Runtime read quantised weights.

    Args:
        device: "cuda" for the graphs of CUDA alone; empty for all but the quantised ones of CUDA.
    """
    if device == "cuda":
        return lowering == CUDA_LOWERING
    return lowering == FUSED or set(METHODS[precision].values()) == {HALF}


def methods_of(precision: str, lowering: str) -> dict[str, Method]:
    """The graphs of a lowering that change in a precision, and how."""
    return CUDA_METHODS[precision] if lowering == CUDA_LOWERING else METHODS[precision]


def check_precision(precision: str) -> None:
    """Refuse a precision that is not one of `PRECISIONS`.

    Raises:
        BackendError: it is another one.
    """
    if precision not in PRECISIONS:
        raise BackendError(f"unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}")


def description(manifest: Manifest, precision: str, graphs: Collection[str] = ()) -> dict[str, Any]:
    """What a build depends on: the methods, and the source of every graph.

    Args:
        graphs: those of the build. It has every graph of its methods, but some of `BUILT_GRAPHS` may be
            absent, because not every graph can be rewritten.
    """
    known = methods_of(precision, manifest.lowering)
    methods = {graph: known[graph] for graph in known if graph not in BUILT_GRAPHS or graph in graphs}
    return {
        "precision": precision,
        "recipe": RECIPE,
        "methods": {graph: asdict(method) for graph, method in methods.items()},
        "sources": {graph: source_hash(manifest, SOURCES.get(graph, graph)) for graph in methods},
    }


def is_current(record: OrtBuildRecord | None, manifest: Manifest, precision: str) -> bool:
    """Was a build made from this bundle, with the methods of this version?"""
    return (
        record is not None
        and record.about == description(manifest, precision, record.specs)
        and set(record.specs) - set(BUILT_GRAPHS) == set(METHODS[precision]) - set(BUILT_GRAPHS)
    )


def default_precision(bundle: Path, manifest: Manifest) -> str:
    """The precision for a CPU if none is asked for: `DEFAULT_CPU_PRECISION` if there is one, else as stored.

    There is one if it is built, or if the bundle has a recipe for it.
    """
    if manifest.lowering == CUDA_LOWERING:
        return STORED
    if recipe_record(bundle, manifest, DEFAULT_CPU_PRECISION) is not None:
        return DEFAULT_CPU_PRECISION
    folder = graph_folder(bundle, DEFAULT_CPU_PRECISION, manifest.lowering)
    built = is_current(read_build_record(folder), manifest, DEFAULT_CPU_PRECISION)
    return DEFAULT_CPU_PRECISION if built else STORED


def find_graphs(bundle: Path, manifest: Manifest, precision: str) -> dict[str, LocatedGraph]:
    """The file and tensors of every graph of a bundle in a precision.

    Raises:
        BackendError: an unknown precision; or no build, a build of another bundle or version, or a damaged
            one, each with the command that makes it.
    """
    check_precision(precision)
    stored = {name: LocatedGraph(bundle, spec) for name, spec in manifest.graphs.items()}
    if precision == STORED:
        return stored
    folder = graph_folder(bundle, precision, manifest.lowering)
    if recipe_record(bundle, manifest, precision) is not None:
        folder = cached_folder(manifest, precision)
    command = build_command(bundle, "ort", precision)
    record = read_build_record(folder)
    if record is None:
        raise BackendError(f"{bundle} has no {precision} graphs; build them with: {command}")
    if not is_current(record, manifest, precision):
        raise BackendError(
            f"{folder} was built from another bundle or by another valle2; build it again with: {command}"
        )
    check_build(folder, record, manifest, command)
    return stored | {name: LocatedGraph(folder, spec) for name, spec in record.specs.items()}


def check_build(folder: Path, record: OrtBuildRecord, manifest: Manifest, command: str) -> None:
    """Compare the files of a build with its record, and its graphs with what the code relies on.

    Raises:
        BackendError: a file is damaged or absent, or a graph has other tensors than valle2 builds.
    """
    for name, digest in record.files.items():
        try:
            check_file(folder, name, digest, check_hash=True)
        except ManifestError:
            raise BackendError(
                f"{folder / name} is damaged or absent (sha256 differs); build it again with: {command}"
            ) from None
    for name, spec in record.specs.items():
        try:
            check_graph(name, spec, manifest.sizes, manifest.cache_length)
            check_graph_file(folder / spec.file, record.files)
        except (OSError, ValueError) as error:
            raise BackendError(
                f"{folder / spec.file} was not built by valle2: {error}; build it again with: {command}"
            ) from None


def write_build_record(folder: Path, record: OrtBuildRecord) -> None:
    """Write `build.json`."""
    write_record(folder / RECORD_FILE, {**record.about, "specs": record.specs, "files": record.files})


def read_build_record(folder: Path) -> OrtBuildRecord | None:
    """The record in a folder, None where there is none that can be read."""
    return read_record(folder / RECORD_FILE, parse_build_record)


def parse_build_record(value: object) -> OrtBuildRecord:
    """A record of parsed JSON; a ValueError says what is wrong with it."""
    if not isinstance(value, dict) or "files" not in value:
        raise ValueError("a record lists its files")
    files, specs = check_digests("files", value.pop("files")), parse_graphs(value.pop("specs", {}))
    outside = [name for name in files if fault_of(name) or "/" in name]
    absent = [spec.file for spec in specs.values() if spec.file not in files]
    if outside or absent:
        raise ValueError(f"a record lists its own files alone: {outside}, {absent}")
    return OrtBuildRecord(value, specs, files)

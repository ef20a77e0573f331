"""Graphs in another precision below `BUNDLE/engines/ort-PRECISION`: what they are, finding and refusing them.

`build.json` beside them says what they were made of and how, and their tensors. It knows neither onnx nor
onnxruntime, so that a bundle is opened without either's build tools; making them is `smaller`.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from valle2.engine.bundle.engine_files import engine_folder, source_hash
from valle2.engine.bundle.graph_file import check_graph_file
from valle2.engine.bundle.manifest import Manifest, check_file
from valle2.engine.bundle.schema import check_digests, fault_of
from valle2.engine.bundle.signatures import check_graph
from valle2.engine.bundle.specs import GraphSpec, parse_graphs
from valle2.engine.bundle.untrusted import parse_json, read_bounded
from valle2.engine.errors import BackendError, ManifestError

RECORD = "build.json"
MAX_RECORD = 2**20
"""Bytes of a record."""
RECIPE = 3
"""Raised when a method writes other weights than before, so that older builds are refused."""
STORED, FUSED = "fp32", "ort"
"""The precision that a bundle comes in, and the lowering with ONNX Runtime's own attention."""
AUTO = "auto"
"""Stands for `default_precision`."""
DEFAULT_CPU_PRECISION = "int8"
"""Used on a CPU if it is built. It costs the demo under one point of word error rate (docs/precision.md)."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a graph's weights are stored.

    kind: "blocks" or "dynamic", see `quantize`; or "half": computed in float16, its caches too, see
    `precision`. bits: 16, 8 or 4. block: inputs that share a scale, a power of two from 16 on, for "blocks".
    cache_bits: of a number in the caches, 32 or 8 (see `caches`); "half" has its own.
    """

    kind: str
    bits: int = 8
    block: int = 0
    cache_bits: int = 32


DYNAMIC = Method("dynamic")
HALF = Method("half", 16)
METHODS: dict[str, dict[str, Method]] = {
    "fp16": {"ar": HALF, "nar": HALF},
    "int8": {"ar": Method("blocks", 8, 64, 8), "nar": DYNAMIC},
    "int4": {"ar": Method("blocks", 4, 32, 8), "nar": DYNAMIC},
}
"""Per precision the graphs that change, by measurement (docs/precision.md); others run as they are stored.

A row's product must not depend on the rows beside it. Of 8 bits it does with blocks of 128 and more on
processors with AVX-512 VNNI, whose kernels then add up in another order; of 4 bits with blocks above 16 on
those without.
"""
PRECISIONS = (STORED, *METHODS)


@dataclass(frozen=True, slots=True)
class LocatedGraph:
    """A graph to be loaded: the folder of its file, and its tensors as they are there."""

    folder: Path
    spec: GraphSpec


@dataclass(frozen=True, slots=True)
class Record:
    """What stands in `build.json`. about: `description`. specs: of the built graphs. files: their sha256."""

    about: dict[str, Any]
    specs: dict[str, GraphSpec]
    files: dict[str, str]


def graph_folder(bundle: Path, precision: str, lowering: str) -> Path:
    """`ort-PRECISION`, and `ort-PRECISION-LOWERING` for another lowering than "ort"."""
    return engine_folder(bundle, f"ort-{precision}" + (f"-{lowering}" if lowering != FUSED else ""))


def takes(precision: str, lowering: str) -> bool:
    """Is a lowering built in a precision? Small weights are read by ONNX Runtime's own operators."""
    return lowering == FUSED or set(METHODS[precision].values()) == {HALF}


def check_precision(precision: str) -> None:
    """Refuse a precision that ONNX Runtime is not offered here."""
    if precision not in PRECISIONS:
        raise BackendError(f"unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}")


def description(manifest: Manifest, precision: str) -> dict[str, Any]:
    """What a build depends on: the method and the source of every graph."""
    methods = METHODS[precision]
    return {
        "precision": precision,
        "recipe": RECIPE,
        "methods": {graph: asdict(method) for graph, method in methods.items()},
        "sources": {graph: source_hash(manifest, graph) for graph in methods},
    }


def is_built(record: Record | None, manifest: Manifest, precision: str) -> bool:
    """Was a build made from this bundle, by this version?"""
    return (
        record is not None
        and record.about == description(manifest, precision)
        and set(record.specs) == set(METHODS[precision])
    )


def default_precision(bundle: Path, manifest: Manifest) -> str:
    """The precision for a CPU if none is asked for: `DEFAULT_CPU_PRECISION` if built, else as stored."""
    record = read_record(graph_folder(bundle, DEFAULT_CPU_PRECISION, manifest.lowering))
    return DEFAULT_CPU_PRECISION if is_built(record, manifest, DEFAULT_CPU_PRECISION) else STORED


def find_graphs(bundle: Path, manifest: Manifest, precision: str) -> dict[str, LocatedGraph]:
    """Where each graph of a bundle is to be loaded from, and its tensors there.

    Raises:
        BackendError: unknown precision; or no build, one of another bundle or version, or a damaged one, with
            the command that makes it.
    """
    check_precision(precision)
    found = {name: LocatedGraph(bundle, spec) for name, spec in manifest.graphs.items()}
    if precision == STORED:
        return found
    folder = graph_folder(bundle, precision, manifest.lowering)
    remedy = shlex.join(["valle2", "build", str(bundle), "--target", "ort", "--precision", precision])
    record = read_record(folder)
    if record is None:
        raise BackendError(f"{bundle} has no {precision} graphs; build them with: {remedy}")
    if not is_built(record, manifest, precision):
        raise BackendError(
            f"{folder} was built from another bundle or by another valle2; build it anew with: {remedy}"
        )
    for name, digest in record.files.items():
        try:
            check_file(folder, name, digest, check_hash=True)
        except ManifestError:
            raise BackendError(
                f"{folder / name} is damaged or absent (sha256 differs); build it anew with: {remedy}"
            ) from None
    for name, spec in record.specs.items():
        try:
            check_graph(name, spec, manifest.sizes, manifest.cache_length)
            check_graph_file(folder / spec.file, record.files)
        except (OSError, ValueError) as error:
            raise BackendError(
                f"{folder / spec.file} was not built by valle2: {error}; build it anew with: {remedy}"
            ) from None
    return found | {name: LocatedGraph(folder, spec) for name, spec in record.specs.items()}


def write_record(folder: Path, record: Record) -> None:
    """Write `build.json`."""
    values = {**record.about, "specs": record.specs, "files": record.files}
    text = json.dumps(values, indent=1, sort_keys=True, default=asdict)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> Record | None:
    """A build's record, or None where there is none that can be read."""
    try:
        return parse_record(parse_json(read_bounded(folder / RECORD, MAX_RECORD)))
    except (OSError, ValueError):
        return None


def parse_record(value: object) -> Record:
    """A record of parsed JSON; a ValueError says what is wrong with it."""
    if not isinstance(value, dict) or "files" not in value:
        raise ValueError("a record lists its files")
    files, specs = check_digests("files", value.pop("files")), parse_graphs(value.pop("specs", {}))
    outside = [name for name in files if fault_of(name) or "/" in name]
    absent = [spec.file for spec in specs.values() if spec.file not in files]
    if outside or absent:
        raise ValueError(f"a record lists its own files alone: {outside}, {absent}")
    return Record(value, specs, files)

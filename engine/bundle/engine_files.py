"""Engine files of TensorRT below `BUNDLE/engines/TARGET`: naming, storing, finding and refusing them.

A hash of all that an engine depends on names its file. A JSON record beside the file says what that was.
This module knows neither TensorRT nor devices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from valle2.engine.bundle.artifacts import build_command, build_folder, read_record, write_record
from valle2.engine.bundle.contract import LOGITS
from valle2.engine.bundle.files import sha256, write_file
from valle2.engine.bundle.profiles import Profile
from valle2.engine.bundle.schema import (
    HASH,
    MAX_AXIS,
    entries,
    listed,
    matching,
    real,
    whole,
    with_keys,
    words,
)
from valle2.engine.bundle.specs import GraphSpec, parse_graph
from valle2.engine.errors import BackendError

SUFFIX, RECORD_SUFFIX = ".engine", ".json"
DIGITS = 12
"""Hexadecimal digits of the hash in a file's name."""
MAX_WORKSPACE, MAX_BYTES, MAX_SECONDS = 2**24, 2**42, 1e7
RANGE_ENDS = ("low", "usual", "high")
"""The parts of a `profiles.Range`."""


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that an engine depends on.

    Args:
        target: "tensorrt" or "tensorrt-rtx". graph: its name in the manifest.
        source: see `artifacts.source_hash`. precision: what the graph is computed in.
        version: TensorRT's. gpu: compute capability, such as "sm89".
        workspace: MiB that a kernel may use, 0 for no limit. profiles: the ranges of its inputs.
    """

    target: str
    graph: str
    source: str
    precision: str
    version: str
    gpu: str
    workspace: int
    profiles: tuple[Profile, ...]

    def digest(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]

    def name(self) -> str:
        """File name without suffix. The readable part is for people; the digest tells engines apart."""
        return f"{self.graph}-{self.precision}-{self.gpu}-{self.digest()}"


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What the record of an engine file says.

    Args:
        key: the fields of its `EngineKey`, as JSON values. spec: the engine's tensors.
        sha256, bytes: of the file. seconds: how long the build took.
    """

    key: dict[str, Any]
    spec: GraphSpec
    sha256: str
    bytes: int
    seconds: float

    @property
    def profile_names(self) -> list[str]:
        return [profile["name"] for profile in self.key["profiles"]]


def graph_precision(spec: GraphSpec, precision: str) -> str:
    """The precision that a graph is computed in: the one asked for if it has logits, otherwise float32."""
    return precision if any(tensor.name == LOGITS for tensor in spec.outputs) else "fp32"


def store_engine(
    folder: Path, key: EngineKey, spec: GraphSpec, engine: bytes | memoryview, seconds: float
) -> EngineRecord:
    """Write an engine file, then its record.

    Raises:
        BackendError: one of them cannot be written; earlier files of these names are untouched.
    """
    file = folder / f"{key.name()}{SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(file, engine)
        record = EngineRecord(asdict(key), spec, sha256(file), len(engine), round(seconds, 2))
        write_record(file.with_suffix(RECORD_SUFFIX), asdict(record))
    except OSError as error:
        raise BackendError(
            f"{file} cannot be written ({error.strerror}); free space on the disk, or make {folder} writable"
        ) from None
    return record


def stored_engine(folder: Path, key: EngineKey) -> EngineRecord | None:
    """The record of an engine file that is there and undamaged, None if it must be built."""
    file = folder / f"{key.name()}{SUFFIX}"
    record = read_record(file.with_suffix(RECORD_SUFFIX), parse_engine_record)
    return record if record is not None and is_undamaged(file, record) else None


def find_engine(bundle: Path, wanted: dict[str, str]) -> tuple[Path, EngineRecord]:
    """The engine file of a graph that fits this bundle, TensorRT and GPU.

    Args:
        wanted: `target`, `graph`, `source`, `precision`, `version` and `gpu`, as in `EngineKey`.

    Raises:
        BackendError: there is none, it was built from or for something else, or it is damaged; each with the
            command that rebuilds it.
    """
    folder = build_folder(bundle, wanted["target"])
    command = build_command(bundle, wanted["target"], wanted["precision"], wanted["gpu"])
    found = {n: r for n, r in engine_records(folder).items() if r.key["graph"] == wanted["graph"]}
    if not found:
        raise BackendError(f"{folder} has no engine of graph {wanted['graph']}; build it with: {command}")
    name, record = min(found.items(), key=lambda item: len(differences(item[1], wanted)))
    reasons = differences(record, wanted)
    if reasons:
        raise BackendError(f"{folder / name} {' and '.join(reasons)}; build it with: {command}")
    if not is_undamaged(folder / name, record):
        raise BackendError(
            f"{folder / name} is damaged or cut off (sha256 differs); build it with: {command}"
        )
    return folder / name, record


def engine_records(folder: Path) -> dict[str, EngineRecord]:
    """Every readable record of a folder, by the name of its engine file."""
    found = {
        path: read_record(path, parse_engine_record) for path in sorted(folder.glob(f"*{RECORD_SUFFIX}"))
    }
    return {path.with_suffix(SUFFIX).name: record for path, record in found.items() if record}


def is_undamaged(file: Path, record: EngineRecord) -> bool:
    """Is the engine file there, and is it the one that the record was written for?"""
    try:
        return file.is_file() and sha256(file) == record.sha256
    except OSError:
        return False


DIFFERENCES = {
    "source": "was built from another graph than this bundle's",
    "version": "was built with {target} {found}, and this is {expected}",
    "gpu": "was built for {found}, and this GPU is {expected}",
    "precision": "has precision {found}, and {expected} was asked for",
}


def differences(record: EngineRecord, wanted: dict[str, str]) -> list[str]:
    """In which ways an engine is not the wanted one, in words."""
    return [
        text.format(target=wanted["target"], found=record.key[name], expected=wanted[name])
        for name, text in DIFFERENCES.items()
        if record.key[name] != wanted[name]
    ]


def summary(found: Iterable[EngineRecord]) -> list[dict[str, Any]]:
    """A row per engine: its graph, precision and GPU, size in MB, and seconds of building."""
    return [
        {
            "graph": record.key["graph"],
            "precision": record.key["precision"],
            "gpu": record.key["gpu"],
            "mb": round(record.bytes / 1e6, 1),
            "seconds": record.seconds,
        }
        for record in found
    ]


def parse_engine_record(value: object) -> EngineRecord:
    """A record of parsed JSON; a ValueError says what is wrong with it."""
    parts = [entry.name for entry in fields(EngineRecord)]
    found = with_keys("a record", value, parts, parts)
    return EngineRecord(
        check_key(found["key"]),
        parse_graph(found["spec"]),
        matching("sha256", found["sha256"], HASH),
        whole("bytes", found["bytes"], (0, MAX_BYTES)),
        real("seconds", found["seconds"], 0.0, MAX_SECONDS),
    )


def check_key(value: object) -> dict[str, Any]:
    """The key of a record, of parsed JSON; a ValueError says what is wrong with it."""
    parts = [entry.name for entry in fields(EngineKey)]
    found = with_keys("a key", value, parts, parts)
    for name in parts:
        if name not in ("workspace", "profiles"):
            words(f"key.{name}", found[name], 128)
    whole("key.workspace", found["workspace"], (0, MAX_WORKSPACE))
    for profile in listed("key.profiles", found["profiles"], 64):
        row = with_keys("a profile", profile, ("name", "axes"), ("name", "axes"))
        words("a profile's name", row["name"], 64)
        for axis, ends in entries("a profile's axes", row["axes"]).items():
            for end, size in with_keys(axis, ends, RANGE_ENDS, RANGE_ENDS).items():
                whole(f"{axis}.{end}", size, (1, MAX_AXIS))
    return found

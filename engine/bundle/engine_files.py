"""Engine files below `BUNDLE/engines/TARGET`: naming, recording, finding and refusing them.

An engine is named by a hash of all that it depends on, and a JSON record beside it says what that was.
It knows neither TensorRT nor devices.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from valle2.engine.bundle.contract import LOGITS
from valle2.engine.bundle.manifest import Manifest, sha256
from valle2.engine.bundle.profiles import Profile
from valle2.engine.bundle.schema import (
    ENGINES,
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
from valle2.engine.bundle.untrusted import parse_json, read_bounded
from valle2.engine.errors import BackendError

FOLDER = ENGINES
SUFFIX = ".engine"
RECORD = ".json"
DIGITS = 12
MAX_RECORD = 2**20
"""Bytes of a record; those of the paper's size have 20 kB."""
MAX_WORKSPACE, MAX_BYTES, MAX_SECONDS = 2**24, 2**42, 1e7
RANGE = ("low", "usual", "high")


@dataclass(frozen=True, slots=True)
class Key:
    """All that an engine depends on.

    graph: its name in the manifest. source: hash of the graph and its weights. version: TensorRT's.
    gpu: compute capability as "sm89". workspace: MiB that a kernel may use, 0 without a limit.
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
        """File name without suffix; the readable part is for people, the digest decides."""
        return f"{self.graph}-{self.precision}-{self.gpu}-{self.digest()}"


@dataclass(frozen=True, slots=True)
class Record:
    """What stands beside an engine file.

    key: as JSON values. spec: the engine's tensors. sha256, bytes: of the file. seconds: to build it.
    """

    key: dict[str, Any]
    spec: GraphSpec
    sha256: str
    bytes: int
    seconds: float

    @property
    def profile_names(self) -> list[str]:
        return [profile["name"] for profile in self.key["profiles"]]


def engine_folder(bundle: Path, target: str) -> Path:
    return bundle / FOLDER / target


def source_hash(manifest: Manifest, graph: str) -> str:
    """One hash of a graph's file and its weights, from the manifest's own; lowerings may share weights."""
    stems = {graph, Path(manifest.graphs[graph].file).stem}
    parts = sorted(
        (n, digest) for n, digest in manifest.files.items() if Path(n).stem in stems and "/" not in n
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def graph_precision(spec: GraphSpec, precision: str) -> str:
    """The precision a graph is computed in: what was asked for if it has logits, else float32."""
    return precision if any(tensor.name == LOGITS for tensor in spec.outputs) else "fp32"


def store(folder: Path, key: Key, spec: GraphSpec, engine: bytes | memoryview, seconds: float) -> Record:
    """Write an engine and its record aside, then put them in place, the record last."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{key.name()}{SUFFIX}"
    write_aside(file, engine)
    values = asdict(key)
    record = Record(values, spec, sha256(file), len(engine), round(seconds, 2))
    text = json.dumps(asdict(record), indent=1, sort_keys=True) + "\n"
    write_aside(file.with_suffix(RECORD), text.encode())
    return record


def write_aside(path: Path, data: bytes | memoryview) -> None:
    """Replace a file by a whole new one, or leave it as it was."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(data)
        os.replace(aside, path)
    except OSError as error:
        raise BackendError(
            f"{path} cannot be written ({error.strerror}); free space or rights first"
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def read_record(path: Path) -> Record | None:
    """A record, or None for a file that is none."""
    try:
        return parse_record(parse_json(read_bounded(path, MAX_RECORD)))
    except (OSError, ValueError):
        return None


def parse_record(value: object) -> Record:
    """A record of parsed JSON; a ValueError says what is wrong with it."""
    parts = [entry.name for entry in fields(Record)]
    found = with_keys("a record", value, parts, parts)
    return Record(
        check_key(found["key"]),
        parse_graph(found["spec"]),
        matching("sha256", found["sha256"], HASH),
        whole("bytes", found["bytes"], (0, MAX_BYTES)),
        real("seconds", found["seconds"], 0.0, MAX_SECONDS),
    )


def check_key(value: object) -> dict[str, Any]:
    """What an engine depends on, of parsed JSON."""
    parts = [entry.name for entry in fields(Key)]
    found = with_keys("a key", value, parts, parts)
    for name in parts:
        if name not in ("workspace", "profiles"):
            words(f"key.{name}", found[name], 128)
    whole("key.workspace", found["workspace"], (0, MAX_WORKSPACE))
    for profile in listed("key.profiles", found["profiles"], 64):
        row = with_keys("a profile", profile, ("name", "axes"), ("name", "axes"))
        words("a profile's name", row["name"], 64)
        for axis, ends in entries("a profile's axes", row["axes"]).items():
            for end, size in with_keys(axis, ends, RANGE, RANGE).items():
                whole(f"{axis}.{end}", size, (1, MAX_AXIS))
    return found


def records(folder: Path) -> dict[str, Record]:
    """Every readable record of a folder by the name of its engine file."""
    found = {path: read_record(path) for path in sorted(folder.glob(f"*{RECORD}"))}
    return {path.with_suffix(SUFFIX).name: record for path, record in found.items() if record}


def stored(folder: Path, key: Key) -> Record | None:
    """The record of an engine that is there and whole, None where it is to be built."""
    file = folder / f"{key.name()}{SUFFIX}"
    record = read_record(file.with_suffix(RECORD))
    kept = record is not None and is_whole(file, record)
    return record if kept else None


def is_whole(file: Path, record: Record) -> bool:
    """Is an engine file there, and the one that its record was written for?"""
    try:
        return file.is_file() and sha256(file) == record.sha256
    except OSError:
        return False


def rebuild_command(bundle: Path, target: str, precision: str, gpu: str) -> str:
    """The command line that makes an engine anew."""
    words = ["valle2", "build", str(bundle), "--target", target, "--precision", precision, "--gpu", gpu]
    return shlex.join(words)


def find_engine(bundle: Path, wanted: dict[str, str]) -> tuple[Path, Record]:
    """The engine file of a graph that fits this bundle, TensorRT and GPU.

    Args:
        wanted: `target`, `graph`, `source`, `precision`, `version` and `gpu`, as in `Key`.

    Raises:
        BackendError: there is none, it was built from or for something else, or it is damaged; each with the
            command that rebuilds it.
    """
    folder = engine_folder(bundle, wanted["target"])
    remedy = f"build it with: {rebuild_command(bundle, wanted['target'], wanted['precision'], wanted['gpu'])}"
    of_graph = {n: r for n, r in records(folder).items() if r.key["graph"] == wanted["graph"]}
    if not of_graph:
        raise BackendError(f"{folder} has no engine of graph {wanted['graph']}; {remedy}")
    name, record = min(of_graph.items(), key=lambda item: len(differences(item[1], wanted)))
    reasons = differences(record, wanted)
    if reasons:
        raise BackendError(f"{folder / name} {' and '.join(reasons)}; {remedy}")
    if not is_whole(folder / name, record):
        raise BackendError(f"{folder / name} is damaged or cut off (sha256 differs); {remedy}")
    return folder / name, record


REASONS = {
    "source": "was built from another graph than this bundle's",
    "version": "was built with {target} {found}, and this is {expected}",
    "gpu": "was built for {found}, and this GPU is {expected}",
    "precision": "has precision {found}, and {expected} was asked for",
}


def differences(record: Record, wanted: dict[str, str]) -> list[str]:
    """What keeps an engine from being the wanted one, in words."""
    return [
        text.format(target=wanted["target"], found=record.key[name], expected=wanted[name])
        for name, text in REASONS.items()
        if record.key[name] != wanted[name]
    ]


def summary(found: Iterable[Record]) -> Sequence[dict[str, Any]]:
    """Rows for a person: graph, precision, GPU, MB, seconds."""
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

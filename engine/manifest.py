"""What a model folder ("bundle") holds: reading, checking and writing `manifest.json`.

It knows file names, hashes, tensor specifications and sizes; it never opens a graph and knows no speech.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from valle2.engine.errors import BackendError, ManifestError

FORMAT = 1
FILE_NAME = "manifest.json"
REQUIRED_GRAPHS = ("ar", "nar")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph input or output. axes: a number for a fixed axis, a name for a dynamic one."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """A graph's file in the bundle and its tensors."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def graph(self) -> str:
        """Its name: "ar" of `ar.onnx`, and of `ar-portable.onnx`, the same in another lowering."""
        return PurePosixPath(self.file).stem.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Lowered:
    """Graphs of a bundle in another lowering than its first; the graphs that are not here serve both."""

    cache_length: int
    graphs: dict[str, GraphSpec]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parsed manifest.

    Args:
        name: what the bundle is called. sizes: the network's configuration. lowering: how attention is
            written. cache_length: fixed cache slots, 0 where the graph takes any length.
        graphs: by name. codec: sample rate, hop and codebooks, empty without a codec.
        text: the text front end's entry. sampling: default settings. provenance: source and licence.
        parity: the greatest differences from eager PyTorch found at export. files: sha256 by path.
        rules: what a relative of VALL-E 2 wants around its tokens (see `runtime.rules`), empty for VALL-E 2.
        others: the graphs by further lowerings.
    """

    name: str
    sizes: dict[str, int]
    lowering: str
    cache_length: int
    graphs: dict[str, GraphSpec]
    codec: dict[str, int]
    text: dict[str, Any]
    sampling: dict[str, float]
    provenance: dict[str, str]
    parity: dict[str, float]
    files: dict[str, str] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Lowered] = field(default_factory=dict)

    def lowered(self, fitting: Sequence[str], taker: str) -> Manifest:
        """The manifest with the graphs of the first lowering that fits, its own if that does.

        Args:
            fitting: the lowerings that the taker of the graphs runs.

        Raises:
            BackendError: the bundle has none of them.
        """
        if self.lowering in fitting:
            return self
        for name in fitting:
            if name in self.others:
                other = self.others[name]
                graphs = self.graphs | other.graphs
                return replace(self, lowering=name, cache_length=other.cache_length, graphs=graphs)
        held, wanted = " and ".join((self.lowering, *self.others)), " or ".join(fitting)
        raise BackendError(
            f"bundle {self.name} has the lowering {held}; {taker} takes {wanted}: "
            f"export it with valle2 export --lowering {fitting[0]}"
        )

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"


def head_width(sizes: Mapping[str, int]) -> int:
    """Numbers that a head of the AR keeps of a position, of its key or its value."""
    return sizes.get("head_width") or sizes["d_model"] // sizes["heads"]


def read_manifest(folder: Path, *, check_hashes: bool = True) -> Manifest:
    """Read and check a bundle.

    Args:
        folder: the bundle. check_hashes: compare every file with its sha256.

    Raises:
        ManifestError: no bundle there, another format, a path that leaves the folder, a missing file,
            or a file that is not the one that was exported.
    """
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ManifestError(
            f"{folder} is not a bundle ({FILE_NAME}: {reason}); expected a folder made by valle2 export"
        ) from None
    manifest = parse_manifest(text, path)
    rows = [manifest.graphs, *(other.graphs for other in manifest.others.values())]
    for name in sorted({*manifest.files, *(graph.file for graphs in rows for graph in graphs.values())}):
        check_file(folder, name, manifest.files.get(name), check_hashes)
    return manifest


def parse_manifest(text: str, path: Path) -> Manifest:
    """Turn JSON text into a Manifest, or say in one line what is wrong with it."""
    try:
        values = json.loads(text)
        found = values.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ManifestError(f"{path} is damaged: not a valle2 manifest; export the bundle again") from None
    if found != FORMAT:
        raise ManifestError(
            f"{path} has format {found!r}; this valle2 reads format {FORMAT}: "
            "upgrade valle2 or export the bundle again"
        )
    values = {"rules": {}, "others": {}} | values  # bundles of valle2 0.1 have none
    expected = {entry.name for entry in fields(Manifest)}
    if set(values) != expected:
        raise ManifestError(
            f"{path} has wrong entries {sorted(set(values) ^ expected)}; export the bundle again"
        )
    try:
        values["graphs"] = parse_graphs(values["graphs"])
        values["others"] = {
            name: Lowered(int(other["cache_length"]), parse_graphs(other["graphs"]))
            for name, other in values["others"].items()
        }
        manifest = Manifest(**values)
        check_entries(manifest)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ManifestError(f"{path} is damaged ({error}); export the bundle again") from None
    return manifest


def parse_graphs(values: Mapping[str, Any]) -> dict[str, GraphSpec]:
    return {name: parse_graph(graph) for name, graph in values.items()}


def parse_graph(values: Mapping[str, Any]) -> GraphSpec:
    """Build a GraphSpec from parsed JSON."""
    inputs, outputs = (
        tuple(TensorSpec(str(t["name"]), str(t["dtype"]), tuple(t["axes"])) for t in values[part])
        for part in ("inputs", "outputs")
    )
    return GraphSpec(str(values["file"]), inputs, outputs)


def check_entries(manifest: Manifest) -> None:
    """Check the types that the rest of the code relies on."""
    missing = [name for name in REQUIRED_GRAPHS if name not in manifest.graphs]
    if missing:
        raise ValueError(f"no graph {', '.join(missing)}")
    for entry in (manifest.sizes, manifest.codec):
        if not all(isinstance(value, int) and value >= 0 for value in entry.values()):
            raise ValueError("sizes must be whole numbers")
    if not isinstance(manifest.rules, dict):
        raise ValueError("rules must be named")
    if not all(isinstance(value, str) for value in manifest.files.values()):
        raise ValueError("hashes must be strings")


def leaves(name: str) -> bool:
    """Does a listed name lead out of its bundle?"""
    inner = PurePosixPath(name)
    return inner.is_absolute() or ".." in inner.parts


def check_file(folder: Path, name: str, digest: str | None, check_hash: bool) -> None:
    """Check one listed file: inside the folder, there, and unchanged."""
    target = (folder / name).resolve()
    if leaves(name) or not target.is_relative_to(folder.resolve()):
        raise ManifestError(f"{folder} lists {name!r}, which leaves the bundle; do not use this bundle")
    if not target.is_file():
        raise ManifestError(f"{folder} lacks the file {name}; copy the whole bundle or export it again")
    if digest is None:
        raise ManifestError(f"{folder} has no hash for {name}; export the bundle again")
    if check_hash and sha256(target) != digest:
        raise ManifestError(
            f"{folder / name} is not the file that was exported (sha256 differs); "
            "copy the bundle again or export it again"
        )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """sha256 of every file below the folder but the manifest, or of the named ones."""
    if names is None:
        found = (path for path in sorted(folder.rglob("*")) if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in found]
    return {name: sha256(folder / name) for name in names if name != FILE_NAME}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` aside, then put it in place."""
    aside = folder / f".{FILE_NAME}.{os.getpid()}"
    aside.write_text(manifest.to_json(), encoding="utf-8")
    os.replace(aside, folder / FILE_NAME)

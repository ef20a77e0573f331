"""Reads, checks and writes `manifest.json`, which says what the folder of a model (a "bundle") holds.

A bundle may come from a stranger. `parse_manifest` checks every entry once against `schema` and `signatures`,
and code that has a `Manifest` relies on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from valle2.engine.bundle.contract import AR
from valle2.engine.bundle.files import sha256, write_file
from valle2.engine.bundle.graph_file import check_graph_file
from valle2.engine.bundle.schema import (
    CACHE_LENGTH,
    LOWERINGS,
    check_codec,
    check_digests,
    check_parity,
    check_provenance,
    check_rules,
    check_sampling,
    check_sizes,
    check_text,
    entries,
    fault_of,
    leaves_bundle,
    one_of,
    whole,
    with_keys,
    words,
)
from valle2.engine.bundle.signatures import check_graphs
from valle2.engine.bundle.specs import GraphSpec, parse_graphs
from valle2.engine.bundle.untrusted import parse_json, read_bounded, shown
from valle2.engine.errors import BackendError, ManifestError

FORMAT = 1
FILE_NAME = "manifest.json"
MAX_BYTES = 4 * 2**20
"""Size of a manifest. That of the embedded model has 25 kB."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Graphs of a bundle in a further lowering. Graphs that are not here serve all lowerings."""

    cache_length: int
    graphs: dict[str, GraphSpec]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parsed manifest.

    Args:
        name: of the bundle. sizes: of the network. lowering: how attention is written.
        cache_length: positions of the KV cache, 0 if the graph takes any number.
        graphs: by name. codec: sample rate, hop and neutral codes, empty without a codec.
        text: the entry of the text front end. sampling: default settings. provenance: source and licence.
        parity: the greatest differences from eager PyTorch that the export found.
        files: sha256 by path.
        rules: the token layout of models related to VALL-E 2 (see `runtime.generation.token_layout`), empty
            for VALL-E 2.
        others: further lowerings by name.
    """

    name: str
    sizes: dict[str, int]
    lowering: str
    cache_length: int
    graphs: dict[str, GraphSpec]
    codec: dict[str, Any]
    text: dict[str, Any]
    sampling: dict[str, float]
    provenance: dict[str, str]
    parity: dict[str, float]
    files: dict[str, str] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Variant] = field(default_factory=dict)

    def in_lowering(self, lowerings: Sequence[str], runner: str) -> Manifest:
        """The manifest with the graphs of one of these lowerings: its own if possible, else the first it has.

        Args:
            lowerings: those that the runner takes, best first. runner: what runs the graphs, for the message.

        Raises:
            BackendError: the bundle has none of them.
        """
        if self.lowering in lowerings:
            return self
        for name in lowerings:
            if name in self.others:
                other = self.others[name]
                graphs = self.graphs | other.graphs
                return replace(self, lowering=name, cache_length=other.cache_length, graphs=graphs)
        held, wanted = " and ".join((self.lowering, *self.others)), " or ".join(lowerings)
        raise BackendError(
            f"bundle {self.name} has the lowering {held}; {runner} takes {wanted}: "
            f"export it with valle2 export --lowering {lowerings[0]}"
        )

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path, *, check_hashes: bool = True) -> Manifest:
    """Read and check a bundle.

    Args:
        folder: the bundle. check_hashes: compare every file with its sha256, and refuse graphs that read
            files without one.

    Raises:
        ManifestError: there is no bundle, it has another format, or an entry is not as documented. A file is
            missing, lies outside the folder, or is not the one that was exported. A graph reads files without
            a hash.
    """
    manifest = parse_manifest(read_text(folder), folder / FILE_NAME)
    rows = [manifest.graphs, *(other.graphs for other in manifest.others.values())]
    graphs = {graph.file for named in rows for graph in named.values()}
    for name in sorted({*manifest.files, *graphs}):
        check_file(folder, name, manifest.files.get(name), check_hashes)
    for name in sorted(graphs) if check_hashes else ():
        try:
            check_graph_file(folder / name, manifest.files)
        except (OSError, ValueError) as error:
            raise ManifestError(f"{folder / name} {error}; do not use this bundle") from None
    return manifest


def read_text(folder: Path) -> str:
    """The text of a bundle's manifest.

    Raises:
        ManifestError: there is none, or it is not a plain UTF-8 file of a bounded size inside the folder.
    """
    path = folder / FILE_NAME
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError("a link that leaves the bundle")
        return read_bounded(path, MAX_BYTES).decode("utf-8")
    except (OSError, RuntimeError, ValueError) as error:
        raise ManifestError(
            f"{folder} is not a bundle ({FILE_NAME}: {reason_of(error)}); "
            "expected a folder made by valle2 export"
        ) from None


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__


def parse_manifest(text: str | bytes, path: Path) -> Manifest:
    """Turn JSON text into a Manifest.

    Raises:
        ManifestError: see `read_manifest`.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        values = parse_json(data)
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError("not a valle2 manifest")
    except ValueError as error:
        raise ManifestError(f"{path} is damaged: {error}; export the bundle again") from None
    found = values.pop("format")
    if found != FORMAT or type(found) is not int:
        raise ManifestError(
            f"{path} has format {shown(found)}; this valle2 reads format {FORMAT}: "
            "upgrade valle2 or export the bundle again"
        )
    values = {"rules": {}, "others": {}} | values  # bundles of valle2 0.1 lack them
    expected = {entry.name for entry in fields(Manifest)}
    if set(values) != expected:
        raise ManifestError(
            f"{path} has wrong entries {shown(sorted(set(values) ^ expected))}; export the bundle again"
        )
    try:
        check_names(values["files"], path)
        return check_entries(values)
    except ManifestError:
        raise
    except ValueError as error:
        raise ManifestError(f"{path} is damaged ({error}); export the bundle again") from None


def check_names(files: object, path: Path) -> None:
    """Refuse a list of files with a name that is not a plain file of the bundle."""
    for name in check_digests("files", files):
        fault = "is the manifest itself" if name == FILE_NAME else fault_of(name)
        if fault:
            raise ManifestError(f"{path} lists {shown(name)}, which {fault}; do not use this bundle")


def check_entries(values: dict[str, Any]) -> Manifest:
    """Check parsed entries; a ValueError says what is wrong with one."""
    sizes = check_sizes(values["sizes"])
    lowering = one_of("lowering", values["lowering"], LOWERINGS)
    cache_length = whole("cache_length", values["cache_length"], CACHE_LENGTH)
    graphs = parse_graphs(values["graphs"])
    check_graphs(graphs, sizes, cache_length)
    others = {name: parse_variant(name, other) for name, other in entries("others", values["others"]).items()}
    for name, other in others.items():
        if name == lowering or AR not in other.graphs:
            raise ValueError(f"others.{name} is the first lowering again, or has no graph {AR}")
        check_graphs(graphs | other.graphs, sizes, other.cache_length)
    return Manifest(
        name=words("name", values["name"], 128),
        sizes=sizes,
        lowering=lowering,
        cache_length=cache_length,
        graphs=graphs,
        codec=check_codec(values["codec"]),
        text=check_text(values["text"]),
        sampling=check_sampling(values["sampling"]),
        provenance=check_provenance(values["provenance"]),
        parity=check_parity(values["parity"]),
        files=values["files"],
        rules=check_rules(values["rules"]),
        others=others,
    )


def parse_variant(name: str, value: object) -> Variant:
    """The graphs of a further lowering."""
    one_of("a lowering in others", name, LOWERINGS)
    parts = ("cache_length", "graphs")
    found = with_keys(f"others.{name}", value, parts, parts)
    length = whole(f"others.{name}.cache_length", found["cache_length"], CACHE_LENGTH)
    return Variant(length, parse_graphs(found["graphs"]))


def check_file(folder: Path, name: str, digest: str | None, check_hash: bool) -> None:
    """Check one listed file: it lies in the folder and is unchanged."""
    try:
        target = (folder / name).resolve()
        outside = leaves_bundle(name) or not target.is_relative_to(folder.resolve())
        there = target.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ManifestError(f"{folder} lists {shown(name)}: {reason_of(error)}; export it again") from None
    if outside:
        raise ManifestError(f"{folder} lists {shown(name)}, which leaves the bundle; do not use this bundle")
    if not there:
        raise ManifestError(f"{folder} lacks the file {name}; copy the whole bundle or export it again")
    if digest is None:
        raise ManifestError(f"{folder} has no hash for {name}; export the bundle again")
    if check_hash and hash_of(target) != digest:
        raise ManifestError(
            f"{folder / name} is not the file that was exported (sha256 differs); "
            "copy the bundle again or export it again"
        )


def hash_of(path: Path) -> str:
    """Hex digest of a file of a bundle.

    Raises:
        ManifestError: it cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}); check its rights") from None


def hash_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """sha256 of every file below the folder but the manifest, or of the named ones."""
    if names is None:
        found = (path for path in sorted(folder.rglob("*")) if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in found]
    return {name: sha256(folder / name) for name in names if name != FILE_NAME}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, whole or not at all.

    Raises:
        ManifestError: `read_manifest` would refuse it; nothing is written.
        OSError: it cannot be written.
    """
    text = manifest.to_json()
    parse_manifest(text, folder / FILE_NAME)
    write_file(folder / FILE_NAME, text.encode())

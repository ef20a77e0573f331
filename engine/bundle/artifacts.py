"""What `valle2 build` writes below `BUNDLE/engines/TARGET`: folders, JSON records, what a build depends on.

`engine_files` holds the record of a TensorRT engine file, `precisions` that of graphs for ONNX Runtime.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from valle2.engine.bundle.contract import BUILDS_FOLDER
from valle2.engine.bundle.files import write_file
from valle2.engine.bundle.manifest import Manifest
from valle2.engine.bundle.untrusted import parse_json, read_bounded

MAX_RECORD = 2**20
"""Bytes of a record. Those of the paper's size have 20 kB."""

Record = TypeVar("Record")


def build_folder(bundle: Path, target: str) -> Path:
    """Where the builds of a target lie."""
    return bundle / BUILDS_FOLDER / target


def build_command(bundle: Path, target: str, precision: str, gpu: str = "") -> str:
    """The command line that makes a build, for error messages."""
    words = ["valle2", "build", str(bundle), "--target", target, "--precision", precision]
    return shlex.join([*words, "--gpu", gpu] if gpu else words)


def source_hash(manifest: Manifest, graph: str) -> str:
    """One hash over the files of a graph: its own and its weights, which lowerings may share.

    It is computed from the hashes in the manifest and reads no file.
    """
    stems = {graph, Path(manifest.graphs[graph].file).stem}
    parts = sorted(
        (name, digest)
        for name, digest in manifest.files.items()
        if Path(name).stem in stems and "/" not in name
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_record(path: Path, values: dict[str, Any]) -> None:
    """Write a record as JSON; dataclasses in it become objects.

    Raises:
        OSError: it cannot be written.
    """
    write_file(path, (json.dumps(values, indent=1, sort_keys=True, default=asdict) + "\n").encode())


def read_record(path: Path, parse: Callable[[object], Record]) -> Record | None:
    """A record, or None where there is none of a bounded size that can be read.

    Args:
        parse: turns parsed JSON into a record; raises ValueError for anything else.
    """
    try:
        return parse(parse_json(read_bounded(path, MAX_RECORD)))
    except (OSError, ValueError):
        return None

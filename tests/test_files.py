"""The repository's files: no larger file is stored twice."""

from __future__ import annotations

import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALLEST = 10_000
"""Bytes. Smaller files may be equal: empty `py.typed` files are."""
EQUAL = {
    # Each lowering has a weights file for the tensors that only it has. In these two lowerings the exporter
    # writes the same constant, the positions of the cache.
    frozenset({"runtime/models/demo/ar-portable.weights", "runtime/models/demo/ar-primitive.weights"}),
}
"""Sets of files that may be equal, with the reason."""


def tracked() -> list[str]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the list of files comes from git: {error}")
    return [name for name in listed.stdout.decode().split("\0") if name]


def test_no_file_is_stored_twice() -> None:
    groups: dict[str, set[str]] = {}
    for name in tracked():
        path = ROOT / name
        if path.is_file() and path.stat().st_size > SMALLEST:
            groups.setdefault(sha256(path.read_bytes()).hexdigest(), set()).add(name)
    twice = {frozenset(names) for names in groups.values() if len(names) > 1}
    assert twice == EQUAL, f"stored twice: {[sorted(names) for names in twice - EQUAL]}"

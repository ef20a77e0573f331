"""The name of an engine file depends on everything that the engine depends on; records are read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from valle2.engine import BackendError, GraphSpec, TensorSpec
from valle2.engine.bundle.artifacts import MAX_RECORD, read_record
from valle2.engine.bundle.engine_files import (
    EngineKey,
    engine_records,
    find_engine,
    parse_engine_record,
    store_engine,
    stored_engine,
)
from valle2.engine.bundle.profiles import Profile, Range

PROFILE = Profile("step", {"batch": Range(1, 1, 2)})
KEY = EngineKey("tensorrt", "ar", "0", "fp16", "10.15", "sm89", 0, (PROFILE,))
SPEC = GraphSpec("ar.onnx", (TensorSpec("text", "int64", ("batch", "new")),), ())
CHANGES: dict[str, Any] = {
    "target": "tensorrt-rtx",
    "graph": "nar",
    "source": "1",
    "precision": "bf16",
    "version": "10.16",
    "gpu": "sm120",
    "workspace": 1,
    "profiles": (Profile("step", {"batch": Range(1, 2, 2)}),),
}


@pytest.mark.parametrize("name", EngineKey.__slots__)
def test_the_name_changes_with_every_part_of_the_key(name: str) -> None:
    assert replace(KEY, **{name: CHANGES[name]}).digest() != KEY.digest()


def test_a_stored_engine_is_found_until_it_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "engines" / "tensorrt"
    record = store_engine(folder, KEY, SPEC, b"engine", 1.234)
    assert record.spec == SPEC and (record.bytes, record.seconds) == (6, 1.23)
    assert engine_records(folder) == {f"{KEY.name()}.engine": stored_engine(folder, KEY)}
    wanted = {name: str(getattr(KEY, name)) for name in EngineKey.__slots__[:6]}
    path, found = find_engine(tmp_path, wanted)
    assert path.read_bytes() == b"engine" and found == stored_engine(folder, KEY)
    path.write_bytes(b"engine?")
    assert stored_engine(folder, KEY) is None
    with pytest.raises(BackendError, match="is damaged or cut off"):
        find_engine(tmp_path, wanted)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "engines").write_bytes(b"")
    with pytest.raises(BackendError, match="cannot be written"):
        store_engine(tmp_path / "engines" / "tensorrt", KEY, SPEC, b"engine", 0)


def test_a_record_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    store_engine(tmp_path, KEY, SPEC, b"engine", 0)
    (path,) = tmp_path.glob("*.json")
    assert read_record(path, parse_engine_record) is not None
    path.write_bytes(path.read_bytes().ljust(MAX_RECORD + 1))
    assert read_record(path, parse_engine_record) is None

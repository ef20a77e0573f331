"""`valle2 export` of unreadable files: one line, exit status 1, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.importers.peers import Lifeiteng
from tests.fuzz import archives, files, pickles
from valle2.runtime.cli.main import main


class Bomb:
    """Ends the process when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (3,)


def saved(path: Path, value: Any) -> None:
    torch.save(value, path)


def truncated(path: Path) -> None:
    torch.save(Lifeiteng().container(), path)
    os.truncate(path, path.stat().st_size // 2)


def behind(path: Path) -> None:
    """An archive, then the end record of an empty one."""
    saved(path, Lifeiteng().container())
    path.write_bytes(path.read_bytes() + archives.EMPTY_END)


def twofold(path: Path) -> None:
    """A harmless archive and a bomb in one file, each with its directory."""
    ours, theirs = files.saved(Lifeiteng().container()), files.saved({"x": Bomb()})
    path.write_bytes(archives.two_directories(archives.parts_of(ours), archives.parts_of(theirs)))


def bottomless(path: Path) -> None:
    """A memo of two billion entries."""
    path.write_bytes(pickles.BOMBS[0])


def changed(**entries: Any) -> Callable[[Path], None]:
    """lifeiteng's container with changed entries. None removes an entry."""
    container = {**Lifeiteng().container(), **entries}
    return lambda path: saved(path, {name: value for name, value in container.items() if value is not None})


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a folder": (Path.mkdir, "is a folder without model.safetensors"),
    "an empty file": (Path.touch, "is empty (0 bytes)"),
    "nothing": (lambda path: None, "no checkpoint there"),
    "half a file": (truncated, "copy or download it again"),
    "a bomb": (lambda path: saved(path, {"model": {"x": Bomb()}}), "do not trust this file"),
    "bytes behind its end": (behind, "is damaged"),
    "two directories": (twofold, "is damaged"),
    "a memo of two billion": (bottomless, "not a readable"),
    "VALL-F": (changed(model_name="VALL-F"), "another kind of network, 'VALL-F'"),
    "GPT-2": (lambda path: saved(path, {"wte.weight": torch.zeros(9, 4)}), "no checkpoint that valle2 knows"),
    "no heads": (changed(nhead=None), "pass --heads"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_line_and_nothing_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD[name]
    (tmp_path / "here").mkdir()
    make(tmp_path / "here" / "model.pt")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", str(tmp_path / "here/model.pt"), "-o", str(tmp_path / "b"), "--no-codec"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("valle2: ") and message in lines[0]
    assert sorted(tmp_path.rglob("*")) == before

"""Pickles are read without running what they hold; damaged files are one clear line."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.peers import Lifeiteng
from valle2.export import CheckpointError
from valle2.export.importing import read_any
from valle2.export.unpickle import read_container


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["raw", "archive", "old"])
def test_a_pickle_bomb_is_named_and_not_run(form: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    container = {"model": {"weight": torch.zeros(2)}, "extra": Bomb(mark)}
    if form == "raw":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save(container, path, _use_new_zipfile_serialization=form == "archive")
    with pytest.raises(CheckpointError, match=r"asks to run (posix|nt)\.mkdir"):
        read_container(path)
    assert not mark.exists()


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save(Lifeiteng().container(), whole)
    data = whole.read_bytes()
    path = tmp_path / "cut.pt"
    for share in (0.001, 0.5, 0.999):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match=r"not a readable|damaged") as caught:
            read_any([path])
        assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    for name, message in ((".", "folder"), ("empty.pt", "0 bytes"), ("absent.pt", "no checkpoint there")):
        with pytest.raises(CheckpointError, match=message):
            read_any([tmp_path / name])
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a readable"):
        read_any([tmp_path / "text.pt"])


def test_an_archive_that_would_inflate_or_run_is_refused(tmp_path: Path) -> None:
    packed, script = tmp_path / "packed.pt", tmp_path / "script.pt"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(10**6))
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
    for path, message in ((packed, "packed archive"), (script, "TorchScript")):
        with pytest.raises(CheckpointError, match=message):
            read_container(path)


def test_a_container_that_is_no_dictionary(tmp_path: Path) -> None:
    for value in ([1, 2], torch.zeros(3)):
        torch.save(value, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="expected a dictionary"):
            read_container(tmp_path / "model.pt")


def test_the_older_format_is_read_too(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert read_container(tmp_path / "m.pt")["weight"].tolist() == [0, 1, 2]

"""Files and folders appear whole or not at all, and a failure leaves what was there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from valle2.engine.bundle.files import replacing_file, replacing_folder, sha256, write_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "kept").write_bytes(b"earlier")
    return path


def test_a_file_is_replaced_when_the_block_ends(file: Path) -> None:
    with replacing_file(file) as part:
        part.write_bytes(b"later")
        assert file.read_bytes() == b"earlier" and part.parent == file.parent
    assert file.read_bytes() == b"later" and list(file.parent.iterdir()) == [file]


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    write_file(tmp_path / "made", memoryview(b"data"))
    assert (tmp_path / "made").read_bytes() == b"data"
    assert (tmp_path / "made").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_a_failure_while_writing_leaves_the_file(file: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), replacing_file(file) as part:
        part.write_bytes(b"half")
        raise error
    assert file.read_bytes() == b"earlier" and list(file.parent.iterdir()) == [file]


def test_a_failed_rename_leaves_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(file, b"later")
    assert file.read_bytes() == b"earlier" and list(file.parent.iterdir()) == [file]


def test_a_block_that_writes_nothing_is_an_error(file: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing_file(file):
        pass
    assert file.read_bytes() == b"earlier"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    write_file(tmp_path / ("x" * 255), b"data")
    with replacing_folder(tmp_path / ("y" * 255)):
        pass


def test_writers_of_one_file_do_not_mix(file: Path) -> None:
    contents = [bytes([number]) * 2**20 for number in range(8)]
    writers = [threading.Thread(target=write_file, args=(file, content)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert file.read_bytes() in contents and list(file.parent.iterdir()) == [file]


def test_a_link_is_replaced_and_its_file_is_not_written(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    write_file(link, b"later")
    assert not link.is_symlink() and file.read_bytes() == b"earlier"


def test_a_folder_is_replaced_when_the_block_ends(folder: Path) -> None:
    with replacing_folder(folder) as part:
        (part / "new").write_bytes(b"later")
        assert [path.name for path in folder.iterdir()] == ["kept"]
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_while_writing_leaves_the_folder(folder: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), replacing_folder(folder) as part:
        (part / "half").write_bytes(b"")
        raise error
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failed_rename_brings_the_folder_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    rename, calls = Path.rename, 0

    def fail_once(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="Permission denied"), replacing_folder(folder):
        pass
    assert (folder / "kept").read_bytes() == b"earlier"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_link_to_a_folder_is_replaced_and_the_folder_stays(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    with replacing_folder(link):
        pass
    assert not link.is_symlink() and link.is_dir() and (folder / "kept").exists()
    assert sorted(tmp_path.iterdir()) == [folder, link]


def test_sha256(file: Path) -> None:
    assert sha256(file) == "2a51d3547c23a8de50f3e23285a0df356627ef64c300087d3b27173f08ded2a0"

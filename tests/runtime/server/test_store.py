"""Uploaded voices in a folder that two servers share, and names that the store refuses."""

from __future__ import annotations

import errno
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from safetensors import SafetensorError

from tests.runtime.server.conftest import serving
from valle2.runtime import Prompt, Valle2
from valle2.runtime.errors import PromptError, SettingsError
from valle2.runtime.server import store
from valle2.runtime.server.store import (
    DiskFullError,
    ModelVoiceError,
    StorageError,
    StoreFullError,
    UnknownVoiceError,
    VoiceFileError,
    VoiceStore,
    VoiceTakenError,
)
from valle2.runtime.server.worker import Worker


def test_a_server_sees_what_another_deletes_and_replaces(tts: Valle2, voice: Prompt, tmp_path: Path) -> None:
    one, other = VoiceStore(tmp_path), VoiceStore(tmp_path)
    one.add(replace(voice, name="mine"))
    assert other.find(tts, "mine").transcript == voice.transcript
    one.remove(tts, "mine")
    with pytest.raises(UnknownVoiceError, match="unknown voice 'mine'"):
        other.find(tts, "mine")
    one.add(replace(voice, name="mine", transcript="a fox"))
    assert other.find(tts, "mine").transcript == "a fox"


def test_names_that_cannot_be_added_or_deleted(
    tts: Valle2, voice: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voices = VoiceStore(tmp_path)
    voices.add(replace(voice, name="mine"))
    for name in ("mine", tts.default_voice()):
        with pytest.raises(VoiceTakenError, match=f"voice '{name}' exists already"):
            voices.check_new(tts, name)
    with pytest.raises(PromptError, match="expected 1 to 64"):
        voices.check_new(tts, "../mine")
    voices.check_new(tts, "yours")
    monkeypatch.setattr(store, "MAX_VOICES", 1)
    with pytest.raises(StoreFullError, match="at most 1 voices"):
        voices.check_new(tts, "yours")
    with pytest.raises(ModelVoiceError, match="belongs to the model"):
        voices.remove(tts, tts.default_voice())
    with pytest.raises(UnknownVoiceError, match="uploaded voices are: mine"):
        voices.remove(tts, "yours")
    assert voices.names() == ["mine"]


def test_one_bad_file_does_not_break_the_list(
    tts: Valle2, voice: Prompt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    voices = VoiceStore(tmp_path)
    voices.add(replace(voice, name="good"))
    (tmp_path / "bad.safetensors").write_bytes(b"no voice")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [found["name"] for found in voices.listing(tts)] == [*tts.voices(), "good"]
    assert len(caplog.records) == 4  # the link's file has gone
    with pytest.raises(VoiceFileError, match="damaged") as caught:
        voices.find(tts, "bad")
    assert str(tmp_path) not in str(caught.value)
    voices.remove(tts, "bad")
    assert "bad" not in voices.names()


def test_a_voice_is_added_once(voice: Prompt, tmp_path: Path) -> None:
    def add(index: int) -> str:
        try:
            VoiceStore(tmp_path).add(replace(voice, name="mine", transcript=f"a fox {index}"))
        except VoiceTakenError:
            return "taken"
        return "added"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(add, range(8))) == ["added"] + 7 * ["taken"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]


def test_a_voice_is_added_once_without_hard_links(
    voice: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(part: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", link)
    test_a_voice_is_added_once(voice, tmp_path)


def test_parts_of_a_crash_are_removed_and_nothing_else(tmp_path: Path) -> None:
    old, new = tmp_path / f".{'0' * 16}.part", tmp_path / f".{'1' * 16}.part"
    others = [tmp_path / name for name in (".mine.part", "mine.part", f".{'0' * 16}", "x.safetensors")]
    for path in (old, new, *others):
        path.touch()
    for path in (old, *others):
        os.utime(path, (time.time() - 7200,) * 2)
    VoiceStore(tmp_path).prepare()
    assert {path.name for path in tmp_path.iterdir()} == {new.name, *(path.name for path in others)}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inner", tmp_path / "a\0b"):
        with pytest.raises(SettingsError, match="--voices-dir"):
            VoiceStore(folder).prepare()


def test_a_folder_that_vanishes(tts: Valle2, voice: Prompt, tmp_path: Path) -> None:
    voices = VoiceStore(tmp_path / "voices")
    voices.prepare()
    (tmp_path / "voices").rmdir()
    assert [found["name"] for found in voices.listing(tts)] == tts.voices()
    with pytest.raises(UnknownVoiceError):
        voices.find(tts, "mine")
    voices.add(replace(voice, name="mine"))
    assert voices.names() == ["mine"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFullError),
        (SafetensorError("IoError(Os { code: 28, kind: StorageFull })"), DiskFullError),
        (PermissionError(errno.EACCES, "Permission denied", "/secret"), StorageError),
    ],
)
def test_a_disk_that_takes_nothing(
    voice: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    def fails(part: Path, prompt: Prompt) -> None:
        part.touch()
        raise error

    monkeypatch.setattr(store, "store_prompt", fails)
    with pytest.raises(kind) as caught:
        VoiceStore(tmp_path).add(replace(voice, name="mine"))
    assert "/" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["con", "nul", "lpt1", ".", "..", "", "Amber", "\u00e4", "a" * 65, "a/b", "a\n", "-a"]
)
def test_names_that_no_voice_has(tts: Valle2, tmp_path: Path, name: str) -> None:
    with pytest.raises(PromptError, match="voice name"):
        VoiceStore(tmp_path).check_new(tts, name)


def test_a_voice_deleted_meanwhile(
    tts: Valle2, voice: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voices = VoiceStore(tmp_path)
    monkeypatch.setattr(VoiceStore, "names", lambda self: ["mine"])
    for act in (voices.find, voices.remove):
        with pytest.raises(UnknownVoiceError):
            act(tts, "mine")


def test_lists_are_read_one_after_the_other(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In many threads at once they would keep the interpreter from the engine."""
    reading, most = list[int](), list[int]()

    def listing(self: VoiceStore, tts: Valle2) -> list[object]:
        reading.append(1)
        most.append(len(reading))
        time.sleep(0.02)
        reading.pop()
        return []

    monkeypatch.setattr(VoiceStore, "listing", listing)
    with serving(worker, tmp_path) as address, ThreadPoolExecutor(8) as pool:
        paths = ["/v1/voices", "/v1/audio/voices"] * 6
        answers = list(pool.map(lambda path: urlopen(address + path).read(), paths))
    assert answers == [b'{"voices":[]}'] * 12 and most == [1] * 12

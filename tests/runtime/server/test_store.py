"""Uploaded voices in a folder that two servers share, and names that the store refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from valle2.runtime import Prompt, Valle2
from valle2.runtime.errors import PromptError
from valle2.runtime.server import store
from valle2.runtime.server.store import (
    ModelVoiceError,
    StoreFullError,
    UnknownVoiceError,
    VoiceStore,
    VoiceTakenError,
)


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

"""Uploaded voices in a folder that two servers share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from valle2.runtime import Prompt, Valle2
from valle2.runtime.server.http.errors import HttpError
from valle2.runtime.server.store import VoiceStore


def test_what_one_server_deletes_or_replaces_the_other_no_longer_speaks_with(
    tts: Valle2, voice: Prompt, tmp_path: Path
) -> None:
    one, other = VoiceStore(tmp_path), VoiceStore(tmp_path)
    one.add(replace(voice, name="mine"))
    assert other.find(tts, "mine").transcript == voice.transcript
    one.remove(tts, "mine")
    with pytest.raises(HttpError, match="unknown voice 'mine'"):
        other.find(tts, "mine")
    one.add(replace(voice, name="mine", transcript="a fox"))
    assert other.find(tts, "mine").transcript == "a fox"

"""Presets of VALL-E X, and what is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import shared
from valle2.runtime.errors import PromptError
from valle2.runtime.presets import read_preset


def test_a_preset_names_its_language() -> None:
    preset = read_preset(shared("fixtures/encodec-codes/librispeech_1.npz"))
    assert preset.codes.shape == (225, 8) and preset.language == "en"
    assert preset.language_ids.tolist() == [0] * len(preset.text_ids) == [0] * 58


def test_what_is_no_preset(tmp_path: Path) -> None:
    path = tmp_path / "voice.npz"
    np.savez(path, audio_tokens=np.zeros((1, 4, 8), int), text_tokens=np.zeros((1, 3), int), lang_code=7)
    with pytest.raises(PromptError, match="lang_code 7"):
        read_preset(path)
    np.savez(path, audio_tokens=np.zeros((4, 8), int), text_tokens=np.zeros((1, 3), int), lang_code=0)
    with pytest.raises(PromptError, match="expected"):
        read_preset(path)
    path.write_bytes(b"no archive")
    for bad in (path, tmp_path / "absent.npz"):
        with pytest.raises(PromptError, match="not a VALL-E X preset"):
            read_preset(bad)

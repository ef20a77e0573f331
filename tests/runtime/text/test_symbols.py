"""Phones in, ids out, and the presets of VALL-E X."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import shared
from valle2.runtime.errors import PromptError, TextError
from valle2.runtime.presets import read_preset
from valle2.runtime.text.symbols import amphion_table, ids_of, lifeiteng_table, vallex_ids


def test_vall_e_x_characters() -> None:
    assert vallex_ids("!aˈ↓é").tolist() == [5, 18, 62, 69, 0]
    assert vallex_ids("`a_").tolist() == [17, 18, 16]


def test_the_numbers_of_a_symbol_file_are_not_the_ids(tmp_path: Path) -> None:
    path = tmp_path / "unique_text_tokens.k2symbols"
    path.write_text("<eps> 0\n_ 1\na 2\nb 3\n! 4\nʃ 5\n", encoding="utf-8")
    table = lifeiteng_table(path)
    assert ids_of("!_abʃ", table).tolist() == [3, 5, 6, 7, 8] and table["<eps>"] == 4
    with pytest.raises(TextError, match="unknown symbols"):
        ids_of("abc", table)
    path.write_text("hello")
    for bad in (path, tmp_path / "absent"):
        with pytest.raises(TextError, match="not a symbol table"):
            lifeiteng_table(bad)


def test_amphions_table_and_its_test_sentence() -> None:
    table = amphion_table()
    assert len(table) == 220 and table["|"] == 219 and table["ZE"] == 214 and table["AO1"] == 40
    phones = "<BOS> DHB IH1I SE | IH1B ZE | AH0B | TB EH1I SI TE | SB EH1I NI TI AH0I NI SE <EOS>"
    expected = "5 73 118 175 219 116 214 219 28 219 180 82 179 181 219 174 82 149 185 30 149 175 6"
    assert ids_of(phones.split(), table).tolist() == [int(number) for number in expected.split()]


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

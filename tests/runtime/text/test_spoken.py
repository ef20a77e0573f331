"""Text of the other families: packages where they are installed, doubles where they fetch data."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from valle2.runtime.errors import TextError
from valle2.runtime.text.spoken import amphion_symbols, amphion_text, supervoice_text, vallex_text
from valle2.runtime.text.symbols import amphion_table, ids_of, vallex_ids

SENTENCE = "DH IH1 S | IH1 Z | AH0 | T EH1 S T | S EH1 N T AH0 N S"
IDS = "5 73 118 175 219 116 214 219 28 219 180 82 179 181 219 174 82 149 185 30 149 175 6"


def test_amphions_phones_get_their_places() -> None:
    assert " ".join(map(str, ids_of(amphion_symbols(SENTENCE), amphion_table()))) == IDS


def test_amphions_text(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def phones(text: str) -> list[str]:
        heard.append(text)
        return [" " if phone == "|" else phone for phone in SENTENCE.split()]

    monkeypatch.setitem(sys.modules, "g2p_en", SimpleNamespace(G2p=lambda: phones))
    assert " ".join(map(str, amphion_text("This is a “test”-sentence!"))) == IDS
    assert heard == ["this is a test sentence"]


def test_vall_e_xs_english(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"hello, little girl": "hɛˈloʊ, ˈlɪtəl gərl", "church judge!": "ʧərʧ ʤəʤ!", "zyx": "zyx*"}
    monkeypatch.setitem(sys.modules, "eng_to_ipa", SimpleNamespace(convert=said.__getitem__))
    assert vallex_text("Hello, little girl").tolist() == vallex_ids("hɛˈloʊ,_ˈlɪtəɫ_gəɹɫ.").tolist()
    assert vallex_text("Church judge!").tolist() == vallex_ids("tʃəɹtʃ_dʒədʒ!").tolist()
    with pytest.raises(TextError, match="no pronunciation of zyx"):
        vallex_text("zyx")
    with pytest.raises(TextError, match="nothing that can be spoken"):
        vallex_text("...")


def test_supervoices_text(tmp_path: Path) -> None:
    package = pytest.importorskip("sentencepiece")
    model, words = io.BytesIO(), ["what time is it, Steve?", "it is time", "what is it?"] * 20
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, vocab_size=40, hard_vocab_limit=False,
        minloglevel=2, add_dummy_prefix=False,
    )  # fmt: skip
    path = tmp_path / "tokenizer_text.model"
    path.write_bytes(model.getvalue())
    expected = package.SentencePieceProcessor(model_proto=model.getvalue()).encode("what time is it, Steve?")
    assert supervoice_text(" what-time is it， Steve？ ", path).tolist() == expected
    with pytest.raises(TextError, match="nothing that can be spoken"):
        supervoice_text(" ", path)
    with pytest.raises(TextError, match="no SentencePiece model there"):
        supervoice_text("a", tmp_path / "absent")
    path.write_bytes(b"junk")
    with pytest.raises(TextError, match="not a SentencePiece model"):
        supervoice_text("a", path)


@pytest.mark.parametrize(("speak", "package"), [(amphion_text, "g2p_en"), (vallex_text, "eng_to_ipa")])
def test_an_absent_package_names_the_extra(
    speak: Callable[[str], object], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TextError, match=r"pip install 'valle2\[text\]'"):
        speak("hello")

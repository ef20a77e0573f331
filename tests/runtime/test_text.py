"""Normalisation, pronunciation, sentences, and what cannot be spoken."""

from __future__ import annotations

from pathlib import Path

import pytest

from valle2.engine import ManifestError
from valle2.runtime import Valle2
from valle2.runtime.errors import TextError
from valle2.runtime.normalise import normalise
from valle2.runtime.phonemes import Pronouncer
from valle2.runtime.text import load_front_end, sentences

LEXICON = {
    "cat": "kˈæt",
    "dog": "dˈɔɡ",
    "make": "mˈAk",
    "stop": "stˈɑp",
    "happy": "hˈæpi",
    "apple": "ˈæpᵊl",
    "the": "ði",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid $3.50.", "doctor Smith paid three dollars and fifty cents."),
        ("1,250 people", "one thousand two hundred fifty people"),
        ("in 1999 and 2005", "in nineteen ninety nine and two thousand five"),
        ("the 21st of May", "the twenty first of May"),
        ("at 10:05 or 7:00", "at ten oh five or seven o'clock"),
        ("3.14 and 50%", "three point one four and fifty percent"),
        ("pages 10-20", "pages ten to twenty"),
        ("-5 degrees", "minus five degrees"),
        ("the BBC", "the B B C"),
        ("café — naïve", "cafe, naive"),
        ("it’s “fine”…", "it's fine."),
        ("smile \U0001f600 now", "smile now"),
        ("a\x00b\tc\nd", "a b c d"),
        ("你好", ""),
        ("!!!", "!!!"),
        ("£1", "one pound"),
        ("0", "zero"),
        ("1000000", "one million"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat", "ðə kˈæt"),
        ("the apple.", "ði ˈæpᵊl."),
        ("cats, dogs", "kˈæts, dˈɔɡz"),
        ("making", "mˈAkɪŋ"),
        ("stopped", "stˈɑpt"),
        ("catdog", "kˈætdˌɔɡ"),
        ("cat's", "kˈæts"),
        ("zib", "zˈɪb"),
    ],
)
def test_pronounce(text: str, expected: str) -> None:
    assert Pronouncer(LEXICON)(text) == expected


def test_sentences() -> None:
    assert sentences("Mr. Fox ran. Did he? Yes!\n\nNew line") == [
        "Mr. Fox ran.",
        "Did he?",
        "Yes!",
        "New line",
    ]
    assert sentences("... !! \U0001f600") == []


def test_split_keeps_every_word_and_the_limit(tts: Valle2) -> None:
    assert tts.front is not None
    text = "hello there fox, " * 40
    pieces = tts.front.split(text, 30)
    assert " ".join(pieces).split() == text.split()
    assert all(len(tts.front.encode(piece)) <= 30 for piece in pieces)


def test_ten_thousand_characters(tts: Valle2) -> None:
    assert tts.front is not None
    text = ("The fox said hello there. " * 500)[:10_000]
    assert len(tts.front.split(text, 60)) == pytest.approx(385, abs=2)


@pytest.mark.parametrize("text", ["", "   ", "...", "?!", "\U0001f600\U0001f680", "你好世界", "\x00\x01"])
def test_nothing_to_speak(tts: Valle2, text: str) -> None:
    assert tts.front is not None
    with pytest.raises(TextError, match="nothing that can be spoken"):
        tts.front.split(text, 50)
    with pytest.raises(TextError, match="nothing that can be spoken"):
        tts.front.encode(text)


def test_a_word_longer_than_the_model(tts: Valle2) -> None:
    assert tts.front is not None
    with pytest.raises(TextError, match="longer than the model"):
        tts.front.split("b" * 500, 50)


def test_encoding_is_stable(tts: Valle2) -> None:
    assert tts.front is not None
    assert tts.front.encode("Hello there").tolist() == tts.front.encode("hello  there").tolist()


def test_unknown_kind_and_missing_files(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="unknown text front end 'runes'"):
        load_front_end(bundle, {"kind": "runes"})
    with pytest.raises(ManifestError, match="does not load"):
        load_front_end(tmp_path, {"kind": "bpe"})


def test_bpe_front_end(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        ["hello there fox"] * 3,
        trainers.BpeTrainer(vocab_size=60, show_progress=False, special_tokens=["<none>"]),
    )
    (tmp_path / "text").mkdir()
    tokenizer.save(str(tmp_path / "text" / "tokenizer.json"))
    front = load_front_end(tmp_path, {"kind": "bpe"})
    assert len(front.encode("hello there")) == 2

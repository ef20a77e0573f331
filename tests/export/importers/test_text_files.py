"""Files that an imported model's bundle reads text with."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import toy_checkpoint
from valle2.export import Checkpoint
from valle2.export.errors import CheckpointError
from valle2.export.importers.text_files import read_sentencepiece, write_text_file
from valle2.runtime import Phones
from valle2.runtime.text.front_end import load_front_end

WORDS = ["what time is it, Steve?", "it is time", "what is it?"] * 20


def of_family(name: str) -> Checkpoint:
    return replace(toy_checkpoint(2), rules={"family": name})


@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_a_sentencepiece_model_gives_the_librarys_ids(tmp_path: Path, dummy_prefix: bool) -> None:
    package = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    model = io.BytesIO()
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_writer=model, vocab_size=34, hard_vocab_limit=False,
        minloglevel=2, add_dummy_prefix=dummy_prefix,
    )  # fmt: skip
    path = tmp_path / "tokenizer_text.model"
    path.write_bytes(model.getvalue())
    library = package.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = read_sentencepiece(path)
    for text in ("what time is it, Steve?", "is  it", "a ZEBRA quit", "ﬁve", "it"):
        assert tokenizer.encode(text).ids == library.encode(text), text


def test_supervoices_text_is_narrowed(tmp_path: Path) -> None:
    from tests.runtime.cli.test_imported import sentencepiece_file

    write_text_file(tmp_path, sentencepiece_file(tmp_path), of_family("supervoice"))
    front = load_front_end(tmp_path, {"kind": "supervoice"}, ["text/tokenizer.json"])
    ids = front.encode(" Hello-there， \n you。")
    assert front.phones(ids) == "H ello ▁ t h e r e , ▁ y o u ."
    assert front.encode(front.phones(ids)).tolist() == ids.tolist()
    (pair,) = front.encode_request("Hello.", "you", 99)
    assert front.phones(pair.ids) == "H ello . ▁ y o u ." and pair.prompt_length == 3
    (pair,) = front.encode_request("Hello.", Phones("y o u"), 99)
    assert front.phones(pair.ids) == "H ello . y o u"


@pytest.mark.parametrize(
    ("family", "content", "message"),
    [
        ("amphion", b"", "--text is for lifeiteng and supervoice; a amphion model needs no such file"),
        ("lifeiteng", b"hello", "no symbol table; expected lines of a symbol and a number"),
        ("lifeiteng", b"a 1\n" * 99, "has 102 symbols and the model 35"),
        ("lifeiteng", b"\xff 1", "cannot be read"),
        ("supervoice", b"junk", "a field is longer than the file"),
        ("supervoice", b"", "no SentencePiece unigram model"),
        ("supervoice", b"\x0a\xff\xff\x03", "a field is longer than the file"),
        ("supervoice", b"\x0a\x03\x0a\x01\x61\x12\x02\x18\x02", "no SentencePiece unigram model"),
    ],
)
def test_a_file_that_does_not_fit(family: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        write_text_file(tmp_path, tmp_path / "file", of_family(family))
    assert not (tmp_path / "text").exists()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        write_text_file(tmp_path, tmp_path / "absent", of_family("supervoice"))

"""Files from which an imported model's bundle reads text: a symbol table, or a SentencePiece model.

lifeiteng's symbols are copied. supervoice's SentencePiece model becomes a `tokenizer.json`, which the runtime
reads without that library. Its normalisation is NFKC, which is that of SentencePiece except for a few
control characters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers

from valle2.engine.bundle.untrusted import read_bounded
from valle2.export.checkpoint import Checkpoint
from valle2.export.errors import CheckpointError

SYMBOLS, TOKENIZER = "text/symbols.txt", "text/tokenizer.json"
MAX_SYMBOLS, MAX_MODEL = 2**20, 8 * 2**20
"""Bytes of the two files. supervoice's model has 0.4 MB."""
MAX_PIECES, MAX_PIECE = 2**17, 256
"""Pieces of a SentencePiece model, and bytes of one."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""How a field of a protocol buffer is written."""
UNIGRAM, UNKNOWN = 1, 2
"""A kind of SentencePiece model, and a kind of piece."""
SPACE = "▁"


def write_text_file(bundle: Path, path: Path, checkpoint: Checkpoint) -> None:
    """Write what the bundle's front end needs.

    Args:
        bundle: an existing folder. path: `unique_text_tokens.k2symbols` of a lifeiteng run, or
            `tokenizer_text.model` of supervoice. checkpoint: the model that reads the text.

    Raises:
        CheckpointError: the model has another family, or the file is damaged or of another model.
    """
    family = checkpoint.rules.get("family", "valle2")
    if family not in ("lifeiteng", "supervoice"):
        raise CheckpointError(f"--text is for lifeiteng and supervoice; a {family} model needs no such file")
    try:
        if family == "lifeiteng":
            name, content = SYMBOLS, read_symbols(path)
            size = len(content.splitlines()) + 3
        else:
            tokenizer = read_sentencepiece(path)
            name, content, size = TOKENIZER, tokenizer.to_str().encode(), tokenizer.get_vocab_size()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read: {reason}; take the file of the model's run") from None
    if size > checkpoint.config.vocab_size:
        raise CheckpointError(
            f"{path} has {size} symbols and the model {checkpoint.config.vocab_size}; take the file of its "
            "own run"
        )
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(content)


def read_symbols(path: Path) -> bytes:
    """A symbol table: lines of a symbol and a number.

    Raises:
        ValueError: other lines. OSError: the file cannot be read.
    """
    data = read_bounded(path, MAX_SYMBOLS)
    rows = [line.rsplit(maxsplit=1) for line in data.decode().splitlines() if line.strip()]
    if not rows or not all(len(row) == 2 and row[1].isdigit() for row in rows):
        raise ValueError("it is no symbol table; expected lines of a symbol and a number")
    return "".join(f"{symbol} {number}\n" for symbol, number in rows).encode()


def read_sentencepiece(path: Path) -> Tokenizer:
    """A SentencePiece model as a tokenizer with the same ids.

    Raises:
        ValueError: it is no unigram model, or damaged. OSError: the file cannot be read.
    """
    pieces: list[tuple[str, float]] = []
    unknown, kind, dummy_prefix = 0, UNIGRAM, True
    for number, value in fields(read_bounded(path, MAX_MODEL)):
        if number == 1:  # a piece: its text, its score, its kind
            part = dict(fields(as_bytes(value)))
            text, score = as_bytes(part.get(1, b"")).decode(), part.get(2, b"\0\0\0\0")
            if part.get(3) == UNKNOWN:
                unknown = len(pieces)
            pieces.append((text, struct.unpack("<f", as_bytes(score))[0]))
            if len(pieces) > MAX_PIECES or not 0 < len(text) <= MAX_PIECE:
                raise ValueError(f"it has more than {MAX_PIECES} pieces, or one of no length or too long")
        elif number == 2:  # how it was trained
            kind = dict(fields(as_bytes(value))).get(3, UNIGRAM)  # type: ignore[assignment]
        elif number == 3:  # how text is normalised
            dummy_prefix = bool(dict(fields(as_bytes(value))).get(3, 1))
    if kind != UNIGRAM or not pieces:
        raise ValueError("it is no SentencePiece unigram model")
    tokenizer = Tokenizer(models.Unigram(pieces, unknown, byte_fallback=False))
    prefix = [normalizers.Prepend(SPACE)] if dummy_prefix else []
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence([*steps, *prefix])
    return tokenizer


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer.

    Raises:
        ValueError: it is damaged.
    """
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == VARINT:
            value, at = varint(data, at)
        elif kind in (FIXED64, FIXED32, BYTES):
            size = {FIXED64: 8, FIXED32: 4}.get(kind, 0)
            if kind == BYTES:
                size, at = varint(data, at)
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("a field is longer than the file")
        else:
            raise ValueError("it is no SentencePiece model")
        yield number, value


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the place after it.

    Raises:
        ValueError: it has no end, or more than 64 bits.
    """
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, at + index + 1
    raise ValueError("it is no SentencePiece model")


def as_bytes(value: int | bytes) -> bytes:
    """The value of a field that has a length.

    Raises:
        ValueError: it is a number.
    """
    if isinstance(value, int):
        raise ValueError("it is no SentencePiece model")
    return value

"""The text front end: text to token ids, and long text to sentences. Which kind a model uses is data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from valle2.engine.errors import ManifestError
from valle2.runtime.errors import TextError
from valle2.runtime.normalise import ABBREVIATIONS, normalise
from valle2.runtime.phonemes import Pronouncer

TOKENIZER = "text/tokenizer.json"
LEXICON = "text/lexicon.tsv"
SPEAKABLE = re.compile(r"[A-Za-z]")
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+|\n+")
CLAUSE_END = re.compile(r"(?<=[,;:])\s+")
MAX_CHARACTERS = 100_000


class TextFrontEnd:
    """Encodes text for one model.

    Args:
        tokenizer: ids of the prepared text. prepare: text to what the tokenizer reads.
    """

    def __init__(self, tokenizer: Tokenizer, prepare: Callable[[str], str]) -> None:
        self.tokenizer = tokenizer
        self.prepare = prepare

    def encode(self, text: str) -> NDArray[np.int64]:
        """Text -> (S,) int64 ids without `<eos>`.

        Raises:
            TextError: nothing in the text can be spoken.
        """
        ids = self.tokenizer.encode(self.prepare(check_text(text))).ids
        if not ids:
            raise TextError(
                f"{shown(text)} holds nothing that can be spoken; expected words in Latin letters"
            )
        return np.array(ids, np.int64)

    def split(self, text: str, max_tokens: int) -> list[str]:
        """Sentences of at most `max_tokens` tokens; longer ones are cut at clauses, then at words."""
        check_text(text)
        out: list[str] = []
        for sentence in sentences(text):
            out += self.fit(sentence, max_tokens)
        return out

    def fit(self, sentence: str, max_tokens: int) -> list[str]:
        """One sentence in as few pieces as its clauses, then its words, allow."""
        if len(self.encode(sentence)) <= max_tokens:
            return [sentence]
        clauses = CLAUSE_END.split(sentence)
        parts = clauses if len(clauses) > 1 else sentence.split()
        if len(parts) == 1:
            raise TextError(f"the word {shown(sentence)} is longer than the model's {max_tokens} tokens")
        middle = len(parts) // 2
        halves = (" ".join(parts[:middle]), " ".join(parts[middle:]))
        return [piece for half in halves if speakable(half) for piece in self.fit(half, max_tokens)]


def sentences(text: str) -> list[str]:
    """Split after . ! ? and at line ends, not after an abbreviation; unspeakable pieces are dropped."""
    out: list[str] = []
    open_piece = ""
    for piece in SENTENCE_END.split(text):
        open_piece = f"{open_piece} {piece}".strip() if piece else open_piece
        last = open_piece.rsplit(maxsplit=1)[-1:] or [""]
        if last[0].removesuffix(".").lower() in ABBREVIATIONS and last[0].endswith("."):
            continue
        if speakable(open_piece):
            out.append(open_piece)
        open_piece = ""
    return [*out, open_piece] if speakable(open_piece) else out


def speakable(text: str) -> bool:
    return SPEAKABLE.search(normalise(text)) is not None


def check_text(text: str) -> str:
    """The text, if anything in it can be spoken."""
    if len(text) > MAX_CHARACTERS:
        raise TextError(f"the text has {len(text)} characters; expected at most {MAX_CHARACTERS}: split it")
    if not speakable(text):
        raise TextError(f"{shown(text)} holds nothing that can be spoken; expected words in Latin letters")
    return text


def shown(text: str) -> str:
    """A short quotation for messages."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def read_lexicon(path: Path) -> dict[str, str]:
    """word<TAB>phonemes per line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines if "\t" in line)


def load_front_end(folder: Path, entry: Mapping[str, Any]) -> TextFrontEnd:
    """The front end that a bundle's manifest names.

    Raises:
        ManifestError: unknown kind, or its files do not load.
    """
    kind = entry.get("kind")
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        if kind == "bpe":
            return TextFrontEnd(tokenizer, normalise)
        if kind == "phonemes":
            pronounce = Pronouncer(read_lexicon(folder / LEXICON))
            known = tokenizer.get_vocab()
            return TextFrontEnd(
                tokenizer, lambda text: "".join(s for s in pronounce(normalise(text)) if s in known)
            )
    except Exception as error:  # tokenizers raises bare Exception
        raise ManifestError(f"{folder}: the text front end does not load: {error}") from None
    raise ManifestError(
        f"{folder}: unknown text front end {kind!r}; expected bpe or phonemes; upgrade valle2"
    )

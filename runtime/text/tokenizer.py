"""Front ends of bundles with a tokenizer: sub-words, phonemes of our lexicon, and supervoice's pieces."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from valle2.engine.bundle.untrusted import shown
from valle2.engine.errors import ManifestError
from valle2.runtime.errors import TextError
from valle2.runtime.text.annotations.pronunciation import Inventory
from valle2.runtime.text.base import MAX_TOKENS, EncodedText, FrontEnd, Ids, check_text, unspeakable
from valle2.runtime.text.letter_rules import STRESS, LetterRules, letter_groups
from valle2.runtime.text.normalise import normalise
from valle2.runtime.text.phonemes import PUNCTUATION as MARKS
from valle2.runtime.text.phonemes import Pronouncer
from valle2.runtime.text.phones import Notation
from valle2.runtime.text.table import read_table
from valle2.runtime.text.tokenizer_file import TOKENIZER, explained, read_tokenizer
from valle2.runtime.text.word_spans import spans_of, spoken_words, written_words
from valle2.runtime.text.written.memo import kept
from valle2.runtime.types import Phones, WordSpan

LEXICON = "text/lexicon.tsv"
LETTERS = "text/letters.tsv"
code_points = codecs.lookup("utf-32-le").encode
MAX_PREPARED, MAX_GROWN = 2**16, 2**20
"""Characters of a sentence as the tokenizer reads it, and what normaliser and template may make of them."""
NARROW = str.maketrans("’‘，。；？！（）：-《》、“”【】", "'',.;?!():" + " <>/" + '""[]')
"""Full-width and curly marks as supervoice writes them."""
PAIRS = {"oʊ": "O", "eɪ": "A", "aɪ": "I", "aʊ": "W", "ɔɪ": "Y", "tʃ": "ʧ", "dʒ": "ʤ", "g": "ɡ", "r": "ɹ"}
"""Phones of the IPA that the lexicon writes with one other symbol."""
Preparer = Callable[[str], str]
TAG = re.compile(r"\t\w+=")
"""What stands before a further form of a lexicon's entry."""


class TextFrontEnd(FrontEnd):
    """Encodes text with a tokenizer.

    Args:
        tokenizer: ids of the prepared text. prepare: turns text into what the tokenizer reads.
        max_tokens: tokens of a sentence that `split` aims at: what the model was trained on.
        growth: how many times as long the tokenizer itself may make a text.
        notation: how phones are written, if each is one character.
        characters: ids by character of a tokenizer that reads each by itself, see `character_ids`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prepare: Preparer,
        max_tokens: int = MAX_TOKENS,
        growth: int = 1,
        notation: Notation | None = None,
        characters: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(tokenizer.get_vocab(), max_tokens)
        self.by_code = by_code(characters or {})
        self.tokenizer = tokenizer
        self.preparer, self.prepare = prepare, kept(prepare)
        self.only_latin = prepare is not narrowed
        self.longest = min(MAX_PREPARED, MAX_GROWN // growth)
        self.notation = notation
        self.gap = notation.gap if notation else ""

    @classmethod
    def load(
        cls, folder: Path, manifest_entry: Mapping[str, Any], files: Collection[str] | None = None
    ) -> TextFrontEnd:
        """The front end of a bundle.

        Args:
            manifest_entry: `{"kind": "bpe" | "phonemes" | "supervoice", "max_tokens": N}`.
            files: those that the manifest lists; no other is read. None: all that lie in the folder.

        Raises:
            ManifestError: its files do not load.
        """
        if files is None:
            files = [name for name in (TOKENIZER, LEXICON, LETTERS) if (folder / name).exists()]
        preparer, notation = PREPARERS[manifest_entry["kind"]]
        with explained(lambda reason: ManifestError(f"{folder}: the text front end does not load: {reason}")):
            tokenizer, growth, characters = read_tokenizer(folder, files)
            limit = manifest_entry.get("max_tokens", MAX_TOKENS)
            return cls(tokenizer, preparer(folder, tokenizer, files), limit, growth, notation, characters)

    def inventory(self) -> Inventory | None:
        return self.preparer.inventory if isinstance(self.preparer, PhonemePreparer) else None

    def prepare_all(self, pieces: list[str]) -> None:
        if self.only_latin:
            super().prepare_all(pieces)

    def normalised(self, text: str) -> str:
        return super().normalised(text) if self.only_latin else self.prepare(text)

    def encode_text(self, text: str) -> Ids:
        """Encode a text.

        Raises:
            TextError: nothing in the text can be spoken, or it has more than `longest` characters (at most
                `MAX_PREPARED`) when it is prepared.
        """
        return self.prepared_ids(text, self.prepare(check_text(text)))

    def prepared_ids(self, text: str, prepared: str) -> Ids:
        """The ids of a prepared text; `text` is what a message shows."""
        if len(prepared) > self.longest:
            raise TextError(
                f"{shown(text)} has {len(prepared)} characters when it is prepared for the tokenizer; "
                f"expected at most {self.longest}: split it"
            )
        if not prepared:
            raise unspeakable(text)
        codes = np.frombuffer(code_points(prepared, "surrogatepass")[0], np.uint32)
        found = self.by_code.take(codes, mode="clip")
        if found.min() >= 0:
            return found
        with explained(
            lambda reason: TextError(f"the model's tokenizer does not take {shown(text)}: {reason}")
        ):
            ids = self.tokenizer.encode(prepared).ids
        if not ids:
            raise unspeakable(text)
        return np.array(ids, np.int64)

    def encode_pair(self, transcript: str, before: Ids, text: str) -> EncodedText:
        """Both parts are prepared by themselves, so a prompt cannot change how a sentence is read."""
        if isinstance(transcript, Phones) or isinstance(text, Phones):
            return super().encode_pair(transcript, before, text)
        prepared = f"{self.prepare(transcript)} {self.prepare(check_text(text))}"
        return EncodedText(self.prepared_ids(text, prepared), None, len(before), text)

    def words_of(self, encoded: EncodedText) -> tuple[WordSpan, ...]:
        """The written words; the phones themselves in a sentence of `Phones`."""
        if not self.notation:
            return ()
        first = encoded.prompt_length
        symbols = [self.symbols.get(int(index), "") for index in encoded.ids[first:]]
        spans = spans_of(symbols, MARKS | {self.gap})
        spoken = [] if isinstance(encoded.text, Phones) else spoken_words(encoded.text)
        if len(spoken) != len(spans):  # some words may have no sound that the model knows
            spoken = [word for word in spoken if self.prepare(word).strip()]
        if len(spoken) != len(spans):
            return tuple(
                WordSpan("".join(symbols[start:end]), first + start, first + end) for start, end in spans
            )
        out, at = [], 0
        for text, count in written_words(encoded.text, spoken):
            out.append(WordSpan(text, first + spans[at][0], first + spans[at + count - 1][1]))
            at += count
        return tuple(out)

    def count(self, piece: str) -> int:
        """Tokens of a piece that can be spoken; of one that is too long for `encode`, its characters."""
        prepared = self.prepare(piece)
        if len(self.by_code) > 1 or len(prepared) > self.longest:
            return len(prepared)
        return len(self.prepared_ids(piece, prepared))

    def finish(self, text: str) -> str:
        """The text with a full stop if it ends without a mark and the tokenizer has one."""
        return super().finish(text) if "." in self.table or isinstance(text, Phones) else text.strip()

    def parse_phones(self, text: str) -> list[str]:
        return self.notation.parse(text, self.table) if self.notation else super().parse_phones(text)

    def phones(self, ids: Iterable[int], language: str = "") -> Phones:
        found = super().phones(ids)
        return self.notation.write(ids, self.symbols) if self.notation else found


def by_code(characters: Mapping[str, int]) -> Ids:
    """Ids by code point, -1 for other characters. The last index is beyond all of them."""
    found = np.full(max(map(ord, characters), default=-1) + 2, -1, np.int64)
    for character, index in characters.items():
        found[ord(character)] = index
    return found


def normalised_words(_folder: Path, _tokenizer: Tokenizer, _files: Collection[str]) -> Preparer:
    """Words go to the tokenizer as the normaliser writes them."""
    return normalise


class PhonemePreparer:
    """Normalises and pronounces; symbols that the tokenizer does not know are left out.

    Args:
        known: the tokenizer's symbols.
    """

    def __init__(self, pronounce: Pronouncer, known: Collection[str]) -> None:
        self.pronounce, self.known = pronounce, frozenset(known)
        single = "".join(symbol for symbol in self.known if len(symbol) == 1)
        self.unknown = re.compile(f"[^{re.escape(single)}]+" if single else r"(?s:.)+")

    def __call__(self, text: str) -> str:
        return self.unknown.sub("", self.pronounce(normalise(text)))

    @cached_property
    def inventory(self) -> Inventory:
        """The phonemes of the lexicon's words. The tokenizer may have more, which the model never heard."""
        entries = TAG.sub("", "".join(self.pronounce.lexicon.values()))
        return Inventory(self.known & set(filter(str.isalpha, entries)) - set(STRESS))


def phoneme_preparer(folder: Path, tokenizer: Tokenizer, files: Collection[str]) -> Preparer:
    """The preparer of a folder with a lexicon."""
    return PhonemePreparer(read_pronouncer(folder, files), tokenizer.get_vocab())


def read_pronouncer(folder: Path, files: Collection[str]) -> Pronouncer:
    """The pronouncer of a folder's lexicon and letter rules.

    Raises:
        ValueError: a table is not listed or damaged.
    """
    guess: Callable[[str], str] = letter_groups
    if LETTERS in files:
        guess = LetterRules(read_table(folder, LETTERS, files))
    return Pronouncer(read_table(folder, LEXICON, files), guess)


def narrowed(text: str) -> str:
    """Text nearly as it was written, as supervoice reads it."""
    return re.sub(r"\s+", " ", text.translate(NARROW)).strip()


def as_written(_folder: Path, _tokenizer: Tokenizer, _files: Collection[str]) -> Preparer:
    """Text goes to the tokenizer nearly as it was written."""
    return narrowed


PREPARERS: dict[str, tuple[Callable[[Path, Tokenizer, Collection[str]], Preparer], Notation | None]] = {
    "bpe": (normalised_words, None),
    "phonemes": (phoneme_preparer, Notation(" ", PAIRS)),
    "supervoice": (as_written, None),
}
"""By kind: what makes the preparer, and how phones are written where each is one character."""

"""The text front end: text to token ids, and long text to pieces. Which kind a model uses is data."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from valle2.engine.bundle.untrusted import parse_json, read_bounded, shown
from valle2.engine.errors import ManifestError
from valle2.runtime.errors import TextError
from valle2.runtime.text.letter_rules import LetterRules, letter_groups
from valle2.runtime.text.normalise import normalise
from valle2.runtime.text.phonemes import Pronouncer
from valle2.runtime.text.sentences import ended, speakable, split_sentences
from valle2.runtime.text.table import Entries, entries_of

TOKENIZER = "text/tokenizer.json"
LEXICON = "text/lexicon.tsv"
LETTERS = "text/letters.tsv"
MAX_CHARACTERS = 100_000
MAX_TOKENS = 200
MAX_BYTES, MAX_VALUES = 32 * 2**20, 500_000
"""Of a tokenizer's JSON."""
MAX_TABLE, MAX_LINES = 16 * 2**20, 400_000
"""Bytes and lines of a table. The demo's lexicon has 2 MB in 83,427 lines."""
MAX_OBJECTS = 50_000
"""Of a tokenizer's JSON: one for each added token. Each may take a hundred times its text in memory."""
MAX_PREPARED, MAX_GROWN = 2**16, 2**20
"""Characters of a sentence as the tokenizer reads it, and what normaliser and template may make of them."""
MAX_PATTERN, MAX_GROWTH, MAX_PIECES = 2000, 1024, 256
MAX_STEPS, MAX_ADDED, MAX_WORD, MAX_AFFIX = 64, 10_000, 1000, 256
"""Of a tokenizer: steps in a row, added tokens, letters of a word that is searched for its parts, and
characters of a text that is put to parts of words or is one."""
STEPS = ("normalizers", "pretokenizers", "processors")
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix", "unk_token", "replacement")
COSTLY = re.compile(r"\)[*+{]|\{\d{4}|\{\d*,\d{4}|\(\?#")
"""A repeated group, whose search may take time that grows as a power of two; very many repeats; a comment."""
ESCAPE, CLASS = re.compile(r"\\."), re.compile(r"\[\^?\]?[^\]\n]*\]")
"""A character that is meant literally in a pattern, and a set of characters."""
PANIC = "PanicException"


class TextFrontEnd:
    """Encodes text for one model.

    Args:
        tokenizer: ids of the prepared text. prepare: text to what the tokenizer reads.
        max_tokens: tokens of a piece of `split`: what the model was trained on.
        growth: how many times as long the tokenizer itself may make a text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prepare: Callable[[str], str],
        max_tokens: int = MAX_TOKENS,
        growth: int = 1,
    ) -> None:
        self.tokenizer = tokenizer
        self.prepare = prepare
        self.max_tokens = max_tokens
        self.longest = min(MAX_PREPARED, MAX_GROWN // growth)

    @classmethod
    def load(
        cls, folder: Path, manifest_entry: Mapping[str, Any], files: Collection[str] | None = None
    ) -> TextFrontEnd:
        """The front end that a bundle's manifest names: `{"kind": "bpe" | "phonemes", "max_tokens": N}`.

        Args:
            files: those that the manifest lists; no other is read. None: all that lie in the folder.

        Raises:
            ManifestError: unknown kind, or its files do not load.
        """
        kind, limit = manifest_entry.get("kind"), manifest_entry.get("max_tokens", MAX_TOKENS)
        if kind not in KINDS:
            raise ManifestError(
                f"{folder}: unknown text front end {kind!r}; expected bpe or phonemes; upgrade valle2"
            )
        if not isinstance(limit, int) or limit < 1:
            raise ManifestError(
                f"{folder}: max_tokens of the text front end is {limit!r}; expected 1 or more"
            )
        if files is None:
            files = [name for name in (TOKENIZER, LEXICON, LETTERS) if (folder / name).exists()]
        with explained(lambda reason: ManifestError(f"{folder}: the text front end does not load: {reason}")):
            tokenizer, growth = read_tokenizer(folder, files)
            return cls(tokenizer, KINDS[kind](folder, tokenizer, files), limit, growth)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> NDArray[np.int64]:
        """Text -> (S,) int64 ids without `<eos>`.

        Raises:
            TextError: nothing in the text can be spoken, or it has more than `longest` characters (at most
                `MAX_PREPARED`) when it is prepared.
        """
        prepared = self.prepare(check_text(text))
        if len(prepared) > self.longest:
            raise TextError(
                f"{shown(text)} has {len(prepared)} characters when it is prepared for the tokenizer; "
                f"expected at most {self.longest}: split it"
            )
        return self.ids(text, prepared)

    def ids(self, text: str, prepared: str) -> NDArray[np.int64]:
        """The ids of a prepared text."""
        with explained(
            lambda reason: TextError(f"the model's tokenizer does not take {shown(text)}: {reason}")
        ):
            ids = self.tokenizer.encode(prepared).ids
        if not ids:
            raise unspeakable(text)
        return np.array(ids, np.int64)

    def split(self, text: str, max_tokens: int | None = None) -> list[str]:
        """Sentences of at most `self.max_tokens`; longer ones are cut at clauses, then at words.

        Each ends with a mark, if the tokenizer has the full stop: without one, a model does not know its end.

        Args:
            max_tokens: tokens there is room for. A piece has no more, and a single word may have as many.

        Raises:
            TextError: nothing can be spoken, or one word has more tokens than that.
        """
        most = self.max_tokens if max_tokens is None else max_tokens
        usual = min(most, self.max_tokens)
        pieces = split_sentences(check_text(text), usual, most, lambda piece: self.count(self.finish(piece)))
        return [self.finish(piece) for piece in pieces]

    def count(self, piece: str) -> int:
        """Tokens of a piece; of one that is too long for `encode`, its characters."""
        prepared = self.prepare(check_text(piece))
        return len(self.ids(piece, prepared)) if len(prepared) <= self.longest else len(prepared)

    def finish(self, piece: str) -> str:
        """The piece with a mark at its end, if the tokenizer has the full stop."""
        return piece if self.tokenizer.token_to_id(".") is None else ended(piece)


@contextmanager
def explained(error_of: Callable[[str], Exception]) -> Iterator[None]:
    """Turn what tokenizers raises over a damaged file into one line. error_of: the error of a reason."""
    try:
        yield
    except BaseException as error:
        # tokenizers raises bare Exception, and where its Rust code panics a BaseException of no public class.
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise error_of(" ".join(str(error).split())[:200] or type(error).__name__) from None


def read_tokenizer(folder: Path, files: Collection[str]) -> tuple[Tokenizer, int]:
    """The tokenizer of a bundle, and how many times as long it may make a text. Nothing is padded or cut.

    Raises:
        ValueError, or what tokenizers raises: it is damaged, or asks for more than a tokenizer needs.
    """
    data = read_text(folder, TOKENIZER, files)
    try:
        if data.count(b"{") > MAX_OBJECTS:
            raise ValueError(f"more than {MAX_OBJECTS} objects")
        growth = check_tokenizer(parse_json(data, MAX_VALUES))
    except ValueError as error:
        raise ValueError(f"{TOKENIZER}: {error}") from None
    tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, growth


def check_tokenizer(values: Any) -> int:
    """Refuse a tokenizer that could take a text far more time or memory than its length.

    Returns:
        How many times as long it may make a text.
    """
    for pattern in strings(values, "Regex"):
        if len(pattern) > MAX_PATTERN or COSTLY.search(CLASS.sub(".", ESCAPE.sub(".", pattern))):
            raise ValueError(f"a pattern repeats a group or a long run: {shown(pattern)}")
    normalizer = values.get("normalizer") if isinstance(values, dict) else None
    added = (*strings(normalizer, "content"), *strings(normalizer, "prepend"))
    growth = prod(1 + len(text) for text in added)
    if growth > MAX_GROWTH:
        raise ValueError(f"its normalizer may make a text more than {MAX_GROWTH} times as long")
    if "Precompiled" in strings(normalizer, "type"):
        raise ValueError(
            "it has a Precompiled normalizer, whose table cannot be checked; use NFKC and Replace"
        )
    if not isinstance(values, dict):
        return growth  # which tokenizers itself refuses
    check_parts(values)
    return growth * check_template(values.get("post_processor"))


def check_parts(values: dict[str, Any]) -> None:
    """Refuse very many steps or added tokens, and a model that searches long words for long parts."""
    steps = {key: value for key, value in values.items() if key not in ("model", "added_tokens")}
    if sum(len(found) for key in STEPS for found in lists(steps, key)) > MAX_STEPS:
        raise ValueError(f"it has more than {MAX_STEPS} steps in a row")
    added = values.get("added_tokens")
    if isinstance(added, list) and len(added) > MAX_ADDED:
        raise ValueError(f"it has {len(added)} added tokens; expected at most {MAX_ADDED}")
    model = values.get("model")
    affixes = (text for part in (model, steps) for key in AFFIXES for text in strings(part, key))
    if any(len(text) > MAX_AFFIX for text in (*affixes, *strings(added, "content"))):
        raise ValueError(f"a token or a part of one has more than {MAX_AFFIX} characters")
    if not isinstance(model, dict):
        return
    letters = model.get("max_input_chars_per_word")
    if isinstance(letters, int | float) and letters > MAX_WORD:
        raise ValueError(f"its words have up to {shown(letters)} letters; expected at most {MAX_WORD}")
    pieces = model.get("vocab")
    if isinstance(pieces, list) and any(len(text) > MAX_AFFIX for pair in pieces for text in texts(pair)):
        raise ValueError(f"a piece of its vocabulary has more than {MAX_AFFIX} characters")


def check_template(post_processor: Any) -> int:
    """How many times as long what is put around a text may make it; a text has few such parts."""
    growth = prod(
        max(1, len(found)) for key in ("single", "pair", "ids") for found in lists(post_processor, key)
    )
    if growth > MAX_PIECES:
        raise ValueError("its post-processor has long templates; expected a few tokens around a text")
    return growth


def texts(value: Any) -> list[str]:
    """The texts of a list."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def strings(value: Any, key: str) -> Iterator[str]:
    """Every text under a key, at any depth."""
    return (found for found in under(value, key) if isinstance(found, str))


def lists(value: Any, key: str) -> Iterator[list[Any]]:
    """Every list under a key, at any depth."""
    return (found for found in under(value, key) if isinstance(found, list))


def under(value: Any, key: str) -> Iterator[Any]:
    """Every value under a key, at any depth."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
            if key in value:
                yield value[key]
        elif isinstance(value, list):
            waiting += value


def read_text(folder: Path, name: str, files: Collection[str], most: int = MAX_BYTES) -> bytes:
    """A file of the front end that the manifest lists.

    Raises:
        ValueError: it is not listed, not there, or too large.
    """
    if name not in files:
        raise ValueError(f"the bundle lists no {name}")
    try:
        return read_bounded(folder / name, most)
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None


def read_table(folder: Path, name: str, files: Collection[str]) -> Entries:
    """A table of the front end that the manifest lists.

    Raises:
        ValueError: see `read_text`; or not UTF-8 text, or too many lines, or one that is too long.
    """
    data = read_text(folder, name, files, MAX_TABLE)
    if data.count(b"\n") + data.count(b"\r") > MAX_LINES:
        raise ValueError(f"{name} has more than {MAX_LINES} lines")
    try:
        return entries_of(data)
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def bpe_preparer(_folder: Path, _tokenizer: Tokenizer, _files: Collection[str]) -> Callable[[str], str]:
    return normalise


def phoneme_preparer(folder: Path, tokenizer: Tokenizer, files: Collection[str]) -> Callable[[str], str]:
    """Normalise and pronounce; symbols that the tokenizer does not know are left out."""
    guess: Callable[[str], str] = letter_groups
    if LETTERS in files:
        guess = LetterRules(read_table(folder, LETTERS, files))
    pronounce = Pronouncer(read_table(folder, LEXICON, files), guess)
    known = frozenset(tokenizer.get_vocab())
    return lambda text: "".join(symbol for symbol in pronounce(normalise(text)) if symbol in known)


KINDS = {"bpe": bpe_preparer, "phonemes": phoneme_preparer}


def load_front_end(
    folder: Path, entry: Mapping[str, Any], files: Collection[str] | None = None
) -> TextFrontEnd:
    """`TextFrontEnd.load`, as the pipeline calls it."""
    return TextFrontEnd.load(folder, entry, files)


def check_text(text: str) -> str:
    """The text, if it is not too long and anything in it can be spoken."""
    if len(text) > MAX_CHARACTERS:
        raise TextError(f"the text has {len(text)} characters; expected at most {MAX_CHARACTERS}: split it")
    if not speakable(text):
        raise unspeakable(text)
    return text


def unspeakable(text: str) -> TextError:
    shown = repr(text if len(text) <= 40 else f"{text[:37]}...")
    return TextError(f"{shown} holds nothing that can be spoken; expected words in Latin letters")

"""The text front end: text to token ids, and long text to pieces. Which kind a model uses is data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from valle2.engine.errors import ManifestError
from valle2.runtime.entries import read_entries
from valle2.runtime.errors import TextError
from valle2.runtime.letters import LetterRules, letter_groups
from valle2.runtime.normalise import normalise
from valle2.runtime.phonemes import Pronouncer
from valle2.runtime.sentences import ended, speakable, split_sentences

TOKENIZER = "text/tokenizer.json"
LEXICON = "text/lexicon.tsv"
LETTERS = "text/letters.tsv"
MAX_CHARACTERS = 100_000
MAX_TOKENS = 200


class TextFrontEnd:
    """Encodes text for one model.

    Args:
        tokenizer: ids of the prepared text. prepare: text to what the tokenizer reads.
        max_tokens: tokens of a piece of `split`: what the model was trained on.
    """

    def __init__(
        self, tokenizer: Tokenizer, prepare: Callable[[str], str], max_tokens: int = MAX_TOKENS
    ) -> None:
        self.tokenizer = tokenizer
        self.prepare = prepare
        self.max_tokens = max_tokens

    @classmethod
    def load(cls, folder: Path, manifest_entry: Mapping[str, Any]) -> TextFrontEnd:
        """The front end that a bundle's manifest names: `{"kind": "bpe" | "phonemes", "max_tokens": N}`.

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
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
            return cls(tokenizer, KINDS[kind](folder, tokenizer), limit)
        except Exception as error:  # tokenizers raises bare Exception
            raise ManifestError(f"{folder}: the text front end does not load: {error}") from None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> NDArray[np.int64]:
        """Text -> (S,) int64 ids without `<eos>`.

        Raises:
            TextError: nothing in the text can be spoken.
        """
        ids = self.tokenizer.encode(self.prepare(check_text(text))).ids
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
        pieces = split_sentences(
            check_text(text), usual, most, lambda piece: len(self.encode(self.finish(piece)))
        )
        return [self.finish(piece) for piece in pieces]

    def finish(self, piece: str) -> str:
        """The piece with a mark at its end, if the tokenizer has the full stop."""
        return piece if self.tokenizer.token_to_id(".") is None else ended(piece)


def bpe_preparer(_folder: Path, _tokenizer: Tokenizer) -> Callable[[str], str]:
    return normalise


def phoneme_preparer(folder: Path, tokenizer: Tokenizer) -> Callable[[str], str]:
    """Normalise and pronounce; symbols that the tokenizer does not know are left out."""
    rules = folder / LETTERS
    guess = LetterRules(read_entries(rules)) if rules.exists() else letter_groups
    pronounce = Pronouncer(read_entries(folder / LEXICON), guess)
    known = frozenset(tokenizer.get_vocab())
    return lambda text: "".join(symbol for symbol in pronounce(normalise(text)) if symbol in known)


KINDS = {"bpe": bpe_preparer, "phonemes": phoneme_preparer}


def load_front_end(folder: Path, entry: Mapping[str, Any]) -> TextFrontEnd:
    """`TextFrontEnd.load`, as the pipeline calls it."""
    return TextFrontEnd.load(folder, entry)


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

"""What a text front end does, whichever kind it is: text or phones in, token ids out.

A *phone* here is one symbol of a model's own table: a phoneme, a letter or a piece of a word. `Phones` marks
a text that is written in these symbols already. A front end turns ids back into symbols too, so what
`valle2 text` prints can be edited and spoken.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from valle2.runtime.errors import PromptError, TextError
from valle2.runtime.text.annotations.lexicon import WordFinder, check_lexicon
from valle2.runtime.text.annotations.pronunciation import Inventory, readable
from valle2.runtime.text.annotations.script import MAX_CHARACTERS, Script, need, read_script
from valle2.runtime.text.annotations.ssml import Passage
from valle2.runtime.text.normalise import normalise, prepare
from valle2.runtime.text.sentences import ended, speakable, split_sentences
from valle2.runtime.text.written.memo import kept
from valle2.runtime.types import Phones, SpokenSentence, SpokenText, WordSpan

Ids = NDArray[np.int64]
MAX_TOKENS = 200
"""Tokens of a sentence where the manifest names no other number."""
RAW = re.compile(r"<(\d{1,7})>")
"""An id that is written as itself, for tables that are not known."""
SHOWN = 60
"""Symbols that a message lists."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A prompt's transcript and the text after it, as a model reads them.

    Args:
        ids: (S,) int64. languages: (S,) int64, one per id, or None for a model without languages.
        prompt_length: how many of the ids are the transcript's.
        text: the sentence, or its `Phones`.
        pause: seconds of silence before the text; None for the usual pause.
        speed: how many times as fast as usual it is spoken.
    """

    ids: Ids
    languages: Ids | None
    prompt_length: int
    text: str = ""
    pause: float | None = None
    speed: float = 1.0


class FrontEnd(ABC):
    """Encodes text for one model.

    Args:
        table: ids by symbol. max_tokens: tokens of a sentence that `split` aims at.
    """

    gap = ""
    """The symbol between two words, where the table has one."""
    warnings: tuple[str, ...] = ()
    """What a user should know about the way this front end reads every text."""
    only_latin = True
    """Are scripts other than Latin left out?"""

    def __init__(self, table: Mapping[str, int], max_tokens: int = MAX_TOKENS) -> None:
        self.table = table
        self.symbols = {index: symbol for symbol, index in table.items()}
        self.max_tokens = max_tokens
        self.encoded = kept(self.encode_text)
        self.finished = kept(self.finish)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.symbols, default=-1) + 1

    # -- text and phones ------------------------------------------------------------------------

    def encode(self, text: str) -> Ids:
        """Encode a text, or phones if it is `Phones`.

        Returns:
            (S,) int64 ids, without the marks that the model's layout adds.

        Raises:
            TextError: nothing in the text can be spoken, it is too long, or a symbol is unknown.
        """
        return self.encode_phones(text) if isinstance(text, Phones) else self.encoded(text).copy()

    @abstractmethod
    def encode_text(self, text: str) -> Ids:
        """Encode a text that people read."""

    def encode_phones(self, text: str) -> Ids:
        """Encode symbols of the model's table.

        Args:
            text: symbols as `parse_phones` reads them; `<17>` is the id 17.

        Raises:
            TextError: no symbols, or one that the table does not hold.
        """
        symbols = self.parse_phones(text)
        if not symbols:
            raise TextError(f"{text[:40]!r} holds no phones; expected symbols such as {self.examples()}")
        return self.ids_of(symbols)

    def parse_phones(self, text: str) -> list[str]:
        """The symbols of a text of phones: here, whatever stands between spaces."""
        return text.split()

    def ids_of(self, symbols: Iterable[str]) -> Ids:
        """Ids (S,) of symbols.

        Raises:
            TextError: a symbol that the table does not hold.
        """
        found = []
        for symbol in symbols:
            raw = RAW.fullmatch(symbol)
            if symbol not in self.table and raw is None:
                raise TextError(f"unknown phone {symbol!r}; this model has {self.examples()}")
            found.append(self.table[symbol] if symbol in self.table else int(raw[1]))  # type: ignore[index]
        return np.array(found, np.int64)

    def examples(self) -> str:
        """The symbols of the table, or its first ones, for messages."""
        known = [symbol for symbol in sorted(self.table, key=self.table.__getitem__) if symbol.strip()]
        listed = " ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
        return f"{listed}, and ids written as <17>" if known else "ids written as <17>"

    def phones(self, ids: Iterable[int], language: str = "") -> Phones:
        """Ids as phones, which `encode_phones` turns into the same ids.

        Args:
            language: en, zh or ja, for models with languages; English if it is empty.
        """
        return Phones(" ".join(self.symbols.get(int(index), f"<{index}>") for index in ids))

    def normalised(self, text: str) -> str:
        """A text in the words that are pronounced."""
        return normalise(text)

    def inventory(self) -> Inventory | None:
        """The phonemes that a user's pronunciation may have; None for a model that reads letters."""
        return None

    # -- requests -------------------------------------------------------------------------------

    def finder(self, lexicon: Mapping[str, str]) -> WordFinder:
        """A lexicon with the phonemes of this model.

        Raises:
            LexiconError: it is malformed, or the model lacks a phoneme or has none at all.
        """
        return WordFinder(check_lexicon(lexicon), need(self.inventory()))

    def script(self, text: str, lexicons: Sequence[WordFinder] = ()) -> Script:
        """What a text asks for. Its warnings include those of this front end.

        Raises:
            TextError, LexiconError: see `read_script`.
        """
        found = read_script(text, self.inventory, lexicons, self.only_latin)
        always = () if isinstance(text, Phones) else self.warnings
        return replace(found, warnings=(*always, *found.warnings))

    def sentences(self, script: Script, max_tokens: int | None = None) -> Iterator[Passage]:
        """The sentences of a script, each a passage. max_tokens: see `split`.

        Raises:
            TextError: nothing in it can be spoken, or a part does not fit.
        """
        spoken, pause = False, 0.0
        for passage in script.passages:
            if not isinstance(passage.text, Phones) and not speakable(passage.text):
                pause += passage.pause or 0.0
                continue
            for index, piece in enumerate(self.pieces(passage.text, max_tokens)):
                before = (
                    (passage.pause if not pause else pause + (passage.pause or 0.0)) if not index else None
                )
                yield Passage(piece, before, passage.speed)
            spoken, pause = True, 0.0
        if not spoken:
            raise unspeakable(script.source)

    def spoken(self, text: str, lexicons: Sequence[WordFinder] = ()) -> SpokenText:
        """What would be said for a text, sentence by sentence.

        Raises:
            TextError: see `encode` and `split`.
        """
        script, found = self.script(text, lexicons), []
        for sentence in self.sentences(script):
            ids = self.encode(sentence.text)
            plain = "" if isinstance(sentence.text, Phones) else self.normalised(sentence.text)
            written = script.spellings.readable
            found.append(
                SpokenSentence(
                    written(sentence.text), written(plain), str(self.phones(ids)), tuple(map(int, ids))
                )
            )
        return SpokenText(tuple(found), script.warnings)

    def encode_request(self, transcript: str, text: str | Script, max_ids: int) -> Iterator[EncodedText]:
        """Encode a text sentence by sentence, each with the prompt's transcript before it (section 3.4).

        Args:
            transcript: what the prompt says; text or `Phones`, as `text` may be.
            text: a text, or the script of one.
            max_ids: ids that transcript and sentence may have together.

        Raises:
            PromptError: the transcript alone is too long. TextError: see `encode` and `split`.
        """
        transcript = self.finish(transcript)
        before = self.encode(transcript)
        if len(before) >= max_ids:
            raise PromptError("the prompt's transcript fills the model's text; use a shorter prompt")
        script = text if isinstance(text, Script) else self.script(text)
        for sentence in self.sentences(script, max_ids - len(before)):
            pair = self.encode_pair(transcript, before, sentence.text)
            usual = sentence.pause is None and sentence.speed == 1.0
            yield pair if usual else replace(pair, pause=sentence.pause, speed=sentence.speed)

    def encode_pair(self, transcript: str, before: Ids, text: str) -> EncodedText:
        """One sentence after a transcript. before: the ids of the transcript alone."""
        after = self.encode(text)
        between = [self.table[self.gap]] if self.gap in self.table else []
        ids = np.concatenate([before, np.array(between, np.int64), after])
        languages = [self.languages(transcript, before), self.languages(text, after)]
        known = [part for part in languages if part is not None]
        return EncodedText(ids, np.concatenate(known) if known else None, len(before), text)

    def words_of(self, encoded: EncodedText) -> tuple[WordSpan, ...]:
        """The words of an encoded sentence with their spans of its ids; none if they are not known."""
        return ()

    def languages(self, text: str, ids: Ids) -> Ids | None:
        """The language of each id of an encoded text, or None for a model without languages."""
        return None

    def split(self, text: str, max_tokens: int | None = None) -> list[str]:
        """Split a text into sentences of at most `self.max_tokens` tokens, and phones at line ends.

        A longer sentence is cut at clauses, then at words. Each piece ends with a mark if `finish` adds one.

        Args:
            max_tokens: tokens that fit beside the prompt. A single word may have as many.

        Raises:
            TextError: nothing can be spoken, or one word, or one line of phones, has more tokens than that.
        """
        return [*self.pieces(text, max_tokens)]

    def pieces(self, text: str, max_tokens: int | None = None) -> Iterator[str]:
        """The sentences of `split`, each as soon as it is found."""
        most = self.max_tokens if max_tokens is None else max_tokens
        if isinstance(text, Phones):
            yield from self.lines(text, most)
            return
        usual = min(most, self.max_tokens)

        def count(piece: str) -> int:
            finished = self.finished(piece)
            return self.count(finished) if speakable(finished) else 0

        def prepare_all(pieces: list[str]) -> None:
            self.prepare_all([self.finished(piece) for piece in pieces])

        yield from map(self.finished, split_sentences(check_text(text), usual, most, count, prepare_all))

    def lines(self, text: Phones, most: int) -> Iterable[Phones]:
        """The lines of phones; one that does not fit is an error."""
        for line in [line for line in text.splitlines() if line.strip()] or [text]:
            length = len(self.encode_phones(line))
            if length > most:
                raise TextError(f"a line of {length} phones; expected at most {most}: break the line")
            yield Phones(line)

    def prepare_all(self, pieces: list[str]) -> None:
        """Do the work for several pieces at once, so that `count` and `encode` find it done."""
        prepare(pieces)

    def count(self, piece: str) -> int:
        """Tokens of a piece of text that can be spoken."""
        return len(self.encoded(piece))

    def finish(self, text: str) -> str:
        """The stripped text with a full stop if it ends without a mark; phones stay as they are."""
        return text if isinstance(text, Phones) else ended(text.strip())


class IdsFrontEnd(FrontEnd):
    """For a model whose symbols are not known: ids alone, written as `<5> <17>`."""

    def encode_text(self, text: str) -> Ids:
        raise TextError("this model has no text front end; pass phones, ids written as <5> <17>: --phones")


def check_text(text: str) -> str:
    """The text, if it is not too long and anything in it can be spoken.

    Raises:
        TextError: it is not.
    """
    if len(text) > MAX_CHARACTERS:
        raise TextError(f"the text has {len(text)} characters; expected at most {MAX_CHARACTERS}: split it")
    if not speakable(text):
        raise unspeakable(text)
    return text


def unspeakable(text: str) -> TextError:
    """The error for a text without speakable words."""
    text = readable(text)
    shown = repr(text if len(text) <= 40 else f"{text[:37]}...")
    return TextError(f"{shown} holds nothing that can be spoken; expected words in Latin letters")

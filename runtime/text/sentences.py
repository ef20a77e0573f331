"""Split text into pieces that a model can speak at once: sentences, then clauses, then words.

No word is lost. `sentences` splits a whole text, `SentenceSplitter` a text that is still arriving, and
`split_sentences` also cuts what is longer than the model takes. This module knows no tokens: it is given a
function that counts them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

from valle2.runtime.errors import TextError
from valle2.runtime.text.annotations.pronunciation import SPELLED, readable
from valle2.runtime.text.normalise import normalise
from valle2.runtime.text.written.markup import plain
from valle2.runtime.text.written.memo import kept
from valle2.runtime.text.written.vocabulary import (
    ABBREVIATIONS,
    BEFORE_NUMBER,
    DOTTED,
    ENDING,
    SHORT_DAYS,
    SHORT_MONTHS,
    TITLES,
)

ONLY_MARKS = re.compile(r"[\s.,;:!?…]*")
SPEAKABLE = re.compile(r"[A-Za-z]")
MARKUP = re.compile(r"[<&`\[\]_~\u2010-\u2fff]")
"""Characters of markup and of signs, in which letters may stand that are not spoken."""
SURELY_SPEAKABLE = re.compile(r"[\d¼½¾]|\b(?!www|https?)[A-Za-z]", re.A)
MAX_CLOSING = 8
"""Quotes and brackets that may stand between a mark and the space after it."""
SENTENCE_END = re.compile(rf"(?<=[.!?…])[\"'”’)\]]{{0,{MAX_CLOSING}}}\s+|(?<=[。！？])|\n+")
CLAUSE_END = re.compile(r"(?<=[,;:—–])\s+")
WORD_END = re.compile(r"\s+")
NOT_AN_END = frozenset(TITLES) | frozenset(ABBREVIATIONS) - ENDING
"""Short words whose full stop ends no sentence."""
MAY_GO_ON = (
    frozenset(ABBREVIATIONS)
    | DOTTED
    | SHORT_MONTHS.keys()
    | {day.lower() for day in SHORT_DAYS}
    | {"ph.d", "al"}
)
"""Short words after which a sentence goes on if a lower-case letter follows."""
BEFORE_DIGIT = BEFORE_NUMBER.keys() | SHORT_MONTHS.keys() | {"rs"}
"""Short words after which it goes on if a digit follows."""
HALF_DAYS = frozenset(["a.m", "p.m"])
INITIALS = re.compile(r"(?:[A-HJ-Z]|(?:[A-Za-z]\.)+[A-Za-z])\.")
ENDED = re.compile(r"[.!?…。！？][\"'”’)\]]*$")
MARKS = ".!?…。！？"
OPENING = "\"'“‘(["
SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))
UNENDED = f",;:—–-{SPACES}"
"""Characters at the end of a piece that a full stop replaces."""
LOOKAHEAD = 8
"""Characters after a mark that decide whether a sentence goes on there."""
MIDDLE = 0.3
"""How far from the middle, as a share of the length, a clause's end is preferred to a word's."""
HOPELESS = 8
"""Characters a token, above which a sentence is cut without counting its tokens."""
SURELY_TOO_LONG = 1.5
"""A part is cut without counting its tokens if it has so many times the limit by its share of the whole."""
SURELY_BY_SAMPLE = 1.0
"""The same in a sentence that is many times too long, so that few parts are counted in vain."""
LONG, SAMPLE, VERY_LONG = 256, 64, 8
"""Characters of a sentence whose tokens are first estimated by a sample, characters of the sample, and times
the limit from which on the estimate decides how often it is cut."""


def split_sentences(text: str, usual: int, most: int, count: Callable[[str], int]) -> Iterator[str]:
    """Sentences of at most `usual` tokens; a single word may have up to `most`, and a longer one is cut.

    Each is given as soon as it is found, so that its user finds what `count` has kept of it.

    Args:
        count: tokens of a piece of text, 0 if nothing in it can be spoken.

    Raises:
        TextError: a single character has more than `most` tokens.
    """
    return (piece for sentence in sentences(text) for piece in fit(sentence, usual, most, count))


def sentences(text: str) -> list[str]:
    """Split a whole text after . ! ? and at line ends, but not after an abbreviation.

    Returns:
        Stripped sentences in order. Pieces that hold nothing speakable are left out.
    """
    splitter = SentenceSplitter()
    return [*splitter.feed(text), *splitter.flush()]


class SentenceSplitter:
    """Splits text that arrives piece by piece, for example from a language model.

    The sentences do not depend on where the pieces are cut: together they are `sentences` of the joined text.
    A sentence is returned as soon as its end is certain. After an abbreviation, which may or may not end a
    sentence, that is when the next word has begun.
    """

    def __init__(self) -> None:
        self.clauses: list[str] = []  # the open sentence up to the last mark that did not end it
        self.rest = ""  # the text after that mark
        self.unsearched = 0  # index in `rest`: no sentence ends before it

    @property
    def held(self) -> int:
        """Characters that belong to no complete sentence yet."""
        return sum(map(len, self.clauses)) + len(self.rest)

    def feed(self, text: str) -> list[str]:
        """Add text; return the speakable sentences that are now complete."""
        self.rest += text
        return self.complete(at_end=False)

    def flush(self) -> list[str]:
        """End the text; return the sentences that are left. The splitter is then empty."""
        found = self.complete(at_end=True)
        last = " ".join([*self.clauses, self.rest.strip()]).strip()
        self.clauses, self.rest, self.unsearched = [], "", 0
        return [*found, last] if speakable(last) else found

    def complete(self, at_end: bool) -> list[str]:
        """Take the complete sentences out of `rest`. at_end: no more text will come."""
        out: list[str] = []
        start, text = 0, self.rest
        resume = len(text) - MAX_CLOSING - 1
        for match in SENTENCE_END.finditer(text, self.unsearched):
            piece, following = text[start : match.end()], text[match.end() : match.end() + LOOKAHEAD]
            after_mark = match.start() > 0 and text[match.start() - 1] in MARKS
            ends = after_mark and ends_sentence(piece.rstrip(), following, at_end)
            if not ends and "\n" in match[0]:
                ends = ends_line(match[0], following, at_end)
            if ends is None:
                resume = match.start()
                break
            start = match.end()
            self.clauses.append(piece.strip())
            if ends:
                out.append(" ".join(self.clauses).strip())
                self.clauses = []
        self.rest, self.unsearched = text[start:], max(0, resume - start)
        return [sentence for sentence in out if speakable(sentence)]


def ends_sentence(piece: str, following: str, at_end: bool = True) -> bool | None:
    """Does a piece that ends with a mark end its sentence?

    Args:
        following: the next `LOOKAHEAD` characters, fewer where the text ends.
        at_end: `following` is all that comes. Otherwise the answer may be None: it depends on what comes.
    """
    last = piece.rsplit(maxsplit=1)[-1:] or [""]
    word = last[0].lstrip(OPENING)
    if not word.endswith("."):
        return True
    short = word[:-1].lower()
    half_day = short in HALF_DAYS
    never = short in NOT_AN_END or (INITIALS.fullmatch(word) is not None and not half_day)
    before_small = short in MAY_GO_ON or half_day or short.endswith(".")
    before_digit = short in BEFORE_DIGIT
    next_letter = following.lstrip().lstrip(OPENING)[:1]
    depends = never or before_small or before_digit
    if depends and not next_letter and not at_end and len(following) < LOOKAHEAD:
        return None
    goes_on = (before_small and next_letter.islower()) or (before_digit and next_letter.isdigit())
    return not never and not goes_on


def ends_line(gap: str, following: str, at_end: bool) -> bool | None:
    """Does a line's end end its sentence? It does not before a lower-case letter, unless a line is empty.

    Args:
        gap: the spaces at the line's end. following, at_end: see `ends_sentence`.
    """
    following_word = following.lstrip(" \t")
    if gap.count("\n") > 1:
        return True
    if not following_word and not at_end and len(following) < LOOKAHEAD:
        return None
    return not following_word[:1].islower()


def fit(
    sentence: str,
    usual: int,
    most: int,
    count: Callable[[str], int],
    estimate: float = 0.0,
    surely: float = SURELY_TOO_LONG,
) -> Iterator[str]:
    """One sentence in about equal parts, cut at a clause near the middle or else between two words.

    A single word may have up to `most` tokens; a longer one is cut in the middle.

    Args:
        estimate: tokens of the sentence by its share of a longer one; 0 if they are not known.
        surely: times the limit. A sentence of a larger estimate is cut without counting its tokens.

    Raises:
        TextError: a single character has more than `most` tokens.
    """
    inside_word = not WORD_END.search(sentence)
    limit = most if inside_word else usual
    if not estimate and len(sentence) > LONG:
        start = (len(sentence) - SAMPLE) // 2
        sampled = count(sentence[start : start + SAMPLE]) * len(sentence) / SAMPLE
        if sampled > VERY_LONG * limit:
            estimate, surely = sampled, SURELY_BY_SAMPLE
    counted = 0
    if estimate <= surely * limit and len(sentence) <= HOPELESS * limit:
        counted = count(sentence)
        if counted <= limit:
            if counted:
                yield sentence
            return
    if inside_word and (len(sentence) == 1 or SPELLED.search(sentence)):
        raise TextError(
            f"{readable(sentence)!r} is longer than the model's {most} tokens, which the prompt's text "
            "leaves; use a shorter prompt"
        )
    density = (counted or estimate) / len(sentence)
    cut = len(sentence) // 2 if inside_word else middle(sentence)
    for half in (sentence[:cut].strip(), sentence[cut:].strip()):
        # how many tokens one word has does not follow from the words around it
        known = density * len(half) if inside_word or WORD_END.search(half) else 0.0
        yield from fit(half, usual, most, count, known, surely)


def middle(sentence: str) -> int:
    """Where to cut between words: after the clause nearest the middle if it is near, else after a word."""
    half = len(sentence) / 2

    def from_middle(end: int) -> float:
        return abs(end - half)

    clause = min((match.end() for match in CLAUSE_END.finditer(sentence)), key=from_middle, default=0)
    if clause and from_middle(clause) <= MIDDLE * len(sentence):
        return clause
    return min((match.end() for match in WORD_END.finditer(sentence)), key=from_middle)


def ended(piece: str) -> str:
    """The piece with a full stop in place of a comma or of nothing."""
    return piece if ENDED.search(piece) else f"{piece.rstrip(UNENDED)}."


@kept
def speakable(text: str) -> bool:
    """Does anything remain to be said after normalisation?"""
    if not MARKUP.search(text) and SURELY_SPEAKABLE.search(text):
        return True
    if ONLY_MARKS.fullmatch(text):
        return False
    if SURELY_SPEAKABLE.search(unicodedata.normalize("NFKD", plain(text))):
        return True
    return SPEAKABLE.search(normalise(text)) is not None

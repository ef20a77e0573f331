"""Split text into pieces that a model can speak at once: sentences, then clauses, then words.

No word is lost. `sentences` splits a whole text, `SentenceSplitter` a text that is still arriving, and
`split_sentences` also cuts what is longer than the model takes. This module knows no tokens: it is given a
function that counts them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from string import digits

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
DIGIT_LENGTH = 6
"""Letters that a digit is read with, about: "4096" is "four thousand ninety six"."""
MANY_DIGITS = 1.5
"""Letters that a text of many digits is read with, for each of its characters."""
HOPELESS = 8
"""Characters a token, above which a sentence is cut without counting its tokens."""
SURELY_TOO_LONG = 1.5
"""A part is cut without counting its tokens if it has so many times the limit by its share of the whole."""
SURELY_BY_SAMPLE = 1.0
"""The same in a sentence that is many times too long, so that few parts are counted in vain."""
LONG, SAMPLE, VERY_LONG, VERY_LONG_IN_DIGITS = 256, 64, 8, 2
"""Characters of a sentence whose tokens are first estimated by a sample; characters of the sample; times the
limit from which on the estimate decides how often it is cut, and the same for a text of many digits, which is
costly to read."""
NEAR_WORD = 16
"""Characters from the middle in which a word's end is looked for first."""
TOGETHER = 4096
"""Characters of the sentences whose parts are counted together."""


@dataclass(slots=True)
class Part:
    """A part of a sentence.

    Args:
        in_word: it is a word or a part of one.
        letters: about how many it is read with, see `spoken_length`.
        estimate: its tokens by its share of a longer part; 0 if they are not known.
        surely: times the limit. A part of a larger estimate is cut without counting its tokens.
        is_long: it is to be estimated by a sample.
        fits: it is a piece that needs no cut.
    """

    text: str
    in_word: bool
    letters: int
    estimate: float = 0.0
    surely: float = SURELY_TOO_LONG
    is_long: bool = False
    fits: bool = False


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts sentences into about equal parts, at a clause near the middle or else between two words.

    Args:
        usual: tokens of a part. most: tokens of a part that is a single word.
        count: tokens of a text, 0 if nothing in it can be spoken.
        prepare: is told of the texts that `count` is asked for next.
    """

    usual: int
    most: int
    count: Callable[[str], int]
    prepare: Callable[[list[str]], None]

    def pieces(self, sentences: Iterable[str]) -> Iterator[str]:
        """Pieces that fit, each as soon as it and those before it are found.

        Raises:
            TextError: a single character has more than `most` tokens.
        """
        waiting = deque(map(whole, sentences))
        while waiting:
            found = self.step(taken(waiting))
            waiting.extendleft(reversed(found))
            while waiting and waiting[0].fits:
                yield waiting.popleft().text

    def step(self, parts: list[Part]) -> list[Part]:
        """The same text in parts. Each fits, has been cut, or is long and has to be estimated."""
        self.prepare([sample(part.text) for part in parts if part.is_long])
        cut: list[Part] = []
        for part in parts:
            if part.is_long:
                self.estimate(part)
            self.cut_unseen(part, cut)
        self.prepare([part.text for part in cut if not (part.fits or part.is_long)])
        found: list[Part] = []
        for part in cut:
            self.cut_counted(part, found)
        return found

    def estimate(self, part: Part) -> None:
        """Estimate the tokens of a long part if it is many times too long by a sample."""
        seen = sample(part.text)
        tokens = self.count(seen) * part.letters / spoken_length(seen)
        times = VERY_LONG_IN_DIGITS if many_digits(part.text, part.letters) else VERY_LONG
        if tokens > times * self.limit(part):
            part.estimate, part.surely = tokens, SURELY_BY_SAMPLE
        part.is_long = False

    def limit(self, part: Part) -> int:
        """The most tokens of a part."""
        return self.most if part.in_word else self.usual

    def cut_unseen(self, part: Part, found: list[Part]) -> None:
        """Add a part, or its halves if it is too long by its estimate."""
        limit = self.limit(part)
        too_long = part.estimate > part.surely * limit or len(part.text) > HOPELESS * limit
        if part.fits or part.is_long or not too_long:
            found.append(part)
            return
        for half in self.halves(part, part.estimate):
            self.cut_unseen(half, found)

    def cut_counted(self, part: Part, found: list[Part]) -> None:
        """Add a part if it fits, else its halves; nothing if nothing in it can be spoken."""
        if not (part.fits or part.is_long):
            tokens = self.count(part.text)
            if tokens > self.limit(part):
                found += self.halves(part, tokens)
                return
            part.fits = tokens > 0
            if not tokens:
                return
        found.append(part)

    def halves(self, part: Part, tokens: float) -> Iterator[Part]:
        """Cut a part in two. tokens: what it has, counted or estimated."""
        text, in_word = part.text, part.in_word
        if in_word and (len(text) == 1 or SPELLED.search(text)):
            raise TextError(
                f"{readable(text)!r} is longer than the model's {self.most} tokens, which the prompt's text "
                "leaves; use a shorter prompt"
            )
        cut = len(text) // 2 if in_word else middle(text)
        density = tokens / part.letters
        for half in filter(None, (text[:cut].strip(), text[cut:].strip())):
            a_word, letters = in_word or WORD_END.search(half) is None, spoken_length(half)
            # how many tokens one word has does not follow from the words around it
            estimate = density * letters if in_word or not a_word else 0.0
            yield Part(half, a_word, letters, estimate, part.surely, not estimate and is_long(half, letters))


def split_sentences(
    text: str,
    usual: int,
    most: int,
    count: Callable[[str], int],
    prepare: Callable[[list[str]], None] = lambda texts: None,
) -> Iterator[str]:
    """Sentences of at most `usual` tokens; a single word may have up to `most`, and a longer one is cut.

    Each is given as soon as it is found, so that its user finds what `count` has kept of it.

    Args:
        count: tokens of a piece of text, 0 if nothing in it can be spoken.
        prepare: is told of the texts that `count` is asked for next.

    Raises:
        TextError: a single character has more than `most` tokens.
    """
    return Cutter(usual, most, count, prepare).pieces(sentences(text))


def taken(parts: deque[Part]) -> list[Part]:
    """Take the first parts, together of about `TOGETHER` characters."""
    found, length = [], 0
    while parts and length < TOGETHER:
        found.append(parts.popleft())
        length += len(found[-1].text)
    return found


def whole(sentence: str) -> Part:
    """A sentence as a part."""
    letters = spoken_length(sentence)
    return Part(sentence, WORD_END.search(sentence) is None, letters, is_long=is_long(sentence, letters))


def spoken_length(text: str) -> int:
    """About how many letters a text is read with."""
    return len(text) + (DIGIT_LENGTH - 1) * sum(map(text.count, digits))


def is_long(text: str, letters: int) -> bool:
    """Are a text's tokens estimated first, because it is costly to count them? letters: it is read with."""
    return len(text) > LONG or (len(text) > SAMPLE and many_digits(text, letters))


def many_digits(text: str, letters: int) -> bool:
    """Is a text read with many more letters than it is written with?"""
    return letters > MANY_DIGITS * len(text)


def sample(text: str) -> str:
    """What stands in the middle of a long text."""
    start = (len(text) - SAMPLE) // 2
    return text[start : start + SAMPLE]


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


def middle(sentence: str) -> int:
    """Where to cut between words: after the clause nearest the middle if it is near, else after a word."""
    cut = nearest(CLAUSE_END, sentence, MIDDLE * len(sentence))
    reach = NEAR_WORD
    while not cut:
        cut = nearest(WORD_END, sentence, reach)
        reach *= NEAR_WORD
    return cut


def nearest(ends: re.Pattern[str], sentence: str, reach: float) -> int:
    """The end of the match nearest the middle, at most `reach` characters from it; 0 if there is none."""
    half = len(sentence) / 2
    start, found = max(0, int(half - reach)), 0
    while start and sentence[start - 1].isspace():
        start -= 1
    for match in ends.finditer(sentence, start):
        end = match.end()
        if abs(end - half) < abs(found - half):
            found = end
        if end >= half:
            break
    return found if found and abs(found - half) <= reach else 0


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

"""Which ids of a sentence belong to which word, for the times of the words.

A word's text is what is written between two spaces, its marks included: "$5," is one word, though five
symbols of speech are said for it. Where written and spoken words cannot be paired, a few written words make
one: "Jan. 5" is "January fifth". Written words that are not spoken, such as a dash, are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from valle2.runtime.text.normalise import normalise, prepare
from valle2.runtime.text.phonemes import TOKEN, users_sounds
from valle2.runtime.text.written.markup import plain
from valle2.runtime.types import WordSpan

LETTERS = re.compile(r"[^\w\s]{0,8}([A-Za-z']+(?:-[A-Za-z']+)*)[^\w\s]{0,8}", re.A)
"""A written word that is spoken as it is written."""
LETTER = re.compile(r"[A-Za-z]")
FULL_STOPS = "."
AFTER_WORD = re.compile(r"[^\w\s]*")
MOST_WORDS = 1024
"""Words of a text that are normalised at once, so that `written_words` finds them done."""
NEAR = 200
"""Characters of a text in which the next word is looked for: words that are not spoken stand between."""


def spans_of(symbols: Sequence[str], marks: frozenset[str]) -> list[tuple[int, int]]:
    """Start and end of each run of symbols between marks; the end is excluded."""
    sounds = [index for index, symbol in enumerate(symbols) if symbol not in marks]
    starts = [index for index in sounds if index == 0 or symbols[index - 1] in marks]
    ends = [index + 1 for index in sounds if index + 1 == len(symbols) or symbols[index + 1] in marks]
    return list(zip(starts, ends, strict=True))


def spoken_words(text: str) -> list[str]:
    """The words of a text as they are spoken, without marks.

    A word with a user's pronunciation of several words is there as often.
    """
    words = [token for token in TOKEN.findall(normalise(text)) if LETTER.search(token)]
    return [word for word in words for _ in range(max(1, len(users_sounds(word.lower()).split())))]


def written_words(text: str, spoken: Sequence[str]) -> list[tuple[str, int]]:
    """Written words of a text, each with the number of its spoken words; together these are all of them.

    >>> written_words("It costs $5.", ["It", "costs", "five", "dollars"])
    [('It', 1), ('costs', 1), ('$5.', 2)]
    """
    pieces = plain(text).split()
    if len(pieces) == 1 and spoken:
        return [(pieces[0], len(spoken))]
    alone = [spoken_alone(piece) for piece in pieces]
    said = [word.lower() for words in alone for word in words]
    places = shared_places(said, [word.lower() for word in spoken])
    found: list[tuple[str, int]] = []
    waiting: list[str] = []
    at = used = 0
    for piece, words in zip(pieces, alone, strict=True):
        at += len(words)
        if words:
            waiting.append(piece)
        if waiting and at in places and places[at] > used:
            found.append((" ".join(waiting), places[at] - used))
            waiting, used = [], places[at]
    return found


def spoken_alone(piece: str) -> list[str]:
    """The spoken words of one written word by itself."""
    letters = LETTERS.fullmatch(piece)
    return [letters[1]] if letters else spoken_words(piece)


def shared_places(first: Sequence[str], second: Sequence[str]) -> dict[int, int]:
    """Places between words that two readings of a text share: index in the first -> index in the second."""
    places = {0: 0}
    for kind, start, end, begin, stop in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if kind == "equal":
            places |= {start + step: begin + step for step in range(end - start + 1)}
        else:
            places[end] = stop
    return places


class WrittenText:
    """A whole text, in which the words of its sentences get back the marks that they are written with.

    A sentence that was cut at a comma, or between two words, has been given a full stop.
    """

    def __init__(self, text: str) -> None:
        words = plain(text).split()
        self.text = " ".join(words)
        self.at = 0
        prepare([word for word in dict.fromkeys(words[:MOST_WORDS]) if not LETTERS.fullmatch(word)])

    def restore(self, words: Sequence[WordSpan]) -> tuple[WordSpan, ...]:
        """The words of the next sentence. A word that is not found stays as it is."""
        out = []
        for word in words:
            bare = word.text.rstrip(FULL_STOPS)
            start = self.text.find(bare, self.at, self.at + len(bare) + NEAR)
            if bare and start >= 0:
                self.at = start + len(bare)
                marks = AFTER_WORD.match(self.text, self.at)
                word = replace(word, text=bare + (marks[0] if marks else ""))
            out.append(word)
        return tuple(out)

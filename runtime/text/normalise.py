"""Written English to speakable words: numbers, times, units, abbreviations, acronyms.

The rules and their tables are in `written`; this module says in which order they apply.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from valle2.runtime.text.written import (
    Rule,
    RuleSet,
    addresses,
    dates,
    letters,
    markup,
    numbers,
    quantities,
)
from valle2.runtime.text.written.memo import Kept
from valle2.runtime.text.written.pieces import END, expression
from valle2.runtime.text.written.vocabulary import PUNCTUATION, SYMBOLS

RULES: tuple[Rule, ...] = (
    *addresses.RULES,  # first: their dots, slashes and digits mean something else elsewhere
    *letters.ABBREVIATION_RULES,
    *letters.ROMAN_RULES,
    *dates.RULES,  # before quantities, which would read the numbers of a date
    *quantities.MONEY_RULES,
    *quantities.RULES,
    *dates.DECADES,  # after units: 30 s are seconds
    *numbers.RULES,
    *numbers.LAST,
    *letters.RULES,  # last: other rules look for words in capitals
)
"""All rules in order. Digits stay digits until `numbers.LAST`, so that later rules find them."""


def strongest(run: re.Match[str]) -> str:
    """What is left of a run of marks: "?" before "!" before ".", else the first."""
    return next((mark for mark in "?!." if mark in run[0]), run[0][0])


TIDY: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"--+"), ", "),
    (expression(r"[^A-Za-z',.?!;:\- ]"), " "),
    (re.compile(r"(?<![A-Za-z])-+|-+(?![A-Za-z])"), " "),
    (re.compile(r"(?<![A-Za-z])'+(?![A-Za-z])"), " "),
    (re.compile(r" {2,}"), " "),
    (re.compile(r" (?=[,.?!;:])"), ""),
    (re.compile(r"[,.?!;:]{2,}"), strongest),
    (re.compile(r"(?<=[,.?!;:])(?=[A-Za-z])"), " "),
)
"""What leaves only speakable characters, and one punctuation mark after a word."""
FINAL_MARK = re.compile(r"([.?!])[^\w.?!]*$")
"""The mark at the end of a text as it is written. Quotes and brackets may follow it."""
IN_WORDS = RuleSet(RULES)
DASH, SPACES = re.compile(r"\s-+\s(?![\d$€£¥₹])"), re.compile(r"\s+")
FIRST_OF_SYMBOLS = "".join({symbol[0] for symbol in SYMBOLS})
SYMBOL = re.compile(f"[{re.escape(FIRST_OF_SYMBOLS)}](?:(?<=°)[CF])?")
CAPITALS = re.compile(r"[A-Z]{2}")


def normalise(text: str) -> str:
    """Text to speakable English: ASCII words with , . ? ! ; : ' and inner hyphens, single spaces.

    Markup and invisible characters go. Accents are folded; emoji, control characters and scripts other than
    Latin are dropped.
    """
    return NORMALISED(text)


def normalise_each(texts: Sequence[str]) -> list[str]:
    """`normalise` of several texts, which takes less time than one by one if they are short."""
    text = unicodedata.normalize("NFKC", END.join(map(markup.plain, texts))).translate(PUNCTUATION)
    text = SPACES.sub(" ", DASH.sub(", ", text))
    written = pieces = text.split(END)
    if CAPITALS.search(text):
        pieces = list(map(letters.quiet, pieces))
    text = END.join(IN_WORDS.apply_each(pieces))
    text = SYMBOL.sub(lambda match: SYMBOLS[match[0]], text)
    text = tidy(fold(text.replace("–", ", ")))
    spoken = [piece.lstrip(" ,;:").strip() for piece in text.split(END)]
    return [with_final_mark(*pair) for pair in zip(spoken, written, strict=True)]


def with_final_mark(spoken: str, written: str) -> str:
    """Spoken words with the mark that ends them as they are written.

    A rule may take the full stop of "the U.S." or of "(at 5 p.m.)" for a part of the word. A model learns
    from the mark where to end.
    """
    mark = FINAL_MARK.search(written)
    if mark is None or not spoken or spoken[-1] in ".?!":
        return spoken
    return spoken.rstrip(" ,;:") + mark[1]


def prepare(texts: list[str]) -> None:
    """Normalise texts at once, so that `normalise` and `markup.plain` of each find their results."""
    markup.PLAIN.prepare(texts)
    NORMALISED.prepare(texts)


NORMALISED = Kept(lambda text: normalise_each([text])[0], normalise_each)
"""`normalise`, which keeps its last results."""


def fold(text: str) -> str:
    """Accented letters without their accents, everything else that is not ASCII as a space."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKD", text)
    return text.translate({ord(character): folded(character) for character in set(text)})


def folded(character: str) -> str:
    """What stands for a character: nothing for a mark of the one before it, a space for others."""
    if character.isascii():
        return character
    return "" if unicodedata.combining(character) else " "


def tidy(text: str) -> str:
    """Only speakable characters, and one punctuation mark after a word."""
    for pattern, replacement in TIDY:
        text = pattern.sub(replacement, text)
    return text

"""Written English to speakable words: numbers, times, units, abbreviations, acronyms.

The rules and their tables are in `written`; this module says in which order they apply.
"""

from __future__ import annotations

import re
import unicodedata

from valle2.runtime.text.written import (
    Rule,
    RuleSet,
    addresses,
    dates,
    either,
    letters,
    markup,
    numbers,
    quantities,
)
from valle2.runtime.text.written.memo import kept
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
TIDY = (
    (re.compile(r"--+"), ", "),
    (re.compile(r"\.{2,}"), "."),
    (re.compile(r"[^A-Za-z',.?!;:\- ]"), " "),
    (re.compile(r"(?<![A-Za-z])-+|-+(?![A-Za-z])"), " "),
    (re.compile(r"(?<![A-Za-z])'+(?![A-Za-z])"), " "),
    (re.compile(r" {2,}"), " "),
    (re.compile(r" ([,.?!;:])"), r"\1"),
    (re.compile(r"([,;:])[,;:]+"), r"\1"),
    (re.compile(r"[,;:](?=[.?!])|(?<=[.?!;:,])[,.;:]+"), ""),
    (re.compile(r"([,.?!;:])(?=[A-Za-z])"), r"\1 "),
)
"""What leaves only speakable characters, each punctuation mark once and after its word."""
IN_WORDS = RuleSet(RULES)
DASH, SPACES = re.compile(r"\s-+\s(?![\d$€£¥₹])"), re.compile(r"\s+")
SYMBOL = re.compile(either(SYMBOLS))


@kept
def normalise(text: str) -> str:
    """Text to speakable English: ASCII words with , . ? ! ; : ' and inner hyphens, single spaces.

    Markup and invisible characters go. Accents are folded; emoji, control characters and scripts other than
    Latin are dropped.
    """
    text = unicodedata.normalize("NFKC", markup.plain(text)).translate(PUNCTUATION)
    text = letters.quiet(SPACES.sub(" ", DASH.sub(", ", text)))
    text = IN_WORDS.apply(text)
    text = SYMBOL.sub(lambda match: SYMBOLS[match[0]], text)
    return tidy(fold(text.replace("–", ", ")))


def fold(text: str) -> str:
    """Accented letters without their accents, everything else that is not ASCII as a space."""
    if text.isascii():
        return text
    out = []
    for c in unicodedata.normalize("NFKD", text):
        if c.isascii():
            out.append(c)
        elif not unicodedata.combining(c):
            out.append(" ")
    return "".join(out)


def tidy(text: str) -> str:
    """Only speakable characters, each punctuation mark once and after its word."""
    for pattern, replacement in TIDY:
        text = pattern.sub(replacement, text)
    return text.lstrip(" ,;:").strip()

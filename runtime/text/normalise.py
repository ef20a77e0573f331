"""Written English to speakable words: numbers, times, units, abbreviations, acronyms."""

from __future__ import annotations

import re
import unicodedata

from valle2.runtime.text.abbreviations import (
    ABBREVIATIONS,
    AT_THE_END,
    PLURALS,
    PUNCTUATION,
    SHORT_WORDS,
    SYMBOLS,
    TITLES,
    UNITS,
)
from valle2.runtime.text.numerals import (
    CURRENCIES,
    NUMBER,
    clock,
    decade,
    fraction,
    money,
    number,
    ordinal,
)

SMALLEST_SHOUT = 3


def either(words: object) -> str:
    """A regular expression for any of the words, longest first."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))  # type: ignore[call-overload]


def title(match: re.Match[str]) -> str:
    return f"{TITLES[match[1].lower()]} "


def expand(match: re.Match[str]) -> str:
    """An abbreviation in words; its full stop stays where the sentence ends with it."""
    short, rest = match[1].lower(), match.string[match.end() :].lstrip()
    ends = not rest or (rest[0].isupper() and short in ("etc", "jr", "sr", "inc", "ltd", "co", "st"))
    return (AT_THE_END | ABBREVIATIONS)[short] + ("." if ends else "")


def measure(match: re.Match[str]) -> str:
    """5 km -> "5 kilometers"."""
    amount, unit = match[1], UNITS[match[2].lower()]
    head, _, tail = unit.partition(" ")
    many = unit if amount == "1" else f"{PLURALS.get(head, f'{head}s')} {tail}".strip()
    return f"{amount} {'kilowatt hours' if unit == 'kilowatt hour' and amount != '1' else many}"


def acronym(match: re.Match[str]) -> str:
    """BBC -> "B B C"; NASA, and words in capitals, stay words."""
    word = match[1]
    vowels = any(letter in "AEIOUY" for letter in word)
    if word in SHORT_WORDS or (vowels and len(word) > 3):
        return match[0]
    return " ".join(word) + ("'s" if match[2] else "")


def quiet(text: str) -> str:
    """Text that is all capitals in lower case, so that it is read and not spelt."""
    words = re.findall(r"[A-Za-z]{2,}", text)
    shouted = len(words) >= SMALLEST_SHOUT and all(word.isupper() for word in words)
    return text.lower() if shouted else text


MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
TIME = r"\b(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?!\d)(?:\s?(?P<half>[AaPp])\s?[Mm]\b)?"
SCALE = "thousand|million|billion|trillion"
SIGN = either(CURRENCIES)
RULES: tuple[tuple[re.Pattern[str], object], ...] = (
    (re.compile(r"https?://(?:www\.)?|www\.", re.I), " "),
    (re.compile(r"(?<=\w)\.(?=(?:com|org|net|edu|gov|io|py|txt|html)\b)"), " dot "),
    (re.compile(r"\b([apAP])\.[mM]\.(?=\s+[A-Z]|\s*$)"), lambda m: f"{m[1].upper()} M."),
    (re.compile(r"\b([ap])\.m\.", re.I), lambda m: f"{m[1].upper()} M"),
    (re.compile(rf"\b((?i:{either(TITLES)}))\.\s+(?=[A-Z&])"), title),
    (re.compile(rf"\b({either(ABBREVIATIONS | AT_THE_END)})\.(?!\w)", re.I), expand),
    (re.compile(r"\bvs\b"), "versus"),
    (re.compile(r"\bfig\.\s*(?=\d)", re.I), "figure "),
    (re.compile(r"\bvol\.\s*(?=\d)", re.I), "volume "),
    (re.compile(r"\b(No|Nos)\.\s*(?=\d)"), "number "),
    (re.compile(r"#\s*(?=\d)"), "number "),
    (re.compile(r"\b((?:[A-Z]\.){2,})"), lambda m: " ".join(m[1].replace(".", "")) + " "),
    (re.compile(rf"(?P<sign>{SIGN})\s?(?P<amount>{NUMBER})(?:\s?(?P<scale>{SCALE})\b)?"), money),
    (re.compile(TIME), clock),
    (re.compile(r"\b(\d{1,2})\s?([ap])m\b", re.I), lambda m: f"{m[1]} {m[2].upper()} M"),
    (re.compile(rf"\b({NUMBER})\s?((?i:{either(UNITS)}))\b(?:\.(?=\s[a-z]))?"), measure),
    (re.compile(r"\b(\d{2,4})'?s\b"), decade),
    (re.compile(rf"\b({MONTHS})\s(\d{{1,2}})\b(?![:.]\d)"), lambda m: f"{m[1]} {ordinal(int(m[2]))}"),
    (re.compile(r"\b(\d{1,9})(?:st|nd|rd|th)\b", re.I), lambda m: ordinal(int(m[1]))),
    (re.compile(r"(?<=\d)\s?(\d)/(?=\d)"), r" and \1/"),
    (re.compile(r"\b(\d{1,3})/(\d{1,3})\b"), fraction),
    (re.compile(r"\b(\d{3})-(\d{4})\b"), lambda m: f"{' '.join(m[1])}, {' '.join(m[2])}"),
    (re.compile(rf"(?<![\d.,])({NUMBER})\s*[-\u2013]\s*(?=\d)"), r"\1 to "),
    (re.compile(r"(?<![\w.])-(?=\d)"), "minus "),
    (re.compile(rf"({NUMBER})"), lambda m: f" {number(m[1])} "),
    (re.compile(r"\b([A-Z]{2,5})((?:'?s)?)\b"), acronym),
)  # fmt: skip


def normalise(text: str) -> str:
    """Text to speakable English: ASCII words with , . ? ! ; : ' and inner hyphens, single spaces.

    Accents are folded; emoji, control characters and scripts other than Latin are dropped.
    """
    text = unicodedata.normalize("NFKC", spaced(text)).translate(PUNCTUATION)
    text = quiet(re.sub(r"\s+", " ", re.sub(r"\s-+\s(?!\d)", ", ", text)))
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)  # type: ignore[call-overload]
    for symbol, words in SYMBOLS.items():
        text = text.replace(symbol, words)
    return tidy(fold(text.replace("–", ", ")))


def spaced(text: str) -> str:
    """Vulgar fractions apart from the digit before them; control characters as spaces."""
    text = re.sub(r"(?<=\d)(?=[¼½¾⅐-⅞])", " and ", text)
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)


def fold(text: str) -> str:
    """Accented letters without their accents, everything else that is not ASCII as a space."""
    out = []
    for c in unicodedata.normalize("NFKD", text):
        if c.isascii():
            out.append(c)
        elif not unicodedata.combining(c):
            out.append(" ")
    return "".join(out)


def tidy(text: str) -> str:
    """Only speakable characters, each punctuation mark once and after its word."""
    text = re.sub(r"\.{2,}", ".", re.sub(r"--+", ", ", text))
    text = re.sub(r"[^A-Za-z',.?!;:\- ]", " ", text)
    text = re.sub(r"(?<![A-Za-z])-+|-+(?![A-Za-z])", " ", text)
    text = re.sub(r"(?<![A-Za-z])'+(?![A-Za-z])", " ", text)
    text = re.sub(r"\s+([,.?!;:])", r"\1", re.sub(r"\s+", " ", text))
    text = re.sub(r"([,;:])[,;:]+", r"\1", text)
    text = re.sub(r"[,;:](?=[.?!])|(?<=[.?!;:,])[,.;:]+", "", text)
    return re.sub(r"([,.?!;:])(?=[A-Za-z])", r"\1 ", text).lstrip(" ,;:").strip()

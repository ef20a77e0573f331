"""Written English to speakable words: numbers, money, times, abbreviations, symbols. Pure functions."""

from __future__ import annotations

import re
import unicodedata

SMALL: tuple[str, ...] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS: tuple[str, ...] = (
    "zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip
SCALES = (
    (10**12, "trillion"),
    (10**9, "billion"),
    (10**6, "million"),
    (1000, "thousand"),
    (100, "hundred"),
)
LARGEST = 10**15
IRREGULAR = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
ABBREVIATIONS = {
    "mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor", "st": "saint",
    "jr": "junior", "sr": "senior", "vs": "versus", "etc": "et cetera", "approx": "approximately",
    "no": "number", "gen": "general", "col": "colonel", "capt": "captain", "rev": "reverend",
    "e.g": "for example", "i.e": "that is",
}  # fmt: skip
SYMBOLS = {
    "&": " and ",
    "%": " percent",
    "+": " plus ",
    "=": " equals ",
    "@": " at ",
    "°": " degrees",
}
CURRENCIES = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny")}
PUNCTUATION = {
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "–": ", ",
    "—": ", ",
    "…": ".",
    "\u2212": "-",
}
NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"


def cardinal(value: int) -> str:
    """1204 -> "one thousand two hundred four"; digit by digit above a thousand trillion."""
    if value >= LARGEST:
        return " ".join(SMALL[int(digit)] for digit in str(value))
    if value < 20:
        return SMALL[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return TENS[tens] + (f" {SMALL[ones]}" if ones else "")
    for scale, name in SCALES:
        if value >= scale:
            count, rest = divmod(value, scale)
            return f"{cardinal(count)} {name}" + (f" {cardinal(rest)}" if rest else "")
    raise AssertionError("unreachable")


def ordinal(value: int) -> str:
    """21 -> "twenty first"."""
    head, _, last = cardinal(value).rpartition(" ")
    plain = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    last = IRREGULAR.get(last, plain)
    return f"{head} {last}".strip()


def year(value: int) -> str:
    """1999 -> "nineteen ninety nine", 2005 -> "two thousand five", 1900 -> "nineteen hundred"."""
    century, rest = divmod(value, 100)
    if century % 10 == 0 and rest < 10:
        return cardinal(value)
    if not rest:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def number(text: str) -> str:
    """ "1,250" or "3.14" in words; four plain digits from 1100 to 2099 are a year."""
    whole, _, decimals = text.replace(",", "").partition(".")
    if not decimals and "," not in text and len(whole) == 4 and 1100 <= int(whole) < 2100:
        return year(int(whole))
    words = cardinal(int(whole))
    return f"{words} point {' '.join(SMALL[int(d)] for d in decimals)}" if decimals else words


def money(match: re.Match[str]) -> str:
    """$3.50 -> "three dollars and fifty cents"."""
    unit, small = CURRENCIES[match["sign"]]
    whole, _, decimals = match["amount"].replace(",", "").partition(".")
    words = f"{cardinal(int(whole))} {unit}{'' if int(whole) == 1 else 's'}"
    cents = int(decimals[:2].ljust(2, "0")) if decimals else 0
    plural = {"penny": "pence"}.get(small, f"{small}s")
    return words + (f" and {cardinal(cents)} {small if cents == 1 else plural}" if cents else "")


def clock(match: re.Match[str]) -> str:
    """10:05 -> "ten oh five", 7:00 -> "seven o'clock"."""
    hour, minute = int(match[1]), int(match[2])
    if not minute:
        return f"{cardinal(hour)} o'clock"
    return f"{cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)}"


def spell(match: re.Match[str]) -> str:
    """An acronym without vowels between its capitals is read letter by letter."""
    return " ".join(match[0])


def expand(match: re.Match[str]) -> str:
    return f"{ABBREVIATIONS[match[1].lower()]} "


RULES: tuple[tuple[re.Pattern[str], object], ...] = (
    (
        re.compile(r"\b(" + "|".join(map(re.escape, ABBREVIATIONS)) + r")\.(?=\s+\S|,)\s*", re.I),
        expand,
    ),
    (re.compile(rf"(?P<sign>[$€£])(?P<amount>{NUMBER})"), money),
    (re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)\b"), clock),
    (re.compile(r"\b(\d{1,9})(?:st|nd|rd|th)\b", re.I), lambda m: ordinal(int(m[1]))),
    (re.compile(rf"({NUMBER})\s*[-\u2013]\s*(?=\d)"), r"\1 to "),
    (re.compile(rf"(?<!\w)-(?=\d)"), "minus "),  # noqa: F541
    (re.compile(NUMBER), lambda m: f" {number(m[0])} "),
    (re.compile(r"\b(?=[A-Z]{2,5}\b)(?:[B-DF-HJ-NP-TV-XZ]{2,5}|[A-Z]{2,3})\b"), spell),
)


def normalise(text: str) -> str:
    """Text to speakable English: ASCII words with , . ? ! ; : and apostrophes, single spaces.

    Accents are folded, emoji and scripts other than Latin are dropped.
    """
    text = unicodedata.normalize("NFKC", text)
    for table in (PUNCTUATION, SYMBOLS):
        for symbol, words in table.items():
            text = text.replace(symbol, words)
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)  # type: ignore[call-overload]
    folded = unicodedata.normalize("NFKD", text)
    plain = "".join(
        c
        if c.isascii() and c.isprintable()
        else " "
        if not c.isalpha() and not unicodedata.combining(c)
        else ""
        for c in folded
    )
    plain = re.sub(r"[^A-Za-z',.?!;:\- ]", " ", plain)
    plain = re.sub(r"(?<=\w)-(?=\w)", " ", plain).replace("-", " ")
    plain = re.sub(r"\s+([,.?!;:])", r"\1", re.sub(r"\s+", " ", plain))
    return re.sub(r"([,.?!;:])[,.;:]+", r"\1", plain).strip()

"""SSML's `say-as`: how a value is read, in words that need no further reading."""

from __future__ import annotations

import re
from collections.abc import Callable

from valle2.runtime.text.normalise import normalise
from valle2.runtime.text.numerals import cardinal, digits, fraction, ordinal
from valle2.runtime.text.written.dates import date, joined, tens
from valle2.runtime.text.written.letters import NUMERAL, roman
from valle2.runtime.text.written.vocabulary import MONTHS

GROUP = re.compile(r"[A-Za-z]+|\d+|\S")
SIGNS = {
    ".": "dot", ",": "comma", "-": "dash", "_": "underscore", "/": "slash", "\\": "backslash", ":": "colon",
    ";": "semicolon", "?": "question mark", "!": "exclamation mark", "'": "apostrophe", '"': "quote",
    "(": "open parenthesis", ")": "close parenthesis", "[": "open bracket", "]": "close bracket",
    "{": "open brace", "}": "close brace", "*": "asterisk", "#": "hash", "~": "tilde", "^": "caret",
    "|": "bar", "<": "less than", ">": "greater than", "`": "backtick", "@": "at",
}  # fmt: skip
NUMBER = re.compile(r"([-−+]?)\s*(\d{1,3}(?:,\d{3})+|\d{1,60})(?:\.(\d{1,60}))?")
ORDINAL = re.compile(r"(\d{1,3}(?:,\d{3})+|\d{1,15})\s*(?:st|nd|rd|th)?", re.I)
ROMAN = re.compile(NUMERAL)
CLOCK = re.compile(r"(\d{1,2})[:.](\d{1,2})(?:[:.](\d{1,2}))?\s*([ap])?\.?\s?(?:m\.?)?", re.I)
HOUR = re.compile(r"(\d{1,2})\s*([ap])\.?\s?m\.?", re.I)
LENGTH = re.compile(r"(?:(\d{1,3})\s*(?:h|:))?\s*(\d{1,3})\s*['′m:]\s*(\d{1,3})\s*(?:\"|″|''|s)?")
FRACTION = re.compile(r"(?:(\d{1,9})\s*(?:\+|\s)\s*)?(\d{1,9})\s*/\s*(\d{1,9})")
PHONE_EXTENSION = re.compile(r"\s*(?:x|ext\.?)\s*(\d{1,8})\s*$", re.I)
PHONE = re.compile(r"\+?[\d\s().\-/]{2,40}")
LONGEST = 200
"""Characters of a value; a longer one is read as written."""


def say_as(kind: str, layout: str, text: str) -> str | None:
    """A value in words.

    Args:
        kind: the attribute `interpret-as`, one of `KINDS`. layout: `format`, such as "mdy" of a date.

    Returns:
        The words; None if the value is not of that kind.
    """
    value = " ".join(text.split())
    return KINDS[kind](value, layout.strip().lower()) if 0 < len(value) <= LONGEST else None


def characters(value: str, _layout: str) -> str | None:
    """A1B -> "A, one, B": letters by their names, digits one by one, signs by their names."""
    parts = []
    for group in GROUP.findall(value):
        if group.isascii() and group.isalpha():
            parts.append(" ".join(group.upper()))
        elif group.isdecimal():
            parts.append(digits(group))
        else:
            name = SIGNS.get(group) or normalise(group).strip(" .,;:!?'")
            parts.append(" ".join(name.upper()) if len(name) == 1 else name)
    return ", ".join(filter(None, parts)) or None


def each_digit(value: str, _layout: str) -> str | None:
    """555-12 -> "five five five, one two"."""
    groups = re.findall(r"\d+", value)
    return None if re.search(r"[^\W\d]", value) else ", ".join(map(digits, groups)) or None


def number(value: str, _layout: str) -> str | None:
    """-1,234.5 -> "minus one thousand two hundred thirty four point five"; XIV -> "fourteen"."""
    found = NUMBER.fullmatch(value)
    if found is None:
        return cardinal(roman(value)) if ROMAN.fullmatch(value) else None
    sign = "minus " if found[1] in ("-", "−") else ""
    whole = cardinal(int(found[2].replace(",", "")))
    return f"{sign}{whole}" + (f" point {digits(found[3])}" if found[3] else "")


def place(value: str, _layout: str) -> str | None:
    """5 or 5th -> "fifth"; XIV -> "fourteenth"."""
    found = ORDINAL.fullmatch(value)
    if found:
        whole = int(found[1].replace(",", ""))
        return ordinal(whole) if whole < 10**15 else None
    return ordinal(roman(value)) if ROMAN.fullmatch(value) else None


def day(value: str, layout: str) -> str | None:
    """12/25/2024 with "mdy" -> "December twenty fifth, twenty twenty four"."""
    parts = re.findall(r"\d+", value)
    if re.search(r"[^\W\d]", value):
        return as_written(value, layout)
    order = re.sub(r"[^dmy]", "", re.sub(r"y+", "y", re.sub(r"m+", "m", re.sub(r"d+", "d", layout))))
    if not order:
        return as_written(value, layout) if len(parts) > 1 else None
    if len(parts) == 1 and len(parts[0]) == 8 and len(order) == 3:
        widths, whole = [4 if part == "y" else 2 for part in order], parts[0]
        parts = [whole[sum(widths[:i]) : sum(widths[: i + 1])] for i in range(3)]
    if len(parts) != len(order) or len(set(order)) < len(order) or any(len(part) > 4 for part in parts):
        return None
    given = dict(zip(order, parts, strict=True))
    if given.get("y") and len(given["y"]) not in (2, 4):
        return None
    year_words = normalise(given["y"]) if "y" in given else ""
    if "m" not in given:
        return year_words if "d" not in given else ordinal(int(given["d"]))
    month = int(given["m"])
    if not 1 <= month <= 12:
        return None
    if "d" not in given:
        return f"{MONTHS[month - 1]} {year_words}".strip()
    return date(month, int(given["d"]), given.get("y", ""))


def time_of_day(value: str, _layout: str) -> str | None:
    """14:30 -> "fourteen thirty"; 2:30pm -> "two thirty P M"; 1'21" -> "one minute and ..."."""
    found = CLOCK.fullmatch(value)
    if found:
        hour, minute, second = int(found[1]), int(found[2]), int(found[3] or 0)
        if hour > 24 or minute > 59 or second > 59:
            return None
        if not found[3]:
            half = f" {found[4]}m" if found[4] else ""
            return normalise(f"{hour}:{found[2].zfill(2)}{half}")
        half = f" {found[4].upper()} M" if found[4] else ""
        return f"{cardinal(hour)} {tens(minute)} {tens(second)}{half}"
    short = HOUR.fullmatch(value)
    return f"{cardinal(int(short[1]))} {short[2].upper()} M" if short else duration(value, "")


def duration(value: str, _layout: str) -> str | None:
    """1:02:03 -> "one hour, two minutes and three seconds"."""
    found = LENGTH.fullmatch(value)
    if found is None:
        return None
    names = ((found[1], "hour"), (found[2], "minute"), (found[3], "second"))
    parts = [
        f"{cardinal(int(count))} {name}{'' if int(count) == 1 else 's'}"
        for count, name in names
        if count and int(count)
    ]
    return joined(parts or ["zero seconds"])


def telephone(value: str, _layout: str) -> str | None:
    """+1 (800) 555-0199 x2: digits one by one, group by group."""
    extension = PHONE_EXTENSION.search(value)
    rest = value[: extension.start()] if extension else value
    if not PHONE.fullmatch(rest) or not any(map(str.isdigit, rest)):
        return None
    groups = ", ".join(map(digits, re.findall(r"\d+", rest)))
    more = f", extension {digits(extension[1])}" if extension else ""
    return f"{'plus ' if rest.startswith('+') else ''}{groups}{more}"


def parts_of(value: str, _layout: str) -> str | None:
    """3/4 -> "three quarters"; 1+1/2 -> "one and one half"."""
    found = FRACTION.fullmatch(value)
    if found is None:
        return None
    whole = f"{cardinal(int(found[1]))} and " if found[1] else ""
    return whole + fraction(int(found[2]), int(found[3]))


def as_written(value: str, _layout: str) -> str | None:
    """What the normaliser reads rightly by itself: money, units, addresses. No mark ends it."""
    return normalise(value).rstrip(" .,;:!?") or None


KINDS: dict[str, Callable[[str, str], str | None]] = {
    "characters": characters,
    "spell-out": characters,
    "verbatim": characters,
    "letters": characters,
    "digits": each_digit,
    "cardinal": number,
    "number": number,
    "ordinal": place,
    "date": day,
    "time": time_of_day,
    "duration": duration,
    "telephone": telephone,
    "fraction": parts_of,
    "currency": as_written,
    "unit": as_written,
    "address": as_written,
}
"""By the value of `interpret-as`."""

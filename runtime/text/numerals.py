"""Numbers in English words: cardinals, ordinals, years, decimals, money, times. Pure functions."""

from __future__ import annotations

import re

SMALL: tuple[str, ...] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS: tuple[str, ...] = (
    "zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip
SCALES = (
    (10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"),
)  # fmt: skip
LARGEST = 10**15
IRREGULAR = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth",
    "nine": "ninth", "twelve": "twelfth",
}  # fmt: skip
Currency = tuple[str, str, str, str]
"""One, many, and a hundredth in one and many; empty where hundredths are read as decimals."""
NUMBER = r"\d(?:\d{0,2}(?:,\d{3})+|\d*)(?:\.\d+)?"


def cardinal(value: int) -> str:
    """1204 -> "one thousand two hundred four"; digit by digit from a thousand trillion."""
    if value >= LARGEST:
        return digits(str(value))
    if value < 20:
        return SMALL[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return TENS[tens] + (f" {SMALL[ones]}" if ones else "")
    scale, name = next(row for row in SCALES if value >= row[0])
    count, rest = divmod(value, scale)
    return f"{cardinal(count)} {name}" + (f" {cardinal(rest)}" if rest else "")


def digits(text: str) -> str:
    """ "007" -> "zero zero seven"."""
    return " ".join(SMALL[int(digit)] for digit in text)


def ordinal(value: int) -> str:
    """21 -> "twenty first"."""
    head, _, last = cardinal(value).rpartition(" ")
    plain = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return f"{head} {IRREGULAR.get(last, plain)}".strip()


def year(value: int) -> str:
    """1999 -> "nineteen ninety nine", 2005 -> "two thousand five", 1900 -> "nineteen hundred"."""
    century, rest = divmod(value, 100)
    if century % 10 == 0 and rest < 10:
        return cardinal(value)
    if not rest:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def number(text: str) -> str:
    """ "1,250" or "3.14" in words; four plain digits from 1000 to 2099 are a year, "007" is digits."""
    whole, _, decimals = text.replace(",", "").partition(".")
    if not decimals and "," not in text and len(whole) == 4 and 1000 <= int(whole) < 2100:
        return year(int(whole))
    spell = len(whole) > 15 or (len(whole) > 1 and whole[0] == "0")
    words = digits(whole) if spell else cardinal(int(whole))
    return f"{words} point {digits(decimals)}" if decimals else words


def plural_words(words: str) -> str:
    """ "nineteen ninety" -> "nineteen nineties"."""
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}{'es' if words.endswith('x') else 's'}"


def decade(match: re.Match[str]) -> str:
    """1990s or 80s -> "nineteen nineties", "eighties"."""
    return plural_words(number(match[1]))


def money(
    amount: str,
    currency: Currency,
    scale: str = "",
    country: str = "",
    singular: bool = False,
    whole: bool = False,
) -> str:
    """3.50 dollars -> "three dollars and fifty cents", 2 million dollars -> "two million dollars".

    Args:
        amount: as `NUMBER` finds it. scale: thousand, million ... country: a word before the currency.
        singular: "five dollar" before the noun that it describes. whole: hundredths are read as decimals.
    """
    one, many, cent, cents = currency
    before = f"{country} " if country else ""
    if scale:
        return f"{number(amount)} {scale.lower()} {before}{one if singular else many}"
    units, _, decimals = amount.replace(",", "").partition(".")
    if decimals and (len(decimals) > 2 or not cent or whole):
        return f"{number(amount)} {before}{many}"
    parts = []
    rest = int(decimals.ljust(2, "0")) if decimals else 0
    units = units.lstrip("0")
    if units or not rest:
        words = digits(units) if len(units) > 15 else cardinal(int(units or 0))
        parts.append(f"{words} {before}{one if units == '1' or (singular and not rest) else many}")
    if rest:
        parts.append(f"{cardinal(rest)} {cent if rest == 1 else cents}")
    return " and ".join(parts)


def clock(match: re.Match[str]) -> str:
    """10:05 -> "ten oh five", 7:00 -> "seven o'clock", 15:00 -> "fifteen hundred", 7:30 am -> "... A M"."""
    hour, minute = int(match["hour"]), int(match["minute"])
    half = f" {match['half'].upper()} M" if match["half"] else ""
    if not hour and not minute and not half:
        return "midnight"
    if not minute:
        return cardinal(hour) + (half or (" hundred" if hour > 12 else " o'clock"))
    return f"{cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)}{half}"


def fraction(top: int, bottom: int) -> str:
    """1/2 -> "one half", 3/4 -> "three quarters", 7/16 -> "seven sixteenths", 120/80 -> "... over eighty"."""
    if not 0 < top < bottom:
        return f"{cardinal(top)} over {cardinal(bottom)}"
    name = {2: "half", 4: "quarter"}.get(bottom) or ordinal(bottom)
    many = "halves" if bottom == 2 else f"{name}s"
    return f"{cardinal(top)} {name if top == 1 else many}"

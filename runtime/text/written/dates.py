"""Dates, days, times of day and durations."""

from __future__ import annotations

import re

from valle2.runtime.text.numerals import cardinal, clock, decade, ordinal, year
from valle2.runtime.text.written import Rule, either
from valle2.runtime.text.written.pieces import expression
from valle2.runtime.text.written.vocabulary import MONTHS, SHORT_DAYS, SHORT_MONTHS, WORDS_TOO

MONTH = either(MONTHS)
SHORT_MONTH = either(month.capitalize() for month in SHORT_MONTHS)
DAY = either(SHORT_DAYS)
FULL_DAY = either(frozenset(SHORT_DAYS.values()))
SURELY_DAY = either(frozenset(SHORT_DAYS) - WORDS_TOO)
HALF = r"\s?[AaPp]\s?\.?[Mm]\b\.?"
TIME = r"\b(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?![\d:])(?:\s?(?P<half>[AaPp])\s?[Mm]\b)?"
SURELY_NEAR = ("on", "due", "dated")
COMMON_SHARES = (2, 3, 4, 5, 6, 8, 10)
"""What 1/2 or 3/4 have below the slash: "by 3/4" is seldom a date."""
NEAR_DATE = r"(?:on|by|due|until|before|after|since|dated|from)"


def date(month: int, day: int, of_year: str = "") -> str | None:
    """A date in words, or None if there is no such day."""
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    spoken = f"{MONTHS[month - 1]} {ordinal(day)}"
    if not of_year:
        return spoken
    full = int(of_year) if len(of_year) == 4 else int(of_year) + (2000 if int(of_year) < 50 else 1900)
    return f"{spoken}, {year(full)}"


def full_month(name: str) -> str:
    """Jan -> January."""
    return SHORT_MONTHS.get(name.lower(), name)


def iso(match: re.Match[str]) -> str:
    """2024-01-15 or 2024/1/15."""
    spoken = date(int(match[3]), int(match[4]), match[1])
    return match[0] if spoken is None else spoken + (" at " if match[5] else "")


def numeric(match: re.Match[str]) -> str:
    """01/15/2024, 15/01/2024, 15.01.2024: the month first where it can be, except between dots."""
    first, second = int(match[1]), int(match[3])
    month_first = first <= 12 and (match[2] != "." or second > 12)
    spoken = date(first, second, match[4]) if month_first else date(second, first, match[4])
    return spoken or match[0]


def near(match: re.Match[str]) -> str:
    """ "on 12/25": month and day after a word that goes before dates."""
    month, day = int(match[2]), int(match[3])
    share = month < day and day in COMMON_SHARES and match[1].lower() not in SURELY_NEAR
    spoken = None if share or (month, day) == (9, 11) else date(month, day)
    return match[0] if spoken is None else f"{match[1]} {spoken}"


def day_of_month(match: re.Match[str]) -> str:
    """ "3 May" -> "the third of May"."""
    day = int(match[1])
    return f"the {ordinal(day)} of {match[2]}" if 1 <= day <= 31 else match[0]


def month_day(match: re.Match[str]) -> str:
    """ "May 5" -> "May fifth", "May 5-7" -> "May fifth to seventh"."""
    until = f" to {ordinal(int(match[3]))}" if match[3] else ""
    return f"{match[1]} {ordinal(int(match[2]))}{until}"


def seconds_too(match: re.Match[str]) -> str:
    """1:30:45 as a duration, and after "at" as a time of day."""
    hours, minutes, seconds = (int(match[part]) for part in ("hours", "minutes", "seconds"))
    if match["at"]:
        spoken = [cardinal(hours), tens(minutes), *([tens(seconds)] if seconds else [])]
        return f"{match['at']} {' '.join(spoken)}"
    parts = [
        f"{cardinal(count)} {name}{'' if count == 1 else 's'}"
        for count, name in ((hours, "hour"), (minutes, "minute"), (seconds, "second"))
        if count
    ]
    return joined(parts or ["zero seconds"])


def tens(value: int) -> str:
    """Minutes after an hour: 5 -> "oh five"."""
    return f"oh {cardinal(value)}" if value < 10 else cardinal(value)


def joined(parts: list[str]) -> str:
    """Parts of a duration: commas, and "and" before the last."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def lettered(match: re.Match[str]) -> str:
    """2h 30m, 1h5m10s."""
    names = ((match[1], "hour"), (match[2], "minute"), (match[3], "second"))
    return " ".join(f"{count} {name}{'' if int(count) == 1 else 's'}" for count, name in names if count)


RULES: tuple[Rule, ...] = (
    Rule(
        expression(rf"\b({MONTH}|{SHORT_MONTH})\.?\s?[-–]\s?({MONTH}|{SHORT_MONTH})\b"),
        lambda match: f"{full_month(match[1])} to {full_month(match[2])}",
        "-– ADFJMNOS",
        "ADFJMNOS",
    ),
    Rule(expression(rf"\b({FULL_DAY})\s?[-–]\s?(?={FULL_DAY}\b)"), r"\1 to ", "-– FMSTW", "FMSTW"),
    Rule(
        expression(r"\b(Sat|Sun)\.(?=\s(?:and|or|to|through)\b)"),
        lambda match: SHORT_DAYS[match[1]],
        ". S",
        "S",
    ),
    Rule(
        expression(r"(?<![\w/.-])(\d{4})([-/])(\d{1,2})\2(\d{1,2})(?:(T)(?=\d\d:)|(?![\w/-]))(?!\.\d)"),
        iso,
        "-/ 0",
    ),
    Rule(expression(r"(?<=\d\d:\d\d)Z\b|(?<=\d\d:\d\d:\d\d)Z\b"), " U T C", ": 0 Z", "Z"),
    Rule(
        expression(r"(?<![\w/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d\d)(?![\w/-])(?!\.\d)"), numeric, "-./ 0"
    ),
    Rule(
        expression(
            rf"\b({NEAR_DATE})\s(0?[1-9]|1[0-2])/(\d{{1,2}})\b(?![/\w]|\s(?:of|inch|cup|mile)|\.\d)", re.I
        ),
        near,
        "/ 0",
        "ABDFOSUabdfosu",
    ),
    Rule(
        expression(rf"\b({SHORT_MONTH})\b\.?(?=\s?\d{{1,2}}(?!\d)|,?\s(?:19|20)\d\d\b)"),
        lambda match: f"{SHORT_MONTHS[match[1].lower()]} ",
        "0 ADFJMNOS",
        "ADFJMNOS",
    ),
    Rule(
        expression(
            rf"(?:(?<=\b\d\s)|(?<=\b\d\d\s)|(?<=\d(?:st|nd|rd|th)\s))({SHORT_MONTH})\b(?:\.(?=,?\s[\da-z]))?"
        ),
        lambda match: SHORT_MONTHS[match[1].lower()],
        "0 ADFJMNOS",
        "ADFJMNOS",
    ),
    Rule(
        expression(r"\b(Mar|Apr|Jun|Jul|Sep)\.(?=\s[a-z]|,)"),
        lambda match: SHORT_MONTHS[match[1].lower()],
        ". AJMS",
        "AJMS",
    ),
    Rule(
        expression(r"\b(Apr|Jul|Sep)\.(?=\s|$)"),
        lambda match: f"{SHORT_MONTHS[match[1].lower()]}.",
        ". AJS",
        "AJS",
    ),
    Rule(
        expression(rf"\b({DAY})\b\.?\s?[-–]\s?({DAY})\b(?:\.(?=\s[a-z0-9]|,))?"),
        lambda match: f"{SHORT_DAYS[match[1]]} to {SHORT_DAYS[match[2]]}",
        "-– FMSTW",
        "FMSTW",
    ),
    Rule(
        expression(rf"\b({SURELY_DAY})\.(?=\s[a-z0-9]|,|\s(?:{MONTH}|{SHORT_MONTH})|\s(?:{DAY}))"),
        lambda match: SHORT_DAYS[match[1]],
        ". FMTW",
        "FMTW",
    ),
    Rule(expression(rf"\b({SURELY_DAY})\."), lambda match: f"{SHORT_DAYS[match[1]]}.", ". FMTW", "FMTW"),
    Rule(
        expression(
            r"\b(on|every|this|next|last|and|or|until|to|by|from|each)\s(Sat|Sun)\.(?=(\s[a-z0-9]|,)?)"
        ),
        lambda match: f"{match[1]} {SHORT_DAYS[match[2]]}{'' if match[3] else '.'}",
        ". S",
        "abeflnotu",
    ),
    Rule(
        expression(rf"\b({DAY})\b\.?(?=,?\s(?:\d|{MONTH}))"),
        lambda match: SHORT_DAYS[match[1]],
        "ADFJMNOS0 FMSTW",
        "FMSTW",
    ),
    Rule(
        expression(rf"\b(?:the\s)?(\d{{1,2}})(?:st|nd|rd|th)?\s({MONTH})\b"),
        day_of_month,
        "0 ADFJMNOS",
        r"\dt",
    ),
    Rule(
        expression(
            rf"\b({MONTH})\s{{1,2}}(\d{{1,2}})(?:st|nd|rd|th)?(?:\s?[-–]\s?(\d{{1,2}})(?:st|nd|rd|th)?)?\b(?![:.]\d|%|/)"
        ),
        month_day,
        "0 ADFJMNOS",
        "ADFJMNOS",
    ),
    Rule(
        expression(
            r"(?<![\w:.])(?:(?P<at>\bat)\s)?(?P<hours>\d{1,3}):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)(?![\d:])"
        ),
        seconds_too,
        ": 0",
        r"\da",
    ),
    Rule(
        expression(r"(?<![\w:.])(\d{1,3})\s?h\s?(\d{1,2})\s?m(?:ins?)?(?:\s?(\d{1,2})\s?s(?:ec)?)?\b"),
        lettered,
        "0 m",
        r"\d",
    ),
    Rule(
        expression(rf"(?<![\w:.,/-])(\d{{1,2}}(?::\d\d)?)({HALF})?\s?[-–]\s?(?=\d{{1,2}}(?::\d\d|{HALF}))"),
        r"\1\2 to ",
        "-– :Mm 0",
        r"\d",
    ),
    Rule(
        expression(r"(?<![\d.:])([01]?\d|2[0-4])\.([0-5]\d)(?=\s?[AaPp]\s?[Mm]\b)"), r"\1:\2", ". 0 Mm", r"\d"
    ),
    Rule(expression(TIME), clock, ": 0", r"\d"),
    Rule(
        expression(r"\b(\d{1,2})\s?([ap])m\b", re.I),
        lambda match: f"{match[1]} {match[2].upper()} M",
        "0 Mm",
        r"\d",
    ),
    Rule(expression(r"(?<![\d:.])(\d{1,3}):(\d{1,3})(?![\d:.])"), r"\1 to \2", ": 0", r"\d"),
)
DECADES: tuple[Rule, ...] = (
    Rule(expression(r"(?<=\ds)\s?[-–]\s?(?=\d{1,4}s\b)"), " to ", "-– 0 s", r"\s–-"),
    Rule(expression(r"(?:(?<!\w)')?\b(\d{1,4})'?s\b"), decade, "0 s", r"\d'"),
)

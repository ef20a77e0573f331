"""Numbers without a unit: phones, codes, fractions, scores, ranges, ordinals."""

from __future__ import annotations

import re

from valle2.runtime.text.numerals import NUMBER, cardinal, digits, fraction, number, ordinal
from valle2.runtime.text.written import Rule
from valle2.runtime.text.written.pieces import after, before, expression

STARS = re.compile(r"\s(?:scores?|stars?|points?|marks?|rating)\b")
SCORED = re.compile(
    r"\b(?:scored?|rated?|rating|gave|got|gets|grade|mark|marks|earned|answered)\b[^.]*$", re.I
)
FIRST_NUMBER = re.compile(NUMBER)
EQUATION = re.compile(r"[\d.,]*(?:\s?[-+*/]\s?[\d.,]+)*\s?=")
LONGEST_LOOK = 32
"""Characters before a number that decide what it is."""


def spaced_digits(match: re.Match[str]) -> str:
    """Groups of digits one by one, with a short pause between groups."""
    return ", ".join(digits(group) for group in re.findall(r"\d+", match[0]))


def phone(match: re.Match[str]) -> str:
    """+1 (800) 555-0199: digits one by one, 800 as a number."""
    groups = re.findall(r"\d+", match[0])
    toll_free = "800" in groups[:-2]
    said = [
        f"{cardinal(int(group[0]))} hundred" if toll_free and group == "800" else digits(group)
        for group in groups
    ]
    return ("plus " if match[0].startswith("+") else "") + ", ".join(said)


def slash(match: re.Match[str]) -> str:
    """15/16, 24/7, 50/50, 10/10, 120/80."""
    top, bottom = match[1], match[2]
    first, second = int(top), int(bottom)
    if (top, bottom) in (("24", "7"), ("9", "11"), ("20", "20")) or (first + second == 100 and second >= 10):
        return f"{cardinal(first)} {cardinal(second)}"
    if first == second or (
        first <= second
        and (SCORED.search(before(match, LONGEST_LOOK)) or STARS.match(match.string, match.end()))
    ):
        return f"{cardinal(first)} out of {cardinal(second)}"
    return fraction(first, second)


def range_or_minus(match: re.Match[str]) -> str:
    """10-20 -> "10 to 20"; 5 - 3 = 2, and a spaced larger number first, is a subtraction."""
    following = after(match, LONGEST_LOOK)
    second = FIRST_NUMBER.match(following)
    equals = EQUATION.match(following) is not None
    spaced = match[2] != "" and match[3] != ""
    larger = second is not None and value(match[1]) > value(second[0]) and len(match[1]) <= 4
    return f"{match[1]} minus " if equals or (spaced and larger) else f"{match[1]} to "


def value(text: str) -> float:
    """ "1,250.5" -> 1250.5."""
    return float(text.replace(",", ""))


RULES: tuple[Rule, ...] = (
    Rule(expression(r"(?<![\w/])24/7/365(?![\w/])"), "twenty four seven three sixty five", "/ 0", "2"),
    Rule(expression(r"(?<![\w/.-])24-7(?![\w/.-])"), "twenty four seven", "- 0", "2"),
    Rule(
        expression(
            r"(?<![\w+.,-])\+\d{1,3}(?:[\s.-]\(?\d{1,4}\)?){2,5}(?![\w.,-]*\d)|(?<![\w.,-])\+\d{8,15}(?!\d)"
        ),
        phone,
        "+ 0",
    ),
    Rule(expression(r"(?<![\w.,/-])(?:1[\s.-])?\d{3}[\s.-]\d{3}[\s.-]\d{4}(?![\w-])"), phone, "0", r"\d"),
    Rule(expression(r"(?<=\b[Cc]all )\d{3} \d{4}(?![\w-])"), spaced_digits, "0 l", r"\d"),
    Rule(
        expression(r"(?<![\w.,/-])1-(800|888|877|866|900)-(?=[A-Z])"),
        lambda match: f"one {cardinal(int(match[1])) if match[1] in ('800', '900') else digits(match[1])} ",
        "- 0",
        "1",
    ),
    Rule(expression(r"(?<![\w.,/-])\d{3}-\d{4}(?![\w-])"), spaced_digits, "- 0", r"\d"),
    Rule(
        expression(r"(?<![\w.,/-])\d{1,7}(?:-\d{1,7}){2,6}(?:-[\dX])?(?![\w-])"),
        lambda match: spaced_digits(match) + (" X" if match[0].endswith("X") else ""),
        "- 0",
        r"\d",
    ),
    Rule(expression(r"(?<![\w.,/-])\d{4}(?: \d{4}){2,4}(?![\w-])"), spaced_digits, "0", r"\d"),
    Rule(
        expression(r"(?<=\bISBN)(:?\s)(\d{9,13})(X?)\b"),
        lambda match: f"{match[1]}{digits(match[2])} {match[3]}",
        "0 B",
        r"\s:",
    ),
    Rule(
        expression(r"\b([A-Z]{2})\s(\d{5})(?:-(\d{4}))?(?![\w,-]|\.\d)"),
        lambda match: " ".join([*match[1], digits(match[2] + (match[3] or ""))]),
        "0 A-Z",
        "A-Z",
    ),
    Rule(
        expression(
            r"\b((?:[Cc]all|[Dd]ial|[Cc]alled|[Dd]ialed|[Rr]ing|[Pp]hone)\s)(\d11|112|999|000|988)\b(?![-,.]\d)"
        ),
        lambda match: match[1] + digits(match[2]),
        "0 aeg",
        "CDPRcdpr",
    ),
    Rule(
        expression(
            r"(?<![\w.,])(\d{1,9}(?:\.\d{1,9})?)/(\d{1,9}\.\d{1,9}|(?<=\.\d/)\d{1,9}|(?<=\.\d\d/)\d{1,9})(?![\w/])"
        ),
        r"\1 out of \2",
        ". / 0",
        r"\d",
    ),
    Rule(expression(r"(?<![\d/.,])(\d{1,4}) (?=\d{1,2}/\d{1,2}(?![\d/]))"), r"\1 and ", "/ 0", r"\d"),
    Rule(expression(r"(?<![\w/.,])(\d{1,3})/(\d{1,3})(?![\d/]|[.,]\d)"), slash, "/ 0", r"\d"),
    Rule(expression(r"\b([A-Z])-([A-Z])\b(?<=A-Z)"), r"\1 to \2", "- Z", "A-Z"),
    Rule(expression(rf"(?<![\d.,])({NUMBER})(\s*)[-–](\s*)(?=\d)"), range_or_minus, "-– 0", r"\d"),
    Rule(expression(r"(?<=percent)\s?[-–]\s?(?=\d)"), " to ", "-– 0 p", r"\s–-"),
    Rule(expression(r"(?<![\w.])-(?=\d|\.\d)"), "minus ", "- 0", "-"),
    Rule(
        expression(r"(?<![\d.,])(\d{1,9}|\d{1,3}(?:,\d{3}){1,3})(?:st|nd|rd|th)\b", re.I),
        lambda match: ordinal(int(match[1].replace(",", ""))),
        "0 DHSdhs",
        r"\d",
    ),
)
LAST: tuple[Rule, ...] = (
    Rule(
        expression(r"(?<![\d.])\.(\d{1,30})(?!\d)"), lambda match: f" point {digits(match[1])} ", ". 0", "."
    ),
    Rule(expression(rf"({NUMBER})"), lambda match: f" {number(match[1])} ", "0", r"\d"),
)
"""What reads each number that is left."""

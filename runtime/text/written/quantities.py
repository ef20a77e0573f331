"""Amounts with a unit: money, measures, dimensions, powers, arithmetic."""

from __future__ import annotations

import re

from valle2.runtime.text.numerals import NUMBER, money
from valle2.runtime.text.written import Rule, either
from valle2.runtime.text.written.vocabulary import (
    ATTACHED_IS_OTHER,
    CODES,
    COUNTRIES,
    CURRENCIES,
    DENOMINATORS,
    DOTTED,
    MANY_OF_CODE,
    NEEDS_A_HINT,
    NOT_DESCRIBED,
    PLURALS,
    SCALES,
    UNITS,
)

SIGN = either(CURRENCIES)
START = r"(?<![\d.,])"
"""A number's first digit. A rule that starts inside a number would search 111,111,111 from each group."""
SCALE = "hundred|thousand|million|billion|trillion"
PER = either(DENOMINATORS)
NOUN_AFTER = re.compile(r"[ -]([a-z]{3,})")
ARTICLE = re.compile(r"\b(?:an?|this|that|each|every|per|another)\s(?:[a-z]+\s)?$", re.I)
ANY_CASE = {unit.lower(): name for unit, name in reversed(UNITS.items()) if len(unit) > 1}
HINTS = {unit: re.compile(pattern) for unit, pattern in NEEDS_A_HINT.items()}


# -- money ------------------------------------------------------------------------------------------


def describes(match: re.Match[str]) -> bool:
    """Does an amount describe the noun after it, as in "a $5 bill" and "a 60 W lamp"?"""
    if not ARTICLE.search(match.string[max(0, match.start() - 24) : match.start()]):
        return False
    noun = NOUN_AFTER.match(match.string, match.end())
    return noun is not None and noun[1] not in NOT_DESCRIBED


def price(match: re.Match[str]) -> str:
    """-$1.5M, US$5, $5-10, $3/month."""
    group = match.groupdict()
    scale = group.get("scale") or SCALES.get(group.get("short") or "", "")
    country = COUNTRIES.get(group.get("country") or "", "")
    upto = f"{group['first']} to " if group.get("first") else ""
    spoken = money(
        match["amount"], CURRENCIES[match["sign"]], scale, country, describes(match), whole=bool(upto)
    )
    minus = "minus " if group.get("minus") or group.get("minus2") else ""
    per = f" per {DENOMINATORS[group['per']]}" if group.get("per") else ""
    return f"{minus}{upto}{spoken}{per}"


def coded(match: re.Match[str]) -> str:
    """100 USD, EUR 5."""
    code, amount = match["code"], match["amount"]
    one = CODES[code]
    many = MANY_OF_CODE.get(code, f"{one}s")
    scale = match["scale"]
    return f"{amount} {scale + ' ' if scale else ''}{one if amount == '1' and not scale else many}"


def european(match: re.Match[str]) -> str:
    """5,50 EUR with a comma before the cents."""
    return f"{match[1]}.{match[2]}{match[3]}"


# -- measures ---------------------------------------------------------------------------------------


def unit_name(unit: str) -> str:
    """The unit in words; "" if it is none in these capitals."""
    return UNITS.get(unit) or ANY_CASE.get(unit.lower(), "")


def many_of(unit: str) -> str:
    """foot -> feet, mile per hour -> miles per hour, square meter -> square meters."""
    head, _, tail = unit.partition(" ")
    if head in ("square", "cubic", "fluid", "kilowatt", "megawatt", "watt", "amp", "milliamp", "newton",
                "electron", "kiloelectron", "megaelectron") and tail:  # fmt: skip
        return f"{head} {many_of(tail)}"
    return f"{PLURALS.get(head, f'{head}s')} {tail}".strip() if unit != "square" else unit


def measure(match: re.Match[str]) -> str:
    """5 km -> "5 kilometers"; a number without a unit stays."""
    group = match.groupdict()
    amount, unit, joint = group["amount"], group["unit"], group["joint"]
    name = unit_name(unit) if unit else ""
    if not name or not fits(match, unit):
        return match[0]
    power = {"2": "square ", "3": "cubic "}.get(group["power"] or "", "")
    per = group["per"]
    if per:
        squared = {"2": " squared", "3": " cubed"}.get((group["per_power"] or "").lstrip("-"), "")
        below = DENOMINATORS[per]
        below = {"m": "cubic meter", "cm": "cubic centimeter"}[per] if squared == " cubed" and per in (
            "m", "cm") else "square " + below if squared and per in ("m", "cm", "km", "ft") else below + squared  # fmt: skip
        per = f" per {below}"
    before = match.string[max(0, match.start() - 8) : match.start()]
    one = (
        amount == "1"
        or bool(re.search(r"(?<!\d )(?<!\d)\d{1,3}/$", before))
        or (not group["scale"] and not per and " per " not in name and (joint == "-" or describes(match)))
    ) and not re.search(r"\d-$", before)
    spoken = power + (name if one else many_of(name))
    ends = unit.lower() not in DOTTED or not match.string[match.end() : match.end() + 2].strip()
    dot = "." if group["dot"] and ends else ""
    scale = f" {group['scale']}" if group["scale"] else ""
    return f"{amount}{scale} {spoken}{per or ''}{dot}"


def fits(match: re.Match[str], unit: str) -> bool:
    """Is it a unit here, and not a word, a name or an ending?"""
    joint, after = match["joint"], match.string[match.end("unit") : match.end("unit") + 24]
    if unit in ATTACHED_IS_OTHER and not joint and (unit != "s" or "." not in match["amount"]):
        return False
    if joint == "-" and len(unit) == 1 and unit not in ("m", "g", "L", "W", "V"):
        return False
    return unit not in HINTS or match["per"] is not None or HINTS[unit].match(after) is not None


MEASURE = (
    rf"(?<![\d.])(?P<amount>{NUMBER})(?:\s(?P<scale>{SCALE})(?=\s))?"
    rf"(?:(?P<joint>[\s-]?)(?P<unit>(?i:{either(UNITS)}))(?:\^?(?P<power>[23]))?"
    rf"(?:\s?/\s?(?P<per>{PER})(?:\^?(?P<per_power>-?[23]))?)?(?![\w^/])"
    r"(?P<dot>\.(?=\s[a-z(]|,|\s?$))?)?"
)


# -- powers and arithmetic --------------------------------------------------------------------------


def power(match: re.Match[str]) -> str:
    """x^2, 10^6, 2^n."""
    name = {"2": "squared", "3": "cubed"}.get(match[2])
    if name:
        return f"{match[1]} {name}"
    return f"{match[1]} to the power of {match[2].replace('-', 'minus ').replace('+', '')}"


def compared(match: re.Match[str]) -> str:
    """< and > between numbers or single letters; elsewhere a pause."""
    before = match.string[max(0, match.start() - 3) : match.start()].rstrip()
    after = match.string[match.end() : match.end() + 3]
    single = re.search(r"(?<![A-Za-z])[A-Za-z]$|\d$|%$", before) is not None
    number_after = re.match(r"[\d.$€£-]|[A-Za-z](?![A-Za-z])", after) is not None
    if not (number_after if match[1][0] == "<" else single and number_after or after[:1].isdigit()):
        return ", " if match[1] in ("<", ">") else " "
    return {"<": " less than ", ">": " greater than ", "<=": " less than or equal to ",
            ">=": " greater than or equal to "}[match[1]]  # fmt: skip


PER_GROUP = rf"(?:/(?P<per>{PER})\b)?"
AMOUNT = rf"(?P<amount>{NUMBER})"
SHORT = either(SCALES)
MONEY_RULES: tuple[Rule, ...] = (
    (re.compile(rf"(?<![\d.,])(\d{{1,9}}),(\d\d)(\s?[€£])(?!\d)"), european),
    (re.compile(rf"(?<=[\dKMBkmb])\s?[-–]\s?(?=(?:{SIGN})\d)"), " to "),
    (re.compile(rf"(?P<sign>{SIGN})\s?(?P<first>{NUMBER})\s?[-–]\s?{AMOUNT}"
                rf"(?:\s?(?P<scale>{SCALE})\b|(?P<short>{SHORT})\b)?(?![\w/-]|\.\d){PER_GROUP}"), price),
    (re.compile(rf"(?P<minus>(?<![\w)])-\s?)?(?:\b(?P<country>{either(COUNTRIES)})(?=\$))?(?P<sign>{SIGN})\s?"
                rf"(?P<minus2>-)?{AMOUNT}(?:[\s-]?(?P<scale>{SCALE})\b|\s?(?P<short>{SHORT})\b)?{PER_GROUP}"), price),
    (re.compile(rf"{START}{AMOUNT}(?:\s?(?P<scale>{SCALE})|(?P<short>{SHORT}))?\s?(?P<sign>{SIGN})(?!\d){PER_GROUP}"),
     price),
    (re.compile(rf"{START}\b(\d{{1,6}})\s?¢"), lambda match: f"{match[1]} cent{'' if match[1] == '1' else 's'}"),
    (re.compile(rf"\b(?P<code>{either(CODES)})\s?{AMOUNT}(?:\s?(?P<scale>{SCALE})\b)?"), coded),
    (re.compile(rf"{START}\b{AMOUNT}(?:\s(?P<scale>{SCALE}))?\s?(?P<code>{either(CODES)})\b"), coded),
)  # fmt: skip
RULES: tuple[Rule, ...] = (
    (re.compile(r"""(?<![\d.,"'])(\d{1,2})'\s?(\d{1,2})(?:"|'')?(?![\w'"])"""), r"\1 foot \2 "),
    (re.compile(r"""(?<![\d.,"'])(\d{1,3})'(?=\s?(?:[x×]\s?\d|tall\b|long\b|wide\b|high\b|deep\b))"""), r"\1 feet"),
    (re.compile(r"""(?<![\d,"'])(\d{1,3})"(?=\s?(?:[x×]\s?\d|(?:tall|long|wide|high|deep|thick|in diameter)\b))"""),
     r"\1 inches"),
    (re.compile(r"""(?<![\d,"'])(\d{1,3})"(?=\s(?:pipe|screen|display|monitor|TV|board|bolt|nail|pizza|wheel)\b)"""),
     r"\1 inch"),
    (re.compile(r"(?<=\d)\s?[x×]\s?(?=10\^)"), " times "),
    (re.compile(r"(?<=[\dm])(?<!\b0)\s?x\s?(?=\d)|(?<=\d)×(?=\d)|(?<=s)\s?[x×]\s?(?=\d{1,4}\s?(?:feet|inches|\"|'))"), " by "),
    (re.compile(r"(?<![\d.,])(\d{1,6}(?:\.\d{1,6})?)x\b"), r"\1 times"),
    (re.compile(rf"{START}(\d{{1,9}}(?:\.\d{{1,9}})?)[eE]([+-]?\d{{1,3}})\b"), r"\1 times 10^\2"),
    (re.compile(MEASURE), measure),
    (re.compile(rf"(?<=\bper )({either(UNITS)})\^?([23])\b"),
     lambda match: f"{'square' if match[2] == '2' else 'cubic'} {UNITS[match[1]]}"),
    (re.compile(rf"{START}(\d{{1,6}}(?:\.\d{{1,6}})?)([MB])\b(?=\s(?!is\b|was\b|has\b|as\b)[a-z]+s\b|\s(?:people|men|women)\b)"),
     lambda match: f"{match[1]} {SCALES[match[2]]}"),
    (re.compile(r"(?<!\w)(\d{1,9}|[A-Za-z])\^([+-]?(?:\d{1,6}|[a-z]\b))"), power),
    (re.compile(r"~\s?(?=[\d$€£])"), "about "),
    (re.compile(r"[-=]>|→|⇒"), " to "),
    (re.compile(r"!="), " does not equal "),
    (re.compile(r"=="), " equals "),
    (re.compile(r"\s?([<>]=?)\s?"), compared),
    (re.compile(r"(?<=\d)\s\*\s?(?=\d)|(?<=\d)\*(?=\d)"), " times "),
    (re.compile(r"(?<=\d)\s/\s(?=\d)"), " divided by "),
)  # fmt: skip

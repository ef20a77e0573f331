"""Amounts with a unit: money, measures, dimensions, powers, arithmetic."""

from __future__ import annotations

import re

from valle2.runtime.text.numerals import NUMBER, money
from valle2.runtime.text.written import Rule, either
from valle2.runtime.text.written.pieces import after, before, expression
from valle2.runtime.text.written.vocabulary import (
    ATTACHED_IS_OTHER,
    CODES,
    COUNTRIES,
    CURRENCIES,
    DENOMINATORS,
    DOTTED,
    LENGTHS,
    MANY_OF_CODE,
    NEEDS_A_HINT,
    NOT_DESCRIBED,
    PLURALS,
    SCALES,
    SIGN_OF_CODE,
    UNITS,
    listed,
)

SIGN = either(CURRENCIES)
START = r"(?<![\d.,])"
"""A number's first digit. A rule that starts inside a number would search 111,111,111 from each group."""
SCALE = "hundred|thousand|million|billion|trillion"
PER = either(DENOMINATORS)
NOUN_AFTER = re.compile(r"[ -]([a-z]{3,})")
ARTICLE = re.compile(r"\b(?:an?|this|that|each|every|per|another)\s(?:[a-z]+\s)?$", re.I)
COMPASS = {"N": "north", "S": "south", "E": "east", "W": "west"}
ANY_CASE = {unit.lower(): name for unit, name in reversed(UNITS.items()) if len(unit) > 1}
POWERS = {"2": "square ", "3": "cubic "}
AFTER_POWERS = {"2": " squared", "3": " cubed"}
RANGE_BEFORE = re.compile(r"\d-$")
FRACTION_BEFORE = re.compile(r"(?<!\d )(?<!\d)\d{1,3}/$")
FIRST_OF_TWO = listed(
    "amp cubic electron fluid kiloelectron kilowatt megaelectron megawatt milliamp newton square watt"
)
"""First words of units whose second word takes the plural."""
HINTS = {unit: re.compile(pattern) for unit, pattern in NEEDS_A_HINT.items()}


# -- money ------------------------------------------------------------------------------------------


def describes(match: re.Match[str]) -> bool:
    """Does an amount describe the noun after it, as in "a $5 bill" and "a 60 W lamp"?"""
    if not ARTICLE.search(before(match, 24)):
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
    if "." in amount and not scale and code in SIGN_OF_CODE:
        return money(amount, CURRENCIES[SIGN_OF_CODE[code]], country=one.rpartition(" ")[0])
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
    if tail and head in FIRST_OF_TWO:
        return f"{head} {many_of(tail)}"
    return f"{PLURALS.get(head, f'{head}s')} {tail}".strip()


def per_unit(match: re.Match[str]) -> str:
    """What follows a slash: "/h" -> " per hour", "/s^2" -> " per second squared"."""
    if not match["per"]:
        return ""
    name, power = DENOMINATORS[match["per"]], (match["per_power"] or "").lstrip("-")
    if match["per"] in LENGTHS:
        return f" per {POWERS.get(power, '')}{name}"
    return f" per {name}{AFTER_POWERS.get(power, '')}"


def measure(match: re.Match[str]) -> str:
    """5 km -> "5 kilometers"; a number without a unit stays."""
    amount, unit = match["amount"], match["unit"]
    name = unit_name(unit) if unit else ""
    if not name or not fits(match, unit):
        return match[0]
    spoken = POWERS.get(match["power"] or "", "") + (name if is_one(match, name) else many_of(name))
    ends = unit.lower() not in DOTTED or not after(match, 2).strip()
    dot = "." if match["dot"] and ends else ""
    scale = f" {match['scale']}" if match["scale"] else ""
    if len(amount) == 4 and amount.isdigit() and not amount.endswith("00"):
        amount = f"{amount[0]},{amount[1:]}"  # so that it is not read as a year
    return f"{amount}{scale} {spoken}{per_unit(match)}{dot}"


def is_one(match: re.Match[str], name: str) -> bool:
    """Is the unit in the singular: 1 km, 3/4 mile, a 5-km run, a 60 W lamp?"""
    preceding = before(match, 8)
    if RANGE_BEFORE.search(preceding):
        return False
    if match["amount"] == "1" or FRACTION_BEFORE.search(preceding):
        return True
    compound = match["scale"] or match["per"] or " per " in name
    return not compound and (match["joint"] == "-" or describes(match))


def fits(match: re.Match[str], unit: str) -> bool:
    """Is it a unit here, and not a word, a name or an ending?"""
    joint = match["joint"]
    if unit in ATTACHED_IS_OTHER and not joint and (unit != "s" or "." not in match["amount"]):
        return False
    if joint == "-" and len(unit) == 1 and unit not in ("m", "g", "L", "W", "V"):
        return False
    hint = HINTS.get(unit if unit in UNITS else unit.lower())
    return hint is None or match["per"] is not None or hint.match(after(match, 24, "unit")) is not None


MEASURE = (
    rf"(?<![\d.])(?P<amount>{NUMBER})(?:\s(?P<scale>{SCALE})(?=\s))?"
    rf"(?:(?P<joint>[\s-]?)(?P<unit>(?i:{either(map(str.lower, UNITS))}))(?:\^?(?P<power>[23]))?"
    rf"(?:\s?/\s?(?P<per>{PER})(?:\^?(?P<per_power>-?[23]))?)?(?![\w^/])"
    r"(?P<dot>\.(?=\s[a-z(]|,|\s?$))?)?"
)


# -- powers and arithmetic --------------------------------------------------------------------------


COMPARISONS = {
    "<": "less than", ">": "greater than", "<=": "less than or equal to", ">=": "greater than or equal to",
}  # fmt: skip


def power(match: re.Match[str]) -> str:
    """x^2, 10^6, 2^n."""
    name = {"2": "squared", "3": "cubed"}.get(match[2])
    if name:
        return f"{match[1]} {name}"
    return f"{match[1]} to the power of {match[2].replace('-', 'minus ').replace('+', '')}"


def compared(match: re.Match[str]) -> str:
    """< and > between numbers or single letters; elsewhere a pause."""
    sign = match[1]
    preceding, following = before(match, 3).rstrip(), after(match, 3)
    left = re.search(r"(?<![A-Za-z])[A-Za-z]$|[\d%]$", preceding) is not None
    right = re.match(r"[\d.$€£-]|[A-Za-z](?![A-Za-z])", following) is not None
    if right and (left or sign[0] == "<" or following[0].isdigit()):
        return f" {COMPARISONS[sign]} "
    return ", "


NOT_COUNTED = (
    "is|was|has|as|this|makes|says|sells|uses|videos|screens|monitors|displays|movies|tvs|runs|races"
)
PER_GROUP = rf"(?:/(?P<per>{PER})\b)?"
AMOUNT = rf"(?P<amount>{NUMBER})"
SHORT = either(SCALES)
MONEY_RULES: tuple[Rule, ...] = (
    Rule(expression(r"(?<![\d.,])(\d{1,9}),(\d\d)(\s?[€£])(?!\d)"), european, ", £€ 0", r"\d"),
    Rule(expression(r"(?<=[$€£])\.(?=\d)"), "0.", ". $£€ 0", "."),
    Rule(expression(r"\bRs\.?\s?(?=\d)"), "₹", "0 R", "R"),
    Rule(expression(rf"(?<=[\dKMBkmb])\s?[-–]\s?(?=(?:{SIGN})\d)"), " to ", "-– $£¥฿₦₩₪₫€₱₴₹₺₽₿ 0", r"\s–-"),
    Rule(
        expression(
            rf"(?P<sign>{SIGN})\s?(?P<first>{NUMBER})\s?[-–]\s?{AMOUNT}"
            rf"(?:\s?(?P<scale>{SCALE})\b|(?P<short>{SHORT})\b)?(?![\w/-]|\.\d){PER_GROUP}"
        ),
        price,
        "-– $£¥฿₦₩₪₫€₱₴₹₺₽₿ 0",
        "$R£¥฿₦₩₪₫€₱₴₹₺₽₿",
    ),
    Rule(
        expression(
            rf"(?P<minus>(?<![\w)])-\s?)?(?:\b(?P<country>{either(COUNTRIES)})(?=\$))?(?P<sign>{SIGN})\s?"
            rf"(?P<minus2>-)?{AMOUNT}(?:[\s-]?(?P<scale>{SCALE})\b|\s?(?P<short>{SHORT})\b)?{PER_GROUP}"
        ),
        price,
        "$£¥฿₦₩₪₫€₱₴₹₺₽₿ 0",
        "$ACHNRSU£¥฿₦₩₪₫€₱₴₹₺₽₿-",
    ),
    Rule(
        expression(
            rf"{START}{AMOUNT}(?:\s?(?P<scale>{SCALE})|(?P<short>{SHORT}))?\s?(?P<sign>{SIGN})(?!\d)"
            rf"{PER_GROUP}"
        ),
        price,
        "$£¥฿₦₩₪₫€₱₴₹₺₽₿ 0",
        r"\d",
    ),
    Rule(
        expression(rf"{START}\b(\d{{1,6}})\s?¢"),
        lambda match: f"{match[1]} cent{'' if match[1] == '1' else 's'}",
        "¢ 0",
        r"\d",
    ),
    Rule(
        expression(rf"\b(?P<code>{either(CODES)})\s?{AMOUNT}(?:\s?(?P<scale>{SCALE})\b)?"),
        coded,
        "0 A-Z",
        "A-EGIJMNPSU",
    ),
    Rule(
        expression(rf"{START}\b{AMOUNT}(?:\s(?P<scale>{SCALE}))?\s?(?P<code>{either(CODES)})\b"),
        coded,
        "0 A-Z",
        r"\d",
    ),
)
RULES: tuple[Rule, ...] = (
    Rule(
        expression(r"""(?<![\d.,"'])(\d{1,2})'\s?(\d{1,2})(?:"|'')?(?![\w'"])"""),
        r"\1 foot \2 ",
        "' 0",
        r"\d",
    ),
    Rule(
        expression(r"""(?<![\d.,"'])(\d{1,3})'(?=\s?(?:[x×]\s?\d|tall\b|long\b|wide\b|high\b|deep\b))"""),
        r"\1 feet",
        "' adgx× 0",
        r"\d",
    ),
    Rule(
        expression(
            r"""(?<![\d,"'])(\d{1,3})"(?=\s?(?:[x×]\s?\d|(?:tall|long|wide|high|deep|thick|in diameter)\b))"""
        ),
        r"\1 inches",
        '" 0',
        r"\d",
    ),
    Rule(
        expression(
            r"""(?<![\d,"'])(\d{1,3})"(?=\s(?:pipe|screen|display|monitor|TV|board|bolt|nail|pizza|wheel)\b)"""
        ),
        r"\1 inch",
        '" 0 Tabcei',
        r"\d",
    ),
    Rule(expression(r"(?<=\d/\d)\"|(?<=\d/\d\d)\""), " inch", '" / 0', '"'),
    Rule(expression(r"(?<=\d)\s?[x×]\s?(?=10\^)"), " times ", "^ x× 0", r"\sx×"),
    Rule(
        expression(
            r"(?<=[\dm])(?<!\b0)\s?x\s?(?=\d)|(?<=\d)×(?=\d)|(?<=\d ft)\s?[x×]\s?(?=\d)"
            r"|(?<=s)\s?[x×]\s?(?=\d{1,4}\s?(?:feet|inches|\"|'))"
        ),
        " by ",
        "x× 0",
        r"\sx×",
    ),
    Rule(expression(r"(?<![\d.,])(\d{1,6}(?:\.\d{1,6})?)x\b(?!\s?[-+=*/^)])"), r"\1 times", "0 x", r"\d"),
    Rule(
        expression(rf"{START}(\d{{1,9}}(?:\.\d{{1,9}})?)[eE]([+-]?\d{{1,3}})\b"),
        r"\1 times 10^\2",
        "0 Ee",
        r"\d",
    ),
    Rule(
        expression(
            rf"(?<=\d)(\s?(?:{either(UNITS)}))\s?[-–]\s?"
            rf"(?=\d{{1,9}}(?:\.\d{{1,9}})?\s?(?:{either(UNITS)})(?!\w))"
        ),
        r"\1 to ",
        "-– 0",
        r"\s%AGJ-NPTVWb-ik-uwy°Ωμ‰",
    ),
    Rule(
        expression(r"(?<=\d)\s?°\s?([NSEW])\b"),
        lambda match: f" degrees {COMPASS[match[1]]}",
        "° 0 ENSW",
        r"\s°",
    ),
    Rule(expression(MEASURE), measure, "0", r"\d"),
    Rule(
        expression(r"(?<![\w/])(km|m|mi|ft|MB|GB|KB|Mb|Gb)/(h|s|sec|min|hr)\b"),
        lambda match: f"{many_of(unit_name(match[1]))} per {DENOMINATORS[match[2]]}",
        "/ chis",
        "GKMfkm",
    ),
    Rule(
        expression(rf"(?<=\bper )({either(UNITS)})\^?([23])\b"),
        lambda match: f"{'square' if match[2] == '2' else 'cubic'} {UNITS[match[1]]}",
        "0 p",
        "%AGJ-NPTVWb-ik-uwy°Ωμ‰",
    ),
    Rule(
        expression(
            rf"(?<![\w.,])(\d{{1,6}}(?:\.\d{{1,6}})?)([kKMB])\b"
            rf"(?=\s(?!(?:{NOT_COUNTED})\b)[a-z]+s\b|\s(?:people|men|women)\b)"
        ),
        lambda match: f"{match[1]} {SCALES[match[2]]}",
        "0 es",
        r"\d",
    ),
    Rule(expression(r"(?<!\w)(\d{1,9}|[A-Za-z]{1,2})\^([+-]?(?:\d{1,6}|[a-z]\b))"), power, "^", r"\dA-Za-z"),
    Rule(expression(r"~\s?(?=[\d$€£])"), "about ", "~ $£€0", "~"),
    Rule(expression(r"[-=]>|→|⇒"), " to ", ">→⇒", "=→⇒-"),
    Rule(expression(r"!="), " does not equal ", "! =", "!"),
    Rule(expression(r"=="), " equals ", "=", "="),
    Rule(expression(r"\s?([<>]=?)\s?"), compared, "<>", r"\s<>"),
    Rule(expression(r"(?<=\d)\s\*\s?(?=\d)|(?<=\d)\*(?=\d)"), " times ", "* 0", r"\s*"),
    Rule(expression(r"(?<=\d)\s/\s(?=\d)"), " divided by ", "/ 0", r"\s"),
)

"""Written English to speakable words: numbers, times, units, abbreviations, acronyms."""

from __future__ import annotations

import re
import unicodedata

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

TITLES = {
    "mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor",
    "st": "saint", "gen": "general", "col": "colonel", "capt": "captain", "lt": "lieutenant",
    "sgt": "sergeant", "rev": "reverend", "gov": "governor", "sen": "senator",
    "rep": "representative", "hon": "honorable", "mt": "mount", "ft": "fort",
}  # fmt: skip
ABBREVIATIONS = {
    "jr": "junior", "sr": "senior", "vs": "versus", "etc": "et cetera", "approx": "approximately",
    "dept": "department", "inc": "incorporated", "ltd": "limited", "co": "company",
    "corp": "corporation", "ave": "avenue", "blvd": "boulevard", "rd": "road",
    "jan": "January", "feb": "February", "aug": "August",
    "sept": "September", "oct": "October", "nov": "November", "dec": "December",
    "e.g": "for example", "i.e": "that is",
}  # fmt: skip
AT_THE_END = {"dr": "drive", "st": "street"}
"""What two titles mean after a name."""
UNITS = {
    "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "kg": "kilogram",
    "mg": "milligram", "lb": "pound", "lbs": "pound", "oz": "ounce", "ml": "milliliter",
    "mph": "mile per hour", "km/h": "kilometer per hour", "kph": "kilometer per hour",
    "hz": "hertz", "khz": "kilohertz", "mhz": "megahertz", "ghz": "gigahertz", "kb": "kilobyte",
    "mb": "megabyte", "gb": "gigabyte", "tb": "terabyte", "hr": "hour", "hrs": "hour",
    "min": "minute", "mins": "minute", "sec": "second", "secs": "second", "kw": "kilowatt",
    "kwh": "kilowatt hour", "mw": "megawatt", "fps": "frame per second", "ms": "millisecond",
    "ft": "foot", "yd": "yard", "sq": "square",
}  # fmt: skip
PLURALS = {
    "foot": "feet", "hertz": "hertz", "kilohertz": "kilohertz", "megahertz": "megahertz",
    "gigahertz": "gigahertz", "square": "square",
}  # fmt: skip
SYMBOLS = {
    "&": " and ", "%": " percent", "+": " plus ", "=": " equals ", "@": " at ",
    "°C": " degrees Celsius", "°F": " degrees Fahrenheit", "°": " degrees", "€": " euros ",
    "£": " pounds ", "$": " dollars ", "¥": " yen ", "×": " times ", "÷": " divided by ",
    "±": " plus or minus ", "ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o",
    "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "ð": "th", "þ": "th", "ı": "i",
}  # fmt: skip
PUNCTUATION = str.maketrans({
    "‘": "'", "’": "'", "‛": "'", "`": "'", "´": "'", "‐": "-", "‑": "-", "−": "-", "–": "–",
    "—": ", ", "―": ", ", "。": ".", "、": ", ", "，": ", ", "！": "!", "？": "?", "：": ":", "；": ";",
    "¡": " ", "¿": " ", "⁄": "/", "(": ", ", ")": ", ", "[": ", ", "]": ", ", "\u00ad": "",
    "\u200b": "",
})  # fmt: skip
CAPITALS = """
ALL AM AN AND ANY ARE AS AT BAD BE BIG BOX BOY BUT BY CAN CAR CAT DAY DID DO DOG EAT END FAR FOR
FUN GET GO GOT HAD HAS HE HER HIM HIS HOT HOW I IF IN IS IT ITS LET MAN MAY ME MY NEW NO NOT NOW
OF OFF OH OLD ON ONE OR OUR OUT OWN PUT RED RUN SAY SEE SHE SO SUN THE TO TOO TOP TRY TWO UP USE
WAS WAY WE WHO WHY YES YET YOU
"""
SHORT_WORDS = frozenset(CAPITALS.split())
"""Words in capitals that are words and not acronyms."""
SMALLEST_SHOUT = 3
"""Words from which on a text in capitals is read in lower case."""
VISIBLE = re.compile(r"\S")


def either(words: object) -> str:
    """A regular expression for any of the words, longest first."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))  # type: ignore[call-overload]


def title(match: re.Match[str]) -> str:
    return f"{TITLES[match[1].lower()]} "


def expand(match: re.Match[str]) -> str:
    """An abbreviation in words; its full stop stays where the sentence ends with it."""
    short, following = match[1].lower(), VISIBLE.search(match.string, match.end())
    capital = following is not None and following[0].isupper()
    ends = following is None or (capital and short in ("etc", "jr", "sr", "inc", "ltd", "co", "st"))
    return (AT_THE_END | ABBREVIATIONS)[short] + ("." if ends else "")


def measure(match: re.Match[str]) -> str:
    """5 km -> "5 kilometers"; a number without a unit stays.

    The rule takes every number, because one that only took numbers with a unit would search a long number
    such as 111,111,111 from each of its groups.
    """
    if not match[2]:
        return match[0]
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
    (re.compile(rf"\b({NUMBER})(?:\s?((?i:{either(UNITS)}))\b(?:\.(?=\s[a-z]))?)?"), measure),
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

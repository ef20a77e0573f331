"""Tables of the normaliser: what abbreviations, units and symbols are called."""

from __future__ import annotations

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
AT_THE_END = {
    "dr": "drive", "st": "street",
}  # fmt: skip
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

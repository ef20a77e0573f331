"""Abbreviations, roman numerals, capitals: words that are not written as they are said."""

from __future__ import annotations

import re

from valle2.runtime.text.numerals import cardinal, ordinal
from valle2.runtime.text.written import Rule, either
from valle2.runtime.text.written.pieces import END, after, expression
from valle2.runtime.text.written.vocabulary import (
    ABBREVIATIONS,
    AT_THE_END,
    BEFORE_NUMBER,
    ENDING,
    PARTLY_SPELT,
    PLAIN_TITLES,
    SAID_AS_WORDS,
    SHORT_WORDS,
    SPELT,
    TITLES,
    listed,
)

VISIBLE = re.compile(r"\S")
SMALLEST_SHOUT = 3
"""Words from which on a text in capitals is read in lower case."""
LONG_WORD = 6
ONSETS = listed("""
b bl br c ch chr cl cr d dr dw f fl fr g gh gl gn gr h j k kl kn kr l m n p ph pl pr ps q r rh s sc
sch scr sh shr sk sl sm sn sp sph spl spr sq st str sw t th thr tr tw v w wh wr x y z
""")
CODAS = listed("""
b bb bs bt c ch ck cks ct cts d dd ds dth f ff ffs fs ft fts g gg ggs gh ght ghts gm gn gs h k ks l
ld lds lf lk lks ll lls lm lms ln lp lps ls lt lth lts m mb mbs mn mp mps mpt ms n nc nch nd nds ng
ngs ngth nk nks nn ns nt nth nths nts nx p pp ps pt pts q r rb rbs rc rch rd rds rf rg rk rks rl rls
rm rms rn rns rp rps rr rs rsh rst rt rth rths rts rv s sh sk sks sm sms sp sps ss st sts t tch th
ths ts tt v w wd wk wks wl wls wn wns ws x xt y ys z zz
""")
"""Consonants that begin and end English words as they are written."""
NUMERAL = r"(?=[IVXLC])C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?<=[IVXLC])"
ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
RULERS = listed("""
Albert Alexander Alfonso Benedict Boniface Catherine Celestine Charles Christian Clement Constantine
Edward Elizabeth Felipe Ferdinand Francis Frederick George Gregory Gustav Haakon Harald Henry
Innocent Ivan James Joseph Julius Leo Leopold Louis Ludwig Margaret Mary Maximilian Mehmed Napoleon
Nicholas Olav Otto Paul Peter Philip Pius Ramesses Ramses Rameses Richard Robert Rudolf Selim Sixtus
Thutmose Umberto Urban Victor Wilhelm Willem William
""")
PARTS = listed("""
Act Appendix Article Apollo Book Bowl Chapter Class Division Figure Level Part Phase Psalm Scene
Section Stage Step Table Tier Title Type Unit Vatican Volume War
""")
LONGEST_LOOK = 24
"""Characters after a numeral that decide what it is."""
INITIAL_ENDS = re.compile(r"\.\s?[A-Z]")
DRIPS = re.compile(
    r"\s(?:access|antibiotic|bag|drip|fluid|infusion|injection|line|pole|push|therapy|treatment)"
)
NOT_NAMES = listed(
    "A An And At For From He Her His If In Is It Its My No Of On Or Our She The Their They This"
)


def title(match: re.Match[str]) -> str:
    return f"{TITLES[match[1].lower()]} "


def expand(match: re.Match[str]) -> str:
    """An abbreviation in words; its full stop stays where the sentence ends with it."""
    short, found = match[1].lower(), VISIBLE.search(match.string, match.end())
    following = found[0] if found else END
    ends = following == END or (following.isupper() and short in ENDING | {"st"})
    return (AT_THE_END | ABBREVIATIONS)[short] + ("." if ends else "")


def roman(text: str) -> int:
    """XIV -> 14."""
    values = [ROMAN_VALUES[letter] for letter in text]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


def after_name(match: re.Match[str]) -> str:
    """Henry VIII -> "Henry the eighth", Rocky III -> "Rocky three"; "The IV drip" stays."""
    name, numeral = match[1], match[2]
    following = after(match, LONGEST_LOOK)
    initial = len(numeral) == 1 and INITIAL_ENDS.match(following)
    if initial or (numeral == "IV" and DRIPS.match(following)):
        return match[0]
    if name in RULERS:
        return f"{name} the {ordinal(roman(numeral))}"
    if len(numeral) == 1 or name in NOT_NAMES or numeral in ("XX", "XXX"):
        return match[0]
    return f"{name} {cardinal(roman(numeral))}"


def is_read(word: str) -> bool:
    """Is a word in capitals read as a word? Otherwise it is spelt."""
    if word in SHORT_WORDS or word in SAID_AS_WORDS:
        return True
    if len(word) < 4 or word in SPELT:
        return False
    runs = re.split(r"[aeiou]+|(?<!^)y", word.lower())
    return len(runs) > 1 and runs[0] in ONSETS | {""} and runs[-1] in CODAS | {""}


def acronym(match: re.Match[str]) -> str:
    """BBC -> "B B C"; NASA, and words in capitals, stay words."""
    if is_read(match[1]):
        return match[0]
    return " ".join(match[1]) + ("'s" if match[2] else "")


def quiet(text: str) -> str:
    """Text that is all capitals in lower case, so that it is read and not spelt."""
    words = re.findall(r"[A-Za-z]{2,}", text)
    shouted = len(words) >= SMALLEST_SHOUT and all(word.isupper() for word in words)
    plain = shouted and any(word in SHORT_WORDS or len(word) >= LONG_WORD for word in words)
    return text.lower() if plain else text


def humps(match: re.Match[str]) -> str:
    """maxTokens -> "max Tokens", MyClassName -> "My Class Name"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", match[0])


ABBREVIATION_RULES: tuple[Rule, ...] = (
    Rule(expression(r"\bw/o\b"), "without", "/ w", "w"),
    Rule(expression(r"(?<![\w/])w/(?:\s?)(?=\w)"), "with ", "/ w", "w"),
    Rule(expression(r"(?<![\w/])b/c\b"), "because", "/ b", "b"),
    Rule(expression(r"(?<![\w/])c/o\b"), "care of", "/ c", "c"),
    Rule(
        expression(r"\b([apAP])\.\s?[mM]\.(?=\s+[A-Z]|\s*$)"),
        lambda match: f"{match[1].upper()} M.",
        ". Mm",
        "APap",
    ),
    Rule(expression(r"\b([ap])\.\s?m\.", re.I), lambda match: f"{match[1].upper()} M", ". Mm", "APap"),
    Rule(expression(r"\bPh\.\s?D\.?(?=(s?)\b|\W|$)"), "P H D", ". P", "P"),
    Rule(expression(r"\b([BM])\.\s?Sc\."), r"\1 S C", ". c", "BM"),
    Rule(expression(rf"\b({either(PLAIN_TITLES)})\s(?=[A-Z])"), title, "DMP", "DMP"),
    Rule(expression(rf"\b((?i:{either(TITLES)}))\.\s+(?=[A-Z&])"), title, ".", "CDFGHLMPRScdfghlmprs"),
    Rule(
        expression(rf"(?<!\d)(?<!\d )\b({either(BEFORE_NUMBER)})\.\s*(?=\d|[IVX]{{2}})", re.I),
        lambda match: f"{BEFORE_NUMBER[match[1].lower()]} ",
        ".",
        "ACEFNPSTVacefnpstv",
    ),
    Rule(expression(r"(?<=\b[Tt]he )[Nn]o\.(?= of\b)"), "number", ". f", "Nn"),
    Rule(expression(r"\bet al\."), "et al", ". l", "e"),
    Rule(
        expression(rf"\b({either(ABBREVIATIONS.keys() | AT_THE_END.keys())})\.(?!\w)", re.I),
        expand,
        ".",
        "A-JL-ORSUVa-jl-orsuv",
    ),
    Rule(expression(r"\bvs\b"), "versus", "v s", "v"),
    Rule(expression(r"\betc\b"), "et cetera", "c t", "e"),
    Rule(expression(r"\bapprox\b"), "approximately", "x p", "a"),
    Rule(expression(r"#\s*(?=\d)"), "number ", "# 0"),
    Rule(expression(r"§§?\s?"), " section ", "§"),
    Rule(expression(r"\b([ACDFGJ])#(?!\w)"), r"\1 sharp", "# ACDFGJ", "ACDFGJ"),
    Rule(
        expression(r"\b([A-Z]{1,3})\s?&\s?([A-Z]{1,3})\b"),
        lambda match: f"{' '.join(match[1])} and {' '.join(match[2])}",
        "& A-Z",
        "A-Z",
    ),
    Rule(
        expression(r"\b((?:[A-Z]\.){2,})"),
        lambda match: " ".join(match[1].replace(".", "")) + " ",
        ". A-Z",
        "A-Z",
    ),
)
ROMAN_RULES: tuple[Rule, ...] = (
    Rule(
        expression(rf"\b(World War|(?i:{either(PARTS)}))\s((?![ILC]\b){NUMERAL})\b(?!\.\w)"),
        lambda match: f"{match[1]} {cardinal(roman(match[2]))}",
        "CILVX",
        "A-DFLPS-Wa-dflps-w",
    ),
    Rule(
        expression(
            r"\b(World War|Part|Act|Chapter|Volume|Phase|Type) I"
            r"(?=[.,;:!?]|$|\s(?:was|is|ended|began|and|of)\b)"
        ),
        r"\1 one",
        "I",
        "ACPTVW",
    ),
    Rule(
        expression(rf"\b({NUMERAL})(?=\scentur)"),
        lambda match: ordinal(roman(match[1])) if match[1] else match[0],
        "u c",
    ),
    Rule(expression(rf"\b([A-Z][a-z]+)\s((?!I\b)(?=[IVX]){NUMERAL})\b(?![.-]\w)"), after_name, "IVX", "A-Z"),
)
RULES: tuple[Rule, ...] = (
    Rule(
        expression(rf"\b(?:{either(PARTLY_SPELT)})\b"),
        lambda match: PARTLY_SPELT[match[0]],
        "A-Z",
        "ABDIJM-PWim",
    ),
    Rule(
        expression(
            r"\b[a-z]{2,30}(?:[A-Z][a-z]{1,30})+\b|\b(?:[A-Z][a-z]{1,30}){3,}\b"
            r"|(?<=#)(?:[A-Z][a-z]{1,30}){2,}\b"
        ),
        humps,
        "A-Z",
        "A-Za-z",
    ),
    Rule(
        expression(
            r"\b([Tt]he|[Oo]ur|[Yy]our|[Aa]n) IT\b"
            r"|\bIT(?= (?:department|support|team|staff|manager|industry)\b)"
        ),
        lambda match: f"{match[1]} I T" if match[1] else "I T",
        "I T",
        "AIOTYaoty",
    ),
    Rule(expression(r"\b([A-Z]{2,5})((?:'?s)?)\b"), acronym, "A-Z", "A-Z"),
)

"""What of a text cannot be spoken: scripts other than Latin, emoji and signs without words."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from valle2.runtime.text.normalise import RULES, normalise
from valle2.runtime.text.written.markup import RULES as SIGN_RULES
from valle2.runtime.text.written.vocabulary import PUNCTUATION, SYMBOLS

UNIT_LETTERS = frozenset("ΩμµπΩ")
"""Letters that stand for units and numbers; in a word of their own script they are not spoken."""
SILENT = frozenset("™®℠")
"""Signs that nobody says."""
RUNS, SHOWN = 5, 40
"""Runs of characters that a warning shows, and the characters of each."""


def unread_warning(text: str) -> list[str]:
    """One warning that shows what is left out of a text; none if everything is spoken.

    Args:
        text: without markup.
    """
    if text.isascii():
        return []
    runs = unread_runs(text)
    if not runs:
        return []
    more = f" and {len(runs) - RUNS} more" if len(runs) > RUNS else ""
    return [f"left out, because only Latin letters are read: {', '.join(runs[:RUNS])}{more}"]


def unread_runs(text: str) -> list[str]:
    """What is left out, quoted for a message: each run of characters once, in order.

    A run inside a word of Latin letters is shown with the word, since many letters look alike.
    """
    kinds = "".join(map(kind_of, text))
    kinds = re.sub("u(?=[ux])|(?<=[ux])u", "x", kinds)
    found: dict[str, None] = {}
    for match in re.finditer("x[xm]*(?: +x[xm]*)*", kinds):
        run = text[match.start() : match.end()]
        word = "" if " " in match[0] else word_around(text, *match.span())
        found[f"{cut(run)} in {cut(word)}" if word else cut(run)] = None
    return list(found)


@lru_cache(4096)
def kind_of(character: str) -> str:
    """x: left out. u: left out beside x. m: part of the character before it. A space: silent. a: spoken."""
    if character.isascii():
        return "a" if character.isalnum() else " "
    category = unicodedata.category(character)
    if character in SILENT:
        return " "
    if character in UNIT_LETTERS:
        return "u"
    if category[0] == "M" or category == "Cf":
        return "m"
    if category[0] in "ZPC" and category not in ("Co", "Cn"):
        return " "
    plain = unicodedata.normalize("NFKD", character)
    if category == "Nd" or any(part.isascii() and part.isalnum() for part in plain):
        return "a"
    if category == "Lo" or SIGNS.isdisjoint(unicodedata.normalize("NFKC", character)):
        return "x"
    return "a" if any(spoken_in(f"{before}{character}{after}") for before, after in CONTEXTS) else "x"


SIGNS = frozenset(
    form
    for text in (*SYMBOLS, *map(chr, PUNCTUATION), *(rule.pattern.pattern for rule in (*RULES, *SIGN_RULES)))
    for sign in text
    for form in sign + sign.lower() + sign.upper()
) | frozenset(map(chr, range(128)))
"""All characters that a rule may read, among others; a sign without any of them has no words."""
CONTEXTS = (("", ""), ("5 ", ""), ("", "5"), ("5 ", " 5"))
"""Where a sign may have words: alone, after a number, before one, and between two."""


def spoken_in(text: str) -> bool:
    """Does a text say more than "five"?"""
    return bool(normalise(text).replace("five", "").strip(" ,.;:!?'-"))


def word_around(text: str, start: int, end: int) -> str:
    """The word that a run stands in, if it has Latin letters too; otherwise nothing."""
    left = re.search(r"[^\W\d_]{0,20}$", text[max(0, start - 20) : start])
    right = re.match(r"[^\W\d_]{0,20}", text[end : end + 20])
    word = (left[0] if left else "") + text[start:end] + (right[0] if right else "")
    return word if re.search("[A-Za-z]", word) and not is_cjk(text[start]) else ""


def is_cjk(character: str) -> bool:
    """Is it of a script that writes no spaces, so that letters beside it are another word?"""
    return unicodedata.category(character) in ("Lo", "So")


def cut(text: str) -> str:
    """A quoted piece of text of a bounded length, on one line."""
    plain = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return f"'{plain if len(plain) <= SHOWN else plain[: SHOWN - 1] + '…'}'"

"""Long text to pieces a model can speak at once: sentences, then clauses, then words. No word is lost."""

from __future__ import annotations

import re
from collections.abc import Callable

from valle2.runtime.errors import TextError
from valle2.runtime.text.abbreviations import ABBREVIATIONS, TITLES
from valle2.runtime.text.normalise import normalise

SPEAKABLE = re.compile(r"[A-Za-z]")
SURELY_SPEAKABLE = re.compile(r"\d|\b(?!www|https?)[A-Za-z]", re.A)
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")
CLAUSE_END = re.compile(r"(?<=[,;:—–])\s+")
NOT_AN_END = frozenset(TITLES) | frozenset(ABBREVIATIONS) - {"etc", "jr", "sr", "inc", "ltd", "co"}
INITIALS = re.compile(r"(?:[A-HJ-Z]|(?:[A-Za-z]\.)+[A-Za-z])\.")
ENDED = re.compile(r"[.!?…。！？][\"'”’)\]]*$")
UNENDED = re.compile(r"[\s,;:—–-]+$")
OPENING = "\"'“‘(["
# How far from the middle, as a share of the length, a clause's end is preferred to a word's.
MIDDLE = 0.3
# Characters a token, above which a sentence is cut without counting its tokens.
HOPELESS = 8


def split_sentences(text: str, usual: int, most: int, count: Callable[[str], int]) -> list[str]:
    """Sentences of at most `usual` tokens; a single word may have up to `most`.

    Args:
        count: tokens of a piece of text.

    Raises:
        TextError: a single word is longer than that.
    """
    return [piece for sentence in sentences(text) for piece in fit(sentence, usual, most, count)]


def sentences(text: str) -> list[str]:
    """Split after . ! ? and at line ends, not after an abbreviation; unspeakable pieces are dropped."""
    out: list[str] = []
    open_pieces: list[str] = []
    start = 0
    for match in SENTENCE_END.finditer(text):
        piece = text[start : match.end()]
        start = match.end()
        open_pieces.append(piece.strip())
        if "\n" in match[0] or ends_sentence(piece.rstrip(), text[start : start + 8]):
            out.append(" ".join(open_pieces))
            open_pieces = []
    out.append(" ".join([*open_pieces, text[start:].strip()]))
    return [sentence for piece in out if speakable(sentence := piece.strip())]


def ends_sentence(piece: str, following: str) -> bool:
    """Is a piece that ends with a mark complete, given what comes after it?"""
    last = piece.rsplit(maxsplit=1)[-1:] or [""]
    word = last[0].lstrip(OPENING)
    if not word.endswith("."):
        return True
    short = word[:-1].lower()
    if following.lstrip().lstrip(OPENING)[:1].islower() and (short in ABBREVIATIONS or short.endswith(".")):
        return False
    return not (short in NOT_AN_END or INITIALS.fullmatch(word))


def fit(sentence: str, usual: int, most: int, count: Callable[[str], int]) -> list[str]:
    """One sentence in about equal parts, cut at a clause near the middle or else between two words."""
    cut = middle(sentence)
    limit = most if cut is None else usual
    if len(sentence) <= HOPELESS * limit and count(sentence) <= limit:
        return [sentence]
    if cut is None:
        shown = sentence if len(sentence) <= 40 else f"{sentence[:37]}..."
        raise TextError(
            f"the word {shown!r} is longer than the model's {most} tokens; expected a shorter one: "
            "put spaces into it"
        )
    halves = (sentence[:cut].strip(), sentence[cut:].strip())
    return [piece for half in halves if speakable(half) for piece in fit(half, usual, most, count)]


def middle(sentence: str) -> int | None:
    """Where to cut: the clause's end nearest the middle if it is near, else the nearest space."""
    half = len(sentence) / 2
    for pattern, reach in ((CLAUSE_END, MIDDLE * len(sentence)), (re.compile(r"\s+"), half)):
        ends = [match.end() for match in pattern.finditer(sentence)]
        nearest = min(ends, key=lambda end: abs(end - half), default=None)
        if nearest is not None and abs(nearest - half) <= reach:
            return nearest
    return None


def ended(piece: str) -> str:
    """The piece with a full stop in place of a comma or of nothing."""
    return piece if ENDED.search(piece) else f"{UNENDED.sub('', piece)}."


def speakable(text: str) -> bool:
    """Does anything remain to be said after normalisation?"""
    if SURELY_SPEAKABLE.search(text):
        return True
    return SPEAKABLE.search(normalise(text)) is not None

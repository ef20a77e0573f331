"""Words to phonemes: a pronouncing lexicon, endings, compounds, and letters as the last resort.

Symbols follow the lexicon (one character a phoneme, stress marks before the vowel).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

VOWELS = frozenset("AIOQWYaeiouæɑɐɒɔəɛɜɪʊʌᵊᵻ")
VOICELESS = frozenset("ptkfθ")
SIBILANTS = frozenset("szʃʒʧʤ")
TOKEN = re.compile(r"[A-Za-z']+|[,.?!;:]")
LETTERS = {
    "a": "æ", "b": "b", "c": "k", "d": "d", "e": "ɛ", "f": "f", "g": "ɡ", "h": "h", "i": "ɪ", "j": "ʤ",
    "k": "k", "l": "l", "m": "m", "n": "n", "o": "ɑ", "p": "p", "q": "k", "r": "ɹ", "s": "s", "t": "t",
    "u": "ʌ", "v": "v", "w": "w", "x": "ks", "y": "i", "z": "z", "ch": "ʧ", "sh": "ʃ", "th": "θ",
    "ph": "f", "ck": "k", "ee": "i", "ea": "i", "oo": "u", "ou": "W", "ow": "O", "ai": "A", "ay": "A",
    "oa": "O", "oi": "Y", "oy": "Y", "igh": "I", "qu": "kw", "ng": "ŋ", "tion": "ʃən", "ing": "ɪŋ",
    "er": "əɹ", "or": "ɔɹ", "ar": "ɑɹ", "kn": "n", "wr": "ɹ", "wh": "w", "dge": "ʤ", "tch": "ʧ",
}  # fmt: skip
LONGEST = max(map(len, LETTERS))
SHORTEST_PART = 3


def starts_with_vowel(phonemes: str) -> bool:
    return phonemes.lstrip("ˈˌ")[:1] in VOWELS


def plural(stem: str) -> str:
    """The ending -s after a stem's last sound."""
    last = stem[-1]
    return stem + ("ᵻz" if last in SIBILANTS else "s" if last in VOICELESS else "z")


def past(stem: str) -> str:
    """The ending -ed after a stem's last sound."""
    last = stem[-1]
    return stem + ("ᵻd" if last in "td" else "t" if last in VOICELESS | SIBILANTS - set("zʒʤ") else "d")


def attach(ending: str, stem: str) -> str:
    return stem + ending


ENDINGS = (
    ("'s", plural), ("s", plural), ("ed", past), ("d", past), ("ing", partial(attach, "ɪŋ")),
    ("ly", partial(attach, "li")), ("ness", partial(attach, "nəs")), ("er", partial(attach, "əɹ")),
)  # fmt: skip


class Pronouncer:
    """Pronounces normalised English with a lexicon of lower-case words."""

    def __init__(self, lexicon: Mapping[str, str]) -> None:
        self.lexicon = lexicon

    def __call__(self, text: str) -> str:
        """Normalised text -> phonemes, words apart by a space, punctuation attached."""
        tokens = TOKEN.findall(text)
        spoken = [t if t in ",.?!;:" else self.word(t.strip("'").lower()) for t in tokens]
        out = ""
        for index, (token, sounds) in enumerate(zip(tokens, spoken, strict=True)):
            following = next((s for s in spoken[index + 1 :] if s and s[0] not in ",.?!;:"), "")
            if not sounds:
                continue
            separate = out and token not in ",.?!;:"
            out += (" " if separate else "") + weak_form(token.lower(), sounds, following)
        return out

    def word(self, word: str) -> str:
        """One lower-case word, however it can be had."""
        return self.lexicon.get(word) or self.inflected(word) or self.compound(word) or letters(word)

    def inflected(self, word: str) -> str:
        for ending, add in ENDINGS:
            stem = word.removesuffix(ending)
            if stem == word or len(stem) < 2:
                continue
            doubled = stem[:-1] if stem[-1:] == stem[-2:-1] else stem
            for form in (
                stem,
                f"{stem}e",
                doubled,
                f"{stem[:-1]}y" if stem.endswith("i") else stem,
            ):
                if form in self.lexicon:
                    return add(self.lexicon[form])
        return ""

    def compound(self, word: str) -> str:
        for cut in range(len(word) - SHORTEST_PART, SHORTEST_PART - 1, -1):
            head, tail = self.lexicon.get(word[:cut]), self.lexicon.get(word[cut:])
            if head and tail:
                return head + tail.replace("ˈ", "ˌ")
        return ""


def weak_form(word: str, sounds: str, following: str) -> str:
    """ "the", "a" and "to" by the next word's first sound."""
    vowel = starts_with_vowel(following)
    forms = {"the": "ði" if vowel else "ðə", "to": "tʊ" if vowel else "tə", "a": "ɐ", "an": "ɐn"}
    return forms.get(word, sounds) if following else sounds


def letters(word: str) -> str:
    """Letter groups, longest first."""
    out, index = "", 0
    while index < len(word):
        for size in range(LONGEST, 0, -1):
            if sounds := LETTERS.get(word[index : index + size]):
                out, index = out + sounds, index + size
                break
        else:
            index += 1
    first = next((i for i, symbol in enumerate(out) if symbol in VOWELS), 0)
    return f"{out[:first]}ˈ{out[first:]}" if out else ""

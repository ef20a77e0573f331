"""Letters to sounds, for words that are not in the lexicon: learnt rules, or a few built-in ones.

A rule gives the sounds of one letter between its neighbours. The most specific rule that fits wins.
Rules are made by `demo/model/letters.py` from a pronouncing dictionary; this file only applies them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cached_property, lru_cache

VOWELS = frozenset("AIOQWYaeiouæɑɐɒɔəɛɜɪʊʌᵊᵻ")
PRIMARY, SECONDARY = "ˈ", "ˌ"
STRESS = PRIMARY + SECONDARY
EDGE = "#"
WINDOWS = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (3, 3), (2, 5))
"""Letters to the left and to the right that a rule looks at, from the most general to the most specific."""
SPECIFIC_FIRST = WINDOWS[::-1]
REACH = max(max(window) for window in WINDOWS)
GROUPS = {
    "a": "æ", "b": "b", "c": "k", "d": "d", "e": "ɛ", "f": "f", "g": "ɡ", "h": "h", "i": "ɪ", "j": "ʤ",
    "k": "k", "l": "l", "m": "m", "n": "n", "o": "ɑ", "p": "p", "q": "k", "r": "ɹ", "s": "s", "t": "t",
    "u": "ʌ", "v": "v", "w": "w", "x": "ks", "y": "i", "z": "z", "ch": "ʧ", "sh": "ʃ", "th": "θ",
    "ph": "f", "ck": "k", "ee": "i", "ea": "i", "oo": "u", "ou": "W", "ow": "O", "ai": "A", "ay": "A",
    "oa": "O", "oi": "Y", "oy": "Y", "igh": "I", "qu": "kw", "ng": "ŋ", "tion": "ʃən", "ing": "ɪŋ",
    "er": "əɹ", "or": "ɔɹ", "ar": "ɑɹ", "kn": "n", "wr": "ɹ", "wh": "w", "dge": "ʤ", "tch": "ʧ",
}  # fmt: skip
LONGEST = max(map(len, GROUPS))


class LetterRules:
    """Sounds out a lower-case word letter by letter.

    Args:
        rules: key of a letter in its context (see `context`) -> sounds.
    """

    def __init__(self, rules: Mapping[str, str]) -> None:
        self.rules = rules

    def __call__(self, word: str) -> str:
        padded = EDGE * REACH + word + EDGE * REACH
        return one_stress("".join(self.letter(padded, i + REACH) for i in range(len(word))))

    def letter(self, padded: str, index: int) -> str:
        """The sounds of one letter by the most specific rule; nothing if no rule fits."""
        known = self.known
        for left, right in SPECIFIC_FIRST:
            key = f"{padded[index - left : index]}>{padded[index : index + right + 1]}"
            if key in known:
                return known[key]
        return ""

    @cached_property
    def known(self) -> dict[str, str]:
        """The rules for look-ups, of which a letter takes up to a dozen. Made for the first unknown word."""
        pairs = [(key, sys.intern(sounds)) for key, sounds in self.rules.items()]
        return dict(reversed(pairs))  # of a key that is there twice the first value counts


def context(padded: str, index: int, window: tuple[int, int]) -> str:
    """The rule key of `padded[index]`: left neighbours, ">", the letter, right neighbours."""
    left, right = window
    return f"{padded[index - left : index]}>{padded[index : index + right + 1]}"


@lru_cache(maxsize=4096)
def letter_groups(word: str) -> str:
    """The built-in rules: letter groups, longest first."""
    out, index = "", 0
    while index < len(word):
        for size in range(LONGEST, 0, -1):
            if sounds := GROUPS.get(word[index : index + size]):
                out, index = out + sounds, index + size
                break
        else:
            index += 1
    return one_stress(out)


def one_stress(sounds: str) -> str:
    """Exactly one primary stress: the first one, else the first secondary, else the first vowel."""
    if PRIMARY in sounds:
        head, _, tail = sounds.partition(PRIMARY)
        return head + PRIMARY + tail.replace(PRIMARY, SECONDARY)
    if SECONDARY in sounds:
        return sounds.replace(SECONDARY, PRIMARY, 1)
    return stress_first_vowel(sounds, PRIMARY)


def stress_first_vowel(sounds: str, mark: str) -> str:
    """Put a stress mark before the first vowel; sounds without a vowel stay as they are."""
    first = next((i for i, symbol in enumerate(sounds) if symbol in VOWELS), None)
    return sounds if first is None else sounds[:first] + mark + sounds[first:]

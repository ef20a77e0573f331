"""English in the phone sets of other projects, from our own lexicon and letter rules.

It needs no package and no download: the lexicon is the embedded model's. The phones are those of the other
project's set; the pronunciation of a word may differ from the one its model was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from valle2.runtime.errors import TextError
from valle2.runtime.text.annotations.pronunciation import Inventory
from valle2.runtime.text.letter_rules import PRIMARY, SECONDARY
from valle2.runtime.text.phonemes import CACHED, Pronouncer
from valle2.runtime.text.tokenizer import LETTERS, LEXICON, read_pronouncer

EMBEDDED = Path(__file__).resolve().parents[1] / "models" / "demo"
WORD = re.compile(r"[,.?!;:]|[^\s,.?!;:]+")
SOUND = re.compile(r"([ˈˌ]?)([əɜ]ɹ|.)")
SETS = {
    "əɹ": ("ER", "əɹ", "ɚ"), "ɜɹ": ("ER", "əɹ", "ɜː"), "A": ("EY", "eɪ", "eɪ"), "I": ("AY", "aɪ", "aɪ"),
    "O": ("OW", "oʊ", "oʊ"), "Q": ("OW", "oʊ", "oʊ"), "W": ("AW", "aʊ", "aʊ"), "Y": ("OY", "ɔɪ", "ɔɪ"),
    "æ": ("AE", "æ", "æ"), "ɑ": ("AA", "ɑ", "ɑː"), "ɒ": ("AA", "ɑ", "ɑː"), "ɐ": ("AH", "ə", "ɐ"),
    "ɔ": ("AO", "ɔ", "ɔː"), "ə": ("AH", "ə", "ə"), "ɜ": ("ER", "ə", "ɜː"), "ʌ": ("AH", "ə", "ʌ"),
    "ᵊ": ("AH", "ə", "ə"), "ɛ": ("EH", "ɛ", "ɛ"), "e": ("EH", "ɛ", "ɛ"), "a": ("AE", "æ", "æ"),
    "ɪ": ("IH", "ɪ", "ɪ"), "ᵻ": ("IH", "ɪ", "ᵻ"), "i": ("IY", "i", "iː"), "u": ("UW", "u", "uː"),
    "o": ("OW", "oʊ", "oʊ"), "ʊ": ("UH", "ʊ", "ʊ"), "b": ("B", "b", "b"), "d": ("D", "d", "d"),
    "f": ("F", "f", "f"), "h": ("HH", "h", "h"), "j": ("Y", "j", "j"), "k": ("K", "k", "k"),
    "l": ("L", "l", "l"), "m": ("M", "m", "m"), "n": ("N", "n", "n"), "p": ("P", "p", "p"),
    "s": ("S", "s", "s"), "t": ("T", "t", "t"), "v": ("V", "v", "v"), "w": ("W", "w", "w"),
    "z": ("Z", "z", "z"), "T": ("T", "t", "ɾ"), "ð": ("DH", "ð", "ð"), "ŋ": ("NG", "ŋ", "ŋ"),
    "ɡ": ("G", "g", "ɡ"), "ɹ": ("R", "ɹ", "ɹ"), "ʃ": ("SH", "ʃ", "ʃ"), "ʒ": ("ZH", "ʒ", "ʒ"),
    "ʤ": ("JH", "dʒ", "dʒ"), "ʧ": ("CH", "tʃ", "tʃ"), "θ": ("TH", "θ", "θ"),
}  # fmt: skip
"""A symbol of our lexicon in ARPAbet, in the IPA of VALL-E X, and in that of espeak."""
ARPABET, VALLEX, ESPEAK = range(3)
VOWELS = frozenset("AIOQWYaeiouæɑɐɒɔəɛɜɪʊʌᵊᵻ")
REDUCED = frozenset("ɐəᵊ")
DIGITS = {"": "0", PRIMARY: "1", SECONDARY: "2"}
CLUSTERS = """
pɹ pl pj bɹ bl bj tɹ tw dɹ dw kɹ kl kw kj ɡɹ ɡl ɡw fɹ fl fj θɹ θw ʃɹ sp st sk sm sn sl sw spɹ spl stɹ skɹ
skw hj mj vj
"""
ONSETS = frozenset(CLUSTERS.split())
"""Consonants that may begin a syllable together."""
Sound = tuple[str, str]


@cache
def pronouncer() -> Pronouncer:
    """The pronouncer of the embedded model's lexicon.

    Raises:
        TextError: the lexicon is not there.
    """
    try:
        return read_pronouncer(EMBEDDED, (LEXICON, LETTERS))
    except ValueError as error:
        raise TextError(f"{EMBEDDED}: no lexicon ({error}); install valle2 again, or pass phones") from None


def inventory() -> Inventory:
    """The phonemes that every family's phone set can be made from."""
    return Inventory(frozenset("".join(SETS)))


def words_of(spoken: str) -> list[str]:
    """Normalised text as words in our own phonemes; marks are items of their own."""
    return WORD.findall(pronouncer()(spoken))


def sounds_of(word: str) -> list[Sound]:
    """The sounds of a word, each a stress mark or nothing, and a symbol of `SETS`."""
    return [(match[1], match[2]) for match in SOUND.finditer(word) if match[2] in SETS]


@lru_cache(CACHED)
def arpabet(word: str) -> Sequence[str]:
    """A word in ARPAbet with stress digits. A word without stress gets it on its first full vowel.

    >>> arpabet("ɪz")
    ['IH1', 'Z']
    """
    sounds = sounds_of(word)
    if not any(stress for stress, _ in sounds):
        full = [i for i, (_, sound) in enumerate(sounds) if is_vowel(sound) and sound not in REDUCED]
        for index in full[:1]:
            sounds[index] = (PRIMARY, sounds[index][1])
    return [SETS[sound][ARPABET] + (DIGITS[stress] if is_vowel(sound) else "") for stress, sound in sounds]


@lru_cache(CACHED)
def vallex_ipa(word: str) -> str:
    """A word in the IPA of VALL-E X: stress marks before the syllable, none in a word of one syllable.

    >>> vallex_ipa("həlˈO")
    'həˈloʊ'
    """
    sounds = sounds_of(word)
    several = sum(is_vowel(sound) for _, sound in sounds) > 1
    out = [SETS[sound][VALLEX] for _, sound in sounds]
    for index, (stress, _) in reversed(list(enumerate(sounds))):
        if stress and several:
            out.insert(onset(sounds, index), stress)
    return "".join(out)


@lru_cache(CACHED)
def espeak_phones(word: str) -> Sequence[str]:
    """A word as espeak's phones, each with its stress mark."""
    return [stress + SETS[sound][ESPEAK] for stress, sound in sounds_of(word)]


def onset(sounds: list[Sound], vowel: int) -> int:
    """Where the syllable of a vowel begins: at the longest run of consonants that may begin one."""
    start = vowel
    while start and not is_vowel(sounds[start - 1][1]):
        run = "".join(sound for _, sound in sounds[start - 1 : vowel])
        if len(run) > 1 and run not in ONSETS:
            break
        start -= 1
    return start


def is_vowel(sound: str) -> bool:
    """Is it a vowel of our lexicon, an r-coloured one among them?"""
    return sound[0] in VOWELS

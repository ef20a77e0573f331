"""Words to phonemes: from a lexicon, else by endings, compounds, or letter rules.

Symbols are those of the lexicon: one character for a phoneme, stress marks before the vowel. An entry is the
usual form and, after tabs, forms for a place in the sentence: `pause=` before a pause, `VERB=`, `NOUN=` ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import NamedTuple

from valle2.runtime.text.annotations.pronunciation import sounds_in
from valle2.runtime.text.letter_rules import (
    PRIMARY,
    SECONDARY,
    STRESS,
    VOWELS,
    letter_groups,
    stress_first_vowel,
)

VOICELESS = frozenset("ptkfθ")
SIBILANTS = frozenset("szʃʒʧʤ")
BEFORE_FLAP = frozenset("AIOWYiuæɑəɛɪɹʊʌ")
REDUCED = frozenset("ɐᵊ")
LETTERS_OF_VOWELS = frozenset("aeiouy")
PUNCTUATION = frozenset(",.?!;:")
TOKEN = re.compile(r"\b[A-Z](?: [A-Z])+(?:'s)?(?![A-Za-z'-])|[A-Za-z']+(?:-[A-Za-z']+)*|[,.?!;:]")
SHORTEST_PART, LONGEST_PART = 3, 40
"""Letters of a word that is looked for in a compound."""
CACHED = 8192
"""Words whose pronunciation is kept: splitting a text counts the tokens of the same words several times."""
A_VOWEL, A_CONSONANT = "A", "b"
CLITICS = frozenset(["the", "a", "an", "to", "in", "am", "i"])
BEFORE_VERB = """
to will would can could may might must shall should do does did don't doesn't didn't can't won't
couldn't wouldn't shouldn't cannot i you we they who let's please never always i'll you'll we'll
they'll i'd you'd we'd they'd
"""
BEFORE_PARTICIPLE = """
have has had having i've you've we've they've haven't hasn't hadn't be been being is are was were
get got getting he's she's it's we're they're you're i'm
"""
BEFORE_NOUN = """
the a an my your his her its our their this these those some any no every each another of in on at
for with by from
"""
BEFORE_THAT = """
of in on at for with by from like do doing about and but not
"""
VERB_CONTEXT, PARTICIPLE_CONTEXT, NOUN_CONTEXT, THAT_CONTEXT = (
    frozenset(words.split()) for words in (BEFORE_VERB, BEFORE_PARTICIPLE, BEFORE_NOUN, BEFORE_THAT)
)


class Place(NamedTuple):
    """Where a word stands: the lower-case words around it and the sounds that follow ("" before a pause)."""

    previous: str = ""
    following: str = ""
    sounds: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        """The forms that fit here, best first."""
        out: tuple[str, ...] = () if self.sounds else ("pause", "DT")
        if self.following == "to" and self.previous not in PARTICIPLE_CONTEXT:
            out += ("to",)
        if not self.previous or self.previous in THAT_CONTEXT:
            out += ("DT",)
        if self.previous in PARTICIPLE_CONTEXT:
            return (*out, "VBN")
        if self.previous in VERB_CONTEXT:
            return (*out, "VBP", "VERB")
        return (*out, "NOUN") if self.previous in NOUN_CONTEXT or self.following == "of" else out


def users_sounds(word: str) -> str:
    """The user's pronunciation that a lower-case word stands for, with its 's; nothing for other words."""
    if not word.startswith("qx"):
        return ""
    stem = word.removesuffix("'s")
    sounds = sounds_in(stem)
    return plural(sounds) if sounds and stem != word else sounds


def small_word(token: str) -> str:
    """The lower-case word of a token; nothing for a mark."""
    return "" if token in PUNCTUATION else token.strip("'").lower()


def kind_of(sounds: str) -> str:
    """Sounds of the same kind as others, as far as a word before them can tell."""
    return sounds and (A_VOWEL if starts_with_vowel(sounds) else A_CONSONANT)


def starts_with_vowel(phonemes: str) -> bool:
    """Do "the" and "to" take their form before a vowel? They do not before a reduced vowel."""
    return phonemes.lstrip(STRESS)[:1] in VOWELS - REDUCED


def plural(stem: str) -> str:
    """A stem with the ending -s, which depends on its last sound."""
    last = stem[-1:]
    return stem + ("ᵻz" if last in SIBILANTS else "s" if last in VOICELESS else "z")


def past(stem: str) -> str:
    """A stem with the ending -ed, which depends on its last sound. A t between vowels becomes a flap."""
    last = stem[-1]
    if last == "t" and stem[-2:-1] in BEFORE_FLAP:
        return f"{stem[:-1]}Tᵻd"
    return stem + ("ᵻd" if last in "td" else "t" if last in "pkfθʃsʧ" else "d")


def progressive(stem: str) -> str:
    """A stem with the ending -ing."""
    return (f"{stem[:-1]}T" if stem[-1] == "t" and stem[-2:-1] in BEFORE_FLAP else stem) + "ɪŋ"


def attach(ending: str, stem: str) -> str:
    """A stem with an ending that does not depend on it."""
    return stem + ending


ENDINGS = (
    ("'s", plural), ("s", plural), ("ed", past), ("d", past), ("ing", progressive),
    ("ly", partial(attach, "li")), ("ness", partial(attach, "nəs")), ("er", partial(attach, "əɹ")),
)  # fmt: skip


class Pronouncer:
    """Pronounces normalised English.

    Args:
        lexicon: lower-case words and their entries, phonemes[<TAB>TAG=phonemes ...].
        guess: gives the sounds of a word that is not in the lexicon.
    """

    def __init__(self, lexicon: Mapping[str, str], guess: Callable[[str], str] = letter_groups) -> None:
        self.lexicon = lexicon
        self.guess = guess
        self.entry = lru_cache(CACHED)(lambda word: lexicon.get(word, ""))
        self.word = lru_cache(CACHED)(self.pronounce)
        self.token = lru_cache(CACHED)(self.anywhere)
        self.token_in = lru_cache(CACHED)(self.in_place)

    def __call__(self, text: str) -> str:
        """Normalised text -> phonemes, with a space between words and punctuation attached."""
        tokens = TOKEN.findall(text)
        out: list[str] = []
        following, sounds = "", ""
        for index in range(len(tokens) - 1, -1, -1):
            token = tokens[index]
            if token in PUNCTUATION:
                out.append(token)
                following, sounds = "", ""
                continue
            spoken = self.token(token)
            if spoken is None:
                spoken = self.token_in(token, tokens[index - 1] if index else "", following, kind_of(sounds))
            if spoken:
                out += spoken, " "
                following, sounds = token, spoken
        return "".join(reversed(out)).strip()

    def anywhere(self, token: str) -> str | None:
        """The sounds of a token in every place; None if they depend on the place. `token` caches it."""
        if " " in token:
            return self.spelt(token)
        word = token.strip("'")
        parts = [part for part in word.lower().split("-") if part]
        one = "-".join(parts)
        if (len(parts) < 2 or self.usual(word.lower())) and (one in CLITICS or "\t" in self.entry(one)):
            return None
        return self.compounded(word, Place())

    def in_place(self, token: str, previous: str, following: str, sounds: str) -> str:
        """The sounds of a token between two others. sounds: see `kind_of`. `token_in` caches it."""
        return self.compounded(token.strip("'"), Place(small_word(previous), small_word(following), sounds))

    def spelt(self, letters: str) -> str:
        """Letters read one by one as one word, the last one stressed: "B B C"."""
        names = [self.word(letter) for letter in letters.removesuffix("'s").lower().split()]
        head, mark, tail = "".join(names).replace(PRIMARY, SECONDARY).rpartition(SECONDARY)
        sounds = head + (PRIMARY if mark else "") + tail
        return plural(sounds) if letters.endswith("'s") else sounds

    def compounded(self, word: str, place: Place) -> str:
        """A word, or words joined by hyphens with less stress on all but the last."""
        whole = self.usual(word.lower())
        parts = [part for part in word.split("-") if part]
        if whole or len(parts) < 2:
            return self.placed("-".join(parts), place)
        sounds = [s for s in (self.placed(part, Place(sounds="-")) for part in parts) if s]
        if sum(PRIMARY in s for s in sounds) <= (len(sounds) + 1) // 2 and len(sounds) > 2:
            return "".join(sounds)
        weak = [s.replace(SECONDARY, "").replace(PRIMARY, SECONDARY) for s in sounds[:-1]]
        return "".join(weak + sounds[-1:])

    def placed(self, word: str, place: Place) -> str:
        """One word in the form its place asks for; capitals give stress to a word that has none."""
        lower = word.lower()
        given = users_sounds(lower)
        if given:
            return given
        if lower in CLITICS:
            return self.clitic(lower, place)
        usual, *others = self.entry(lower).split("\t")
        forms = dict(other.split("=", 1) for other in others if "=" in other)
        sounds = next((forms[tag] for tag in place.tags if tag in forms), usual) or self.word(lower)
        return sounds if word == lower else stressed(sounds, word.isupper() and len(word) > 1)

    def clitic(self, word: str, place: Place) -> str:
        """Little words that lean on the next word's first sound."""
        usual = self.usual(word) or self.guess(word)
        vowel = starts_with_vowel(place.sounds)
        leaning = {
            "the": "ði" if vowel else "ðə", "to": "tʊ" if vowel else "tə", "a": "ɐ", "an": "ɐn",
            "in": "ɪn", "am": "ɐm", "i": "ˌI",
        }  # fmt: skip
        alone = {"the": "ðə", "a": "ˈA", "an": "ɐn", "in": "ˈɪn", "i": "ˌI"}
        return leaning[word] if place.sounds else alone.get(word, usual)

    def usual(self, word: str) -> str:
        """The usual form of a word in the lexicon, or an empty string."""
        return self.entry(word).partition("\t")[0]

    def pronounce(self, word: str) -> str:
        """One lower-case word by itself: from the lexicon, derived from it, or guessed. `word` caches it."""
        known = self.usual(word)
        if not known and len(word) > 1 and not LETTERS_OF_VOWELS.intersection(word) and word.isalpha():
            return self.spelt(" ".join(word))
        return known or self.inflected(word) or self.compound(word) or self.guess(word.replace("'", ""))

    def inflected(self, word: str) -> str:
        """A known stem and an ending."""
        for ending, add in ENDINGS:
            stem = word.removesuffix(ending)
            if stem == word or len(stem) < 2:
                continue
            for form in stem_spellings(stem, add is plural):
                known = self.usual(form)
                if known:
                    return add(known)
        stem = word.removesuffix("'s")
        once = stem not in (word, "") and not stem.endswith("'s")
        return plural(self.word(stem)) if once else ""

    def compound(self, word: str) -> str:
        """Two known words written as one, the longest first word that fits."""
        first = max(SHORTEST_PART, len(word) - LONGEST_PART)
        last = min(len(word) - SHORTEST_PART, LONGEST_PART)
        for cut in range(last, first - 1, -1):
            head = self.usual(word[:cut])
            tail = self.usual(word[cut:]) if head else ""
            if tail:
                return head + tail.replace(PRIMARY, SECONDARY)
        return ""


def stem_spellings(stem: str, before_s: bool) -> list[str]:
    """How a stem may be written without its ending: tries -> trie, try; making -> mak, make."""
    if stem.endswith("ie") and before_s:
        return [stem, f"{stem[:-2]}y"]
    if before_s:
        return [stem, stem.removesuffix("e")]
    doubled = stem[:-1] if stem[-1:] == stem[-2:-1] else stem
    return [stem, f"{stem}e", doubled, f"{stem[:-1]}y" if stem.endswith("i") else stem]


def stressed(sounds: str, strongly: bool) -> str:
    """Unstressed sounds with a stress: secondary, or primary where a whole word is in capitals."""
    if not any(mark in sounds for mark in STRESS):
        return stress_first_vowel(sounds, PRIMARY if strongly else SECONDARY)
    return sounds.replace(SECONDARY, PRIMARY) if strongly and PRIMARY not in sounds else sounds

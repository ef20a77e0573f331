"""Pronunciations that users write in the IPA, and how they travel through the text.

A pronunciation travels in the text as a word of plain letters that spells its phonemes: `word_of` makes it,
`sounds_in` reads it. The splitter, the normaliser and the caches treat it as any other word, so no table has
to travel beside the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from valle2.runtime.errors import LexiconError
from valle2.runtime.text.letter_rules import STRESS, VOWELS

MAX_SOUNDS = 64
"""Phonemes of one pronunciation."""
SHOWN = 40
"""Characters of a word or pronunciation that a message repeats."""
INLINE = re.compile(r"\[([^\[\]\n]{1,100})\]\(/([^/()\[\]\n]{1,200})/\)")
"""`[word](/phonemes/)`."""
SPELLED = re.compile(r"qx((?:[a-p]{2}){1,256})x[a-p]{0,8}q", re.I)
LETTERS = "abcdefghijklmnop"
LONG_WORD = 6
"""Letters from which on a word in capitals keeps them, see `letters.quiet`."""
PAIRS = {
    "oʊ": "O", "əʊ": "Q", "eɪ": "A", "aɪ": "I", "aʊ": "W", "ɔɪ": "Y", "tʃ": "ʧ", "dʒ": "ʤ",
    "ɚ": "əɹ", "ɝ": "ɜɹ", "n̩": "ᵊn", "l̩": "ᵊl", "m̩": "ᵊm", "g": "ɡ", "r": "ɹ", "ɫ": "l", "ɾ": "T",
    "'": "ˈ", "’": "ˈ", "ʼ": "ˈ",
}  # fmt: skip
"""Phonemes of the IPA that our lexicon writes otherwise; applied in this order."""
BROAD = {
    "ɒ": "ɑ", "a": "ɑ", "e": "ɛ", "o": "O", "ɐ": "ə", "ɨ": "ᵻ", "ᵻ": "ɪ", "ʉ": "u", "ʍ": "w", "ɱ": "m",
    "ɻ": "ɹ",
}  # fmt: skip
"""Phonemes of the IPA that English does not tell from others; read where the model lacks them."""
SILENT = re.compile("[ːˑ.‿|ʰ\u0361\u035c\u032f\u0329\u200d]")
"""Length, syllables, ties and aspiration, which English does not tell apart."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The phonemes that a model can say, as our lexicon writes them.

    Args:
        known: symbols of one character.
    """

    known: frozenset[str]

    def read(self, phonemes: str, word: str) -> str:
        """The model's symbols for a pronunciation in the IPA. A stress mark moves before its vowel.

        Args:
            phonemes: IPA, with or without slashes around it. word: whose they are, for the message.

        Raises:
            LexiconError: no phonemes, too many, or some that the model has no symbol for.
        """
        sounds = self.written(phonemes)
        unknown = self.unknown(sounds)
        if unknown:
            raise LexiconError(
                f"the pronunciation /{phonemes.strip('/')[:SHOWN]}/ of {word[:SHOWN]!r} has "
                f"{', '.join(map(repr, unknown[:10]))}, which this model has no phoneme for; "
                f"expected some of: {' '.join(sorted(self.known))}"
            )
        if len(sounds) > MAX_SOUNDS:
            raise LexiconError(
                f"the pronunciation of {word[:SHOWN]!r} has {len(sounds)} phonemes; "
                f"expected at most {MAX_SOUNDS}: split the word"
            )
        if not any(symbol.isalpha() and symbol not in STRESS for symbol in sounds):
            raise LexiconError(
                f"the pronunciation {phonemes[:SHOWN]!r} of {word[:SHOWN]!r} holds no phonemes; expected "
                "IPA such as /həlˈoʊ/"
            )
        return stress_before_vowels(sounds)

    def written(self, phonemes: str, broad: bool = True) -> str:
        """The IPA as our lexicon writes it; unknown symbols stay. broad: see `BROAD`."""
        sounds = unicodedata.normalize("NFC", " ".join(phonemes.strip().strip("/").split()))
        sounds = sounds.replace("\u0361", "").replace("\u035c", "")
        for ipa, ours in (PAIRS | BROAD if broad else PAIRS).items():
            if all(symbol in self.known or symbol in STRESS for symbol in ours) and ipa not in self.known:
                sounds = sounds.replace(ipa, ours)
        return SILENT.sub("", sounds)

    def unknown(self, sounds: str) -> list[str]:
        """The symbols that the model does not have, in order."""
        return [s for s in dict.fromkeys(sounds) if s not in self.known and s not in STRESS and s != " "]

    def unknown_in(self, phonemes: str) -> list[str]:
        """What a pronunciation holds beside the model's own phonemes."""
        return self.unknown(self.written(phonemes, broad=False))


@dataclass(slots=True)
class Spellings:
    """The pronunciations of one text, and the words they stand for.

    Args:
        written: a word of `word_of`, in lower case -> the word as the user wrote it.
    """

    written: dict[str, str] = field(default_factory=dict)

    def add(self, word: str, sounds: str) -> str:
        """The word of plain letters that stands for `word`, with its capitals."""
        salt, spelled = 0, word_of(sounds)
        while self.written.setdefault(spelled, word.strip()) != word.strip() and salt < len(self.written):
            salt += 1
            spelled = word_of(sounds, salt)
        first = next((letter for letter in word if letter.isalpha()), "")
        if word.isupper() and len(word) >= LONG_WORD:
            return spelled.upper()
        return spelled.capitalize() if first.isupper() else spelled

    def readable(self, text: str) -> str:
        """The text with the words as the user wrote them."""
        return readable(text, self.written)


def stress_before_vowels(sounds: str) -> str:
    """Stress marks directly before their vowels: "ˈljɑ" -> "ljˈɑ". One without a vowel after it goes."""
    out, mark = [], ""
    for symbol in sounds:
        if symbol in STRESS:
            mark = symbol
        elif symbol in VOWELS and mark:
            out += [mark, symbol]
            mark = ""
        else:
            mark = "" if symbol == " " else mark
            out.append(symbol)
    return "".join(out)


def word_of(sounds: str, salt: int = 0) -> str:
    """Phonemes as a word of plain letters. salt: tells apart words that sound alike."""
    tail = "".join(LETTERS[int(digit, 16)] for digit in f"{salt:x}") if salt else ""
    return f"qx{''.join(LETTERS[byte >> 4] + LETTERS[byte & 15] for byte in sounds.encode())}x{tail}q"


def sounds_in(word: str) -> str:
    """The phonemes that a word of `word_of` stands for; nothing for any other word."""
    found = SPELLED.fullmatch(word) if word[:2] in ("qx", "Qx", "QX") else None
    if found is None:
        return ""
    digits = [LETTERS.index(letter) for letter in found[1].lower()]
    return bytes(16 * a + b for a, b in zip(digits[::2], digits[1::2], strict=True)).decode(errors="ignore")


def readable(text: str, written: Mapping[str, str] | None = None) -> str:
    """A text for people: its words of `word_of` as the user wrote them, or else as /phonemes/."""
    known = written or {}
    return SPELLED.sub(lambda match: known.get(match[0].lower()) or f"/{sounds_in(match[0])}/", text)

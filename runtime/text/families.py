"""Front ends of the imported families: English to the symbols that each of them was trained on.

family     symbols
vallex     one per character of the IPA; each phone also has a language
lifeiteng  a table per training run, `unique_text_tokens.k2symbols`
amphion    ARPAbet with stress and place in the word, `|` between words

Phones need no package. English text is read by the family's own package where it is installed, otherwise by
our lexicon (see `english`). supervoice has a tokenizer instead (see `tokenizer`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from valle2.engine.errors import ManifestError
from valle2.runtime.errors import TextError
from valle2.runtime.text import english
from valle2.runtime.text.annotations.pronunciation import SPELLED, Inventory
from valle2.runtime.text.base import MAX_TOKENS, RAW, FrontEnd, Ids, IdsFrontEnd, check_text
from valle2.runtime.text.normalise import normalise
from valle2.runtime.text.phonemes import PUNCTUATION
from valle2.runtime.text.phones import Notation
from valle2.runtime.text.table import read_text
from valle2.runtime.text.tokenizer import TextFrontEnd
from valle2.runtime.text.tokenizer_file import TOKENIZER
from valle2.runtime.types import Phones

EXTRA = "pip install 'valle2[text]'"
LANGUAGES = ("en", "zh", "ja")
"""Languages of VALL-E X by row of the model's language table."""
LANGUAGE_MARK = re.compile(r"\[(EN|ZH|JA)\]")
"""What VALL-E X writes before and after text of a language."""
VALLEX_SPECIAL = 5
VALLEX_SYMBOLS = "!#*,-.=?NQ^_`abdefghijklmnopstuvwxyz~æçðŋɑɔəɛɥɪɫɯɸɹɾʃʊʑʒʰˈˌθ…⁼↑→↓"
VALLEX_GAP = "_"
LIPS = str.maketrans({"r": "ɹ", "ʤ": "dʒ", "ʧ": "tʃ"})
DARK_L = re.compile(r"l(?=[^aeiouæɑɔəɛɪʊ ]*(?: |$))")
ENDS = ".,!?;:-…"
SYMBOLS = "text/symbols.txt"
"""The file of a bundle with lifeiteng's symbols, as its training run wrote it."""
MAX_SYMBOLS_FILE, MAX_SYMBOL = 2**20, 64
"""Bytes of that file, and characters of a symbol."""
LIFEITENG_SPECIAL = ("<pad>", "<bos>", "<eos>")
PLACES, STRESSES = "BEI", "012"
WORD_GAP = "|"


def needed(package: str) -> Any:
    """A package of the extra `text`, imported now.

    Raises:
        TextError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise TextError(f"this text needs {package}; install with: {EXTRA}") from None


# -- VALL-E X ---------------------------------------------------------------------------------------


class VallexFrontEnd(FrontEnd):
    """English and phones for VALL-E X. Mandarin and Japanese: phones in `[ZH]` or `[JA]` marks."""

    notation = Notation(VALLEX_GAP, {"ɡ": "g", "r": "ɹ", "ʤ": "dʒ", "ʧ": "tʃ"})

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        super().__init__(vallex_table(), max_tokens)
        self.warnings = unless_installed("eng_to_ipa", "VALL-E X")

    def inventory(self) -> Inventory:
        return english.inventory()

    def encode_text(self, text: str) -> Ids:
        check_text(text)
        if find_spec_of("eng_to_ipa") and not SPELLED.search(text):
            return vallex_text(text)
        words = [word if word in PUNCTUATION else f" {english.vallex_ipa(word)}" for word in words_in(text)]
        return vallex_ids(vallex_finish("".join(words).strip()))

    def encode_phones(self, text: str) -> Ids:
        ids = self.ids_of(symbol for symbol, _ in self.with_language(text))
        return ids if len(ids) else super().encode_phones(text)

    def with_language(self, text: str) -> Iterator[tuple[str, int]]:
        """The symbols of phones, and the language of each: that of the last mark before it, English first."""
        language = 0
        for index, part in enumerate(LANGUAGE_MARK.split(text)):
            if index % 2:
                language = LANGUAGES.index(part.lower())
            else:
                yield from ((symbol, language) for symbol in self.notation.parse(part, self.table))

    def languages(self, text: str, ids: Ids) -> Ids:
        if isinstance(text, Phones):
            return np.array([language for _, language in self.with_language(text)], np.int64)
        return np.zeros(len(ids), np.int64)

    def phones(self, ids: Iterable[int], language: str = "") -> Phones:
        """Ids as phones, in the marks of their language unless it is English."""
        found = self.notation.write(ids, self.symbols)
        mark = f"[{language.upper()}]" if language not in ("", LANGUAGES[0]) else ""
        return Phones(f"{mark}{found}{mark}")


def vallex_table() -> dict[str, int]:
    """Ids by symbol. The ids below `VALLEX_SPECIAL` have no character."""
    return {symbol: VALLEX_SPECIAL + index for index, symbol in enumerate(VALLEX_SYMBOLS)}


def vallex_ids(phones: str) -> Ids:
    """Ids (S,) of IPA as VALL-E X writes it, spaces as `_`; an unknown character is 0."""
    table = vallex_table()
    return np.array([table.get(symbol, 0) for symbol in phones], np.int64)


def vallex_text(text: str) -> Ids:
    """English -> ids (S,) of VALL-E X by `eng_to_ipa`.

    Raises:
        TextError: nothing to speak, a word outside the package's dictionary, or no such package.
    """
    words = normalise(check_text(text)).lower()
    phones = needed("eng_to_ipa").convert(words)
    unknown = re.findall(r"(\S+)\*", phones)
    if unknown:
        raise TextError(f"no pronunciation of {', '.join(unknown[:6])}; spell it otherwise, or pass phones")
    return vallex_ids(vallex_finish(phones))


def vallex_finish(phones: str) -> str:
    """IPA with spaces as VALL-E X writes it: its own letters, a mark at the end, `_` between words."""
    phones = DARK_L.sub("ɫ", phones).translate(LIPS).rstrip()
    phones += "" if phones.endswith(tuple(ENDS)) else "."
    return phones.replace(" ", VALLEX_GAP)


# -- lifeiteng --------------------------------------------------------------------------------------


class LifeitengFrontEnd(FrontEnd):
    """English and phones for a model of lifeiteng/vall-e, whose phones are those of espeak."""

    gap = VALLEX_GAP
    warnings = (
        "lifeiteng models were trained on phones of espeak; these are of valle2's own lexicon. "
        "For espeak's, run phonemizer yourself and pass --phones",
    )

    def inventory(self) -> Inventory:
        return english.inventory()

    def encode_text(self, text: str) -> Ids:
        check_text(text)
        if len(self.table) == len(LIFEITENG_SPECIAL):
            raise TextError(
                "this bundle has no symbol table, so its model takes ids alone (--phones '<5> <17>'); export "
                "it again with --text unique_text_tokens.k2symbols"
            )
        symbols: list[str] = []
        for word in words_in(text):
            if word in PUNCTUATION:
                symbols += [word] if word in self.table else []
                continue
            symbols += [self.gap] if symbols and self.gap in self.table else []
            symbols += map(self.known, english.espeak_phones(word))
        return self.ids_of(symbols)

    def known(self, phone: str) -> str:
        """The phone as the table has it: as it is, without its length, or without its stress."""
        forms = (phone, phone.rstrip("ː"), phone.lstrip("ˈˌ"), phone.strip("ˈˌː"))
        return next((form for form in forms if form in self.table), phone)

    def parse_phones(self, text: str) -> list[str]:
        """Symbols between spaces or `|`, the mark `_` by itself. The text's own marks are added elsewhere."""
        symbols = text.replace("|", " ").replace(self.gap, f" {self.gap} ").split()
        return [symbol for symbol in symbols if symbol not in LIFEITENG_SPECIAL]


def lifeiteng_table(text: str) -> dict[str, int]:
    """Ids by symbol. The file's own numbers are not the model's, which sorts the symbols, `<eps>` among them.

    Raises:
        TextError: lines that are not `symbol number`.
    """
    rows = [line.rsplit(maxsplit=1) for line in text.splitlines() if line.strip()]
    plain = all(len(row) == 2 and row[1].isdigit() and len(row[0]) <= MAX_SYMBOL for row in rows)
    if not rows or not plain:
        raise TextError("no symbol table; expected lines of a symbol and a number")
    symbols = [*LIFEITENG_SPECIAL, *sorted(symbol for symbol, _ in rows)]
    return {symbol: index for index, symbol in enumerate(symbols)}


# -- Amphion ----------------------------------------------------------------------------------------


class AmphionFrontEnd(FrontEnd):
    """English and ARPAbet for Amphion. The transcript and the text each have `<BOS>` and `<EOS>`."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        super().__init__(amphion_table(), max_tokens)
        self.warnings = unless_installed("g2p_en", "Amphion")

    def inventory(self) -> Inventory:
        return english.inventory()

    def encode_text(self, text: str) -> Ids:
        check_text(text)
        if find_spec_of("g2p_en") and not SPELLED.search(text):
            return amphion_text(text)
        words = [" ".join(english.arpabet(word)) for word in words_in(text) if word not in PUNCTUATION]
        return self.ids_of(amphion_symbols(f" {WORD_GAP} ".join(words)))

    def parse_phones(self, text: str) -> list[str]:
        """ARPAbet with `|` between words, or the symbols of Amphion's own table."""
        symbols, names = text.split(), arpabet_names()
        if symbols and all(symbol in names or symbol == WORD_GAP for symbol in symbols):
            return amphion_symbols(text)
        if any((symbol in self.table and symbol not in names) or RAW.fullmatch(symbol) for symbol in symbols):
            return symbols
        for symbol in symbols:
            if symbol not in names:
                known = " ".join(sorted(names))
                raise TextError(f"unknown phone {symbol!r}; this model has {known}, and | between words")
        return symbols


def amphion_table() -> dict[str, int]:
    """Ids of Amphion's 220 symbols."""

    def vowels(*names: str) -> list[str]:
        return [f"{name}{stress}{place}" for name in names for stress in STRESSES for place in PLACES]

    def consonants(names: str, *more: str) -> list[str]:
        return sorted([*more, *(f"{name}{place}" for name in names.split() for place in PLACES)])

    ao = vowels("AO")
    symbols = [
        *("!", ",", ".", ".B", ":", "<BOS>", "<EOS>", "<PAD>", "<UNK>", "?"),
        *vowels("AA", "AE", "AH"),
        *ao[:3],
        "AO1",
        *ao[3:],
        *vowels("AW", "AY"),
        *consonants("B CH D DH"),
        *vowels("EH", "ER", "EY"),
        *consonants("F G HH"),
        *vowels("IH", "IY"),
        *consonants("JH K L M N NG", "L"),
        *vowels("OW", "OY"),
        *consonants("P R S SH T TH"),
        *("UH0B", "UH0E", "UH0I", "UH1B", "UH2B", "UH1E", "UH1I", "UH2E", "UH2I"),
        *vowels("UW"),
        *consonants("V W Y Z ZH"),
        "|",
    ]
    return {symbol: index for index, symbol in enumerate(symbols)}


def arpabet_names() -> frozenset[str]:
    """The phones of Amphion's table without their places."""
    return frozenset(symbol[:-1] for symbol in amphion_table() if symbol[-1] in PLACES and symbol != ".B")


def amphion_text(text: str) -> Ids:
    """English -> ids (S,) of Amphion by `g2p_en`, `<BOS>` and `<EOS>` among them.

    Raises:
        TextError: nothing to speak, no such package, or a package without its data.
    """
    plain = re.sub(r"[^a-z ]+", " ", normalise(check_text(text)).lower().replace("'", ""))
    try:
        phones = needed("g2p_en").G2p()(" ".join(plain.split()))
    except (OSError, LookupError) as error:
        raise TextError(
            f"g2p_en lacks its data ({error}); fetch it with: python -m nltk.downloader "
            "averaged_perceptron_tagger_eng cmudict, or pass phones"
        ) from None
    words = "".join(" | " if phone == " " else f" {phone} " for phone in phones)
    return AmphionFrontEnd().ids_of(amphion_symbols(words))


def amphion_symbols(words: str) -> list[str]:
    """ARPAbet with `|` between words -> symbols: places of phones in their word, `<BOS>` and `<EOS>` around.

    >>> amphion_symbols("DH IH1 S | AH0")
    ['<BOS>', 'DHB', 'IH1I', 'SE', '|', 'AH0B', '<EOS>']
    """
    found = ["<BOS>"]
    for index, word in enumerate(filter(None, (part.split() for part in words.split(WORD_GAP)))):
        found += [WORD_GAP] if index else []
        found += [phone + place for phone, place in zip(word, places(word), strict=True)]
    return [*found, "<EOS>"]


def places(word: Sequence[str]) -> str:
    """B for the first phone of a word, I for those inside, E for the last."""
    return "B" + "I" * (len(word) - 2) + "E" * (len(word) > 1)


# -- loaders ----------------------------------------------------------------------------------------


def words_in(text: str) -> list[str]:
    """The words of a text in our own phonemes, and its marks."""
    return english.words_of(normalise(text))


def find_spec_of(package: str) -> bool:
    """Is a package installed?"""
    try:
        return find_spec(package) is not None
    except ValueError:  # a module without a specification
        return True


def unless_installed(package: str, family: str) -> tuple[str, ...]:
    """The warning that a family's own package is absent."""
    if find_spec_of(package):
        return ()
    return (
        f"{package} is not installed, so words are read by valle2's own lexicon and may differ from what "
        f"{family} was trained on; install it with: {EXTRA}",
    )


def load_vallex(folder: Path, entry: Mapping[str, Any], files: Collection[str] | None) -> FrontEnd:
    """VALL-E X needs no files."""
    return VallexFrontEnd(entry.get("max_tokens", MAX_TOKENS))


def load_amphion(folder: Path, entry: Mapping[str, Any], files: Collection[str] | None) -> FrontEnd:
    """Amphion needs no files."""
    return AmphionFrontEnd(entry.get("max_tokens", MAX_TOKENS))


def load_lifeiteng(folder: Path, entry: Mapping[str, Any], files: Collection[str] | None) -> FrontEnd:
    """A lifeiteng model with the symbols of its training run, or without any.

    Raises:
        ManifestError: the bundle's symbol table is damaged.
    """
    table = {symbol: index for index, symbol in enumerate(LIFEITENG_SPECIAL)}
    if SYMBOLS in (files or ()):
        try:
            table = lifeiteng_table(read_text(folder, SYMBOLS, files or (), MAX_SYMBOLS_FILE).decode())
        except (ValueError, TextError) as error:
            raise ManifestError(f"{folder}: {SYMBOLS} does not load: {error}") from None
    return LifeitengFrontEnd(table, entry.get("max_tokens", MAX_TOKENS))


def load_supervoice(folder: Path, entry: Mapping[str, Any], files: Collection[str] | None) -> FrontEnd:
    """A supervoice model with its tokenizer, or without one."""
    if TOKENIZER in (files or ()):
        return TextFrontEnd.load(folder, entry, files)
    return load_ids(folder, entry, files)


def load_ids(folder: Path, entry: Mapping[str, Any], files: Collection[str] | None) -> FrontEnd:
    """A model whose symbols are not known."""
    return IdsFrontEnd({}, entry.get("max_tokens", MAX_TOKENS))

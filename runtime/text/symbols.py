"""Symbol tables of the families: phones in, ids out. How text becomes phones is not known here.

vallex     one id per character of IPA, `[UNK]` for others
lifeiteng  a table per training run (`unique_text_tokens.k2symbols`), read from its file
amphion    ARPAbet with stress and place in the word, `|` between words
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle2.runtime.errors import TextError

Codes = NDArray[np.int64]
VALLEX_SPECIAL = 5
VALLEX_SYMBOLS = "!#*,-.=?NQ^_`abdefghijklmnopstuvwxyz~æçðŋɑɔəɛɥɪɫɯɸɹɾʃʊʑʒʰˈˌθ…⁼↑→↓"
LIFEITENG_SPECIAL = ("<pad>", "<bos>", "<eos>")
PLACES, STRESSES = "BEI", "012"


def vallex_ids(phones: str) -> Codes:
    """Ids (S,) of IPA as VALL-E X writes it, spaces as `_`; an unknown character is 0."""
    known = {symbol: VALLEX_SPECIAL + index for index, symbol in enumerate(VALLEX_SYMBOLS)}
    return np.array([known.get(symbol, 0) for symbol in phones], np.int64)


def lifeiteng_table(path: Path) -> dict[str, int]:
    """Ids by symbol. The file's own numbers are not the model's, which sorts the symbols, `<eps>` among them.

    Raises:
        TextError: no such file, or lines that are not `symbol number`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} is not a symbol table ({type(error).__name__})") from None
    rows = [line.rsplit(maxsplit=1) for line in lines if line.strip()]
    if not rows or not all(len(row) == 2 and row[1].isdigit() for row in rows):
        raise TextError(f"{path} is not a symbol table; expected lines of a symbol and a number")
    symbols = [*LIFEITENG_SPECIAL, *sorted(symbol for symbol, _ in rows)]
    return {symbol: index for index, symbol in enumerate(symbols)}


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


def ids_of(symbols: Iterable[str], table: Mapping[str, int]) -> Codes:
    """Ids (S,) of symbols.

    Raises:
        TextError: a symbol that the table does not have.
    """
    listed = list(symbols)
    unknown = [symbol for symbol in listed if symbol not in table]
    if unknown:
        raise TextError(f"unknown symbols {unknown[:6]}; expected symbols of this model's table")
    return np.array([table[symbol] for symbol in listed], np.int64)

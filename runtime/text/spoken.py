"""Text to the ids of VALL-E X, Amphion and supervoice, through packages of the extra `text`.

Each has a door for phones too, which needs no package: `symbols.vallex_ids`, `amphion_symbols` here, and
`symbols.ids_of` with a run's table for lifeiteng, whose phones come from a GPL program and so not from here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.runtime.errors import TextError
from valle2.runtime.text.front_end import unspeakable
from valle2.runtime.text.normalise import normalise
from valle2.runtime.text.sentences import speakable
from valle2.runtime.text.symbols import amphion_table, ids_of, vallex_ids

Codes = NDArray[np.int64]
LIPS = str.maketrans({"r": "ɹ", "ʤ": "dʒ", "ʧ": "tʃ"})
DARK_L = re.compile(r"l(?=[^aeiouæɑɔəɛɪʊ ]*(?: |$))")
ENDS = ".,!?;:-…"
NARROW = str.maketrans("’‘，。；？！（）：-《》、“”【】", "'',.;?!():" + " <>/" + '""[]')


def needed(package: str) -> Any:
    """A package of the extra, imported now.

    Raises:
        TextError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise TextError(f"this text needs {package}; install with: pip install 'valle2[text]'") from None


def vallex_text(text: str) -> Codes:
    """English -> ids (S,) of VALL-E X; a word outside the dictionary is an error. Other languages: phones.

    Raises:
        TextError: nothing to speak, an unknown word, or no `eng_to_ipa`.
    """
    if not speakable(text):
        raise unspeakable(text)
    words = normalise(text).lower()
    phones = needed("eng_to_ipa").convert(words)
    unknown = re.findall(r"(\S+)\*", phones)
    if unknown:
        raise TextError(f"no pronunciation of {', '.join(unknown[:6])}; spell it otherwise, or pass phones")
    phones = DARK_L.sub("ɫ", phones).translate(LIPS).rstrip()
    phones += "" if phones.endswith(tuple(ENDS)) else "."
    return vallex_ids(phones.replace(" ", "_"))


def amphion_text(text: str) -> Codes:
    """English -> ids (S,) of Amphion, `<BOS>` and `<EOS>` among them.

    Raises:
        TextError: nothing to speak, or no `g2p_en`.
    """
    if not speakable(text):
        raise unspeakable(text)
    plain = re.sub(r"[^a-z ]+", " ", normalise(text).lower().replace("'", ""))
    phones = needed("g2p_en").G2p()(" ".join(plain.split()))
    words = "".join(" | " if phone == " " else f" {phone} " for phone in phones)
    return ids_of(amphion_symbols(words), amphion_table())


def amphion_symbols(words: str) -> list[str]:
    """ARPAbet with `|` between words -> symbols: places of phones in their word, `<BOS>` and `<EOS>` around.

    >>> amphion_symbols("DH IH1 S | AH0")
    ['<BOS>', 'DHB', 'IH1I', 'SE', '|', 'AH0B', '<EOS>']
    """
    found = ["<BOS>"]
    for index, word in enumerate(filter(None, (part.split() for part in words.split("|")))):
        found += ["|"] if index else []
        found += [phone + place for phone, place in zip(word, places(word), strict=True)]
    return [*found, "<EOS>"]


def places(word: Sequence[str]) -> str:
    """B for the first phone of a word, I for those inside, E for the last."""
    return "B" + "I" * (len(word) - 2) + "E" * (len(word) > 1)


def supervoice_text(text: str, model: Path) -> Codes:
    """Text -> ids (S,) of supervoice. model: its `tokenizer_text.model`.

    Raises:
        TextError: nothing to speak, no such model, or no `sentencepiece`.
    """
    plain = text.translate(NARROW).strip()
    if not plain:
        raise unspeakable(text)
    if not model.is_file():
        raise TextError(f"{model}: no SentencePiece model there; take tokenizer_text.model of supervoice")
    package = needed("sentencepiece")
    try:
        ids = package.SentencePieceProcessor(model_file=str(model)).encode(plain)
    except (RuntimeError, OSError):
        raise TextError(f"{model} is not a SentencePiece model; download it again") from None
    return np.array(ids, np.int64)

"""Which front end a model has: kinds by the name that the manifest's entry `text` gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from valle2.engine.errors import ManifestError
from valle2.runtime.text.base import MAX_TOKENS, FrontEnd
from valle2.runtime.text.families import (
    SYMBOLS,
    load_amphion,
    load_ids,
    load_lifeiteng,
    load_supervoice,
    load_vallex,
)
from valle2.runtime.text.tokenizer import TextFrontEnd
from valle2.runtime.text.tokenizer_file import TOKENIZER

Loader = Callable[[Path, Mapping[str, Any], Collection[str] | None], FrontEnd]
KINDS: dict[str, Loader] = {
    "bpe": TextFrontEnd.load,
    "phonemes": TextFrontEnd.load,
    "vallex": load_vallex,
    "lifeiteng": load_lifeiteng,
    "amphion": load_amphion,
    "supervoice": load_supervoice,
    "ids": load_ids,
}
TEXT_FILES = {"bpe": TOKENIZER, "phonemes": TOKENIZER, "lifeiteng": SYMBOLS, "supervoice": TOKENIZER}
"""The file without which a kind reads no text; `REQUIRED` kinds read no phones without it either."""
REQUIRED = ("bpe", "phonemes")


def load_front_end(folder: Path, entry: Mapping[str, Any], files: Collection[str] | None = None) -> FrontEnd:
    """The front end of a bundle.

    Args:
        entry: the manifest's entry `text`: `{"kind": one of KINDS, "max_tokens": N}`.
        files: those that the manifest lists; no other is read. None: all that lie in the folder.

    Raises:
        ManifestError: unknown kind, or its files do not load.
    """
    kind, limit = entry.get("kind"), entry.get("max_tokens", MAX_TOKENS)
    if kind not in KINDS:
        raise ManifestError(
            f"{folder}: unknown text front end {kind!r}; expected {', '.join(KINDS)}; upgrade valle2"
        )
    if not isinstance(limit, int) or limit < 1:
        raise ManifestError(f"{folder}: max_tokens of the text front end is {limit!r}; expected 1 or more")
    return KINDS[kind](folder, entry, files)


def kind_of(entry: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
    """The kind that a manifest's `text` and `rules` name.

    A bundle of an imported family says `ids` if it was exported before families had front ends; its rules
    name the family.
    """
    kind, family = str(entry.get("kind")), str(rules.get("family"))
    return family if kind == "ids" and family in KINDS else kind


def reads_text(kind: str, files: Collection[str]) -> bool:
    """Does a front end read text with these files, or only phones? Nothing is loaded."""
    return kind != "ids" and (kind not in TEXT_FILES or TEXT_FILES[kind] in files)


def front_end_of(
    folder: Path, entry: Mapping[str, Any], rules: Mapping[str, Any], files: Collection[str]
) -> FrontEnd | None:
    """The front end of a manifest with these entries, or None if the bundle has none.

    Raises:
        ManifestError: see `load_front_end`.
    """
    kind = kind_of(entry, rules)
    if kind in REQUIRED and not any(name.startswith("text/") for name in files):
        return None
    return load_front_end(folder, {**entry, "kind": kind}, files)

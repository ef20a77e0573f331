"""Which front end a model has: kinds by the name that the manifest's entry `text` gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from valle2.engine.errors import ManifestError
from valle2.runtime.text.base import MAX_TOKENS, FrontEnd
from valle2.runtime.text.families import (
    load_amphion,
    load_ids,
    load_lifeiteng,
    load_supervoice,
    load_vallex,
)
from valle2.runtime.text.tokenizer import TextFrontEnd

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
NEED_FILES = ("bpe", "phonemes")
"""Kinds that cannot be without files in `text/`."""


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


def front_end_of(
    folder: Path, entry: Mapping[str, Any], rules: Mapping[str, Any], files: Collection[str]
) -> FrontEnd | None:
    """The front end of a manifest, or None if the bundle has none.

    Args:
        entry, rules, files: of the manifest. A bundle of an imported family that was exported before families
            had front ends says `ids`; its rules name the family.
    """
    if entry.get("kind") == "ids" and rules.get("family") in KINDS:
        entry = {**entry, "kind": rules["family"]}
    if entry.get("kind") in NEED_FILES and not any(name.startswith("text/") for name in files):
        return None
    return load_front_end(folder, entry, files)

"""Preset voices of VALL-E X (.npz): codes, phone ids and language of a recording.

The numbers of languages in these files are not the rows of the model's language table; both are named here.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle2.runtime.errors import PromptError

Codes = NDArray[np.int64]
LANGUAGES = ("en", "zh", "ja")
"""By row of the model's language table."""
FILE_LANGUAGES = ("zh", "ja", "en")
"""By `lang_code` of a preset."""
ENTRIES = ("audio_tokens", "text_tokens", "lang_code")


@dataclass(frozen=True, slots=True)
class Preset:
    """codes: (P, 8) int64. text_ids: (n,) int64, phones of what is said. language: en, zh or ja."""

    codes: Codes = field(repr=False)
    text_ids: Codes
    language: str

    @property
    def language_ids(self) -> Codes:
        """The language's row for every phone, as `generate_codes` takes it."""
        return np.full(len(self.text_ids), LANGUAGES.index(self.language), np.int64)


def read_preset(path: str | Path) -> Preset:
    """Read a preset.

    Raises:
        PromptError: no such file, or other contents than `audio_tokens` (1, P, 8), `text_tokens` (1, n) and
            `lang_code`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            audio, text, language = (np.asarray(file[name]) for name in ENTRIES)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise PromptError(
            f"{path} is not a VALL-E X preset ({type(error).__name__}); expected a .npz"
        ) from None
    numbers = all(part.dtype.kind in "iu" for part in (audio, text, language))
    if audio.ndim != 3 or audio.shape[::2] != (1, 8) or text.ndim != 2 or len(text) != 1 or not numbers:
        raise PromptError(
            f"{path} holds {audio.shape} codes and {text.shape} phones; expected (1, P, 8), (1, n)"
        )
    if language.size != 1 or not 0 <= int(language) < len(FILE_LANGUAGES):
        raise PromptError(f"{path} has lang_code {language}; expected 0 (zh), 1 (ja) or 2 (en)")
    return Preset(audio[0].astype(np.int64), text[0].astype(np.int64), FILE_LANGUAGES[int(language)])

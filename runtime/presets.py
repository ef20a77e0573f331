"""Preset voices of VALL-E X (.npz): codes, phone ids and language of a recording.

The numbers of languages in these files are not the rows of the model's language table; both are named here.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine.bundle.untrusted import read_bounded
from valle2.runtime.errors import PromptError
from valle2.runtime.types import Codes, check_span

LANGUAGES = ("en", "zh", "ja")
"""By row of the model's language table."""
FILE_LANGUAGES = ("zh", "ja", "en")
"""By `lang_code` of a preset."""
ENTRIES = ("audio_tokens", "text_tokens", "lang_code")
MAX_BYTES = 4 * 2**20
"""Of a preset, and of an array in it; those of VALL-E X have 30 kB."""
MAGIC = b"\x93NUMPY"
LENGTHS = {1: 2, 2: 4}
"""Bytes of the header's length, by the first number of an array's version."""
HEADER = re.compile(
    rb"\{'descr': '([<>|][iu][1248])', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,64})\),? ?\}\s*"
)
"""What numpy writes before whole numbers. It is Python to numpy, which evaluates it."""
MAX_ID = 2**20
DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
"""What zipfile raises over damaged archives."""


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
        PromptError: no such file, a larger one than presets are, or other contents than `audio_tokens`
            (1, P, 8), `text_tokens` (1, n) and `lang_code`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_bounded(Path(path), MAX_BYTES))) as archive:
            audio, text, language = (read_array(archive, name) for name in ENTRIES)
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise PromptError(f"{path} is not a VALL-E X preset ({reason}); expected a .npz") from None
    numbers = all(part.dtype.kind in "iu" for part in (audio, text, language))
    if audio.ndim != 3 or audio.shape[::2] != (1, 8) or text.ndim != 2 or len(text) != 1 or not numbers:
        raise PromptError(
            f"{path} holds {audio.shape} codes and {text.shape} phones; expected (1, P, 8), (1, n)"
        )
    check_span(audio)
    if not text.shape[1] or text.min() < 0 or text.max() > MAX_ID:
        raise PromptError(f"{path} has phones beyond 0..{MAX_ID}, or none")
    if language.size != 1 or not 0 <= int(language.item()) < len(FILE_LANGUAGES):
        raise PromptError(f"{path} has lang_code {language}; expected 0 (zh), 1 (ja) or 2 (en)")
    return Preset(audio[0].astype(np.int64), text[0].astype(np.int64), FILE_LANGUAGES[int(language.item())])


def read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array of whole numbers, inflated to its bounded size and no further.

    Raises:
        one of DAMAGE.
    """
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed in another way than numpy packs")
    with archive.open(entry) as file:
        data = file.read(MAX_BYTES + 1)
    size = LENGTHS.get(data[6]) if data[:6] == MAGIC and len(data) > 10 else None
    if size is None or len(data) > MAX_BYTES:
        raise ValueError(f"{name} is no array, or larger than {MAX_BYTES} bytes")
    begin = 8 + size + int.from_bytes(data[8 : 8 + size], "little")
    header = HEADER.fullmatch(data[8 + size : begin])
    if header is None:
        raise ValueError(f"{name} is no array of whole numbers")
    kind = np.dtype(header[1].decode())
    shape = [int(number) for number in header[3].replace(b" ", b"").split(b",") if number]
    if len(shape) > 3 or prod(shape) * kind.itemsize != len(data) - begin:
        raise ValueError(f"{name} has {len(data) - begin} bytes for {kind} {tuple(shape)}")
    return np.frombuffer(data, kind, offset=begin).reshape(shape, order="F" if header[2] == b"True" else "C")

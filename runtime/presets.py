"""Preset voices of VALL-E X (.npz): codes, phone ids and language of a recording.

The numbers of languages in these files differ from the rows of the model's language table; both are named
here. Without a language, the same file describes a voice of any other family, with ids of that family.
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
from valle2.runtime.text.base import FrontEnd, IdsFrontEnd
from valle2.runtime.types import Codes, Prompt, check_span

LANGUAGES = ("en", "zh", "ja")
"""By row of the model's language table."""
FILE_LANGUAGES = ("zh", "ja", "en")
"""By `lang_code` of a preset."""
ENTRIES = ("audio_tokens", "text_tokens", "lang_code")
"""Arrays of a preset; the last may be absent."""
MAX_BYTES = 4 * 2**20
"""Bytes of a preset, and of an array in it. Those of VALL-E X have 30 kB."""
MAGIC = b"\x93NUMPY"
LENGTHS = {1: 2, 2: 4}
"""Bytes of the header's length, by the first number of an array's version."""
HEADER = re.compile(
    rb"\{'descr': '([<>|][iu][1248])', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,64})\),? ?\}\s*"
)
"""The header that numpy writes before whole numbers. numpy itself would evaluate it as Python."""
MAX_ID = 2**20
"""The largest id that is read."""
DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
"""What zipfile raises over damaged archives."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset's contents.

    Args:
        codes: (P, 8) int64. text_ids: (n,) int64, phones of what is said.
        language: en, zh or ja; empty if the file names none.
    """

    codes: Codes = field(repr=False)
    text_ids: Codes
    language: str

    @property
    def language_ids(self) -> Codes:
        """The language's row for every phone, as `generate_codes` takes it; English if none is named."""
        return np.full(len(self.text_ids), LANGUAGES.index(self.language or LANGUAGES[0]), np.int64)


def read_preset(path: str | Path) -> Preset:
    """Read a preset.

    Raises:
        PromptError: there is no such file, it is larger than presets are, or it holds something else than
            `audio_tokens` (1, P, 8), `text_tokens` (1, n) and, where it is there, `lang_code`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_bounded(Path(path), MAX_BYTES))) as archive:
            names = [name for name in ENTRIES if name != ENTRIES[2] or f"{name}.npy" in archive.namelist()]
            audio, text, *languages = (read_array(archive, name) for name in names)
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise PromptError(f"{path} is not a VALL-E X preset ({reason}); expected a .npz") from None
    numbers = all(part.dtype.kind in "iu" for part in (audio, text, *languages))
    if audio.ndim != 3 or audio.shape[::2] != (1, 8) or text.ndim != 2 or len(text) != 1 or not numbers:
        raise PromptError(
            f"{path} holds {audio.shape} codes and {text.shape} phones; expected (1, P, 8), (1, n)"
        )
    check_span(audio)
    if not text.shape[1] or text.min() < 0 or text.max() > MAX_ID:
        raise PromptError(f"{path} has phones beyond 0..{MAX_ID}, or none")
    named = [language_of(language, path) for language in languages]
    return Preset(audio[0].astype(np.int64), text[0].astype(np.int64), "".join(named))


def language_of(code: NDArray[Any], path: str | Path) -> str:
    """The name of a `lang_code`.

    Raises:
        PromptError: no such language.
    """
    if code.size != 1 or not 0 <= int(code.item()) < len(FILE_LANGUAGES):
        raise PromptError(f"{path} has lang_code {code}; expected 0 (zh), 1 (ja) or 2 (en)")
    return FILE_LANGUAGES[int(code.item())]


def prompt_of(preset: Preset, front: FrontEnd | None, vocab_size: int, name: str, source: str) -> Prompt:
    """A preset as a voice, whose transcript is phones.

    Args:
        front: turns ids into phones; None for a bundle without a front end, which writes ids. vocab_size: of
            the model. name, source: for people.

    Raises:
        PromptError: the preset has no frames, or ids that the model does not have.
    """
    largest = int(preset.text_ids.max())
    if largest >= vocab_size:
        raise PromptError(
            f"{source} has the phone id {largest}, but the model has {vocab_size} ids; it is a preset of "
            "another model"
        )
    reader = front or IdsFrontEnd({})
    phones = reader.phones(preset.text_ids, preset.language)
    return Prompt(preset.codes, phones, name, source)


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

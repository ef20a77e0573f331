"""Voices of a bundle: prompts kept as safetensors, listed, added and removed with their hashes.

A voice file holds `codes` (T, 8) and, as metadata, the transcript and what people should know. The entry
`form` says `phones` where the transcript is `Phones`; `warnings` has a line for each of them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from valle2.engine import Manifest, hash_files, read_manifest, write_manifest
from valle2.engine.bundle.files import replacing_file
from valle2.engine.bundle.manifest import FILE_NAME, parse_manifest, read_text
from valle2.engine.bundle.schema import listed, one_of, whole, words
from valle2.engine.bundle.untrusted import parse_json, read_bounded
from valle2.engine.errors import one_line
from valle2.runtime.errors import PromptError
from valle2.runtime.types import Phones, Prompt, check_span

FOLDER = "voices"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
DETAILS = ("transcript", "source", "licence", "consent")
FORM, PHONES = "form", "phones"
WARNINGS = "warnings"
SUFFIX = ".safetensors"
MAX_BYTES, MAX_HEADER, MAX_FRAMES, MAX_DETAIL = 2 * 2**20, 2**20, 2**13, 10_000
"""Bytes of a voice file and of its header; frames of its codes; characters of each text in it. Twenty
seconds are 1,500 frames in 24 kB."""
KINDS = {f"{sign}{8 * size}": f"<{sign.lower()}{size}" for sign in "IU" for size in (1, 2, 4, 8)}
"""The names of whole numbers in safetensors and in numpy."""


def voice_names(manifest: Manifest) -> list[str]:
    """Names of the voices that the manifest lists."""
    inner = (name.removeprefix(f"{FOLDER}/") for name in manifest.files if name.startswith(f"{FOLDER}/"))
    stems = (name.removesuffix(SUFFIX) for name in inner if name.endswith(SUFFIX))
    return sorted(stem for stem in stems if NAME.fullmatch(stem))


def checked_name(name: str) -> str:
    """The name, if it is a plain file name.

    Raises:
        PromptError: it is not.
    """
    if not NAME.fullmatch(name):
        raise PromptError(f"voice name {name!r}; expected 1 to 64 of a-z, 0-9, - and _")
    return name


def read_voice(folder: Path, manifest: Manifest, name: str) -> Prompt:
    """Load one voice by name.

    Raises:
        PromptError: the bundle has no such voice, or its file is damaged.
    """
    names = voice_names(manifest)
    if name not in names:
        known = ", ".join(names) or f"none; add one with: valle2 voices add {name} FILE --model {folder}"
        raise PromptError(f"unknown voice {name!r}; this model has: {known}")
    return read_prompt(voice_path(folder, name), name)


def read_prompt(path: Path, name: str) -> Prompt:
    """Load one voice file.

    Raises:
        PromptError: it is not a safetensors file of bounded size with codes (T, 8) in 0..1023 and plain text.
    """
    try:
        header, data = split_file(read_bounded(path, MAX_BYTES))
        details = details_of(header.get("__metadata__", {}))
        return Prompt(codes_of(header.get("codes"), data), name=name, **details)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"{path} is not a voice file: {reason}; add the voice again") from None


def split_file(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file: eight bytes of length, JSON, numbers.

    The format is read here and not by its library, because a voice needs one tensor of it, with
    every length checked.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(MAX_HEADER, len(content) - 8):
        raise ValueError(f"its header has {size} bytes, the file {len(content)}")
    header = parse_json(content[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, content[8 + size :]


def codes_of(entry: Any, data: bytes) -> NDArray[np.int64]:
    """The codes (T, 8) of an entry of the header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("it has no codes")
    kind = np.dtype(KINDS[one_of("the type of its codes", entry["dtype"], KINDS)])
    shape, ends = (listed(part, entry[part], 2) for part in ("shape", "data_offsets"))
    if len(shape) != 2 or len(ends) != 2:
        raise ValueError(f"its codes are {shape} in bytes {ends}; expected two axes and two ends")
    for size, end in zip(shape, ends, strict=True):
        whole("an axis of its codes", size, (1, MAX_FRAMES))
        whole("an end of its codes", end, (0, len(data)))
    if ends[1] - ends[0] != prod(shape) * kind.itemsize:
        raise ValueError(f"its codes are {kind} {shape} in bytes {ends}; expected integers (T, 8)")
    codes = np.frombuffer(data[ends[0] : ends[1]], kind).reshape(shape)
    check_span(codes)
    return codes.astype(np.int64)


def details_of(metadata: Any) -> dict[str, Any]:
    """The details in a voice file's metadata; other entries are ignored."""
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no object")
    values = {key: metadata.get(key, "") for key in DETAILS}
    found = {key: words(key, plain_lines(value), MAX_DETAIL) for key, value in values.items()}
    form = one_of("the form of its transcript", metadata.get(FORM, ""), ("", PHONES))
    found |= {"transcript": Phones(found["transcript"])} if form == PHONES else {}
    return found | {WARNINGS: tuple(words(WARNINGS, metadata.get(WARNINGS, ""), MAX_DETAIL).splitlines())}


def plain_lines(value: object) -> object:
    """Text with line feeds alone at its line ends; other values as they are."""
    return value.replace("\r\n", "\n").replace("\r", "\n") if isinstance(value, str) else value


def described(prompt: Prompt, frame_rate: float) -> dict[str, Any]:
    """A voice in a listing: `{"name", "seconds", "transcript", "source"}`. frame_rate: frames a second."""
    return {
        "name": prompt.name,
        "seconds": round(len(prompt.codes) / frame_rate, 2),
        "transcript": prompt.transcript,
        "source": prompt.source,
    }


def voice_path(folder: Path, name: str) -> Path:
    """Where a bundle keeps the file of a voice.

    Raises:
        PromptError: see `checked_name`.
    """
    return folder / FOLDER / f"{checked_name(name)}{SUFFIX}"


def write_voice(folder: Path, prompt: Prompt) -> Path:
    """Add a prompt to a bundle under its name."""
    path = voice_path(folder, prompt.name)
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing_file(path) as part:
            store_prompt(part, prompt)
        update_hash(folder, path)
    except (OSError, SafetensorError) as error:
        raise PromptError(f"{path} cannot be written ({error}); is the model's folder writable?") from None
    return path


def store_prompt(path: Path, prompt: Prompt) -> None:
    """Write a prompt: codes as int16 (T, 8), the rest as metadata."""
    details = {key: str(getattr(prompt, key)) for key in DETAILS}
    details |= {FORM: PHONES} if isinstance(prompt.transcript, Phones) else {}
    details |= {WARNINGS: "\n".join(map(one_line, prompt.warnings))} if prompt.warnings else {}
    save_file({"codes": prompt.codes.astype(np.int16)}, str(path), metadata=details)


def remove_voice(folder: Path, name: str) -> None:
    """Delete a voice and its hash."""
    read_voice(folder, read_manifest(folder, check_hashes=False), name)
    try:
        voice_path(folder, name).unlink()
        update_hash(folder, voice_path(folder, name))
    except OSError as error:
        raise PromptError(f"voice {name!r} cannot be removed: {error}") from None


def update_hash(folder: Path, path: Path) -> None:
    """Make the manifest agree with one changed or removed file."""
    name = path.relative_to(folder).as_posix()
    manifest = parse_manifest(read_text(folder), folder / FILE_NAME)
    files = {key: value for key, value in manifest.files.items() if key != name}
    if path.is_file():
        files |= hash_files(folder, [name])
    write_manifest(folder, replace(manifest, files=files))

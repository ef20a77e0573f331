"""Voices of a bundle: prompts kept as safetensors, listed, added and removed with their hashes."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from valle2.engine import Manifest, hash_files, read_manifest, write_manifest
from valle2.engine.manifest import FILE_NAME, parse_manifest
from valle2.runtime.errors import PromptError
from valle2.runtime.settings import Prompt

FOLDER = "voices"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
DETAILS = ("transcript", "source", "licence", "consent")


def voice_names(manifest: Manifest) -> list[str]:
    """Names of the voices that the manifest lists."""
    files = (Path(name) for name in manifest.files)
    return sorted(f.stem for f in files if f.parts[0] == FOLDER and f.suffix == ".safetensors")


def checked_name(name: str) -> str:
    """A voice name is a plain file name."""
    if not NAME.fullmatch(name):
        raise PromptError(f"voice name {name!r}; expected 1 to 64 of a-z, 0-9, - and _")
    return name


def read_voice(folder: Path, manifest: Manifest, name: str) -> Prompt:
    """Load one voice by name."""
    names = voice_names(manifest)
    if name not in names:
        known = ", ".join(names) or "none; add one with: valle2 voices add"
        raise PromptError(f"unknown voice {name!r}; this model has: {known}")
    return read_prompt(voice_path(folder, name), name)


def read_prompt(path: Path, name: str) -> Prompt:
    """Load one voice file."""
    try:
        with safe_open(str(path), framework="numpy") as opened:
            details = opened.metadata() or {}
            codes = opened.get_tensor("codes").astype(np.int64)
    except (SafetensorError, OSError) as error:
        raise PromptError(f"{path} is not a voice file: {error}; add the voice again") from None
    return Prompt(codes, name=name, **{key: details.get(key, "") for key in DETAILS})


def described(prompt: Prompt, frame_rate: float) -> dict[str, Any]:
    """A voice in a listing: `{"name", "seconds", "transcript", "source"}`."""
    return {
        "name": prompt.name,
        "seconds": round(len(prompt.codes) / frame_rate, 2),
        "transcript": prompt.transcript,
        "source": prompt.source,
    }


def voice_path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{checked_name(name)}.safetensors"


def write_voice(folder: Path, prompt: Prompt) -> Path:
    """Add a prompt to a bundle under its name."""
    path = voice_path(folder, prompt.name)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        store_prompt(aside, prompt)
        os.replace(aside, path)
        update_hash(folder, path)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise PromptError(f"{path} cannot be written ({error}); is the model's folder writable?") from None
    return path


def store_prompt(path: Path, prompt: Prompt) -> None:
    """Write a prompt: codes as int16 (T, 8), the rest as metadata."""
    details = {key: getattr(prompt, key) for key in DETAILS}
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
    manifest = parse_manifest((folder / FILE_NAME).read_text(encoding="utf-8"), folder / FILE_NAME)
    files = {key: value for key, value in manifest.files.items() if key != name}
    if path.is_file():
        files |= hash_files(folder, [name])
    write_manifest(folder, replace(manifest, files=files))

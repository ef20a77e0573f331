"""Uploaded voices: one safetensors file each, in one folder. Knows no HTTP.

A damaged file is left out of the list and logged once. Messages for clients name no path.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from valle2.engine.bundle.files import PART_SUFFIX, part_beside
from valle2.engine.bundle.untrusted import parse_json, read_bounded
from valle2.engine.errors import Valle2Error
from valle2.runtime.errors import PromptError, SettingsError
from valle2.runtime.tts import Valle2
from valle2.runtime.types import Prompt
from valle2.runtime.voices import NAME, SUFFIX, checked_name, described, read_prompt, store_prompt

log = logging.getLogger("valle2.server")
MAX_VOICES = 256
PART = re.compile(rf"\.[0-9a-f]{{16}}{re.escape(PART_SUFFIX)}")
PART_SECONDS = 3600.0
"""The age at which a half-written file belongs to a server that has crashed."""
RESERVED = ("con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10)))
"""Names that some systems keep for devices."""
NO_SPACE = ("No space left", "StorageFull", "code: 28", "QuotaExceeded")
"""How safetensors says that the disk is full."""
NAME_CHARACTERS = 64
"""Most characters of a voice's name; an error message repeats no more of an unknown one."""
OPENAI_VOICES = (
    "alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse",
)  # fmt: skip
"""Names that OpenAI's clients send. Each stands for one of the model's voices."""
MAX_ALIASES_BYTES = 65_536


class UnknownVoiceError(Valle2Error):
    """Neither the model nor the folder has a voice of this name."""


class VoiceTakenError(Valle2Error):
    """A voice of this name exists already."""


class StoreFullError(Valle2Error):
    """The folder holds as many voices as the server allows."""


class ModelVoiceError(Valle2Error):
    """The voice belongs to the model and cannot be deleted."""


class VoiceFileError(Valle2Error):
    """The file of a voice is damaged: a fault of the server."""


class StorageError(Valle2Error):
    """The folder of uploaded voices cannot be changed: a fault of the server."""


class DiskFullError(StorageError):
    """The disk of the folder is full."""


@dataclass(slots=True)
class VoiceStore:
    """Uploaded voices in a folder, which several servers may share. The model's own voices cannot change.

    Args:
        aliases: further names of voices. They go before the aliases that `OPENAI_VOICES` are.
    """

    folder: Path
    aliases: Mapping[str, str] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)
    adding: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self) -> None:
        """Make the folder, and remove the half-written files of servers that have crashed.

        Raises:
            SettingsError: the folder cannot be made or read.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            parts = [path for path in self.folder.iterdir() if PART.fullmatch(path.name)]
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{self.folder}: {getattr(error, 'strerror', None) or error}; name another folder for "
                "uploaded voices (--voices-dir)"
            ) from None
        for path in parts:
            with suppress(OSError):
                if path.is_file() and time.time() - path.stat().st_mtime > PART_SECONDS:
                    path.unlink()

    def names(self) -> list[str]:
        """Names of the uploaded voices, sorted. Empty if the folder has gone."""
        try:
            files = [name for name in os.listdir(self.folder) if name.endswith(SUFFIX)]
        except OSError:
            return []
        stems = (name.removesuffix(SUFFIX) for name in files)
        return sorted(stem for stem in stems if NAME.fullmatch(stem))

    def find(self, tts: Valle2, name: str) -> Prompt:
        """A voice of the model or an uploaded one, by its name or an alias.

        Raises:
            UnknownVoiceError: there is no such voice. VoiceFileError: its file is damaged.
        """
        name = self.resolve(tts, name)
        own = name in tts.voices()
        try:
            if own:
                return tts.voice(name)
            if name in self.names():
                return read_prompt(self.path(name), name)
        except PromptError as error:
            if own or self.path(name).exists():
                self.report(name, error)
                raise VoiceFileError(
                    f"voice {name!r} is damaged on the server; choose another, or delete it and add it again"
                ) from None
        known = ", ".join([*tts.voices(), *self.names()])
        raise UnknownVoiceError(f"unknown voice {name[:NAME_CHARACTERS]!r}; expected one of {known}")

    def report(self, name: str, error: Exception) -> None:
        """Log a damaged voice, once."""
        if name not in self.reported:
            self.reported.add(name)
            log.warning("voice %s cannot be used: %s", name, error)

    def resolve(self, tts: Valle2, name: str) -> str:
        """The name of the voice that an alias stands for; any other name as it is.

        A voice goes before an alias of the same name. OpenAI's names stand for the model's own voices in
        turn, beginning with the default voice; uploaded voices do not change that.
        """
        if name in tts.voices() or name in self.names():
            return name
        if name in self.aliases:
            return self.aliases[name]
        if name in OPENAI_VOICES and tts.voices():
            first = tts.default_voice()
            voices = [first, *(voice for voice in tts.voices() if voice != first)]
            return voices[OPENAI_VOICES.index(name) % len(voices)]
        return name

    def listing(self, tts: Valle2) -> list[dict[str, Any]]:
        """Every voice that can be read, in the form of `voices.described`."""
        rate, prompts = tts.need_codec().frame_rate, list[Prompt]()
        for name in dict.fromkeys([*tts.voices(), *self.names()]):
            with suppress(VoiceFileError, UnknownVoiceError):  # damaged, or deleted since
                prompts.append(self.find(tts, name))
        return [described(prompt, rate) for prompt in prompts]

    def check_new(self, tts: Valle2, name: str) -> None:
        """Check that a voice of this name can be added.

        Raises:
            PromptError: not a plain name. VoiceTakenError, StoreFullError: as they say.
        """
        checked_name(name)
        if name in RESERVED:
            raise PromptError(f"voice name {name!r} is reserved on some systems; choose another name")
        if name in tts.voices() or name in self.names():
            raise VoiceTakenError(f"voice {name!r} exists already; choose another name")
        if len(self.names()) >= MAX_VOICES:
            raise StoreFullError(f"the server keeps at most {MAX_VOICES} voices; delete one first")

    def add(self, prompt: Prompt) -> None:
        """Store a new voice under its name. Readers see the whole file or none.

        Raises:
            VoiceTakenError: there is one of this name, which another request may have added just now.
            StoreFullError: the folder is full. StorageError, DiskFullError: the file cannot be written.
        """
        target = self.path(prompt.name)
        with self.adding, storing():
            if len(self.names()) >= MAX_VOICES:
                raise StoreFullError(f"the server keeps at most {MAX_VOICES} voices; delete one first")
            self.folder.mkdir(parents=True, exist_ok=True)
            part = part_beside(target)
            try:
                store_prompt(part, prompt)
                link_new(part, target)
            except FileExistsError:
                raise VoiceTakenError(f"voice {prompt.name!r} exists already; choose another name") from None
            finally:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
        self.reported.discard(prompt.name)

    def remove(self, tts: Valle2, name: str) -> None:
        """Delete an uploaded voice.

        Raises:
            ModelVoiceError: the voice is the model's own. UnknownVoiceError: there is no such voice.
            StorageError: the file cannot be removed.
        """
        if name in tts.voices():
            raise ModelVoiceError(f"voice {name!r} belongs to the model; only uploaded voices can be deleted")
        if name not in self.names():
            uploaded = ", ".join(self.names()) or "none"
            raise UnknownVoiceError(
                f"unknown voice {name[:NAME_CHARACTERS]!r}; the uploaded voices are: {uploaded}"
            )
        with storing():
            try:
                self.path(name).unlink()
            except FileNotFoundError:
                raise UnknownVoiceError(f"voice {name!r} has just been deleted") from None
        self.reported.discard(name)

    def path(self, name: str) -> Path:
        """The file of an uploaded voice."""
        return self.folder / f"{checked_name(name)}.safetensors"


@contextmanager
def storing() -> Iterator[None]:
    """Turn errors of changing the folder into a StorageError, which names no path, and log them."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        full = full or any(part in str(error) for part in NO_SPACE)
        log.error("the folder of uploaded voices cannot be changed: %s", error)
        if full:
            raise DiskFullError("the disk of the server is full; tell who runs it") from None
        raise StorageError("the server cannot change its folder of voices; tell who runs it") from None


def link_new(part: Path, target: Path) -> None:
    """Give a file another name, which must be new.

    Raises:
        FileExistsError: there is a file of that name.
    """
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: take the name with an empty file, then replace it
        target.touch(exist_ok=False)
        os.replace(part, target)


def read_aliases(path: Path) -> dict[str, str]:
    """The aliases in a JSON file: an object of voices by alias, such as `{"alloy": "amber"}`.

    Raises:
        SettingsError: the file cannot be read, or holds something else.
    """
    try:
        found = parse_json(read_bounded(path, MAX_ALIASES_BYTES))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}; expected a JSON object of aliases") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise SettingsError(f'{path} holds no aliases; expected a JSON object such as {{"alloy": "amber"}}')
    return found

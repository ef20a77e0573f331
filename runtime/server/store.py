"""Uploaded voices: one safetensors file each, in one folder. Knows no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle2.engine.bundle.files import replacing_file
from valle2.engine.errors import Valle2Error
from valle2.runtime.errors import PromptError
from valle2.runtime.tts import Valle2
from valle2.runtime.types import Prompt
from valle2.runtime.voices import NAME, checked_name, described, read_prompt, store_prompt

MAX_VOICES = 256
NAME_CHARACTERS = 64
"""Most characters of a voice's name; an error message repeats no more of an unknown one."""


class UnknownVoiceError(Valle2Error):
    """Neither the model nor the folder has a voice of this name."""


class VoiceTakenError(Valle2Error):
    """A voice of this name exists already."""


class StoreFullError(Valle2Error):
    """The folder holds as many voices as the server allows."""


class ModelVoiceError(Valle2Error):
    """The voice belongs to the model and cannot be deleted."""


@dataclass(slots=True)
class VoiceStore:
    """Uploaded voices in a folder, which several servers may share. The model's own voices cannot change."""

    folder: Path

    def names(self) -> list[str]:
        """Names of the uploaded voices, sorted."""
        if not self.folder.is_dir():
            return []
        stems = (path.stem for path in self.folder.glob("*.safetensors"))
        return sorted(stem for stem in stems if NAME.fullmatch(stem))

    def find(self, tts: Valle2, name: str) -> Prompt:
        """A voice of the model or an uploaded one.

        Raises:
            UnknownVoiceError: there is no such voice. PromptError: its file is damaged.
        """
        if name in tts.voices():
            return tts.voice(name)
        if name in self.names():
            return read_prompt(self.path(name), name)
        known = ", ".join([*tts.voices(), *self.names()])
        raise UnknownVoiceError(f"unknown voice {name[:NAME_CHARACTERS]!r}; expected one of {known}")

    def listing(self, tts: Valle2) -> list[dict[str, Any]]:
        """Every voice, in the form of `voices.described`."""
        prompts = [self.find(tts, name) for name in [*tts.voices(), *self.names()]]
        rate = tts.need_codec().frame_rate
        return [described(prompt, rate) for prompt in prompts]

    def check_new(self, tts: Valle2, name: str) -> None:
        """Check that a voice of this name can be added.

        Raises:
            PromptError: not a plain name. VoiceTakenError, StoreFullError: as they say.
        """
        checked_name(name)
        if name in tts.voices() or name in self.names():
            raise VoiceTakenError(f"voice {name!r} exists already; choose another name")
        if len(self.names()) >= MAX_VOICES:
            raise StoreFullError(f"the server keeps at most {MAX_VOICES} voices; delete one first")

    def add(self, prompt: Prompt) -> None:
        """Store a voice under its name. Readers see the whole file or none.

        Raises:
            PromptError: the file cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing_file(self.path(prompt.name)) as part:
                store_prompt(part, prompt)
        except OSError as error:
            raise PromptError(f"the voice cannot be stored: {error.strerror}; see --voices-dir") from None

    def remove(self, tts: Valle2, name: str) -> None:
        """Delete an uploaded voice.

        Raises:
            ModelVoiceError: the voice is the model's own. UnknownVoiceError: there is no such voice.
        """
        if name in tts.voices():
            raise ModelVoiceError(f"voice {name!r} belongs to the model; only uploaded voices can be deleted")
        if name not in self.names():
            uploaded = ", ".join(self.names()) or "none"
            raise UnknownVoiceError(
                f"unknown voice {name[:NAME_CHARACTERS]!r}; the uploaded voices are: {uploaded}"
            )
        self.path(name).unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """The file of an uploaded voice."""
        return self.folder / f"{checked_name(name)}.safetensors"

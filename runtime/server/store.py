"""Voices that were uploaded: one safetensors file each, in one folder, beside the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle2.engine.bundle.files import replacing_file
from valle2.runtime.errors import PromptError
from valle2.runtime.server.http.errors import HttpError
from valle2.runtime.tts import Valle2
from valle2.runtime.types import Prompt
from valle2.runtime.voices import NAME, checked_name, described, read_prompt, store_prompt

MAX_VOICES = 256


@dataclass(slots=True)
class VoiceStore:
    """Uploaded voices in a folder, which several servers may share; the model's own cannot be changed."""

    folder: Path

    def names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        stems = (path.stem for path in self.folder.glob("*.safetensors"))
        return sorted(stem for stem in stems if NAME.fullmatch(stem))

    def find(self, tts: Valle2, name: str) -> Prompt:
        """A voice of the model or an uploaded one.

        Raises:
            HttpError: 404, no such voice.
        """
        if name in tts.voices():
            return tts.voice(name)
        if name in self.names():
            return read_prompt(self.path(name), name)
        known = ", ".join([*tts.voices(), *self.names()])
        raise HttpError(404, f"unknown voice {name[:64]!r}; expected one of {known}", "voice")

    def listing(self, tts: Valle2) -> list[dict[str, Any]]:
        """Every voice, as `voices.described` writes it."""
        prompts = [self.find(tts, name) for name in [*tts.voices(), *self.names()]]
        rate = tts.need_codec().frame_rate
        return [described(prompt, rate) for prompt in prompts]

    def check_new(self, tts: Valle2, name: str) -> None:
        """Refuse a name that is taken or no name.

        Raises:
            PromptError: not a plain name. HttpError: 409, taken or full.
        """
        checked_name(name)
        if name in tts.voices() or name in self.names():
            raise HttpError(409, f"voice {name!r} is there already; choose another name", "name")
        if len(self.names()) >= MAX_VOICES:
            raise HttpError(409, f"{MAX_VOICES} voices are stored; delete one first")

    def add(self, prompt: Prompt) -> None:
        """Store a voice, aside first."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing_file(self.path(prompt.name)) as part:
                store_prompt(part, prompt)
        except OSError as error:
            raise PromptError(f"the voice cannot be stored: {error.strerror}; see --voices-dir") from None

    def remove(self, tts: Valle2, name: str) -> None:
        """Delete an uploaded voice.

        Raises:
            HttpError: 403 for the model's own, 404 for none.
        """
        if name in tts.voices():
            raise HttpError(403, f"voice {name!r} belongs to the model; only uploaded voices can be deleted")
        if name not in self.names():
            raise HttpError(404, f"unknown voice {name[:64]!r}", "voice")
        self.path(name).unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        return self.folder / f"{checked_name(name)}.safetensors"

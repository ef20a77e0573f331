"""Uploaded voices: one safetensors file each, in one folder. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valle2.engine.bundle.files import replacing_file
from valle2.engine.bundle.untrusted import parse_json, read_bounded
from valle2.engine.errors import Valle2Error
from valle2.runtime.errors import PromptError, SettingsError
from valle2.runtime.tts import Valle2
from valle2.runtime.types import Prompt
from valle2.runtime.voices import NAME, checked_name, described, read_prompt, store_prompt

MAX_VOICES = 256
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


@dataclass(slots=True)
class VoiceStore:
    """Uploaded voices in a folder, which several servers may share. The model's own voices cannot change.

    Args:
        aliases: further names of voices. They go before the aliases that `OPENAI_VOICES` are.
    """

    folder: Path
    aliases: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Names of the uploaded voices, sorted."""
        if not self.folder.is_dir():
            return []
        stems = (path.stem for path in self.folder.glob("*.safetensors"))
        return sorted(stem for stem in stems if NAME.fullmatch(stem))

    def find(self, tts: Valle2, name: str) -> Prompt:
        """A voice of the model or an uploaded one, by its name or an alias.

        Raises:
            UnknownVoiceError: there is no such voice. PromptError: its file is damaged.
        """
        name = self.resolve(tts, name)
        if name in tts.voices():
            return tts.voice(name)
        if name in self.names():
            return read_prompt(self.path(name), name)
        known = ", ".join([*tts.voices(), *self.names()])
        raise UnknownVoiceError(f"unknown voice {name[:NAME_CHARACTERS]!r}; expected one of {known}")

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

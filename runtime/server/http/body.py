"""The JSON body of `POST /v1/audio/speech`: OpenAI's fields and those of `Settings`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from valle2.runtime.audio.chunks import FIRST_CHUNK_SECONDS
from valle2.runtime.server.http.errors import HttpError
from valle2.runtime.server.http.formats import Format
from valle2.runtime.server.store import NAME_CHARACTERS
from valle2.runtime.types import RANGES, Settings

MODELS = ("valle2", "tts-1")
"""Names that every model answers to, besides its own. OpenAI's clients often send "tts-1"."""


class SpeechBody(BaseModel):
    """A request for speech."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field("valle2", max_length=100)
    input: str = Field(max_length=100_000)
    voice: str = Field("", max_length=NAME_CHARACTERS)
    response_format: Format = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    speed: float = 1.0
    first_chunk_seconds: float = Field(
        FIRST_CHUNK_SECONDS,
        ge=0,
        le=10,
        description="seconds of speech in the first chunk; `latency` is its old name",
        validation_alias=AliasChoices("first_chunk_seconds", "latency"),
    )
    top_p: float | None = None
    window: int | None = None
    threshold: float | None = None
    seed: int | None = None
    candidates: int | None = Field(None, ge=1, le=4)
    max_frames: int | None = None

    def settings(self, defaults: Settings) -> Settings:
        """The model's settings, replaced where the body gives a value.

        Raises:
            SettingsError: a value is out of range.
        """
        given: dict[str, Any] = {name: getattr(self, name) for name in RANGES}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})

    def check(self, longest: int, name: str) -> None:
        """Check what the types do not say.

        Args:
            longest: most characters of a text. name: the model's own name.

        Raises:
            HttpError: 404 for another model; 400 for a speed other than 1, a text that is too long, empty or
                not valid Unicode.
        """
        if self.model not in (*MODELS, name):
            raise HttpError(
                404, f"unknown model {self.model!r}; expected {name!r}", "model", "model_not_found"
            )
        if self.speed != 1.0:
            raise HttpError(
                400, f"speed is {self.speed:g}; expected 1.0, because the model has no speed control", "speed"
            )
        if len(self.input) > longest:
            raise HttpError(
                400, f"input has {len(self.input)} characters; expected at most {longest}", "input"
            )
        if not self.input.strip():
            raise HttpError(400, "input is empty; expected a text to speak", "input")
        if any("\ud800" <= char <= "\udfff" for char in self.input):
            raise HttpError(400, "input contains half of a surrogate pair; send valid Unicode", "input")

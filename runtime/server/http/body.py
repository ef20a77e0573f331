"""What `POST /v1/audio/speech` takes: OpenAI's fields, and those of `Settings`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from valle2.runtime.audio.chunks import FIRST_CHUNK_SECONDS
from valle2.runtime.server.http.errors import HttpError
from valle2.runtime.types import RANGES, Settings

Format = Literal["mp3", "opus", "flac", "wav", "pcm"]
MODELS = ("valle2", "tts-1")


class SpeechBody(BaseModel):
    """A request for speech."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field("valle2", max_length=100)
    input: str = Field(max_length=100_000)
    voice: str = Field("", max_length=64)
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
        """The model's settings with what was given; out of range is a SettingsError."""
        given: dict[str, Any] = {name: getattr(self, name) for name in RANGES}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})

    def check(self, longest: int, name: str) -> None:
        """Refuse what would not be honest.

        Raises:
            HttpError: another model, a speed, too long a text.
        """
        if self.model not in (*MODELS, name):
            raise HttpError(
                404, f"unknown model {self.model!r}; expected {name!r}", "model", "model_not_found"
            )
        if self.speed != 1.0:
            raise HttpError(400, "speed can only be 1.0; this model has no control over it", "speed")
        if len(self.input) > longest:
            raise HttpError(
                400, f"input has {len(self.input)} characters; expected at most {longest}", "input"
            )
        if not self.input.strip():
            raise HttpError(400, "input is empty; expected a text to speak", "input")
        if any("\ud800" <= char <= "\udfff" for char in self.input):
            raise HttpError(400, "input holds half of a surrogate pair; send valid Unicode", "input")

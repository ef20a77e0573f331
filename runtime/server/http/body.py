"""The JSON body of `POST /v1/audio/speech`: OpenAI's fields and those of `Settings`."""

from __future__ import annotations

from email.message import Message
from typing import Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from valle2.engine.bundle.untrusted import parse_json, shown
from valle2.runtime.audio.chunks import FIRST_CHUNK_SECONDS
from valle2.runtime.server.http.errors import HttpError, invalid_value
from valle2.runtime.server.http.formats import Format
from valle2.runtime.server.store import NAME_CHARACTERS, VoiceStore
from valle2.runtime.text.annotations.lexicon import check_lexicon
from valle2.runtime.tts import Valle2
from valle2.runtime.types import FASTEST, RANGES, SLOWEST, Phones, Request, Settings

MODELS = ("valle2", "tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""Names that every model answers to, besides its own. Clients of OpenAI send OpenAI's names."""
JSON_TYPE = "application/json"
MAX_FIELDS = 64
"""Fields of a body; there are fewer that mean something."""


class SpeechBody(BaseModel):
    """A request for speech. A field that is null counts as absent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field("valle2", max_length=100)
    input: str = Field(max_length=100_000)
    voice: str = Field("", max_length=NAME_CHARACTERS)
    response_format: Format = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    input_type: Literal["text", "phones"] = Field(
        "text", description="`phones`: the input is in the model's own symbols, as `valle2 text` shows them"
    )
    instructions: str = Field("", description="accepted and ignored: the model takes none")
    speed: float = Field(1.0, ge=SLOWEST, le=FASTEST, description="times the model's pace; the pitch stays")
    timestamps: bool = Field(
        False, description="send the times of the words; needs `stream_format` sse and a model that has them"
    )
    first_chunk_seconds: float = Field(
        FIRST_CHUNK_SECONDS,
        ge=0,
        le=10,
        description="seconds of speech in the first chunk; `latency` is its old name",
        validation_alias=AliasChoices("first_chunk_seconds", "latency"),
    )
    lexicon: dict[str, str] = Field(
        default_factory=dict, description="words and their phonemes in the IPA, for this request"
    )
    top_p: float | None = None
    window: int | None = None
    threshold: float | None = None
    seed: int | None = None
    candidates: int | None = Field(None, ge=1, le=4)
    max_frames: int | None = None
    min_frames: int | None = None
    loop_frames: int | None = None
    retries: int | None = Field(None, le=4, description="times that a sentence is made again if it fails")
    codebooks: int | None = None
    first_chunk_codebooks: int | None = None
    nar_prompt_seconds: float | None = None
    quality: Literal["fast", "balanced", "full"] | None = Field(
        None, description="a name for measured numbers of codebooks"
    )

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, values: Any) -> Any:
        """Leave out the fields that are null."""
        if isinstance(values, dict):
            return {name: value for name, value in values.items() if value is not None}
        return values

    @field_validator("lexicon", mode="before")
    @classmethod
    def checked_lexicon(cls, value: Any) -> dict[str, str]:
        """A lexicon whose entries are well formed. LexiconError is a ValueError."""
        return check_lexicon(value)

    @field_validator("voice", mode="before")
    @classmethod
    def voice_name(cls, value: Any) -> Any:
        """The name of a voice, which may come as `{"id": name}`."""
        return value["id"] if isinstance(value, dict) and list(value) == ["id"] else value

    @classmethod
    def read(cls, values: Any) -> SpeechBody:
        """A request of the values in a JSON text.

        Raises:
            HttpError: 400; they are no object, or a field is missing, unknown or of another type.
        """
        if not isinstance(values, dict):
            raise HttpError(400, f"the request is {shown(values)}; expected a JSON object")
        if len(values) > MAX_FIELDS:  # pydantic writes an error for each unknown one
            raise HttpError(400, f"the body has {len(values)} fields; expected at most {MAX_FIELDS}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise invalid_value(error.errors()[0], tuple(cls.model_fields)) from None

    def settings(self, defaults: Settings) -> Settings:
        """The model's settings, replaced where the body gives a value.

        Raises:
            SettingsError: a value is out of range.
        """
        return defaults.with_given({name: getattr(self, name) for name in RANGES})

    def request(self, tts: Valle2, store: VoiceStore, longest: int) -> Request:
        """What the model is to speak.

        Args:
            store: uploaded voices. longest: most characters of a text.

        Raises:
            HttpError: 404 for another model; 400 for a text that is too long, empty or not valid Unicode.
            UnknownVoiceError, VoiceFileError, SettingsError: as they say.
        """
        self.check(longest, tts.manifest.name)
        voice = store.find(tts, self.voice or tts.default_voice())
        text = Phones(self.input) if self.input_type == "phones" else self.input
        settings = self.settings(tts.settings(self.quality))
        return Request(text, voice, settings, self.speed, self.timestamps, self.lexicon)

    def check(self, longest: int, name: str) -> None:
        """Check the model and the text.

        Args:
            longest: most characters of a text. name: the model's own name.

        Raises:
            HttpError: see `request`.
        """
        if self.model not in model_names(name):
            raise unknown_model(self.model, name)
        if len(self.input) > longest:
            raise HttpError(
                400, f"input has {len(self.input)} characters; expected at most {longest}", "input"
            )
        if not self.input.strip():
            raise HttpError(400, "input is empty; expected a text to speak", "input")
        if any("\ud800" <= char <= "\udfff" for char in self.input):
            raise HttpError(400, "input contains half of a surrogate pair; send valid Unicode", "input")


def read_object(data: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        HttpError: 400; the content type is another one, or the body is no JSON object.
    """
    if not is_json(content_type):
        given = f"the content type is {shown(content_type)}" if content_type else "there is no content type"
        raise HttpError(400, f"{given}; send the header Content-Type: {JSON_TYPE}")
    try:
        values = parse_json(data)
    except ValueError as error:
        raise HttpError(400, f"the body cannot be read: {error}; expected a JSON object") from None
    if not isinstance(values, dict):
        raise HttpError(400, f"the body is {shown(values)}; expected a JSON object")
    return values


def check_events(body: SpeechBody) -> None:
    """Check that times of words are asked for with events, which alone can carry them.

    Raises:
        HttpError: 400; they are not.
    """
    if body.timestamps and body.stream_format != "sse":
        raise HttpError(400, "timestamps are sent as events; send stream_format: sse with them", "timestamps")


def check_timestamps(wanted: bool, tts: Valle2) -> None:
    """Check that the model can give the times of words, if they are wanted.

    Raises:
        HttpError: 400; it cannot.
    """
    if wanted and tts.model.alignment is None:
        raise HttpError(400, "this model has no word times; leave timestamps out", "timestamps")


def is_json(content_type: str) -> bool:
    """Does a Content-Type header say JSON?"""
    header = Message()
    header["Content-Type"] = content_type
    kind = header.get_content_type()
    return kind == JSON_TYPE or (kind.startswith("application/") and kind.endswith("+json"))


def unknown_model(given: str, name: str) -> HttpError:
    """The error for a model that this server does not have. name: of the model that it has."""
    return HttpError(404, f"unknown model {given!r}; expected {name!r}", "model", "model_not_found")


def model_names(name: str) -> list[str]:
    """Every name that a model answers to, its own first."""
    return [name, *(other for other in MODELS if other != name)]

"""Text and a voice to speech, without torch."""

from valle2.engine.errors import Valle2Error
from valle2.runtime.stream import Stream
from valle2.runtime.text.annotations.lexicon import read_lexicon
from valle2.runtime.tts import Valle2
from valle2.runtime.types import (
    Generated,
    Phones,
    Prompt,
    Request,
    Settings,
    Speech,
    SpokenSentence,
    SpokenText,
    Timings,
)

__all__ = [
    "Generated",
    "Phones",
    "Prompt",
    "Request",
    "Settings",
    "Speech",
    "SpokenSentence",
    "SpokenText",
    "Stream",
    "Timings",
    "Valle2",
    "Valle2Error",
    "read_lexicon",
]

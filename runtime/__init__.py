"""Text and a voice to speech, without torch."""

from valle2.engine.errors import Valle2Error
from valle2.runtime.generation.generate import Generated
from valle2.runtime.speech import Speech, Stream
from valle2.runtime.timings import Timings
from valle2.runtime.tts import Valle2
from valle2.runtime.types import Prompt, Request, Settings

__all__ = [
    "Generated",
    "Prompt",
    "Request",
    "Settings",
    "Speech",
    "Stream",
    "Timings",
    "Valle2",
    "Valle2Error",
]

"""Text and a voice to speech, without torch."""

from valle2.engine.errors import Valle2Error
from valle2.runtime.generate import Generated
from valle2.runtime.pipeline import Speech, Valle2
from valle2.runtime.settings import Prompt, Request, Settings
from valle2.runtime.timings import Timings

__all__ = [
    "Generated",
    "Prompt",
    "Request",
    "Settings",
    "Speech",
    "Timings",
    "Valle2",
    "Valle2Error",
]

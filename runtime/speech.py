"""What comes of a request: the result, and the collector that it grows in."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from valle2.runtime.audio import Audio, join
from valle2.runtime.settings import Request
from valle2.runtime.timings import Timings

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Speech:
    """Synthesised speech. audio: (N,) float32. codes: (T, 8) int64. finish_reason: the worst of its
    sentences, `eos` or `max_frames`."""

    audio: Audio = field(repr=False)
    sample_rate: int
    codes: Codes = field(repr=False)
    finish_reason: str
    timings: Timings


class Spoken:
    """What has been made of one request so far."""

    def __init__(self, request: Request) -> None:
        self.request, self.timings = request, Timings()
        self.audio: list[Audio] = []
        self.codes: list[Codes] = []
        self.reasons: set[str] = set()
        self.began = time.perf_counter()

    def add(self, audio: Audio, codes: Codes | None = None) -> None:
        """Append a piece of audio and the codes that it came from."""
        self.timings.total = time.perf_counter() - self.began
        self.timings.first_audio = self.timings.first_audio or self.timings.total
        self.audio.append(audio)
        if codes is not None:
            self.codes.append(codes)

    def take(self) -> list[Audio]:
        """The pieces since the last call, which are not kept."""
        pieces, self.audio = self.audio, []
        return pieces

    def speech(self, rate: int) -> Speech:
        """All of it."""
        audio = join(self.audio)
        self.timings.audio = len(audio) / rate
        reason = "max_frames" if "max_frames" in self.reasons else "eos"
        return Speech(audio, rate, np.concatenate(self.codes), reason, self.timings)

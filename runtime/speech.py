"""What comes of a request: the result, and the collector that it grows in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Closing
from valle2.runtime.audio.io import Audio, join
from valle2.runtime.generation.scheduler import Scheduler, Task
from valle2.runtime.timings import Timings
from valle2.runtime.types import Request

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

    def speech(self, rate: int) -> Speech:
        """All of it."""
        audio = join(self.audio)
        self.timings.audio = len(audio) / rate
        reason = "max_frames" if "max_frames" in self.reasons else "eos"
        return Speech(audio, rate, np.concatenate(self.codes), reason, self.timings)


class Stream(Closing, Iterator[Audio]):
    """Audio (N,) float32 piece by piece, as it is made. Closing it, or leaving its `with`, frees its rows."""

    def __init__(self, scheduler: Scheduler, task: Task, spoken: Spoken, rate: int) -> None:
        self.scheduler, self.task, self.spoken = scheduler, task, spoken
        self.sample_rate = rate
        self.taken = 0

    def __next__(self) -> Audio:
        while not self.ready and not self.task.done:
            self.scheduler.tick()
        if self.task.error:
            raise self.task.error
        if not self.ready:
            raise StopIteration
        self.taken += 1
        return self.spoken.audio[self.taken - 1]

    @property
    def ready(self) -> bool:
        """Has a piece been made that was not taken?"""
        return self.taken < len(self.spoken.audio)

    def speech(self) -> Speech:
        """Everything so far; the whole once the stream has ended."""
        return self.spoken.speech(self.sample_rate)

    def close(self) -> None:
        """Stop making more."""
        self.task.cancel()

    def __del__(self) -> None:
        self.close()

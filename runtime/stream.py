"""What users hold while speech is being made: the pieces of one request, and an iterator over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from valle2.engine import Closing
from valle2.runtime.audio.io import join
from valle2.runtime.generation.engine import AudioChunk, Done, Event, Failed, RequestId
from valle2.runtime.types import Audio, Codes, Speech, Timings, Word


class Collector:
    """The events of one request, in order.

    Another thread may read while `take` writes. Therefore `audio` and `done` change last: whoever sees them
    sees the rest.

    Args:
        codebooks: Q of the codes, for a request that has made none. warnings: of the request.
    """

    def __init__(self, codebooks: int, warnings: tuple[str, ...] = ()) -> None:
        self.warnings = warnings
        self.audio: list[Audio] = []
        self.words: list[Word] = []
        self.codes: list[Codes] = [np.zeros((0, codebooks), np.int64)]
        self.timings = Timings()
        self.finish_reason = "cancelled"
        self.error: Exception | None = None
        self.done = False

    def take(self, event: Event) -> None:
        """Add one event."""
        if isinstance(event, AudioChunk):
            self.timings = event.timings
            self.codes.append(event.codes)
            self.words.extend(event.words)
            self.audio.append(event.audio)
            return
        if isinstance(event, Failed):
            self.error = event.error
        if isinstance(event, Done):
            self.finish_reason = event.finish_reason
        self.done = True

    def speech(self, rate: int) -> Speech:
        """Everything so far."""
        audio = join(self.audio)
        self.timings.audio = len(audio) / rate
        codes = np.concatenate(self.codes)
        return Speech(audio, rate, codes, self.finish_reason, self.timings, self.warnings, tuple(self.words))


class Stream(Closing, Iterator[Audio]):
    """Audio (N,) float32 piece by piece, as it is made. Closing it, or leaving its `with`, frees its rows.

    Args:
        request: its id in the engine. collector: gets its events whenever `step` is called.
        step: one step of the engine. cancel: ends the request. rate: Hz.
    """

    def __init__(
        self,
        request: RequestId,
        collector: Collector,
        step: Callable[[], None],
        cancel: Callable[[RequestId], None],
        rate: int,
    ) -> None:
        self.request, self.collector = request, collector
        self.step, self.cancel = step, cancel
        self.sample_rate = rate
        self.taken = 0

    def __next__(self) -> Audio:
        while not self.ready and not self.collector.done:
            self.step()
        if self.collector.error:
            raise self.collector.error
        if not self.ready:
            raise StopIteration
        self.taken += 1
        return self.collector.audio[self.taken - 1]

    @property
    def done(self) -> bool:
        """Has it ended? Pieces may still be there to be taken."""
        return self.collector.done

    @property
    def error(self) -> Exception | None:
        """Why it ended, if it failed."""
        return self.collector.error

    @property
    def pieces(self) -> list[Audio]:
        """All audio (N,) float32 made so far."""
        return self.collector.audio

    @property
    def ready(self) -> bool:
        """Is there a piece that has not been taken?"""
        return self.taken < len(self.collector.audio)

    @property
    def words(self) -> tuple[Word, ...]:
        """The words whose times are certain so far, if they were asked for."""
        return tuple(self.collector.words)

    def speech(self) -> Speech:
        """Everything so far; the whole once the stream has ended."""
        return self.collector.speech(self.sample_rate)

    def close(self) -> None:
        """Stop making more."""
        if not self.collector.done:
            self.collector.done = True
            self.cancel(self.request)

    def __del__(self) -> None:
        self.close()

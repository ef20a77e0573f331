"""Hands the audio of one request from the engine thread to its reader. Knows neither HTTP nor the model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum
from typing import NamedTuple

from valle2.runtime.audio.chunks import GROWTH, LONGEST_SECONDS
from valle2.runtime.generation.engine import EncodedRequest, RequestId
from valle2.runtime.server.keys import Client
from valle2.runtime.types import Audio, Request, Timings, Word


class Stage(Enum):
    """How far a request has come."""

    ARRIVED = "its text is to be prepared"
    ENCODING = "its text is being prepared"
    WAITING = "it waits for its start"
    STARTED = "the engine has it"


class Work(NamedTuple):
    """What a request is expected to need.

    Args:
        audio: seconds of its audio. decoded: seconds of speech to decode, candidates included, pauses not.
        ids: of its text; 0 until that is encoded.
    """

    audio: float = 0.0
    decoded: float = 0.0
    ids: int = 0

    @property
    def decoded_rate(self) -> float:
        """Seconds of speech to decode for a second that the listener plays."""
        return self.decoded / self.audio if self.decoded and self.audio else 1.0


class Reply:
    """The audio of one request, piece by piece, and how the request ended.

    The engine thread calls `put` and `end`. One reader iterates, in a thread or in an event loop; iteration
    raises the error that ended the request. Any thread may call `cancel`; the engine obeys before its next
    step. `warnings` are set before the first piece, `finish_reason` before the end. Times are those of
    `time.perf_counter`, 0 for what has not happened yet. `Admission` keeps the stage and the work.
    `whole` says that the client hears nothing before the end.

    Args:
        request: the text, voice and settings. first_chunk_seconds: seconds of speech in the first chunk.
        on_cancel: called once, in the thread that cancels the reply.
        client: who sent the request.
    """

    def __init__(
        self,
        request: Request,
        first_chunk_seconds: float,
        on_cancel: Callable[[Reply], None],
        client: Client,
    ) -> None:
        self.request, self.first_chunk_seconds, self.client = request, first_chunk_seconds, client
        self.expected_audio = 0.0  # seconds, at the arrival
        self.id: RequestId | None = None
        self.stage, self.work = Stage.ARRIVED, Work()
        self.encoded: EncodedRequest | None = None
        self.whole = False
        self.made = 0.0  # seconds of speech decoded, candidates included
        self.started_at = 0.0
        self.held_since = 0.0
        self.plays_until = 0.0  # when its listener has played all audio so far
        self.next_chunk = 0.0  # seconds of speech in the next chunk, at most; 0 before the first
        self.warnings: tuple[str, ...] = ()
        self.words: tuple[Word, ...] = ()
        self.finish_reason = ""
        self.timings = Timings()
        self.arrived = time.perf_counter()
        self.cancelled_at = 0.0
        self.first_at = 0.0
        self.last_at = 0.0
        self.samples = 0
        self.unread = 0
        self.ended = False
        self.error: Exception | None = None
        self.pieces: deque[Audio] = deque()
        self.changed = threading.Condition()
        self.listeners: list[Callable[[], None]] = []
        self.on_cancel = on_cancel

    def note_audio(self, seconds: float, now: float) -> None:
        """Take note of audio, which the listener plays after what it has, or at once."""
        if seconds:
            self.plays_until = max(self.plays_until, now) + seconds
            self.next_chunk = min(GROWTH * seconds, LONGEST_SECONDS)

    def slack(self, now: float) -> float:
        """Seconds until the listener needs more audio; below 0 it waits for it. It begins at the first."""
        return self.plays_until - now if self.plays_until else self.made / self.work.decoded_rate

    @property
    def cancelled(self) -> bool:
        return bool(self.cancelled_at)

    def cancel(self) -> None:
        """Stop making audio, which nobody will read. Does nothing after the end."""
        if not self.ended and not self.cancelled:
            self.cancelled_at = time.perf_counter()
            self.on_cancel(self)

    def put(self, audio: Audio, words: tuple[Word, ...] = ()) -> None:
        """Add the next piece of audio (N,) float32, and the words whose times are certain with it."""
        with self.changed:
            if self.error:  # it was cut off
                return
            self.words += words
            self.pieces.append(audio)
            self.samples += len(audio)
            self.unread += len(audio)
        self.notify()

    def end(self, error: Exception | None = None) -> None:
        """Add no more pieces. error: why the request failed, None if it did not."""
        with self.changed:
            self.error, self.ended = self.error or error, True
        self.notify()

    def cut(self, error: Exception) -> None:
        """Forget the audio that has not been read, and end with an error, also after the end."""
        with self.changed:
            self.error, self.unread = error, 0
            self.pieces.clear()
        self.cancel()
        self.notify()

    def notify(self) -> None:
        """Wake the reader."""
        with self.changed:
            self.changed.notify_all()
        for listener in self.listeners:
            listener()

    def take(self) -> Audio | None:
        """The next piece, or None if there is none yet.

        Raises:
            Exception: the error that ended the request, after all pieces before it.
        """
        with self.changed:
            if self.pieces:
                audio = self.pieces.popleft()
                self.unread -= len(audio)
                return audio
            if self.error:
                raise self.error
            return None

    def take_words(self) -> list[Word]:
        """The words whose times have become certain since the last call."""
        with self.changed:
            words, self.words = list(self.words), ()
        return words

    def finished(self) -> bool:
        """Has the request ended and the reader taken all pieces?"""
        return self.ended and not self.pieces

    def __iter__(self) -> Iterator[Audio]:
        while True:
            audio = self.take()
            if audio is not None:
                yield audio
            elif self.finished():
                return
            else:
                with self.changed:
                    self.changed.wait_for(lambda: self.pieces or self.ended, 1.0)

    async def __aiter__(self) -> AsyncIterator[Audio]:
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

        self.listeners.append(wake)
        while True:
            event.clear()
            audio = self.take()
            if audio is not None:
                yield audio
            elif self.finished():
                return
            else:
                await event.wait()

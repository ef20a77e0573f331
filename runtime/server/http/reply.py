"""One request between two threads: the engine thread puts audio in, one reader takes it out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from valle2.runtime.generation.engine import RequestId
from valle2.runtime.types import Audio, Request, Timings


class Reply:
    """Audio pieces of one request, and how it ended.

    The engine thread calls `put` and `end`. One reader iterates, in a thread or in an event loop. Any thread
    may call `cancel`; the engine obeys before its next step.

    Args:
        request: what is to be spoken. first_chunk_seconds: seconds of speech in the first chunk.
        wake_engine: called when there is something for the engine thread to do.
    """

    def __init__(self, request: Request, first_chunk_seconds: float, wake_engine: Callable[[], None]) -> None:
        self.request, self.first_chunk_seconds = request, first_chunk_seconds
        self.id: RequestId | None = None
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
        self.wake_engine = wake_engine

    @property
    def cancelled(self) -> bool:
        return bool(self.cancelled_at)

    def cancel(self) -> None:
        """Say that nobody wants the rest."""
        if not self.ended and not self.cancelled:
            self.cancelled_at = time.perf_counter()
            self.wake_engine()

    def put(self, audio: Audio) -> None:
        """Add the next piece (N,) float32."""
        with self.changed:
            self.pieces.append(audio)
            self.samples += len(audio)
            self.unread += len(audio)
        self.notify()

    def end(self, error: Exception | None = None) -> None:
        """Say that no more will come, and why if it was an error."""
        with self.changed:
            self.error, self.ended = self.error or error, True
        self.notify()

    def notify(self) -> None:
        with self.changed:
            self.changed.notify_all()
        for listener in self.listeners:
            listener()

    def take(self) -> Audio | None:
        """The next piece, or None for now.

        Raises:
            Exception: what ended the request, once everything before it was taken.
        """
        with self.changed:
            if self.pieces:
                audio = self.pieces.popleft()
                self.unread -= len(audio)
                return audio
            if self.error:
                raise self.error
            return None

    def finished(self) -> bool:
        """Has everything been taken?"""
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

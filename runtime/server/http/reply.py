"""One request on its way between two threads: the engine puts audio in, one reader takes it out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from valle2.runtime.audio.io import Audio
from valle2.runtime.generation.scheduler import Task
from valle2.runtime.speech import Spoken
from valle2.runtime.types import Request


class Reply:
    """Audio pieces of one request, and how it ended.

    The engine thread calls `put` and `end`; one reader iterates, in a thread or in an event loop. `cancel`
    may come from anywhere; it is obeyed before the engine's next step.
    """

    def __init__(self, request: Request, latency: float, wake_engine: Callable[[], None]) -> None:
        self.spoken, self.latency = Spoken(request), latency
        self.task: Task | None = None
        self.arrived = time.perf_counter()
        self.cancelled_at = 0.0
        self.first_at = 0.0
        self.last_at = 0.0
        self.handed_out = 0
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
        """Nobody wants the rest."""
        if not self.ended and not self.cancelled:
            self.cancelled_at = time.perf_counter()
            self.wake_engine()

    def put(self, audio: Audio) -> None:
        """audio: (N,) float32, the next piece."""
        with self.changed:
            self.pieces.append(audio)
            self.samples += len(audio)
            self.unread += len(audio)
        self.notify()

    def end(self, error: Exception | None = None) -> None:
        """No more will come."""
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

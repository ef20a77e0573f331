"""The thread that owns the model. Requests enter by a bounded queue; audio leaves through each `Reply`.

It knows nothing of HTTP. Texts are normalised and encoded in a thread of their own, so that a long one holds
up neither the engine nor the caller. A failure stays with its request. If the loop itself breaks, everything
under way fails, the model is loaded again, and `restarts` counts it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from typing import Any

from valle2.engine.errors import QueueFullError, Valle2Error
from valle2.runtime.audio.chunks import FIRST_CHUNK_SECONDS
from valle2.runtime.generation.engine import AudioChunk, EncodedRequest, Event, Failed, RequestId
from valle2.runtime.server.http.reply import Reply
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.metrics import Metrics
from valle2.runtime.tts import Valle2
from valle2.runtime.types import Request

log = logging.getLogger("valle2.server")
WARM_UP_TEXT = "Hello there."
RETRY_SECONDS = 1.0


class State(Enum):
    """Where the worker stands."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


class NotReadyError(Valle2Error):
    """The model is being loaded, or the server is going down."""


class TimeLimitError(Valle2Error):
    """A request took longer, or made more speech, than the server allows."""


class SlowReaderError(Valle2Error):
    """A reader fell too far behind."""


class WorkerError(RuntimeError):
    """The worker broke while it held this request."""


class Worker:
    """One model in one thread.

    Args:
        load: makes the model; called in the thread, again after a crash.
    """

    def __init__(self, load: Callable[[int], Valle2], limits: Limits, metrics: Metrics | None = None) -> None:
        self.load, self.limits, self.metrics = load, limits, metrics or Metrics()
        self.inbox: deque[tuple[Reply, EncodedRequest] | Callable[[Valle2], None]] = deque()
        self.live: dict[RequestId, Reply] = {}
        self.texts = ThreadPoolExecutor(1, "valle2-text")
        self.outstanding = 0
        self.wake = threading.Condition()
        self.state = State.LOADING
        self.tts: Valle2 | None = None
        self.restarts = 0
        self.last_error = ""
        self.beat = time.perf_counter()
        self.thread = threading.Thread(target=self.run, name="valle2-engine", daemon=True)

    # -- called from any thread ------------------------------------------------------------------

    def start(self) -> None:
        self.thread.start()

    def submit(self, request: Request, first_chunk_seconds: float = FIRST_CHUNK_SECONDS) -> Reply:
        """Queue a request. Its text is prepared in another thread; an error of it comes with the reply.

        Raises:
            NotReadyError: still loading, or draining. QueueFullError: too many wait.
        """
        reply = Reply(request, first_chunk_seconds, self.nudge)
        with self.wake:
            tts = self.need_ready()
            if self.outstanding >= self.limits.slots + self.limits.queue:
                self.metrics.rejected.inc()
                raise QueueFullError(f"{self.outstanding} requests are under way or waiting; try again later")
            self.outstanding += 1
        self.texts.submit(self.encode, tts, reply)
        return reply

    def encode(self, tts: Valle2, reply: Reply) -> None:
        """Prepare a request's text, in the thread for texts; then it waits for the engine."""
        error: Exception | None = None
        try:
            if not reply.cancelled:
                encoded = tts.encode(reply.request, reply.first_chunk_seconds)
        except Exception as found:
            error = found
        with self.wake:
            if self.state is State.STOPPED:
                error = error or NotReadyError("the server is stopping")
            if not reply.cancelled and not error:
                self.inbox.append((reply, encoded))
                self.wake.notify()
                return
        self.close_reply(reply, error)

    def call(self, work: Callable[[Valle2], Any]) -> Future[Any]:
        """Run something with the model between two steps.

        Raises:
            NotReadyError: still loading, or draining.
        """
        future: Future[Any] = Future()

        def item(tts: Valle2) -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(tts))
                except Exception as error:
                    future.set_exception(error)

        with self.wake:
            self.need_ready()
            if len(self.inbox) > self.limits.queue:
                raise QueueFullError(f"{len(self.inbox)} requests wait; try again later")
            self.inbox.append(item)
            self.wake.notify()
        return future

    def need_ready(self) -> Valle2:
        """The model.

        Raises:
            NotReadyError: still loading, or draining.
        """
        if self.tts is None or self.state is not State.READY:
            raise NotReadyError(f"the server is {self.state.value}; try again in a few seconds")
        return self.tts

    def nudge(self) -> None:
        """Wake the thread up."""
        with self.wake:
            self.wake.notify()

    @property
    def healthy(self) -> bool:
        """Is the thread alive and moving?"""
        moving = time.perf_counter() - self.beat < self.limits.step_seconds or not self.live
        return self.thread.is_alive() and moving

    def drain(self) -> None:
        """Take nothing new; what runs may end."""
        with self.wake:
            if self.state is not State.STOPPED:
                self.state = State.DRAINING

    def stop(self, deadline: float = 0.0) -> bool:
        """Drain for up to `deadline` seconds, then cancel the rest. -> did everything end by itself?"""
        self.drain()
        end = time.perf_counter() + deadline
        while self.outstanding and self.thread.is_alive() and time.perf_counter() < end:
            time.sleep(0.02)
        clean = not self.outstanding
        with self.wake:
            self.state = State.STOPPED
            self.wake.notify()
        if self.thread.is_alive():
            self.thread.join(self.limits.step_seconds)
        self.texts.shutdown(wait=False)
        return clean

    # -- the thread ------------------------------------------------------------------------------

    def run(self) -> None:
        while self.state is not State.STOPPED:
            try:
                self.prepare()
                self.serve()
            except Exception as error:
                self.recover(error)
        self.fail_all(NotReadyError("the server is stopping"))

    def prepare(self) -> None:
        """Load the model and speak once, so that the first request finds everything warm."""
        tts = self.load(self.limits.slots)
        voice = tts.voice(tts.default_voice())
        tts.synthesize(WARM_UP_TEXT, voice)
        self.tts = tts
        with self.wake:
            if self.state is State.LOADING:
                self.state = State.READY

    def recover(self, error: Exception) -> None:
        """Everything under way fails; then the model is loaded again."""
        log.exception("the engine thread failed; it is started again")
        self.last_error = f"{type(error).__name__}: {error}"
        with self.wake:
            if self.state is State.READY:
                self.state = State.LOADING
        self.fail_all(WorkerError("the engine failed and is being restarted; send the request again"))
        self.restarts += 1
        self.metrics.restarts.inc()
        time.sleep(RETRY_SECONDS)

    def serve(self) -> None:
        """Steps for as long as there is work."""
        assert self.tts is not None
        tts, engine = self.tts, self.tts.engine
        while self.state is not State.STOPPED:
            self.take_in(tts)
            self.drop_unwanted(tts)
            if engine.busy:
                began = time.perf_counter()
                events = engine.step()
                self.metrics.step_seconds.observe(time.perf_counter() - began)
                self.hand_out(events)
            self.beat = time.perf_counter()
            self.publish(tts)

    def take_in(self, tts: Valle2) -> None:
        """Start what has arrived; sleep while there is nothing to do."""
        with self.wake:
            if not self.inbox and not self.live and self.state is not State.STOPPED:
                self.wake.wait(1.0)
            arrived = list(self.inbox)
            self.inbox.clear()
        for item in arrived:
            if isinstance(item, tuple):
                reply, encoded = item
                reply.id = tts.engine.add(encoded)
                self.live[reply.id] = reply
            else:
                item(tts)

    def drop_unwanted(self, tts: Valle2) -> None:
        """Cancelled requests, and those beyond a limit, leave their rows now."""
        now = time.perf_counter()
        for identifier, reply in list(self.live.items()):
            error = self.beyond_limits(reply, now, tts.sample_rate)
            if reply.cancelled or error:
                tts.engine.cancel(identifier)
                if reply.cancelled_at:
                    self.metrics.cancel_seconds.observe(time.perf_counter() - reply.cancelled_at)
                del self.live[identifier]
                self.close_reply(reply, error)

    def beyond_limits(self, reply: Reply, now: float, rate: int) -> Exception | None:
        """Why a request may not go on."""
        limits, age = self.limits, now - reply.arrived
        if age > limits.request_seconds or (not reply.first_at and age > limits.wait_seconds):
            return TimeLimitError(f"the request took {age:.0f} s, which is more than this server allows")
        if reply.samples > limits.audio_seconds * rate:
            return TimeLimitError(f"more than {limits.audio_seconds:g} s of speech; send a shorter text")
        if reply.unread > limits.unread_seconds * rate:
            return SlowReaderError("the audio was not read fast enough")
        return None

    def hand_out(self, events: list[Event]) -> None:
        """Give each reply the audio that was made, and its end."""
        for event in events:
            reply = self.live.get(event.request)
            if reply is None:
                continue
            if isinstance(event, AudioChunk):
                reply.timings = event.timings
                reply.put(event.audio)
                self.metrics.chunk(reply)
            else:
                del self.live[event.request]
                self.close_reply(reply, event.error if isinstance(event, Failed) else None)

    def close_reply(self, reply: Reply, error: Exception | None) -> None:
        with self.wake:
            self.outstanding -= 1
        if reply.cancelled:
            reply.pieces.clear()
        self.metrics.ended(reply, error)
        if self.tts:
            self.metrics.spoke(reply, error, self.tts.sample_rate)
        reply.end(error)

    def fail_all(self, error: Exception) -> None:
        """End every request that is under way or waiting."""
        with self.wake:
            waiting, self.inbox = list(self.inbox), deque()
            live, self.live = self.live, {}
        if self.tts:
            for identifier in live:
                self.tts.engine.cancel(identifier)
            self.publish(self.tts)
        for reply in [*live.values(), *(item[0] for item in waiting if isinstance(item, tuple))]:
            self.close_reply(reply, error)

    def publish(self, tts: Valle2) -> None:
        """Gauges."""
        stats = tts.engine.stats()
        self.metrics.active_slots.set(stats.prefilling + stats.decoding)
        self.metrics.queue_depth.set(len(self.inbox) + stats.waiting)

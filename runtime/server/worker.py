"""The thread that owns the model. Requests wait in a bounded queue; audio leaves through each `Reply`.

It knows no HTTP. `Admission` decides which requests it takes and which one is next. A second thread prepares
texts, so that a long text delays neither the engine nor the caller. An error of a request ends only that
request. If the engine's loop itself fails, every request under way fails and the thread loads the model
again; `restarts` counts this. A worker that cannot load its model at first, fails too often, or hangs ends in
FAILED; `failure` then says why.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import Any
from weakref import WeakSet

from valle2.engine.errors import QueueFullError, Valle2Error
from valle2.runtime.audio.chunks import FIRST_CHUNK_SECONDS
from valle2.runtime.errors import ModelError, SynthesisError
from valle2.runtime.generation.engine import AudioChunk, Done, EncodedRequest, Event, Failed, RequestId
from valle2.runtime.server.admission import Admission
from valle2.runtime.server.keys import Client
from valle2.runtime.server.limits import Limits, RefusedError, TooLongError
from valle2.runtime.server.metrics import Metrics
from valle2.runtime.server.reply import Reply, Stage
from valle2.runtime.server.request_log import note_reply
from valle2.runtime.server.watchdog import Watchdog, settle
from valle2.runtime.tts import Valle2
from valle2.runtime.types import Prompt, Request

log = logging.getLogger("valle2.server")
WARM_UP_TEXT = "Hello there."
RELOAD_SECONDS, MAX_RELOAD_SECONDS = 1.0, 30.0
"""The pause before the model is loaded again. It doubles with each recent failure, up to the second."""
MAX_FAILURES, FAILURES_SECONDS = 5, 600.0
"""A worker that fails so often within these seconds gives up."""
IDLE_SECONDS = 1.0
"""The longest sleep of the engine thread while there is nothing to do."""
LOADING_JOIN_SECONDS = 5.0
"""How long `stop` waits for a thread that still loads the model."""
NOBODY = Client()
"""The client of requests that come without one."""
STOPPING = "the server is stopping; try again in a few seconds"
UNREAD_REPLIES = 8
"""All replies together may keep the unread audio of so many that keep `unread_seconds`."""
MAX_UPLOADS = 4
"""Recordings that are being read or wait for it."""


class WorkerState(Enum):
    """What the worker does. It takes requests only in READY."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class NotReadyError(Valle2Error):
    """The worker takes no requests: it loads the model, drains or has stopped."""


class TimeLimitError(Valle2Error):
    """A request took longer, or made more speech, than the server allows."""


class SlowReaderError(Valle2Error):
    """A client reads its audio too slowly."""


class WorkerError(Valle2Error):
    """The engine's loop failed while the request was under way."""


class Worker:
    """One model in one thread.

    Args:
        load: loads the model with the given number of rows. The thread calls it, and again after a failure.
        limits: bounds on requests. metrics: by default new ones.
    """

    def __init__(self, load: Callable[[int], Valle2], limits: Limits, metrics: Metrics | None = None) -> None:
        self.load, self.limits, self.metrics = load, limits, metrics or Metrics()
        self.admission = Admission(limits)
        self.running: dict[RequestId, Reply] = {}
        self.unread = WeakSet[Reply]()  # replies whose audio may not be read yet, also after their end
        self.text_thread = ThreadPoolExecutor(1, "valle2-text")
        self.voice_thread = ThreadPoolExecutor(1, "valle2-voice")
        self.uploads = 0
        self.changed = threading.Condition()
        self.state = WorkerState.LOADING
        self.tts: Valle2 | None = None
        self.calls: dict[Future[Any], float] = {}
        self.restarts = 0
        self.failures: deque[float] = deque(maxlen=MAX_FAILURES)
        self.failure: Valle2Error | None = None
        self.was_ready = False
        self.last_error = ""
        self.last_turn = time.perf_counter()
        self.thread = threading.Thread(target=self.run, name="valle2-engine", daemon=True)
        self.watchdog = Watchdog(self)

    # -- called from any thread ------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, which loads the model."""
        self.thread.start()
        self.watchdog.thread.start()

    @property
    def outstanding(self) -> int:
        """Requests that wait or are under way."""
        return len(self.admission.replies)

    def submit(
        self,
        request: Request,
        first_chunk_seconds: float = FIRST_CHUNK_SECONDS,
        *,
        whole: bool = False,
        draining: bool = False,
        client: Client = NOBODY,
    ) -> Reply:
        """Take a request, which may wait for others. Errors of its text or voice come with the reply.

        Args:
            first_chunk_seconds: seconds of speech in the first chunk.
            whole: the client hears nothing before the end, so that others go first.
            draining: take it in DRAINING as well, because its text came before.
            client: who sends it. Clients take turns, and a key may have limits.

        Raises:
            NotReadyError: not in READY. RefusedError: too many requests wait, they would take too long, or
                the client has reached a limit. TooLongError: the text alone exceeds a limit of the key.
        """
        reply = Reply(request, first_chunk_seconds, self.drop, client)
        reply.whole = whole
        with self.changed:
            tts = self.need_ready(draining)
            try:
                displaced = self.enter(reply)
            except (RefusedError, TooLongError):
                self.metrics.record_refusal(client.key)
                raise
        if displaced:
            self.close_reply(displaced, self.admission.displaced())
        with self.changed:
            self.unread.add(reply)
        note_reply(reply, tts.sample_rate)
        self.text_thread.submit(self.encode_next, tts)
        return reply

    def enter(self, reply: Reply) -> Reply | None:
        """Take a request if its key and the others allow it. See `Admission.enter`."""
        key, characters = reply.client.key, len(reply.request.text)
        expected = self.admission.text_work(reply).audio
        if key:
            key.check(characters, expected, self.admission.turnover())
        displaced = self.admission.enter(reply)
        if key:
            key.begin(characters, expected)
            reply.expected_audio = expected
            self.metrics.record_begin(key, characters)
        return displaced

    def encode_next(self, tts: Valle2) -> None:
        """Prepare the next text in the text thread, then let its request wait for the engine thread."""
        with self.changed:
            reply = self.admission.next_text()
        if reply is None:  # its client has gone
            return
        error: Exception | None = None
        try:
            encoded = tts.encode(reply.request, reply.first_chunk_seconds)
            reply.warnings = encoded.warnings
        except Exception as found:
            error = found
        except BaseException as found:
            error = interrupted(found)
        with self.changed:
            if self.ended:
                error = error or NotReadyError(STOPPING)
            if not error and reply in self.admission.replies:
                error = self.let_wait(reply, replace(encoded, whole=reply.whole), tts)
        if error:
            self.close_reply(reply, error)

    def let_wait(self, reply: Reply, encoded: EncodedRequest, tts: Valle2) -> Exception | None:
        """Let a request whose text is ready wait for its start; returns why it may not."""
        try:
            self.admission.settle(reply, encoded, tts.need_codec().frame_rate, time.perf_counter())
        except (RefusedError, TooLongError) as error:
            return error
        self.changed.notify()
        return None

    def drop(self, reply: Reply) -> None:
        """Free the place of a cancelled request at once, or tell the engine thread if it has begun."""
        with self.changed:
            started = reply.stage is Stage.STARTED
            self.changed.notify()
        if not started:
            self.close_reply(reply, None)

    def new_call(self) -> Future[Any]:
        """A future that the watchdog ends after `wait_seconds`, and `fail_all` at once."""
        future: Future[Any] = Future()
        self.calls[future] = time.perf_counter() + self.limits.wait_seconds
        future.add_done_callback(lambda done: self.calls.pop(done, None))
        return future

    def end_late_calls(self, now: float) -> None:
        """Fail the calls whose time is over."""
        for future, end in list(self.calls.items()):
            if now > end:
                settle(
                    future,
                    error=TimeLimitError(
                        f"no result after {self.limits.wait_seconds:g} s; this server waits no longer: "
                        "try again later"
                    ),
                )

    def prepare_voice(self, data: bytes, transcript: str, name: str) -> Future[Prompt]:
        """Make a voice of a recording in a thread of its own, beside the engine's.

        Returns:
            A future of the voice or an exception. It gets a TimeLimitError after `wait_seconds`.

        Raises:
            NotReadyError: not in READY. QueueFullError: too many recordings wait.
        """
        with self.changed:
            tts = self.need_ready()
            if self.uploads >= MAX_UPLOADS:
                raise QueueFullError(f"{self.uploads} recordings are being read; try again later")
            self.uploads += 1
            future = self.new_call()
        work = self.voice_thread.submit(run_call, future, lambda: tts.prompt(data, transcript, name))
        work.add_done_callback(self.end_upload)
        return future

    def end_upload(self, work: Future[None]) -> None:
        """Free the place of a recording."""
        with self.changed:
            self.uploads -= 1

    def need_ready(self, draining: bool = False) -> Valle2:
        """The model, if the worker takes requests. draining: or if it drains.

        Raises:
            NotReadyError: not in READY.
        """
        ready = self.state is WorkerState.READY or (draining and self.state is WorkerState.DRAINING)
        if self.tts is None or not ready:
            raise NotReadyError(f"the server is {self.state.value}; try again in a few seconds")
        return self.tts

    @property
    def ended(self) -> bool:
        """Has the worker stopped or failed, for good?"""
        return self.state in (WorkerState.STOPPED, WorkerState.FAILED)

    @property
    def serving(self) -> bool:
        """Does the engine run, so that its thread must turn?"""
        return self.tts is not None and self.state in (WorkerState.READY, WorkerState.DRAINING)

    @property
    def healthy(self) -> bool:
        """Does the thread live, and has it turned within `step_seconds`? True while it loads the model."""
        turning = time.perf_counter() - self.last_turn < self.limits.step_seconds or not self.serving
        return self.thread.is_alive() and turning and self.state is not WorkerState.FAILED

    def drain(self) -> None:
        """Take no new requests; those under way continue."""
        with self.changed:
            if not self.ended:
                self.state = WorkerState.DRAINING

    def stop(self, seconds: float = 0.0) -> bool:
        """Drain for up to so many seconds, then cancel what is left and end the thread.

        Returns:
            Whether every request ended by itself.
        """
        self.drain()
        end = time.perf_counter() + seconds
        while self.outstanding and self.thread.is_alive() and time.perf_counter() < end:
            time.sleep(0.02)
        clean = not self.outstanding
        with self.changed:
            if not self.ended:
                self.state = WorkerState.STOPPED
            self.changed.notify_all()
        if self.thread.is_alive() and not self.failure:
            self.thread.join(self.limits.step_seconds if self.tts else LOADING_JOIN_SECONDS)
        self.fail_all(NotReadyError(STOPPING))
        self.text_thread.shutdown(wait=False, cancel_futures=True)
        self.voice_thread.shutdown(wait=False, cancel_futures=True)
        return clean

    def give_up(self, reason: str | Valle2Error) -> None:
        """End in FAILED: answer all that is open, and leave the engine thread to itself if it hangs."""
        with self.changed:
            if self.ended:
                return
            self.failure = WorkerError(reason) if isinstance(reason, str) else reason
            self.last_error = str(self.failure)
            self.state = WorkerState.FAILED
            self.changed.notify_all()
        self.fail_all(WorkerError("the engine has failed; send the request again once the server is back"))

    # -- the engine thread -----------------------------------------------------------------------

    def run(self) -> None:
        """Load the model and serve; after a failure again, until the worker has ended."""
        try:
            while not self.ended:
                try:
                    self.prepare()
                    self.serve()
                except BaseException as error:
                    self.recover(error)
        finally:
            self.give_up("the engine thread has died")
            self.fail_all(NotReadyError(STOPPING))

    def prepare(self) -> None:
        """Load the model and speak once, so that the first request pays for no warm-up."""
        tts = self.load(self.limits.slots)
        voice = tts.voice(tts.default_voice())
        with suppress(SynthesisError):  # a request says so better
            speech = tts.synthesize(WARM_UP_TEXT, voice)
            seconds = len(speech.codes) / tts.need_codec().frame_rate
            self.admission.speed.add(seconds, speech.timings.total)
        self.last_turn = time.perf_counter()
        with self.changed:
            self.tts, self.was_ready = tts, True
            if self.state is WorkerState.LOADING:
                self.state = WorkerState.READY

    def recover(self, error: BaseException) -> None:
        """Fail every request and pause; `run` then loads the model again, unless that cannot help."""
        self.last_error = f"{type(error).__name__}: {error}"
        if self.ended:
            return
        if not self.was_ready:
            return self.give_up(load_failure(error))
        log.error("the engine thread failed; the model is loaded again", exc_info=error)
        with self.changed:
            draining = self.state is WorkerState.DRAINING
            if self.state is WorkerState.READY:
                self.state = WorkerState.LOADING
        self.fail_all(WorkerError("the engine failed and is being restarted; send the request again"))
        self.tts = None  # its memory is free before the model is loaded again
        now = time.perf_counter()
        self.failures.append(now)
        recent = sum(now - each < FAILURES_SECONDS for each in self.failures)
        if recent >= MAX_FAILURES or draining:
            return self.give_up(
                f"the engine failed {recent} times in {FAILURES_SECONDS:g} s, the last time with "
                f"{self.last_error}"
            )
        self.restarts += 1
        self.metrics.restarts.inc()
        with self.changed:
            self.changed.wait_for(
                lambda: self.ended, min(RELOAD_SECONDS * 2 ** (recent - 1), MAX_RELOAD_SECONDS)
            )

    def serve(self) -> None:
        """Run the engine until the worker is stopped."""
        assert self.tts is not None
        tts, engine = self.tts, self.tts.engine
        while not self.ended:
            self.start_requests(tts)
            self.cancel_unwanted(tts)
            if engine.busy:
                began = time.perf_counter()
                events = engine.step()
                seconds = time.perf_counter() - began
                self.metrics.step_seconds.observe(seconds)
                self.measure(events, seconds, tts.need_codec().frame_rate)
                self.deliver(events, tts)
            self.last_turn = time.perf_counter()
            self.update_gauges(tts)

    def start_requests(self, tts: Valle2) -> None:
        """Give the engine the requests that may begin; sleep while there is nothing to do."""
        with self.changed:
            started = self.startable()
            if not started and not self.running and not self.ended:
                self.changed.wait(min(IDLE_SECONDS, self.limits.step_seconds / 4))
                started = self.startable()
        for reply in started:
            assert reply.encoded
            reply.id = tts.engine.add(reply.encoded)
            self.running[reply.id] = reply

    def startable(self) -> list[Reply]:
        """The requests that begin now."""
        return list(iter(lambda: self.admission.next_start(time.perf_counter()), None))

    def cancel_unwanted(self, tts: Valle2) -> None:
        """Free the rows of requests that were cancelled or exceed a limit."""
        now = time.perf_counter()
        for identifier, reply in list(self.running.items()):
            error = self.exceeded_limit(reply, now, tts.sample_rate)
            if reply.cancelled or error:
                tts.engine.cancel(identifier)
                if reply.cancelled_at:
                    self.metrics.cancel_seconds.observe(time.perf_counter() - reply.cancelled_at)
                del self.running[identifier]
                self.close_reply(reply, error)

    def exceeded_time(self, reply: Reply, now: float) -> Exception | None:
        """An error for a request that takes too long, else None."""
        limits, age = self.limits, now - reply.arrived
        decoding = now - reply.started_at if reply.started_at else 0.0
        if decoding > limits.request_seconds:
            return TimeLimitError(
                f"the request took {decoding:.0f} s; this server allows {limits.request_seconds:g} s: "
                "send a shorter text"
            )
        if not reply.first_at and age > limits.wait_seconds:
            return TimeLimitError(
                f"no audio after {age:.0f} s; this server allows {limits.wait_seconds:g} s: try again later"
            )
        return None

    def exceeded_limit(self, reply: Reply, now: float, rate: int) -> Exception | None:
        """An error for a request that exceeds a limit, else None. rate: Hz."""
        limits = self.limits
        if late := self.exceeded_time(reply, now):
            return late
        if reply.samples > limits.audio_seconds * rate:
            return TimeLimitError(f"more than {limits.audio_seconds:g} s of speech; send a shorter text")
        if reply.unread > limits.unread_seconds * rate:
            return SlowReaderError(
                f"more than {limits.unread_seconds:g} s of audio were not read; read faster"
            )
        return None

    def measure(self, events: list[Event], seconds: float, frame_rate: float) -> None:
        """Take note of the speech that a step has made. seconds: of the step. frame_rate: frames a second."""
        made = 0.0
        for event in events:
            reply = self.running.get(event.request)
            if reply and isinstance(event, AudioChunk):
                decoded = len(event.codes) / frame_rate * reply.request.settings.candidates
                reply.made += decoded
                made += decoded
            elif reply and isinstance(event, Done):
                self.admission.measure(reply)
        with self.changed:
            self.admission.speed.add(made, seconds)

    def deliver(self, events: list[Event], tts: Valle2) -> None:
        """Give each reply its new audio, and its end."""
        for event in events:
            reply = self.running.get(event.request)
            if reply is None:
                continue
            if isinstance(event, AudioChunk):
                reply.timings = event.timings
                self.metrics.record_chunk(reply)  # before the client's thread can run
                reply.note_audio(len(event.audio) / tts.sample_rate, reply.last_at)
                reply.put(event.audio, event.words)
                self.bound_unread(tts.sample_rate)
            else:
                del self.running[event.request]
                if isinstance(event, Done):
                    reply.finish_reason = event.finish_reason
                self.close_reply(reply, event.error if isinstance(event, Failed) else None)

    def bound_unread(self, rate: int) -> None:
        """Cut off the reader who has the most to read, if all of them together have too much. rate: Hz.

        A reader who is slow but steady may take hours, and the memory of its audio as long.
        """
        most = UNREAD_REPLIES * self.limits.unread_seconds
        with self.changed:
            replies = list(self.unread)
        if sum(reply.unread for reply in replies) > most * rate:
            largest = max(replies, key=lambda reply: reply.unread)
            largest.cut(
                SlowReaderError(f"more than {most:g} s of audio of all clients were not read; read faster")
            )

    def close_reply(self, reply: Reply, error: Exception | None) -> None:
        """End a reply and count it. Does nothing if it has ended."""
        with self.changed:
            if not self.admission.remove(reply):
                return
        if reply.cancelled:
            reply.pieces.clear()
        self.metrics.record_end(reply, error)
        if reply.client.key:
            seconds = reply.samples / self.tts.sample_rate if self.tts else 0.0
            with self.changed:
                reply.client.key.end(reply.expected_audio, seconds)
        if self.tts:
            self.metrics.record_speech(reply, error, self.tts.sample_rate)
        reply.end(error)

    def fail_all(self, error: Exception) -> None:
        """End every request and call that is under way or waiting. Only the engine thread frees the rows."""
        with self.changed:
            running, self.running = self.running, {}
        if self.tts and threading.current_thread() is self.thread:
            for identifier in running:
                self.tts.engine.cancel(identifier)
            self.update_gauges(self.tts)
        for reply in list(self.admission.replies):
            self.close_reply(reply, error)
        for future in list(self.calls):
            settle(future, error=error)

    def update_gauges(self, tts: Valle2) -> None:
        """Set the gauges to what the engine holds now."""
        stats = tts.engine.stats()
        self.metrics.active_slots.set(stats.prefilling + stats.decoding)
        with self.changed:
            waiting = sum(reply.stage is not Stage.STARTED for reply in self.admission.replies)
            backlog = self.admission.backlog
        self.metrics.queue_depth.set(waiting + stats.waiting)
        self.metrics.backlog_seconds.set(backlog)
        self.metrics.speed.set(self.admission.speed.value)


def run_call(future: Future[Any], work: Callable[[], Any]) -> None:
    """Run a function and give its result or exception to the future, unless that has ended before."""
    if future.done():  # cancelled, or out of time
        return
    try:
        settle(future, work())
    except Exception as error:
        settle(future, error=error)
    except BaseException as error:
        settle(future, error=interrupted(error))
        raise


def interrupted(error: BaseException) -> WorkerError:
    """The error for a client whose work was ended by an interruption, such as Ctrl-C."""
    return WorkerError(f"the engine was interrupted ({type(error).__name__}); send the request again")


def load_failure(error: BaseException) -> Valle2Error:
    """Why the model cannot be loaded, as one line for who starts the server."""
    if isinstance(error, Valle2Error):
        return error
    if isinstance(error, MemoryError):
        return ModelError(
            "there is not enough memory for the model; use fewer --slots or a smaller --precision"
        )
    log.error("the model does not load", exc_info=error)
    return ModelError(f"the model does not load: {type(error).__name__}: {error}")

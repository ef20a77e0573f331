"""The worker: audio equal to the model's own, limits, cancellation, failures, restarts, draining."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.runtime.server.conftest import LONG, break_engine, idle, wait_until
from valle2.engine.errors import QueueFullError
from valle2.runtime import Prompt, Request, Settings, Valle2
from valle2.runtime.generation.engine import Event
from valle2.runtime.server.admission import Ratio
from valle2.runtime.server.keys import Client
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.reply import Reply
from valle2.runtime.server.worker import (
    NotReadyError,
    SlowReaderError,
    TimeLimitError,
    Worker,
    WorkerError,
    WorkerState,
)


def ask(worker: Worker, text: str = "hello there", seed: int = 3, **more: Any) -> Reply:
    assert worker.tts
    return worker.submit(Request(text, worker.tts.voice("amber"), Settings(seed=seed)), **more)


def test_audio_is_the_engines_own(worker: Worker, tts: Valle2) -> None:
    wanted = tts.synthesize("hello there", tts.voice("amber"), Settings(seed=3))
    replies = [ask(worker, seed=seed, first_chunk_seconds=0.0) for seed in (3, 4)]
    heard = [np.concatenate(list(reply)) for reply in replies]
    np.testing.assert_allclose(heard[0], wanted.audio, atol=1e-6)
    assert not np.array_equal(heard[0], heard[1])
    wait_until(lambda: idle(worker))


def test_a_full_queue_refuses(worker: Worker) -> None:
    replies = [ask(worker, LONG) for _ in range(4)]
    with pytest.raises(QueueFullError):
        ask(worker)
    assert worker.metrics.rejected._value.get() == 1
    for reply in replies:
        reply.cancel()
    wait_until(lambda: idle(worker))
    assert len(list(ask(worker)))


def test_cancel_frees_the_slot_within_a_step(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.tts
    step, late = worker.tts.engine.step, list[int]()

    def counted() -> list[Event]:
        if reply.cancelled:
            late.append(1)
        return step()

    reply = ask(worker, LONG)
    next(iter(reply))
    monkeypatch.setattr(worker.tts.engine, "step", counted)
    began = time.perf_counter()
    reply.cancel()
    wait_until(lambda: idle(worker))
    assert time.perf_counter() - began < 0.5 and len(late) <= 1
    assert worker.metrics.cancelled._value.get() == 1


def test_a_failure_stays_with_its_request(worker: Worker) -> None:
    bad, good = ask(worker, "???"), ask(worker)
    with pytest.raises(ValueError, match="spoken"):
        list(bad)
    assert list(good) and worker.restarts == 0


def test_out_of_memory_is_one_requests_error(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.tts and worker.tts.codec
    decode, calls = worker.tts.codec.decode_rows, []

    def once(codes: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("no more")
        return decode(codes)

    monkeypatch.setattr(worker.tts.codec, "decode_rows", once)
    replies = [ask(worker), ask(worker, seed=4)]
    ended = []
    for reply in replies:
        try:
            ended.append(len(list(reply)) > 0)
        except MemoryError:
            ended.append(False)
    assert sorted(ended) == [False, True]
    wait_until(lambda: idle(worker))


def test_a_crash_is_noticed_and_the_worker_restarted(worker: Worker) -> None:
    assert worker.tts
    first = worker.tts

    reply = ask(worker, LONG)
    break_engine(worker)
    with pytest.raises(WorkerError, match="send the request again"):
        list(reply)
    assert worker.state is WorkerState.LOADING
    wait_until(lambda: worker.state is WorkerState.READY)
    assert worker.restarts == 1 and worker.tts is not first and "boom" in worker.last_error
    assert list(ask(worker))


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        (Limits(slots=1, queue=1, request_seconds=0.01), TimeLimitError, "the request took"),
        (Limits(slots=1, queue=1, wait_seconds=1e-6), TimeLimitError, "no audio after"),
        (Limits(slots=1, queue=1, audio_seconds=0.5), TimeLimitError, "of speech"),
        (Limits(slots=1, queue=1, unread_seconds=0.01), SlowReaderError, "were not read"),
    ],
)
def test_time_speech_and_reading_are_bounded(
    load: Callable[[int], Valle2], limits: Limits, error: type[Exception], message: str
) -> None:
    worker = Worker(load, limits)
    worker.start()
    try:
        wait_until(lambda: worker.state is WorkerState.READY)
        worker.admission.speed = Ratio(1e6, 1e6, 1e6)  # with honest estimates these are refused at once
        worker.admission.per_id = Ratio(1e-6, 1e6, 1e6)
        reply = ask(worker, LONG)
        wait_until(lambda: reply.ended)
        with pytest.raises(error, match=message):
            list(reply)
        assert idle(worker)
    finally:
        worker.stop()


def test_the_unread_audio_of_all_clients_is_bounded(load: Callable[[int], Valle2]) -> None:
    """Readers who are slow but steady keep audio for hours after it was made."""
    worker = Worker(load, Limits(unread_seconds=1.0))
    voice = Prompt(np.zeros((1, 8), np.int64), "a")
    replies = [Reply(Request("a", voice, Settings()), 0.4, worker.drop, Client()) for _ in range(4)]
    worker.unread.update(replies)
    for reply, size in zip(replies, (30, 40, 9, 0), strict=True):
        reply.put(np.zeros(size, np.float32))
    for reply in replies[:3]:
        reply.end()
    worker.bound_unread(10)
    assert not any(reply.error for reply in replies)
    replies[3].put(np.zeros(2, np.float32))
    worker.bound_unread(10)
    assert [bool(reply.error) for reply in replies] == [False, True, False, False]
    with pytest.raises(SlowReaderError, match="more than 8 s of audio of all clients"):
        list(replies[1])
    replies[3].cut(SlowReaderError("slow"))
    replies[3].put(np.zeros(5, np.float32))
    assert replies[3].cancelled and not replies[3].pieces and not replies[3].unread
    assert sum(map(len, replies[0])) == 30


def test_draining_ends_streams_and_takes_nothing(worker: Worker) -> None:
    reply = ask(worker, LONG)
    next(iter(reply))
    worker.drain()
    with pytest.raises(NotReadyError, match="draining"):
        ask(worker)
    assert worker.stop(30.0) and reply.ended and not reply.error
    assert not worker.thread.is_alive()


def test_the_deadline_of_a_drain_cuts(worker: Worker) -> None:
    reply = ask(worker, LONG * 3)
    next(iter(reply))
    assert not worker.stop(0.0)
    with pytest.raises(NotReadyError):
        list(reply)

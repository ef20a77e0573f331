"""A worker whose thread dies, hangs or crashes again and again: everything open is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtime.server.conftest import LONG, break_engine, serving, wait_until
from tests.runtime.server.test_worker import ask
from valle2.engine.errors import BackendError
from valle2.runtime import Request, Valle2
from valle2.runtime.server import worker as worker_module
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.worker import NotReadyError, TimeLimitError, Worker, WorkerError, WorkerState

STEP_SECONDS = 0.6
ENDED: list[type[BaseException]] = [KeyboardInterrupt, SystemExit, SystemError, GeneratorExit]


@contextmanager
def started(load: Callable[[int], Valle2], **limits: Any) -> Iterator[Worker]:
    worker = Worker(load, Limits(**{"slots": 2, "queue": 2} | limits))
    worker.start()
    wait_until(lambda: worker.state is WorkerState.READY)
    yield worker
    worker.stop()


@pytest.fixture
def hung(load: Callable[[int], Valle2], monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker whose next step hangs until the test ends."""
    free = threading.Event()
    with started(load, step_seconds=STEP_SECONDS) as worker:
        assert worker.tts
        monkeypatch.setattr(worker.tts.engine, "step", free.wait)
        yield worker
        free.set()


@pytest.mark.parametrize("kind", ENDED)
def test_an_engine_that_is_interrupted_is_loaded_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    assert worker.tts

    def step() -> None:
        raise kind("stop")

    monkeypatch.setattr(worker.tts.engine, "step", step)
    monkeypatch.setattr(worker_module, "RELOAD_SECONDS", 0.05)
    with pytest.raises(WorkerError, match="send the request again"):
        list(ask(worker))
    wait_until(lambda: worker.state is WorkerState.READY)
    assert worker.restarts == 1 and list(ask(worker))


def test_a_hung_step_ends_requests_uploads_and_the_worker(
    hung: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    monkeypatch.setattr(hung.tts, "prompt", lambda *_: free.wait())
    running = ask(hung, LONG)
    waiting = [ask(hung, LONG), ask(hung, LONG)]
    upload = hung.prepare_voice(b"", "hello", "mine")
    began = time.perf_counter()
    for reply in (running, *waiting):
        with pytest.raises(WorkerError):
            list(reply)
    with pytest.raises(WorkerError):
        upload.result(1.0)
    assert time.perf_counter() - began < STEP_SECONDS + 2
    assert hung.state is WorkerState.FAILED and not hung.healthy and "hangs" in str(hung.failure)
    assert not hung.outstanding
    with pytest.raises(NotReadyError, match="failed"):
        ask(hung)
    assert hung.stop(0.0)  # does not wait for the thread
    free.set()


def test_a_recording_that_hangs_is_answered(
    load: Callable[[int], Valle2], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In time while the engine runs, and at once when it has failed; its place is free after it."""
    free = threading.Event()
    with started(load, wait_seconds=0.5) as worker:
        assert worker.tts
        monkeypatch.setattr(worker.tts, "prompt", lambda *_: free.wait())
        with pytest.raises(TimeLimitError, match="no result after"):
            worker.prepare_voice(b"", "hello", "mine").result(2.0)
        late = worker.prepare_voice(b"", "hello", "mine")
        worker.give_up("test")
        with pytest.raises(WorkerError):
            late.result(1.0)
        free.set()
        wait_until(lambda: not worker.uploads)


def test_time_limits_hold_while_the_engine_hangs(
    load: Callable[[int], Valle2], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    with started(load, wait_seconds=0.5) as worker:
        assert worker.tts
        monkeypatch.setattr(worker.tts.engine, "step", lambda: [] * free.wait())
        reply = ask(worker)
        wait_until(lambda: worker.running)
        monkeypatch.setattr(worker.tts, "prompt", lambda *_: free.wait())
        upload = worker.prepare_voice(b"", "hello", "mine")
        with pytest.raises(TimeLimitError, match="no audio after"):
            list(reply)
        with pytest.raises(TimeLimitError, match="no result after"):
            upload.result(2.0)
        assert worker.state is WorkerState.READY
        monkeypatch.undo()
        free.set()
        wait_until(lambda: not worker.running)
        assert list(ask(worker))


def test_an_idle_server_is_not_a_hung_one(load: Callable[[int], Valle2]) -> None:
    with started(load, step_seconds=STEP_SECONDS) as worker:
        time.sleep(2 * STEP_SECONDS)
        assert worker.healthy and list(ask(worker))


def test_a_dead_thread_fails_the_worker(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def recover(error: BaseException) -> None:
        raise SystemError("again")

    monkeypatch.setattr(worker, "recover", recover)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    reply = ask(worker, LONG)
    break_engine(worker)
    with pytest.raises(WorkerError):
        list(reply)
    wait_until(lambda: worker.state is WorkerState.FAILED and not worker.healthy)


def test_an_interrupted_text_is_answered(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(request: Request, first_chunk_seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker.tts, "encode", encode)
        with pytest.raises(WorkerError, match="interrupted"):
            list(ask(worker))
    assert list(ask(worker))


def test_repeated_crashes_have_an_end(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "RELOAD_SECONDS", 0.001)

    for _ in range(worker_module.MAX_FAILURES):
        wait_until(lambda: worker.state is not WorkerState.LOADING)
        break_engine(worker)
        with pytest.raises(WorkerError):
            list(ask(worker))
    wait_until(lambda: worker.state is WorkerState.FAILED)
    assert "failed 5 times" in str(worker.failure) and "boom" in str(worker.failure)
    assert worker.restarts == worker_module.MAX_FAILURES - 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BackendError("no such device"), "no such device"),
        (MemoryError(), "not enough memory"),
        (KeyError("x"), "the model does not load: KeyError"),
        (SystemExit(3), "the model does not load: SystemExit"),
    ],
)
def test_a_model_that_does_not_load_is_tried_once(error: BaseException, message: str) -> None:
    tries = []

    def load(slots: int) -> Valle2:
        tries.append(slots)
        raise error

    worker = Worker(load, Limits())
    worker.start()
    wait_until(lambda: worker.state is WorkerState.FAILED)
    assert message in str(worker.failure) and len(tries) == 1 and not worker.restarts
    wait_until(lambda: not worker.healthy)


def test_the_routes_of_a_hung_server(hung: Worker, tmp_path: Path) -> None:
    with serving(hung, tmp_path) as base:
        body = {"input": LONG, "voice": "amber", "response_format": "pcm"}
        found = httpx.post(f"{base}/v1/audio/speech", json=body, timeout=10)
        assert found.status_code == 503 and "has failed" in found.json()["error"]["message"]
        assert httpx.get(f"{base}/ready").status_code == httpx.get(f"{base}/health").status_code == 503
        assert httpx.get(f"{base}/ready").json() == {"state": "failed"}
        assert httpx.post(f"{base}/v1/audio/speech", json=body).status_code == 503


def test_the_memory_of_a_crashed_model_is_freed_before_the_next(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def load(slots: int) -> Valle2:
        held.append(worker.tts)
        return Valle2.load(bundle, threads=1, slots=slots)

    worker = Worker(load, Limits(slots=1))
    monkeypatch.setattr(worker_module, "RELOAD_SECONDS", 0.01)
    worker.start()
    wait_until(lambda: worker.state is WorkerState.READY)

    break_engine(worker)
    with pytest.raises(WorkerError):
        list(ask(worker))
    wait_until(lambda: len(held) == 2 and worker.state is WorkerState.READY)
    assert held == [None, None]
    worker.stop()

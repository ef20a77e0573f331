"""A worker over the toy bundle, and a real server on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from valle2.runtime import Valle2
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.keys import Key, Keys, digest_of
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.run import Server, open_listener
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import Worker, WorkerState

LONG = "the fox, a fox, the apple and a fox there. " * 2

ONE_KEY = "k" * 16
KEYS = Keys(Key("default", digest_of(ONE_KEY)))


def wait_until(done: Callable[[], object], seconds: float = 10.0) -> None:
    """Poll until `done` returns something true; fail after so many seconds."""
    end = time.perf_counter() + seconds
    while not done():
        assert time.perf_counter() < end, f"nothing happened for {seconds:g} s"
        time.sleep(0.005)


def idle(worker: Worker) -> bool:
    """Does the worker hold no request, and the engine no sequence?"""
    assert worker.tts
    stats = worker.tts.engine.stats()
    return not (worker.outstanding or worker.running or stats.waiting or stats.prefilling or stats.decoding)


def break_engine(worker: Worker) -> None:
    """Let the next step of the engine that is loaded now fail as a fault of the program does."""

    def step() -> None:
        raise SystemError("boom")

    assert worker.tts
    worker.tts.engine.step = step  # type: ignore[method-assign, assignment]


@contextmanager
def serving(worker: Worker, voices: Path, keys: Keys | None = None) -> Iterator[str]:
    """A server over real sockets; the context's value is its address.

    The server starts and stops the worker, unless the worker runs already.
    """
    lifespan = "off" if worker.thread.is_alive() else "on"
    listener = open_listener("127.0.0.1", 0, worker.limits.stall_seconds)
    address = listener.getsockname()
    running = Server(make_app(worker, VoiceStore(voices), keys), worker, listener, lifespan=lifespan)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait_until(lambda: worker.state is WorkerState.READY, 60)
    try:
        yield f"http://127.0.0.1:{address[1]}"
    finally:
        running.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def load(bundle: Path) -> Callable[[int], Valle2]:
    return lambda slots: Valle2.load(bundle, threads=1, slots=slots)


@pytest.fixture
def worker(load: Callable[[int], Valle2]) -> Iterator[Worker]:
    """A worker that is ready, with two slots and a queue of two."""
    made = Worker(load, Limits(slots=2, queue=2))
    made.start()
    wait_until(lambda: made.state is WorkerState.READY)
    yield made
    made.stop()

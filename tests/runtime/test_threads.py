"""One model in several threads: the same speech as in one, shared steps, errors apart, closing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from valle2.engine import BackendError
from valle2.runtime import Prompt, Request, Settings, Valle2
from valle2.runtime.audio.chunks import ChunkDecoder
from valle2.runtime.errors import ModelError, TextError
from valle2.runtime.generation.engine import AudioChunk, Done, EncodedRequest, Event, Failed, RequestId
from valle2.runtime.stream import Collector
from valle2.runtime.types import Timings

SHORT = Settings(top_p=0.5, max_frames=20)
TEXTS = ("hello there", "the fox. a apple?", "a fox and the apple.")
THREADS, EACH = 8, 3
SECONDS = 60
LONG = "hello there the fox. " * 200


@pytest.fixture
def shared_model(bundle: Path) -> Iterator[Valle2]:
    """A model with fewer rows than there are threads."""
    with Valle2.load(bundle, threads=1, slots=3) as made:
        yield made


def in_threads(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Call `work(0)` .. `work(count - 1)` in threads that start together; results or exceptions in order."""
    found: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(index: int) -> None:
        barrier.wait()
        try:
            found[index] = work(index)
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a thread waits for ever"
    return found


def spoken(tts: Valle2, voice: Prompt, index: int) -> list[np.ndarray]:
    """The codes and audio of one thread's requests, by every way to speak."""
    made = []
    for number in range(EACH):
        settings = replace(SHORT, seed=EACH * index + number)
        text = TEXTS[(index + number) % len(TEXTS)]
        if index % 3 == 0:
            speeches = [tts.synthesize(text, voice, settings)]
        elif index % 3 == 1:
            speeches = tts.synthesize_batch([Request(text, voice, settings), Request("hello", voice, SHORT)])
        else:
            with tts.stream(text, voice, settings, first_chunk_seconds=0.1) as stream:
                pieces = list(stream)
                speeches = [stream.speech()]
            assert np.array_equal(np.concatenate(pieces), speeches[0].audio)
        made += [array for speech in speeches for array in (speech.codes, speech.audio)]
    return made


def test_every_thread_gets_what_it_would_get_alone(shared_model: Valle2, voice: Prompt) -> None:
    expected = [spoken(shared_model, voice, index) for index in range(THREADS)]
    alone = shared_model.engine.steps
    found = in_threads(lambda index: spoken(shared_model, voice, index))
    for index in range(THREADS):
        assert not isinstance(found[index], Exception), found[index]
        assert all(np.array_equal(*pair) for pair in zip(found[index], expected[index], strict=True))
    assert shared_model.engine.steps - alone < alone, "threads do not share steps"
    assert not shared_model.collectors and not shared_model.engine.busy


def test_recordings_and_codes_from_several_threads(shared_model: Valle2) -> None:
    memory = BytesIO()
    soundfile.write(memory, 0.3 * np.sin(np.arange(24000) / 30), 24000, format="WAV")
    expected = shared_model.prompt(memory.getvalue(), "hello there").codes

    def work(index: int) -> np.ndarray:
        if index % 2:
            return shared_model.generate_codes(np.array([5, 6, 7]), expected, SHORT).codes
        return shared_model.prompt(memory.getvalue(), "hello there").codes

    found = in_threads(work)
    codes = shared_model.generate_codes(np.array([5, 6, 7]), expected, SHORT).codes
    assert all(np.array_equal(found[index], codes if index % 2 else expected) for index in range(THREADS))


def test_an_error_is_its_own_threads(
    shared_model: Valle2, voice: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = shared_model.synthesize("hello there", voice, SHORT).codes
    open_chunks = shared_model.engine.open_chunks

    def sometimes(request: EncodedRequest) -> tuple[ChunkDecoder | None, Any]:
        if request.settings.seed == 1:
            raise BackendError("the device is gone")
        return open_chunks(request)

    monkeypatch.setattr(shared_model.engine, "open_chunks", sometimes)

    def work(index: int) -> np.ndarray:
        text = "???" if index == 2 else "hello there"
        return shared_model.synthesize(text, voice, replace(SHORT, seed=int(index == 1))).codes

    found = in_threads(work)
    assert isinstance(found[1], BackendError) and isinstance(found[2], TextError)
    assert all(np.array_equal(found[index], expected) for index in range(THREADS) if index not in (1, 2))


def test_a_closed_model_ends_every_thread(shared_model: Valle2, voice: Prompt) -> None:
    begun = threading.Barrier(THREADS + 1)

    def work(index: int) -> None:
        if index == THREADS:
            begun.wait(SECONDS)
            shared_model.close()
            return
        with shared_model.stream(LONG, voice, SHORT, first_chunk_seconds=0.1) as stream:
            next(stream)
            begun.wait(SECONDS)
            for _ in stream:
                pass

    *found, closed = in_threads(work, THREADS + 1)
    assert closed is None
    assert [type(error) for error in found] == [ModelError] * THREADS
    assert all("has been closed" in str(error) for error in found)
    memory = BytesIO()
    soundfile.write(memory, 0.3 * np.sin(np.arange(24000) / 30), 24000, format="WAV")
    for use in (
        lambda: shared_model.synthesize("hello", voice),
        lambda: shared_model.stream("hello", voice),
        lambda: shared_model.prompt(memory.getvalue(), "hello"),
        lambda: shared_model.generate_codes(np.array([5]), voice.codes),
    ):
        with pytest.raises(ModelError, match="has been closed; load it again"):
            use()


@pytest.mark.parametrize(
    ("event", "last"),
    [
        (
            AudioChunk(RequestId(0), np.ones(3, np.float32), np.ones((1, 8), np.int64), Timings(steps=4)),
            "audio",
        ),
        (Done(RequestId(0), "eos", Timings()), "done"),
        (Failed(RequestId(0), BackendError("the device is gone")), "done"),
    ],
)
def test_a_collector_changes_last_what_readers_look_at(event: Event, last: str) -> None:
    """Otherwise a thread that reads between two changes takes a failed speech for a whole one."""
    changes: list[str] = []

    class Watched(list[Any]):
        def append(self, value: object) -> None:
            changes.append("audio")
            super().append(value)

    class Noted(Collector):
        def __setattr__(self, name: str, value: object) -> None:
            changes.append(name)
            super().__setattr__(name, value)

    collector = Noted(8)
    collector.audio = Watched()
    changes.clear()
    collector.take(event)
    assert changes[-1] == last and len(changes) == 2


def test_a_stream_dropped_in_one_thread_frees_its_rows(shared_model: Valle2, voice: Prompt) -> None:
    expected = shared_model.synthesize("hello there", voice, SHORT).codes

    def work(index: int) -> np.ndarray | None:
        if index % 2:
            next(shared_model.stream(LONG, voice, SHORT))
            return None
        return shared_model.synthesize("hello there", voice, SHORT).codes

    found = in_threads(work)
    assert all(np.array_equal(found[index], expected) for index in range(0, THREADS, 2))
    shared_model.synthesize("hello there", voice, SHORT)
    assert not shared_model.collectors and not shared_model.engine.busy


def test_an_interrupted_step_gives_nobody_half_a_speech(
    shared_model: Valle2, voice: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = shared_model.synthesize("hello there", voice, SHORT).codes
    stream = shared_model.stream(LONG, voice, SHORT)
    next(stream)
    with monkeypatch.context() as patch:

        def interrupted(*args: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(shared_model.model.ar, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shared_model.synthesize("hello there", voice, SHORT)
    with pytest.raises(ModelError, match="interrupted; send the request again"):
        for _ in stream:
            pass
    assert np.array_equal(shared_model.synthesize("hello there", voice, SHORT).codes, expected)


def test_cancelling_waits_for_nobody(shared_model: Valle2, voice: Prompt) -> None:
    """A stream may be dropped while this thread, or one that will never return, is in a step."""
    stream = shared_model.stream("hello there", voice, SHORT)
    dropped: list[RequestId] = []

    def drop() -> None:
        dropped.append(stream.request)
        stream.close()

    shared_model.turns.step(drop)
    assert list(shared_model.cancelled) == dropped and shared_model.engine.busy
    shared_model.synthesize("hello", voice, SHORT)
    assert not shared_model.cancelled and not shared_model.engine.busy

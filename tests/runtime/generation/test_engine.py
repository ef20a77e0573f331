"""The engine's interface: events in order, errors apart, rows freed at once, and no text in the loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from valle2.runtime import Prompt, Request, Settings, Valle2, Valle2Error
from valle2.runtime.errors import ModelError, PromptError
from valle2.runtime.generation.engine import (
    AudioChunk,
    Done,
    Event,
    Failed,
    RequestId,
    Stats,
    SynthesisEngine,
)
from valle2.runtime.generation.scheduler import Scheduler
from valle2.runtime.generation.sequence import Sequence, Status

SHORT = Settings(top_p=0.5, max_frames=40)
LONG = Settings(top_p=1.0, threshold=1.0, max_frames=200, seed=4)


@pytest.fixture
def two(bundle: Path) -> Iterator[Valle2]:
    """The toy model with two rows."""
    with Valle2.load(bundle, slots=2) as tts:
        yield tts


def finish(engine: SynthesisEngine) -> list[Event]:
    """Step until nothing is left."""
    events: list[Event] = []
    while engine.busy:
        events += engine.step()
    return events


def test_events_are_what_synthesize_gives(two: Valle2, voice: Prompt) -> None:
    requests = [Request(text, voice, SHORT) for text in ("hello there. the fox", "apple")]
    ids = [two.engine.add(two.encode(request)) for request in requests]
    events = finish(two.engine)
    for request, identifier in zip(requests, ids, strict=True):
        own = [event for event in events if event.request == identifier]
        chunks = [event for event in own if isinstance(event, AudioChunk)]
        alone = two.synthesize(request.text, voice, SHORT)
        assert isinstance(own[-1], Done) and len(chunks) == len(own) - 1
        assert own[-1].finish_reason == alone.finish_reason
        assert np.array_equal(np.concatenate([chunk.codes for chunk in chunks]), alone.codes)
        assert sum(len(chunk.audio) for chunk in chunks) == len(alone.audio)


def test_a_cancelled_request_frees_its_row_before_the_next_step(two: Valle2, voice: Prompt) -> None:
    engine = two.engine
    first, second, third = (
        engine.add(two.encode(Request("hello there", voice, replace(LONG, seed=seed)), 0.1))
        for seed in (1, 2, 3)
    )
    for _ in range(6):
        engine.step()
    assert engine.stats() == Stats(waiting=1, prefilling=0, decoding=2, rows=2, steps=4)
    engine.cancel(first)
    assert engine.stats().decoding == 1
    engine.step()
    assert engine.stats().waiting == 0 and engine.scheduler.active == 2, "the third did not take the row"
    engine.cancel(RequestId(99))
    assert {event.request for event in finish(engine)} == {second, third}
    assert engine.stats().decoding == engine.scheduler.active == 0


def test_cancelled_requests_say_nothing_more(two: Valle2, voice: Prompt) -> None:
    identifier = two.engine.add(two.encode(Request("hello", voice, SHORT)))
    two.engine.cancel(identifier)
    two.engine.cancel(identifier)
    assert not two.engine.busy and not two.engine.step()


def test_an_error_is_an_event_of_its_request(two: Valle2, voice: Prompt) -> None:
    long = replace(voice, codes=np.zeros((1023, 8), np.int64))
    bad = two.engine.add(two.encode(Request("hello", long, SHORT)))
    good = two.engine.add(two.encode(Request("hello", voice, SHORT)))
    ends = {event.request: event for event in finish(two.engine) if not isinstance(event, AudioChunk)}
    failed = ends[bad]
    assert isinstance(ends[good], Done)
    assert isinstance(failed, Failed) and isinstance(failed.error, PromptError)


def test_no_text_is_prepared_in_a_step(two: Valle2, voice: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    request = two.encode(Request("hello there. the fox. a apple!", voice, SHORT))

    def refuse(*args: object) -> None:
        raise AssertionError("text was prepared within the engine's loop")

    for name in ("encode", "split", "finish"):
        monkeypatch.setattr(two.front, name, refuse)
    two.engine.add(request)
    assert isinstance(finish(two.engine)[-1], Done)


def test_a_closed_model_says_so(bundle: Path, voice: Prompt) -> None:
    with Valle2.load(bundle, slots=2) as tts:
        stream = tts.stream("hello there", voice, LONG, first_chunk_seconds=0.1)
        next(stream)
    tts.close()
    with pytest.raises(ModelError, match="has been closed; load it again"):
        tts.synthesize("hello", voice)
    with pytest.raises(Valle2Error, match="has been closed"):
        list(stream)


def row(seed: int = 0) -> Sequence:
    return Sequence(np.arange(4), np.zeros(0, np.int64), np.zeros((3, 2, 2), np.float32), Settings(seed=seed))


def test_the_scheduler_gives_the_lowest_free_row_in_the_order_of_arrival() -> None:
    scheduler = Scheduler(2)
    first, second, third = (scheduler.add(row(seed)) for seed in range(3))
    assert scheduler.next_prefill() is first and scheduler.next_prefill() is first
    first.status = Status.DECODE
    assert scheduler.next_prefill() is second and (first.row, second.row) == (0, 1)
    second.status = Status.DECODE
    assert scheduler.next_prefill() is None and scheduler.decoding() == [first, second]
    first.append([1, 2], [0.0, 0.0])
    assert first.status is Status.DECODE and first.codes == [1, 2]
    first.append([1024, 5], [0.0, 0.0])
    assert (first.status, first.finish_reason, first.codes) == (Status.DONE, "eos", [1, 2])
    assert scheduler.retire() == [first] and scheduler.next_prefill() is third and third.row == 0


def test_a_sequence_ends_at_its_limit_and_stays_as_it_ended() -> None:
    sequence = row()
    for _ in range(3):
        sequence.append([7, 8], [-1.0, -1.0])
    sequence.cancel()
    assert (sequence.status, sequence.finish_reason) == (Status.DONE, "max_frames")
    assert sequence.steps == 3 and sequence.log_prob == -6


def test_a_waiting_sequence_that_is_cancelled_takes_no_row() -> None:
    scheduler = Scheduler(1)
    gone, kept = scheduler.add(row()), scheduler.add(row(1))
    gone.cancel()
    assert scheduler.retire() == [] and list(scheduler.waiting) == [kept]
    assert scheduler.next_prefill() is kept

"""Who goes first: first chunks, streams about to run dry, streams with slack, whole requests."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Sequence_
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valle2.runtime import Prompt, Request, Settings, Valle2
from valle2.runtime.generation.engine import AudioChunk, Event, SynthesisState, WaitFor
from valle2.runtime.generation.joint_calls import Call
from valle2.runtime.generation.playback import FIRST_CHUNK_SECONDS, WHOLE_SECONDS, Playback
from valle2.runtime.generation.scheduler import Scheduler
from valle2.runtime.generation.sequence import Sequence

LONG = Settings(top_p=1.0, threshold=1.0, max_frames=200, seed=4)


class NoCall(Call):
    """A call that does nothing."""

    stage = "nar"

    @property
    def key(self) -> str:
        return ""

    @property
    def lengths(self) -> tuple[int, ...]:
        return (1,)

    def run(self, others: Sequence_[Any]) -> None:
        pass


@pytest.fixture
def two(bundle: Path) -> Iterator[Valle2]:
    with Valle2.load(bundle, slots=2) as tts:
        yield tts


def test_the_order_of_deadlines() -> None:
    whole, stream, dry = Playback.of(0.0, True), Playback.of(0.0, False), Playback.of(0.0, False)
    stream.add(5.0, 1.0)
    dry.add(0.5, 1.0)
    new = Playback.of(1.45, False)
    assert sorted([whole, stream, dry, new], key=lambda one: one.due) == [dry, new, whole, stream]
    assert stream.due == 6.0 and dry.due == 1.5


def test_a_listener_who_ran_dry_plays_new_audio_at_once() -> None:
    stream = Playback.of(0.0, False)
    stream.add(0.5, 1.0)
    stream.add(0.5, 4.0)
    assert stream.due == 4.5


def test_a_whole_request_is_due_a_fixed_time_after_its_last_turn() -> None:
    whole = Playback.of(0.0, True)
    whole.add(100.0, 1.0)
    assert whole.due == WHOLE_SECONDS < Playback.of(WHOLE_SECONDS, False).due
    whole.take_turn(7.0)
    assert whole.due == 7.0 + WHOLE_SECONDS > 7.0 + FIRST_CHUNK_SECONDS


def test_the_sequence_that_is_due_first_takes_the_row() -> None:
    none = np.zeros(0, np.int64)
    scheduler = Scheduler(1)
    sequences = [
        scheduler.add(Sequence(none, none, np.zeros((1, 1, 2), np.float32), LONG, playback=Playback(due)))
        for due in (3.0, 1.0, 2.0, 1.0)
    ]
    order = []
    while scheduler.waiting:
        chosen = scheduler.next_prefill()
        assert chosen
        order.append(sequences.index(chosen))
        chosen.cancel()
        scheduler.retire()
    assert order == [1, 3, 2, 0]


def test_a_first_chunk_goes_before_a_stream_with_slack(two: Valle2, voice: Prompt) -> None:
    """A stream with audio in hand and a whole request wait while a new stream makes its first chunk."""
    engine, order = two.engine, list[int]()
    advance = engine.advance

    def noted(state: SynthesisState) -> None:
        if state.wait_for is WaitFor.TURN:
            order.append(state.id)
        advance(state)

    engine.advance = noted  # type: ignore[method-assign]
    old = engine.add(two.encode(Request("hello there", voice, LONG), 0.2))
    events: list[Event] = []
    while not any(isinstance(event, AudioChunk) and len(event.audio) for event in events):
        events = engine.step()
    state = next(state for state in engine.requests if state.id == old)
    state.playback.due += 60.0
    whole = engine.add(two.encode(Request("hello there", voice, replace(LONG, max_frames=8))))
    all_codebooks = replace(LONG, first_chunk_codebooks=8)
    new = engine.add(two.encode(Request("hello there", voice, all_codebooks), 0.2))
    order.clear()
    while not any(isinstance(event, AudioChunk) and event.request == new for event in events):
        events = engine.step()
    assert order == [new] * 8, "another request had a turn before the new one's first chunk"
    assert {old, whole} & {state.id for state in engine.requests}


@pytest.mark.parametrize(
    ("wait_for", "due", "whole", "called"),
    [
        (WaitFor.STEP, 1.0, False, False),
        (WaitFor.STEP, 3.0, False, True),
        (WaitFor.STEP, 1.0, True, True),
        (WaitFor.ROW, 1.0, False, True),
    ],
)
def test_a_call_waits_for_the_steps_of_a_listener_who_is_due_before(
    two: Valle2, voice: Prompt, wait_for: WaitFor, due: float, whole: bool, called: bool
) -> None:
    """A NAR pass between two AR steps would keep the listener waiting; steps for nobody keep no call."""
    engine, turns = two.engine, list[int]()
    for _ in range(2):
        engine.add(two.encode(Request("hello there", voice, LONG), 0.2))
    decoding, ready = engine.requests
    decoding.wait_for, decoding.playback = wait_for, Playback(due, whole)
    ready.wait_for, ready.playback, ready.call = WaitFor.TURN, Playback(2.0), NoCall()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "advance", lambda state: turns.append(state.id))
        engine.advance_requests()
    assert (ready.id in turns) is called
    for state in list(engine.requests):
        engine.cancel(state.id)


def test_a_request_without_a_row_waits_for_one(two: Valle2, voice: Prompt) -> None:
    engine = two.engine
    for _ in range(3):
        engine.add(two.encode(Request("hello there", voice, LONG), 0.2))
    for _ in range(3):
        engine.step()
    assert [state.wait_for for state in engine.requests] == [WaitFor.STEP, WaitFor.STEP, WaitFor.ROW]


def test_the_order_changes_no_codes(two: Valle2, voice: Prompt) -> None:
    requests = [Request("hello there. the fox", voice, replace(LONG, seed=seed)) for seed in range(4)]
    alone = [two.synthesize(request.text, voice, request.settings).codes for request in requests]
    ids = [two.engine.add(two.encode(one, 0.2 * (seed % 2))) for seed, one in enumerate(requests)]
    events: list[Event] = []
    while two.engine.busy:
        events += two.engine.step()
    for identifier, codes in list(zip(ids, alone, strict=True))[::2]:
        own = [
            event.codes for event in events if isinstance(event, AudioChunk) and event.request == identifier
        ]
        assert np.array_equal(np.concatenate(own), codes)

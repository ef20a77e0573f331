"""Many requests at once and audio before the end: same codes as alone, slots freed, errors kept apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from valle2.runtime import Prompt, Request, Settings, Speech, Valle2
from valle2.runtime.audio import chunks as streaming
from valle2.runtime.audio.chunks import OverlapDecoder, chunk_sizes
from valle2.runtime.audio.io import faded
from valle2.runtime.errors import PromptError, SettingsError
from valle2.runtime.generation.engine import SynthesisState, WaitFor
from valle2.runtime.generation.sequence import Sequence

SHORT = Settings(top_p=0.5, max_frames=40)


@pytest.fixture(scope="module")
def three(bundle: Path) -> Valle2:
    """The toy model with three slots, prefilled in several chunks."""
    tts = Valle2.load(bundle, slots=3)
    tts.model.ar.chunk = 16
    return tts


def requests(voice: Prompt) -> list[Request]:
    """More than there are slots, of different texts, lengths, samplings and candidates."""
    texts = ("hello", "the fox. a apple!", "hello there fox", "apple", "the the fox", "there. hello")
    return [
        Request(
            text,
            voice,
            Settings(
                top_p=0.3 + 0.1 * seed,
                seed=seed,
                max_frames=16 + 9 * seed,
                candidates=1 + seed % 3,
                window=5 + seed,
            ),
        )
        for seed, text in enumerate(texts)
    ]


def test_many_at_once_are_each_as_if_alone(three: Valle2, voice: Prompt) -> None:
    together = three.synthesize_batch(requests(voice))
    for request, speech in zip(requests(voice), together, strict=True):
        alone = three.synthesize(request.text, request.prompt, request.settings)
        assert np.array_equal(speech.codes, alone.codes) and speech.finish_reason == alone.finish_reason
        assert np.allclose(speech.audio, alone.audio, atol=1e-5)
    assert three.engine.scheduler.active == 0 and not three.engine.scheduler.waiting


def test_steps_are_shared(three: Valle2, voice: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    slots = three.model.ar
    step = slots.step

    def counting(count: int, idle: tuple[int, ...] = ()) -> None:
        counted.append(count)
        step(count, idle)

    monkeypatch.setattr(slots, "step", counting)
    fixed = replace(SHORT, top_p=1.0, threshold=1.0, max_frames=20)
    speeches = three.synthesize_batch([Request("hello", voice, replace(fixed, seed=i)) for i in range(3)])
    assert max(counted) == 3
    assert len(counted) < sum(speech.timings.steps for speech in speeches)


def test_streams_beside_each_other_are_each_as_if_alone(three: Valle2, voice: Prompt) -> None:
    alone = [
        list(three.stream("hello there", voice, replace(SHORT, seed=i), first_chunk_seconds=0.1))
        for i in (1, 2)
    ]
    streams = [
        three.stream("hello there", voice, replace(SHORT, seed=i), first_chunk_seconds=0.1) for i in (1, 2)
    ]
    beside: list[list[np.ndarray]] = [[], []]
    for _ in range(20):
        for pieces, stream in zip(beside, streams, strict=True):
            pieces.extend(piece for piece in [next(stream, None)] if piece is not None)
    for one, other in zip(alone, beside, strict=True):
        assert np.allclose(np.concatenate(one), np.concatenate(other), atol=1e-5)


def test_a_stream_begins_before_the_decode_ends(three: Valle2, voice: Prompt) -> None:
    settings = Settings(top_p=1.0, threshold=1.0, max_frames=200, seed=4)
    whole = three.synthesize("hello there", voice, settings)
    assert len(whole.codes) > 60, "the toy model ended too early for this test"
    stream = three.stream("hello there", voice, settings, first_chunk_seconds=0.2)
    first = next(stream)
    assert three.engine.scheduler.active == 1, "the first chunk came only after the end"
    rest = np.concatenate([first, *stream])
    assert len(rest) == len(whole.audio)


def test_a_closed_stream_frees_its_row(three: Valle2, voice: Prompt) -> None:
    stream = three.stream("hello there", voice, replace(SHORT, max_frames=200), first_chunk_seconds=0.1)
    next(stream)
    stream.close()
    assert three.engine.scheduler.active == 0 and not three.engine.scheduler.waiting


def test_an_error_of_one_request_is_not_anothers(three: Valle2, voice: Prompt) -> None:
    stream = three.stream("hello there", voice, SHORT, first_chunk_seconds=0.1)
    pieces = [next(stream)]
    long = replace(voice, codes=np.zeros((1023, 8), np.int64))
    with pytest.raises(PromptError):
        three.synthesize("hello", long, SHORT)
    pieces += list(stream)
    assert np.allclose(
        np.concatenate(pieces),
        np.concatenate(list(three.stream("hello there", voice, SHORT, first_chunk_seconds=0.1))),
    )


def test_a_failing_graph_ends_all_and_the_model_stays_usable(three: Valle2, voice: Prompt) -> None:
    slots = three.model.ar
    before = three.synthesize("hello", voice, SHORT)

    def broken(count: int, idle: tuple[int, ...] = ()) -> None:
        raise RuntimeError("device lost")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="device lost"):
        patch.setattr(slots, "step", broken)
        three.synthesize("hello", voice, SHORT)
    again = three.synthesize("hello", voice, SHORT)
    assert isinstance(again, Speech) and np.array_equal(again.codes, before.codes)


def test_a_prefill_that_fails_is_one_requests_error(three: Valle2, voice: Prompt) -> None:
    runner = three.model.ar
    wanted = np.concatenate(list(three.stream("hello there", voice, SHORT, first_chunk_seconds=0.1)))
    start, chunk = runner.start_prefill, runner.prefill_chunk
    started: list[int] = []
    chunks = 0

    def counted(row: int, sequence: Sequence) -> None:
        started.append(row)
        start(row, sequence)

    def second_fails(row: int) -> bool:
        nonlocal chunks
        if len(started) == 2:
            chunks += 1
            if chunks == 2:
                raise MemoryError("no room")
        return chunk(row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "start_prefill", counted)
        patch.setattr(runner, "prefill_chunk", second_fails)
        good = three.stream("hello there", voice, SHORT, first_chunk_seconds=0.1)
        bad = three.stream("hello", voice, SHORT, first_chunk_seconds=0.1)
        with pytest.raises(MemoryError, match="no room"):
            list(bad)
        np.testing.assert_allclose(np.concatenate(list(good)), wanted, atol=1e-6)
    assert not three.engine.scheduler.active and len(started) == 2


def test_requests_take_turns_with_the_nar_and_the_codec(three: Valle2, voice: Prompt) -> None:
    """Two requests that wait for their turn at the same time get it alternately."""
    order: list[int] = []
    engine = three.engine
    advance = engine.advance

    def noted(state: SynthesisState) -> None:
        if state.wait_for is WaitFor.TURN:
            order.append(state.id)
        advance(state)

    fixed = replace(SHORT, top_p=1.0, threshold=1.0, max_frames=8, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "advance", noted)
        three.synthesize_batch([Request("hello there", voice, fixed) for _ in range(2)])
    first, second = sorted(set(order))
    assert len(order) == 16  # seven passes and the codec, for each
    both = order[order.index(second) - 1 : len(order) - order[::-1].index(first)]
    assert both == [first, second] * (len(both) // 2) + [first] and len(both) > 8


def test_chunks_grow_to_a_limit() -> None:
    sizes = chunk_sizes(0.2, 75.0)
    assert [next(sizes) for _ in range(7)] == [15, 30, 60, 120, 240, 300, 300]
    assert next(chunk_sizes(0.0, 75.0)) == 0


@pytest.mark.parametrize("name", ["first_chunk_seconds", "latency"])
@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_seconds_out_of_range(three: Valle2, voice: Prompt, name: str, seconds: float) -> None:
    with pytest.raises(SettingsError, match="first_chunk_seconds is"):
        next(three.stream("hello", voice, SHORT, **{name: seconds}))  # type: ignore[arg-type]


def test_seams_with_enough_context_are_exactly_the_whole(
    three: Valle2, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = three.need_codec()
    codes = np.random.default_rng(0).integers(0, 1024, (160, 8))
    monkeypatch.setattr(streaming, "HELD_FRAMES", 14)
    seams, parts = OverlapDecoder(codec), np.split(codes, [20, 50, 90])
    pieces = [seams.add(part, last=index == 3) for index, part in enumerate(parts)]
    whole = faded(codec.decode(codes), codec.sample_rate)
    assert np.allclose(np.concatenate(pieces), whole, atol=1e-4)


def test_seams_as_shipped_are_near_the_whole(three: Valle2) -> None:
    codec = three.need_codec()
    codes = np.random.default_rng(1).integers(0, 1024, (160, 8))
    seams, parts = OverlapDecoder(codec), np.split(codes, [20, 50, 90])
    pieces = [seams.add(part, last=index == 3) for index, part in enumerate(parts)]
    whole = faded(codec.decode(codes), codec.sample_rate)
    joined = np.concatenate(pieces)
    assert len(joined) == len(whole)
    assert np.sum((joined - whole) ** 2) < 0.01 * np.sum(whole**2)

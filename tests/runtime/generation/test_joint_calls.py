"""Requests that share calls of the NAR and the codec: codes as alone, bounds, errors and cancellation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import toy_checkpoint, write_toy
from tests.engine.backends.fake import FakeBackend
from valle2.engine import BackendError, GraphSpec, Placement
from valle2.engine.backends.stateful import Stateful, run_together
from valle2.engine.bundle.specs import TensorSpec
from valle2.export import export_checkpoint
from valle2.runtime import Prompt, Request, Settings, Valle2
from valle2.runtime.generation.engine import AudioChunk, Done, Failed, SynthesisEngine
from valle2.runtime.generation.joint_calls import MOST_YIELDS, Call, JointCalls, JointLimits
from valle2.runtime.generation.nar_runner import NARState
from valle2.runtime.generation.playback import Playback
from valle2.runtime.types import Audio

FRAMES = (16, 14, 20, 9, 31, 8, 25, 12)
TEXTS = ("hello there", "a fox", "the apple the fox", "there")
EVERY = JointLimits(chunks=8, padding=0.9)
"""Limits within which all of these requests join."""
Rows = dict[str, list[int]]


@pytest.fixture(scope="module")
def eight(bundle: Path) -> Iterator[Valle2]:
    with Valle2.load(bundle, threads=1, slots=8, chunks_per_call=8) as model:
        yield model


def requests(tts: Valle2, count: int, **changes: Any) -> list[Request]:
    """Requests with texts, prompts and speech of different lengths."""
    settings = Settings(top_p=1.0, threshold=1.0)
    voice = tts.voice(tts.default_voice())
    return [
        Request(
            TEXTS[index % len(TEXTS)],
            replace(voice, codes=voice.codes[: 30 - 3 * index]),
            replace(settings, max_frames=FRAMES[index], seed=index, **changes),
        )
        for index in range(count)
    ]


def run(
    tts: Valle2,
    asked: Sequence[Request],
    seconds: float,
    limits: JointLimits,
    between: Callable[[SynthesisEngine], None] = lambda engine: None,
) -> tuple[list[Any], list[Audio], Rows]:
    """Codes or error and audio of each request, and how many rows each call of NAR and codec had."""
    engine, rows = tts.engine, Rows(nar=[], codec=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "joint_calls", JointCalls(limits))
        for name, backend in (("nar", tts.model.nar.backend), ("codec", tts.need_codec().decoder)):
            patch.setattr(backend, "run_checked", counting(backend.run_checked, rows[name]))
        ids = [engine.add(tts.encode(request, seconds)) for request in asked]
        events = []
        while engine.busy:
            events += engine.step()
            between(engine)
    codes: list[Any] = []
    audio = []
    for identifier in ids:
        own = [event for event in events if event.request == identifier]
        chunks = [event for event in own if isinstance(event, AudioChunk)]
        failed = [event.error for event in own if isinstance(event, Failed)]
        assert failed or isinstance(own[-1], Done)
        codes.append(failed[0] if failed else np.concatenate([chunk.codes for chunk in chunks]))
        audio.append(np.concatenate([chunk.audio for chunk in chunks]) if chunks else np.zeros(0, np.float32))
    return codes, audio, rows


def counting(call: Callable[..., Any], rows: list[int]) -> Callable[..., Any]:
    def counted(feeds: Mapping[str, Any], outputs: tuple[str, ...]) -> Any:
        rows.append(len(feeds["codes"]))
        return call(feeds, outputs)

    return counted


@pytest.fixture(scope="module")
def alone(eight: Valle2) -> Callable[[float], tuple[list[Any], list[Audio]]]:
    """By seconds of the first chunk, what each request gives by itself."""
    kept: dict[float, tuple[list[Any], list[Audio]]] = {}

    def made(seconds: float) -> tuple[list[Any], list[Audio]]:
        if seconds not in kept:
            codes, audio, rows = run(eight, requests(eight, 8), seconds, JointLimits())
            assert set(rows["nar"]) == set(rows["codec"]) == {1}
            kept[seconds] = codes, audio
        return kept[seconds]

    return made


@pytest.mark.parametrize("seconds", [0.0, 0.1])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_codes_and_audio_are_those_of_each_alone(
    eight: Valle2,
    alone: Callable[[float], tuple[list[Any], list[Audio]]],
    count: int,
    seconds: float,
) -> None:
    codes, audio, rows = run(eight, requests(eight, count), seconds, EVERY)
    wanted, heard = alone(seconds)
    for index in range(count):
        assert np.array_equal(codes[index], wanted[index]), index
        np.testing.assert_allclose(audio[index], heard[index], atol=1e-5)
    # the first request's work may be done before the second is ready for it
    assert max(rows["nar"]) > 1 or count < (4 if seconds else 2), "no call was shared"
    assert max(rows["codec"]) > 1 or count < 4 or not seconds, "no first chunks were decoded together"


def test_requests_with_different_codebooks_and_candidates(eight: Valle2) -> None:
    asked = requests(eight, 4)
    changes: list[dict[str, Any]] = [{"codebooks": 2}, {"candidates": 2}, {}, {"first_chunk_codebooks": 3}]
    asked = [
        replace(one, settings=replace(one.settings, **change))
        for one, change in zip(asked, changes, strict=True)
    ]
    wanted, _, _ = run(eight, asked, 0.1, JointLimits())
    codes, _, rows = run(eight, asked, 0.1, EVERY)
    assert all(np.array_equal(one, other) for one, other in zip(codes, wanted, strict=True))
    assert max(rows["nar"]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [1, 4, 8])
def test_group_sizes(group_size: int, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    folder = write_toy(tmp_path / "checkpoint", toy_checkpoint(group_size, 400))
    bundle = export_checkpoint(folder, tmp_path / "bundle")
    with Valle2.load(bundle, threads=1, slots=8, chunks_per_call=8) as tts:
        for seconds in (0.0, 0.1):
            wanted, _, _ = run(tts, requests(tts, 8), seconds, JointLimits())
            codes, _, rows = run(tts, requests(tts, 8), seconds, EVERY)
            assert all(np.array_equal(one, other) for one, other in zip(codes, wanted, strict=True))
            assert max(rows["nar"]) > 1


def test_a_request_that_is_cancelled_between_two_passes_leaves_the_others(
    eight: Valle2, alone: Callable[[float], tuple[list[Any], list[Audio]]]
) -> None:
    left: list[int] = []

    def cancel(engine: SynthesisEngine) -> None:
        """Cancel the second request once three codebooks are there."""
        for state in engine.requests:
            if not left and state.request.settings.seed == 1 and getattr(state.call, "codebook", 0) == 4:
                left.append(state.id)
                engine.cancel(state.id)

    asked = requests(eight, 4)
    engine, calls = eight.engine, JointCalls(EVERY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "joint_calls", calls)
        ids = [engine.add(eight.encode(request)) for request in asked]
        events = []
        while engine.busy:
            events += engine.step()
            cancel(engine)
    assert left == [ids[1]] and not [event for event in events if event.request == ids[1]]
    assert not engine.scheduler.active
    for index in (0, 2, 3):
        own = [
            event.codes for event in events if isinstance(event, AudioChunk) and event.request == ids[index]
        ]
        assert np.array_equal(np.concatenate(own), alone(0.0)[0][index])


def test_an_error_of_one_row_is_its_own(
    eight: Valle2, alone: Callable[[float], tuple[list[Any], list[Audio]]], caplog: pytest.LogCaptureFixture
) -> None:
    backend = eight.model.nar.backend
    call, broken = backend.run_checked, FRAMES[1]

    def fails(feeds: Mapping[str, Any], outputs: tuple[str, ...]) -> Any:
        lengths = feeds["frame_lengths"] - feeds["prompt_lengths"]
        if broken in lengths.tolist() and int(feeds["stage"]) == 3:
            raise BackendError("no memory")
        return call(feeds, outputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "run_checked", fails)
        codes, _, _ = run(eight, requests(eight, 4), 0.0, EVERY)
    assert isinstance(codes[1], BackendError) and str(codes[1]) == "no memory"
    assert all(np.array_equal(codes[index], alone(0.0)[0][index]) for index in (0, 2, 3))
    assert "a nar call of" in caplog.text and not eight.engine.scheduler.active


def test_joint_calls_that_fail_run_alone_and_get_smaller(
    eight: Valle2, alone: Callable[[float], tuple[list[Any], list[Audio]]]
) -> None:
    backend, calls = eight.model.nar.backend, JointCalls(EVERY)
    call, sizes = backend.run_checked, list[int]()

    def fails(feeds: Mapping[str, Any], outputs: tuple[str, ...]) -> Any:
        sizes.append(len(feeds["codes"]))
        if sizes[-1] > 2:
            raise BackendError("no memory for so many")
        return call(feeds, outputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "run_checked", fails)
        patch.setattr("tests.runtime.generation.test_joint_calls.JointCalls", lambda limits: calls)
        codes, _, _ = run(eight, requests(eight, 8), 0.0, EVERY)
    assert all(np.array_equal(one, other) for one, other in zip(codes, alone(0.0)[0], strict=True))
    assert calls.limits.chunks <= 2 and sum(size > 2 for size in sizes) <= 3


class Waiting(Call):
    """A call that is only chosen."""

    stage = "nar"

    def __init__(self, lengths: tuple[int, ...], key: Hashable = 1, order: int = 0) -> None:
        super().__init__()
        self.given, self.order = (lengths, key), order

    @property
    def key(self) -> Hashable:
        return self.given[1]

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.given[0]

    def run(self, others: Sequence[Any]) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("lengths", "urgent", "chosen"),
    [
        ([(10, 100)] * 4, "....", [0, 1, 2]),  # three rows at most
        ([(10, 100), (10, 40), (10, 80)], "...", [0, 2]),  # too much padding with the second
        ([(10, 300), (10, 300), (10, 300)], "...", [0, 1, 2]),
        ([(10, 300), (10, 300), (10, 300)], "!..", [0]),  # a first chunk stays short
        ([(10, 300), (10, 300), (10, 300)], ".!.", [0, 2]),  # and so does one that would join
        ([(10, 600), (10, 600), (10, 5)], "...", [0]),  # too many positions together
        ([(0,), (0,)], "..", [0, 1]),
    ],
)
def test_bounds(lengths: list[tuple[int, ...]], urgent: str, chosen: list[int]) -> None:
    calls = JointCalls(JointLimits(3, 1000, 500, 0.25))
    waiting = [Waiting(one) for one in lengths]
    playbacks = [Playback(whole=sign == ".") for sign in urgent]
    assert calls.choose(waiting, playbacks) == chosen


def test_calls_of_other_keys_do_not_join() -> None:
    calls = [Waiting((5, 5), key) for key in (1, 2, 1, 2)]
    playbacks = [Playback()] * 4
    assert JointCalls(JointLimits(4)).choose(calls, playbacks) == [0, 2]
    assert JointCalls(JointLimits()).choose(calls, playbacks) == [0]


def test_whole_requests_catch_up_with_the_one_that_is_due() -> None:
    """One at an earlier codebook goes first, unless the one that is due is heard or has waited often."""
    limits = JointLimits(4)
    calls = [Waiting((9, 90), order, order) for order in (5, 5, 2, 3, 2)]
    whole = [Playback(due=10.0 + index, whole=True) for index in range(5)]
    assert JointCalls(limits).choose(calls, whole) == [2, 4]
    assert calls[0].yielded == 1
    calls[0].yielded = MOST_YIELDS
    assert JointCalls(limits).choose(calls, whole) == [0, 1], "it has yielded long enough"
    calls[0].yielded = 0
    assert JointCalls(JointLimits(2)).choose(calls, whole) == [0, 1], "more than can join"
    assert JointCalls(JointLimits()).choose(calls, whole) == [0]
    heard = [Playback(due=10.0 + index) for index in range(5)]
    assert JointCalls(limits).choose(calls, heard) == [0, 1]
    calls[2] = calls[4] = Waiting((9, 10), 2, 2)
    assert JointCalls(JointLimits(5)).choose(calls, whole) == [3]


def test_the_request_that_is_due_first_is_in_every_call(eight: Valle2) -> None:
    """First chunks go first: others only join them."""
    engine, order = eight.engine, list[bool]()
    run_calls = JointCalls.run

    def noted(self: JointCalls, calls: Sequence[Call]) -> None:
        waiting = [state for state in engine.requests if state.call and not state.call.seconds]
        first = min(waiting, key=lambda state: state.playback.due)
        order.append(first.call is calls[0])
        run_calls(self, calls)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JointCalls, "run", noted)
        run(eight, requests(eight, 8), 0.1, EVERY)
    assert order and all(order)


def test_the_setting_of_the_placement() -> None:
    assert Placement().joint_chunks(8) == Placement("cuda", "ort-tensorrt").joint_chunks(8) == 1
    assert Placement("cuda").joint_chunks(64) == Placement("cuda", "tensorrt").joint_chunks(64) == 8
    assert Placement("cuda", "tensorrt").joint_chunks(2) == 2, "an engine is built for as many rows as slots"
    assert Placement(chunks_per_call=4).joint_chunks(8) == 4
    assert Placement("cuda", chunks_per_call=1).joint_chunks(8) == 1
    with pytest.raises(BackendError, match="chunks_per_call is -1; expected 0"):
        Placement(chunks_per_call=-1)


def test_a_cpu_joins_nothing_by_itself(tts: Valle2) -> None:
    assert tts.model.joint_limits == JointLimits()


def test_sequences_with_a_state_share_a_call() -> None:
    """The state of each sequence stays its own: here it is the sum of what it was given."""
    state = TensorSpec("state_0", "float32", ("batch", 1))
    spec = GraphSpec(
        "codec_stream.onnx",
        (
            TensorSpec("codes", "int64", ("batch", "frames")),
            TensorSpec("started", "bool", ()),
            state,
        ),
        (TensorSpec("audio", "float32", (0, 0)), TensorSpec("state_0_out", "float32", (0, 0))),
    )

    def sums(feeds: Mapping[str, Any]) -> dict[str, Any]:
        total = feeds["state_0"] + feeds["codes"].sum(axis=1, keepdims=True).astype(np.float32)
        return {"audio": total + np.zeros_like(feeds["codes"], np.float32), "state_0_out": total}

    backend = FakeBackend(spec, sums)
    one, other = Stateful(backend), Stateful(backend)
    for step in range(1, 4):
        found = run_together([one, other], {"codes": np.array([[step, 0], [10 * step, step]])})
        assert found.keys() == {"audio"} and found["audio"].shape == (2, 2)
    assert (one.states["state_0"].item(), other.states["state_0"].item()) == (6.0, 66.0)
    assert one.started and other.started


def test_padding_is_zeros_and_nothing_of_it_comes_back(eight: Valle2, voice: Prompt) -> None:
    nar = eight.model.nar
    states = [
        nar.start(np.arange(1, 4 + index), voice.codes[: 9 - index], np.arange(length))
        for index, length in enumerate((3, 11, 6))
    ]
    alone = [NARState(one.text, one.codes.copy(), one.prompt_length, one.codebooks) for one in states]
    for codebook in range(1, 8):
        nar.run(states, codebook)
        for one in alone:
            nar.run([one], codebook)
    for together, single in zip(states, alone, strict=True):
        assert np.array_equal(together.codes, single.codes)

"""Codes that are read once for several AR steps: the same speech as when each step is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.runtime.generation.test_prefill import Arrays, Machine, some_row
from valle2.engine import BackendError, Placement
from valle2.engine.bundle.contract import EOS_CODE
from valle2.runtime import Prompt, Request, Settings, Speech, Valle2
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.repetition import LoopDetector
from valle2.runtime.generation.sampling import uniforms
from valle2.runtime.generation.sequence import Sequence
from valle2.runtime.types import EOS

TEXT, PLAIN = "hello there", Settings(top_p=1.0, threshold=1.0, loop_frames=0)
SEEDS = range(6)
AT_ONCE = (2, 4)
LIMIT = 24
Load = Callable[[int], Valle2]


@pytest.fixture(scope="module")
def load(bundle: Path) -> Iterator[Load]:
    """Steps at once -> the toy model with four rows."""
    opened: dict[int, Valle2] = {}

    def loaded(steps: int) -> Valle2:
        if steps not in opened:
            opened[steps] = Valle2.load(bundle, threads=1, slots=4, steps_per_read=steps)
        return opened[steps]

    yield loaded
    for tts in opened.values():
        tts.close()


def requests(voice: Prompt) -> list[Request]:
    """Speech that ends by itself, at its limit, by a loop, later than drawn, and the best of several."""
    made = [Request(TEXT, voice, replace(PLAIN, seed=seed, max_frames=100)) for seed in SEEDS]
    changes: list[dict[str, Any]] = [
        {"max_frames": 0, "min_frames": 60},
        {"max_frames": 17},
        {"min_frames": 31, "max_frames": 33},
        {"max_frames": 0, "loop_frames": 20, "top_p": 0.0, "retries": 0},
        {"max_frames": 40, "candidates": 3},
        {"max_frames": 1},
    ]
    return made + [
        replace(made[0], settings=replace(PLAIN, seed=100 + index, **change))
        for index, change in enumerate(changes)
    ]


@pytest.fixture(scope="module")
def expected(load: Load, voice: Prompt) -> list[Speech]:
    return spoken(load(1), requests(voice))


def spoken(tts: Valle2, asked: list[Request]) -> list[Speech]:
    """The requests side by side, so that their ends fall on every step of a read."""
    return list(tts.synthesize_batch(asked))


def same(found: Speech, wanted: Speech) -> bool:
    timings = found.timings.steps == wanted.timings.steps and found.timings.retries == wanted.timings.retries
    return (
        np.array_equal(found.codes, wanted.codes) and found.finish_reason == wanted.finish_reason and timings
    )


@pytest.mark.parametrize("steps", AT_ONCE)
def test_speech_is_the_same(load: Load, voice: Prompt, expected: list[Speech], steps: int) -> None:
    tts, numbers, run = load(steps), list[int](), ARRunner.steps

    def counted(self: ARRunner, number: int, *args: Any) -> Any:
        numbers.append(number)
        return run(self, number, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ARRunner, "steps", counted)
        found = spoken(tts, requests(voice))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert max(numbers) == steps, "no read was of several steps"


@dataclass
class Ending(Machine):
    """A machine that draws `<eos>` at steps which depend on the row's tokens alone.

    backs: how many steps came after each that was drawn again.
    """

    backs: list[int] = field(default_factory=list)

    def graph(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        found = super().graph(feeds)
        for group in found["codes_out"][:, 0]:
            if group.sum() // 7 % 5 == 0:
                group[group[0] % len(group)] = EOS_CODE
        return found

    def speak(self, settings: Settings, least: int) -> list[Sequence]:
        """Ragged rows, more than the machine has places for."""
        redraw = self.runner.redraw

        def noted(*args: Any, back: int = 0, **more: Any) -> Any:
            self.backs.append(back)
            return redraw(*args, back=back, **more)

        vars(self.runner).update(redraw=noted)
        rows = [some_row(3 + 5 * i, 2 * i, self.group, i, settings) for i in range(8)]
        draws = [uniforms(i, 0, LIMIT, self.group) for i in range(8)]
        made = [
            replace(row, uniforms=draws[i], min_frames=least, loop=LoopDetector(30))
            for i, row in enumerate(rows)
        ]
        found = [self.submit(row, LIMIT - i) for i, row in enumerate(made)]
        self.finish(*found)
        assert not [row.error for row in found if row.error]
        return found


@pytest.mark.parametrize("at_once", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("groups", [0, 3, 40])
def test_rows_end_where_they_end(group: int, at_once: int, groups: int) -> None:
    """At `<eos>` in any step, at their limits, in loops; with ends that are drawn again."""
    settings, least = Settings(top_p=0.9, threshold=1.0), groups * group + groups // 2
    machine, wanted = Ending(group, at_once=at_once), Ending(group).speak(settings, least)
    for one, other in zip(machine.speak(settings, least), wanted, strict=True):
        assert one.codes == other.codes and one.finish_reason == other.finish_reason
        assert one.steps == other.steps and one.log_prob == other.log_prob
        assert one.finish_reason != EOS or len(one.codes) >= least
    assert machine.scheduler.active == 0
    if groups == 40:
        assert {0, at_once - 1} <= set(machine.backs) and len(set(machine.backs)) >= at_once - 1


@pytest.mark.parametrize("steps", [4])
def test_each_alone_and_as_a_stream(load: Load, voice: Prompt, expected: list[Speech], steps: int) -> None:
    tts, every = load(steps), requests(voice)
    for index in (0, 5, len(every) - 6, len(every) - 5, len(every) - 4):
        assert same(tts.synthesize(TEXT, voice, every[index].settings), expected[index])
        stream = tts.stream(TEXT, voice, every[index].settings, first_chunk_seconds=0.1)
        alone = load(1).stream(TEXT, voice, every[index].settings, first_chunk_seconds=0.1)
        for one, other in zip(stream, alone, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_request_that_is_cancelled_frees_its_row(load: Load, voice: Prompt) -> None:
    engine = load(4).engine
    ids = [engine.add(load(4).encode(request)) for request in requests(voice)[:6]]
    for _ in range(8):
        engine.step()
    engine.cancel(ids[1])
    while engine.busy:
        engine.step()
    assert not engine.scheduler.active


def test_one_step_is_read_while_there_is_other_work(load: Load, voice: Prompt) -> None:
    """A prefill or a call of the NAR does not wait for several steps."""
    tts, seen = load(4), list[tuple[int, bool]]()
    engine, run = tts.engine, ARRunner.steps

    def noted(self: ARRunner, number: int, *args: Any) -> Any:
        busy = any(state.call for state in engine.requests) or engine.scheduler.prefills
        seen.append((number, busy))
        return run(self, number, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ARRunner, "steps", noted)
        tts.synthesize_batch(requests(voice)[:8])
    assert {number for number, busy in seen if busy} == {1}
    assert max(number for number, busy in seen if not busy) > 1


@pytest.mark.parametrize("steps", [0, -1, 17])
def test_numbers_out_of_range(steps: int) -> None:
    with pytest.raises(BackendError, match=f"steps_per_read is {steps}; expected 1 to 16"):
        Placement(steps_per_read=steps)

"""A sequence that repeats itself is cut off and made again; speech and its pauses are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from valle2.engine.bundle.contract import EOS_CODE
from valle2.runtime import Prompt, Request, Speech, Valle2
from valle2.runtime.cli.main import main
from valle2.runtime.errors import SettingsError
from valle2.runtime.generation.repetition import RECENT, LoopDetector
from valle2.runtime.generation.sequence import Sequence, Status
from valle2.runtime.types import CUT_OFF, EOS, MAX_FRAMES, REPETITION, Settings, worst_reason

TEXT = "hello there"
LOOPING = Settings(top_p=0.6, threshold=1.0, loop_frames=1, retries=0)
"""The toy model has no code that is new for long."""


@pytest.mark.parametrize("period", [1, 2, 7, RECENT])
def test_a_loop_is_found_after_its_limit(period: int) -> None:
    detector = LoopDetector(150)
    found = [detector.add(code % period) for code in range(400)]
    assert found.index(True) == period + 149 and all(found[period + 149 :])


def test_a_loop_may_begin_late_and_hold_a_code_twice() -> None:
    detector = LoopDetector(20)
    assert not any(detector.add(code) for code in range(500))
    assert [detector.add(code) for code in [7, 7, 8] * 8].index(True) == 2 + 20


def test_new_codes_are_no_loop() -> None:
    detector = LoopDetector(2)
    assert not any(detector.add(n % (RECENT + 1)) for n in range(1000))
    detector, held = LoopDetector(2), [code for code in range(300) for _ in range(2)]
    assert not any(detector.add(code) for code in held), "every code is held for two frames"


def test_the_memory_of_the_detector_is_fixed() -> None:
    detector, rng = LoopDetector(10**6), np.random.default_rng(0)
    size = detector.last.buffer_info()
    for code in rng.integers(0, EOS_CODE, 20_000).tolist():
        detector.add(code)
    assert detector.last.buffer_info() == size


def test_the_reason_of_a_sequence() -> None:
    def ended(*groups: list[int], limit: int = 9) -> tuple[str, list[int]]:
        row = Sequence(
            np.ones(1, np.int64), np.ones(0, np.int64), np.zeros((limit, 2, 2), np.float32), Settings()
        )
        row.loop = LoopDetector(2)
        for group in groups:
            row.append(group, [0.0, 0.0])
        return (row.finish_reason if row.status is Status.DONE else "", row.codes)

    assert ended([1, 1]) == ("", [1, 1])
    assert ended([1, 1], [1, 2]) == (REPETITION, [1, 1, 1, 2])
    assert ended([1, 1], [1, EOS_CODE]) == (EOS, [1, 1, 1])
    assert ended([1, 2], [3, 4], limit=2) == (MAX_FRAMES, [1, 2, 3, 4])


def test_the_worst_reason_counts() -> None:
    assert worst_reason([]) == worst_reason([EOS]) == EOS
    assert worst_reason([EOS, MAX_FRAMES]) == MAX_FRAMES
    assert worst_reason([REPETITION, MAX_FRAMES, EOS]) == REPETITION


def seed_whose_retry(tts: Valle2, voice: Prompt, settings: Settings, reason: str) -> tuple[Settings, Speech]:
    """Settings whose first attempt repeats itself and whose second ends for this reason; and its speech."""
    for seed in range(40):
        tried = replace(settings, seed=seed, retries=1)
        first = tts.synthesize(TEXT, voice, replace(tried, retries=0))
        second = tts.synthesize(TEXT, voice, tried)
        if first.finish_reason == REPETITION and second.finish_reason == reason:
            assert (first.timings.retries, second.timings.retries) == (0, 1)
            return tried, second
    raise AssertionError("no such seed")


def test_a_loop_is_cut_off_and_made_again(tts: Valle2, voice: Prompt) -> None:
    cut = tts.synthesize(TEXT, voice, LOOPING)
    assert cut.finish_reason == REPETITION and 1 < len(cut.codes) < 150
    settings, made = seed_whose_retry(tts, voice, replace(LOOPING, max_frames=6), MAX_FRAMES)
    assert len(made.codes) == 6
    other = Request(TEXT, voice, Settings(top_p=0.9, max_frames=30, seed=1))
    together = tts.synthesize_batch([other, Request(TEXT, voice, settings), other])[1]
    assert np.array_equal(together.codes, made.codes) and together.timings.retries == 1
    with tts.stream(TEXT, voice, settings, first_chunk_seconds=0.0) as stream:
        whole = [*stream]
    assert np.array_equal(np.concatenate(whole), made.audio)


def test_attempts_are_bounded_and_the_first_is_kept(tts: Valle2, voice: Prompt) -> None:
    first = tts.synthesize(TEXT, voice, LOOPING)
    found = tts.synthesize(TEXT, voice, replace(LOOPING, retries=3))
    assert found.timings.retries == 3 and found.finish_reason == REPETITION
    assert np.array_equal(found.codes, first.codes)
    assert not tts.engine.busy and tts.engine.stats().waiting == 0


def test_a_stream_that_has_sent_audio_is_not_made_again(tts: Valle2, voice: Prompt) -> None:
    settings = replace(LOOPING, retries=3)
    alone = tts.synthesize(TEXT, voice, replace(settings, retries=0))
    assert alone.finish_reason == REPETITION
    with tts.stream(TEXT, voice, settings, first_chunk_seconds=0.06) as stream:
        for _ in stream:
            pass
        speech = stream.speech()
    assert speech.timings.retries == 0 and speech.finish_reason == REPETITION
    assert np.array_equal(speech.codes[:, 0], alone.codes[:, 0])


def test_a_length_that_the_user_has_set_is_no_failure(tts: Valle2, voice: Prompt) -> None:
    found = tts.synthesize(TEXT, voice, Settings(top_p=1.0, threshold=1.0, max_frames=12, seed=4, retries=3))
    assert (found.finish_reason, found.timings.retries) == (MAX_FRAMES, 0)


def test_the_detector_can_be_switched_off(tts: Valle2, voice: Prompt) -> None:
    found = tts.synthesize(TEXT, voice, replace(LOOPING, loop_frames=0, max_frames=40))
    assert found.finish_reason in (EOS, MAX_FRAMES)


def test_a_given_seed_is_not_retried_unless_asked() -> None:
    assert Settings().attempts == 4 and Settings(seed=5).attempts == 1 and Settings(retries=0).attempts == 1
    assert Settings(seed=5, retries=3).attempts == 4
    defaults = Settings()
    assert defaults.with_given({"seed": 0}).attempts == 1
    assert defaults.with_given({"seed": None}).attempts == 4
    assert defaults.with_given({"seed": 3, "retries": 2}).attempts == 3
    assert replace(defaults, retries=4).with_given({"seed": 3}).attempts == 5, "the model's own retries stay"


@pytest.mark.parametrize(
    "given", [{"retries": -2}, {"retries": 9}, {"retries": 0.5}, {"loop_frames": -1}, {"loop_frames": True}]
)
def test_settings_out_of_range(given: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(given))):
        Settings(**given)


def test_say_warns_and_counts(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["-o", str(tmp_path / "o.wav"), "--model", str(bundle), "--threads", "1", "--json"]
    rule = ["--top-p", "0.6", "--threshold", "1", "--loop-frames", "1"]
    assert main(["say", TEXT, *out, *rule, "--retries", "2"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result["finish_reason"] == REPETITION and result["retries"] == 2
    assert CUT_OFF[REPETITION] in told.err
    assert main(["say", TEXT, *out, *rule, "--seed", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["retries"] == 0
